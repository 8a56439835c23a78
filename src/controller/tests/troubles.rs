//! What a pod waits for: the cluster's words in, a sentence that can be acted on out.

use super::*;
use crate::controller::trouble::{ClaimView, Sighting};
use crate::names::reasons;

fn sighting(reason: &str, message: &str) -> Sighting {
    Sighting {
        reason: reason.to_owned(),
        message: message.to_owned(),
    }
}

fn told(state: &Observed) -> (String, String) {
    let plan = decide(state, 3);
    let status = plan.status.expect("it is said at once");
    (status.reason.unwrap(), status.message.unwrap())
}

fn unmounted(spec: Value, event: &str) -> (String, String) {
    let run = attempted(json!({"spec": spec}));
    let pod = pod(
        1,
        json!({"phase": "Pending", "conditions": conditions(false)}),
    );
    let state = Observed {
        sightings: vec![sighting("FailedMount", event)],
        ..with_pod(run, pod)
    };
    told(&state)
}

#[test]
fn a_missing_secret_is_named() {
    for event in [
        "MountVolume.SetUp failed for volume \"model\" : secret \"anthropic\" not found",
        "MountVolume.SetUp failed for volume \"model\" : [secret \"anthropic\" not found, failed to sync]",
    ] {
        let (reason, message) = unmounted(json!({}), event);
        assert_eq!(reason, reasons::MISSING_SECRET);
        assert!(
            message.contains("Secret anthropic is not in namespace runs"),
            "{message}"
        );
        assert!(message.contains("ANTHROPIC_API_KEY"), "{message}");
    }
    let repository =
        json!({"repository": {"url": "https://git.example.com/a", "secretName": "git-login"}});
    let event = "MountVolume.SetUp failed for volume \"git\" : secret \"git-login\" not found";
    let (_, message) = unmounted(repository, event);
    assert!(
        message.contains("git-login") && message.contains("password"),
        "{message}"
    );
}

#[test]
fn a_missing_key_is_named() {
    let event = "MountVolume.SetUp failed for volume \"model\" : references non-existent secret key: ANTHROPIC_API_KEY";
    let (reason, message) = unmounted(json!({}), event);
    assert_eq!(reason, reasons::MISSING_SECRET);
    assert!(
        message.contains("anthropic") && message.contains("no key ANTHROPIC_API_KEY"),
        "{message}"
    );
}

#[test]
fn a_missing_config_map_and_its_key_are_named() {
    let spec =
        json!({"task": null, "taskFrom": {"configMapKeyRef": {"name": "tasks", "key": "long.md"}}});
    let (reason, message) = unmounted(
        spec.clone(),
        "MountVolume.SetUp failed for volume \"task\" : configmap \"tasks\" not found",
    );
    assert_eq!(reason, reasons::MISSING_CONFIG_MAP);
    assert!(
        message.contains("tasks") && message.contains("long.md"),
        "{message}"
    );
    let (reason, message) = unmounted(
        spec,
        "MountVolume.SetUp failed for volume \"task\" : configmap references non-existent config key: long.md",
    );
    assert_eq!(reason, reasons::MISSING_CONFIG_MAP);
    assert!(message.contains("has no key long.md"), "{message}");
}

#[test]
fn trouble_that_has_passed_is_cleared() {
    let run = attempted(json!({}));
    let waiting = pod(
        1,
        json!({"phase": "Pending", "conditions": conditions(false)}),
    );
    let event = sighting("FailedMount", "… : secret \"anthropic\" not found");
    let state = Observed {
        sightings: vec![event],
        ..with_pod(run.clone(), waiting)
    };
    let missing = after(&run, &decide(&state, 3));
    // The Event is still there, but the volumes are mounted now.
    let mounted = pod(
        1,
        json!({"phase": "Pending", "conditions": conditions(true)}),
    );
    let state = Observed {
        pod: CurrentPod::There(Box::new(mounted)),
        run: Arc::new(missing),
        ..state
    };
    let plan = decide(&state, 4);
    assert_ne!(
        plan.status.unwrap().reason.as_deref(),
        Some(reasons::MISSING_SECRET)
    );
}

#[test]
fn an_image_that_can_not_be_pulled_is_named_once_however_the_node_words_it() {
    let run = attempted(json!({}));
    let waits = |reason: &str, message: &str| {
        let mut agent = status(
            "agent",
            json!({"waiting": {"reason": reason, "message": message}}),
        );
        agent["image"] = json!("nowhere.example/agent:9");
        pod(
            1,
            json!({"phase": "Pending", "conditions": conditions(true), "containerStatuses": [agent]}),
        )
    };
    let state = with_pod(
        run.clone(),
        waits("ErrImagePull", "rpc error: dial tcp: port 4711: refused"),
    );
    let (reason, message) = told(&state);
    assert_eq!(reason, reasons::IMAGE);
    assert!(message.contains("nowhere.example/agent:9"), "{message}");
    let known = after(&run, &decide(&state, 3));
    let backing_off = waits(
        "ImagePullBackOff",
        "Back-off pulling image: ErrImagePull: rpc error: port 4712",
    );
    assert!(is_idle(&decide(&with_pod(known, backing_off), 9)));
}

#[test]
fn a_pod_without_a_node_says_what_the_scheduler_says() {
    let run = attempted(json!({}));
    let (reason, message) = told(&with_pod(run, unscheduled_pod(1)));
    assert_eq!(reason, reasons::SCHEDULING);
    assert!(message.contains("Insufficient cpu"), "{message}");
}

#[test]
fn a_claim_without_a_volume_says_why() {
    let lasting = json!({"spec": {"workspace": {"persistent": true, "storageClassName": "nope"}}});
    let base = Observed {
        workspace: Some(workspace(Some((UID, "hello")))),
        ..observed(run(lasting))
    };
    let run = after(&base.run, &decide(&made(&base), 1));
    let unbound = pod(
        1,
        json!({"phase": "Pending", "conditions": [{
            "type": "PodScheduled", "status": "False", "message": "pod has unbound immediate PersistentVolumeClaims"
        }]}),
    );
    for (event, message, expected, names) in [
        (
            "ProvisioningFailed",
            "storageclass.storage.k8s.io \"nope\" not found",
            reasons::MISSING_STORAGE_CLASS,
            "StorageClass nope",
        ),
        (
            "FailedBinding",
            "no persistent volumes available for this claim and no storage class is set",
            reasons::MISSING_STORAGE_CLASS,
            "no default StorageClass",
        ),
        (
            "ProvisioningFailed",
            "disk is full",
            reasons::VOLUME,
            "disk is full",
        ),
    ] {
        let claim = ClaimView {
            name: "workspace-hello".to_owned(),
            sightings: vec![sighting(event, message)],
            ..ClaimView::default()
        };
        let state = Observed {
            claim: Some(claim),
            pod: CurrentPod::There(Box::new(unbound.clone())),
            run: Arc::new(run.clone()),
            ..base.clone()
        };
        let (reason, said) = told(&state);
        assert_eq!(reason, expected);
        assert!(said.contains(names), "{said}");
    }
}

#[test]
fn a_long_checkout_says_how_far_it_has_come_and_a_short_one_nothing() {
    let run = attempted(json!({}));
    let running = json!({"running": {"startedAt": at(3).to_string()}});
    let fetching = pod(
        1,
        json!({"phase": "Pending", "conditions": conditions(true),
               "initContainerStatuses": [status("supervisor", running)]}),
    );
    let far = |objects: u32| Observed {
        sightings: vec![sighting(
            reasons::CHECKOUT_PROGRESS,
            &format!("The supervisor fetches the repository: {objects} of 900 objects, 5 MiB."),
        )],
        ..with_pod(run.clone(), fetching.clone())
    };
    assert!(is_idle(&decide(&far(7), 22)));
    let plan = decide(&far(7), 24);
    let said = plan.status.clone().unwrap();
    assert_eq!(said.reason.as_deref(), Some(reasons::CHECKOUT));
    assert!(said.message.unwrap().contains("7 of 900 objects, 5 MiB"));
    assert_eq!(plan.event, None);
    let run = after(&run, &plan);
    let again = |objects: u32| Observed {
        run: Arc::new(run.clone()),
        ..far(objects)
    };
    assert!(is_idle(&decide(&again(7), 30)));
    let said = decide(&again(800), 44).status.unwrap().message.unwrap();
    assert!(said.contains("800 of 900"), "{said}");
}

#[test]
fn a_checkout_that_is_tried_again_says_why_it_waits() {
    let run = attempted(json!({}));
    let waiting = termination(Outcome::Waiting, reasons::REPOSITORY_UNREACHABLE);
    let mut supervisor = status(
        "supervisor",
        json!({"running": {"startedAt": at(3).to_string()}}),
    );
    supervisor["lastState"] = terminated(1, "Error", &said(&waiting));
    let retrying = pod(
        1,
        json!({"phase": "Pending", "conditions": conditions(true), "initContainerStatuses": [supervisor]}),
    );
    let (reason, message) = told(&with_pod(run.clone(), retrying));
    assert_eq!(
        (reason.as_str(), message.as_str()),
        (reasons::REPOSITORY_UNREACHABLE, "A sentence.")
    );
    let mut crashed = status(
        "supervisor",
        json!({"waiting": {"reason": "CrashLoopBackOff"}}),
    );
    crashed["lastState"] = terminated(139, "Error", "");
    let crashing = pod(
        1,
        json!({"phase": "Pending", "conditions": conditions(true), "initContainerStatuses": [crashed]}),
    );
    let (reason, message) = told(&with_pod(run, crashing));
    assert_eq!(reason, reasons::CHECKOUT);
    assert!(message.contains("139"), "{message}");
}
