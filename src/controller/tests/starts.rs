//! What stands between a run and its pod: refusals, a certificate, a Workspace.

use super::*;
use crate::controller::plan::waits::PATIENCE;
use crate::controller::shapes::{Again, Refusal};
use crate::names::{conditions as kinds, reasons};

#[test]
fn a_refused_pod_is_tried_again_later_and_an_impossible_one_is_not() {
    let refusal = |for_good| Refusal {
        message: "exceeded quota".to_owned(),
        for_good,
        again: at(30),
    };
    let state = Observed {
        refusal: Some(refusal(false)),
        ..observed(run(json!({})))
    };
    let plan = decide(&state, 10);
    assert_eq!(
        says(&plan),
        (Phase::Pending, reasons::POD_REFUSED.to_owned())
    );
    assert!(plan.pod.is_none() && matches!(plan.again, Again::After(wait) if wait.as_secs() == 20));
    let later = Observed {
        run: Arc::new(after(&state.run, &plan)),
        ..state.clone()
    };
    assert!(is_idle(&decide(&later, 15)), "said once");
    assert!(decide(&later, 31).pod.is_some());
    let state = Observed {
        refusal: Some(refusal(true)),
        ..state
    };
    assert_eq!(
        says(&decide(&state, 10)),
        (Phase::Failed, reasons::INVALID_SPEC.to_owned())
    );
}

#[test]
fn no_pod_is_made_before_the_server_has_a_certificate() {
    let state = Observed {
        server_ca: None,
        ..observed(run(json!({})))
    };
    let plan = decide(&state, 1);
    assert!(is_idle(&plan) && matches!(plan.again, Again::After(_)));
    assert_eq!(
        says(&decide(&state, PATIENCE.as_secs() + 1)).0,
        Phase::Pending,
        "and after a while it says so"
    );
}

#[test]
fn a_run_waits_for_its_workspace() {
    let lasting = || run(json!({"spec": {"workspace": {"persistent": true}}}));
    let plan = decide(&observed(lasting()), 1);
    assert_eq!(plan.workspace.as_ref().unwrap().name, "hello");
    assert!(plan.pod.is_none() && plan.status.is_none());

    let with = |view| Observed {
        workspace: Some(view),
        ..observed(lasting())
    };
    assert!(
        is_idle(&decide(&with(workspace(None)), 1)),
        "it is about to be assigned"
    );
    let plan = decide(&with(workspace(Some(("other-uid", "other")))), 1);
    assert_eq!(says(&plan), (Phase::Pending, reasons::WORKSPACE.to_owned()));
    assert!(
        plan.status
            .as_ref()
            .unwrap()
            .message
            .as_ref()
            .unwrap()
            .contains("held by run other")
    );
    assert_eq!(condition(&plan, kinds::WORKSPACE_READY), "False");

    let mine = workspace(Some((UID, "hello")));
    let plan = decide(&with(mine.clone()), 1);
    assert_eq!(
        plan.pod.as_ref().unwrap().claim.as_deref(),
        Some("workspace-hello")
    );
    let plan = decide(&made(&with(mine.clone())), 2);
    assert_eq!(condition(&plan, kinds::WORKSPACE_READY), "True");
    let leaving = WorkspaceView {
        deleting: true,
        ..mine.clone()
    };
    assert!(decide(&with(leaving), 1).pod.is_none());

    let without = WorkspaceView {
        claim_name: None,
        trouble: Some("Somebody else's claim is in the way.".to_owned()),
        ..mine
    };
    let plan = decide(&with(without), 1);
    assert!(plan.pod.is_none());
    assert_eq!(says(&plan), (Phase::Pending, reasons::VOLUME.to_owned()));
    let message = plan.status.unwrap().message;
    assert_eq!(
        message.as_deref(),
        Some("Somebody else's claim is in the way.")
    );
}

#[test]
fn a_workspace_of_another_size_is_used_and_said() {
    let lasting = run(json!({"spec": {"workspace": {"persistent": true, "size": "5Gi"}}}));
    let state = Observed {
        workspace: Some(workspace(Some((UID, "hello")))),
        ..observed(lasting)
    };
    let plan = decide(&made(&state), 2);
    let status = plan.status.as_ref().unwrap();
    let ready = status
        .conditions
        .iter()
        .find(|c| c.type_ == kinds::WORKSPACE_READY)
        .unwrap();
    assert!(
        ready.status == "True" && ready.message.contains("size 1Gi"),
        "{ready:?}"
    );
}

#[test]
fn what_was_decided_for_the_first_attempt_holds_for_the_next() {
    let run = attempted(json!({}));
    let changed = Config {
        agent_image: "agent:2".to_owned(),
        ..config()
    };
    let state = Observed {
        pod: CurrentPod::Gone,
        ..observed(run.clone())
    };
    let next = after(&run, &plan::plan(&state, &changed, at(20)));
    let plan = plan::plan(&observed(next), &changed, at(21));
    assert_eq!(plan.pod.unwrap().resolved.image, "agent:1");
}
