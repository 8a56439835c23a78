//! Whose turn it is on a Workspace.

use super::*;
use crate::api::Workspace;
use crate::api::workspace::WorkspacePhase;
use crate::controller::trouble::{ClaimOwner, ClaimView, Sighting};
use crate::controller::workspace::plan::{Candidate, Observed, Plan, plan};
use crate::names::reasons;

fn place(with: Value) -> Workspace {
    let mut value = json!({
        "apiVersion": "runledger.dev/v1alpha1", "kind": "Workspace",
        "metadata": {"name": "w", "namespace": "runs", "uid": "w-uid", "finalizers": [finalizers::WORKSPACE]},
        "spec": {"size": "1Gi"},
    });
    merge(&mut value, with);
    serde_json::from_value(value).unwrap()
}

fn candidate(name: &str, created: i64) -> Candidate {
    Candidate {
        uid: format!("uid-{name}"),
        name: name.to_owned(),
        created: Some(at(created)),
        over: false,
        stops: false,
        busy: false,
    }
}

fn state(workspace: Workspace, runs: Vec<Candidate>) -> Observed {
    let claim = ClaimView {
        name: "workspace-w".to_owned(),
        ..ClaimView::default()
    };
    Observed {
        workspace: Arc::new(workspace),
        claim: Some(claim),
        runs,
    }
}

fn settle(state: &Observed, plan: &Plan) -> Workspace {
    let mut workspace = state.workspace.as_ref().clone();
    if let Some(status) = &plan.status {
        workspace.status = Some(status.as_ref().clone());
    }
    workspace
}

#[test]
fn the_run_that_was_there_first_is_first() {
    let runs = vec![candidate("b", 2), candidate("a", 2), candidate("z", 1)];
    let first = state(place(json!({})), runs.clone());
    let decided = plan(&first, at(10));
    let status = decided.status.as_ref().unwrap();
    assert_eq!(
        (status.holder_name.as_deref(), status.waiting),
        (Some("z"), 2)
    );
    assert_eq!(status.phase, WorkspacePhase::InUse);
    let held = state(settle(&first, &decided), runs.clone());
    assert_eq!(
        plan(&held, at(20)),
        Plan::default(),
        "nothing changes while it is held"
    );

    let mut over = runs;
    over[2].over = true;
    over[2].busy = true;
    let busy = state(held.workspace.as_ref().clone(), over.clone());
    assert!(
        plan(&busy, at(30))
            .status
            .is_none_or(|s| s.holder_name.as_deref() == Some("z")),
        "its pod is still there"
    );
    over[2].busy = false;
    let next = plan(&state(held.workspace.as_ref().clone(), over), at(40));
    let status = next.status.unwrap();
    assert_eq!(
        (status.holder_name.as_deref(), status.waiting),
        (Some("a"), 1)
    );
    assert_eq!(status.last_used.unwrap().0, at(40));
}

#[test]
fn a_run_that_is_to_end_gets_no_turn_but_keeps_the_one_it_has() {
    let mut runs = vec![candidate("a", 1), candidate("b", 2)];
    runs[0].stops = true;
    let decided = plan(&state(place(json!({})), runs.clone()), at(10));
    assert_eq!(decided.status.unwrap().holder_name.as_deref(), Some("b"));
    let held = place(json!({"status": {"holder": "uid-a", "holderName": "a"}}));
    assert_eq!(
        plan(&state(held, runs), at(10))
            .status
            .unwrap()
            .holder_name
            .as_deref(),
        Some("a")
    );
}

#[test]
fn the_holder_that_is_no_more_lets_go() {
    let held = place(json!({"status": {"holder": "uid-gone", "holderName": "gone"}}));
    let status = plan(&state(held, vec![]), at(10)).status.unwrap();
    assert_eq!(
        (status.holder, status.phase),
        (None, WorkspacePhase::Available)
    );
}

#[test]
fn nobody_gets_a_volume_that_some_pod_still_has() {
    let mut runs = vec![candidate("a", 1), candidate("b", 2)];
    runs[0].over = true;
    runs[0].busy = true;
    assert_eq!(
        plan(&state(place(json!({})), runs), at(10))
            .status
            .unwrap()
            .holder,
        None
    );
}

#[test]
fn its_claim_is_made_once() {
    let mut new = state(place(json!({})), vec![candidate("a", 1)]);
    new.claim = None;
    assert_eq!(plan(&new, at(1)).claim.as_deref(), Some("workspace-w"));
    assert_eq!(plan(&state(place(json!({})), vec![]), at(1)).claim, None);
    let by_hand = state(place(json!({"metadata": {"finalizers": []}})), vec![]);
    assert!(plan(&by_hand, at(1)).protect);
}

#[test]
fn a_deleted_workspace_waits_until_no_pod_uses_it() {
    let leaving = place(json!({
        "metadata": {"deletionTimestamp": at(5).to_string()},
        "status": {"holder": "uid-a", "holderName": "a"},
    }));
    let mut runs = vec![candidate("a", 1), candidate("b", 2)];
    runs[0].busy = true;
    let decided = plan(&state(leaving.clone(), runs.clone()), at(10));
    assert!(!decided.unprotect && decided.claim.is_none());
    runs[0].busy = false;
    let decided = plan(&state(leaving, runs), at(10));
    assert!(decided.unprotect && decided.status.is_none());
}

#[test]
fn a_claim_in_trouble_is_said() {
    let mut troubled = state(place(json!({})), vec![]);
    troubled.claim.as_mut().unwrap().sightings = vec![Sighting {
        reason: "ProvisioningFailed".to_owned(),
        message: "storageclass.storage.k8s.io \"nope\" not found".to_owned(),
    }];
    let status = plan(&troubled, at(10)).status.unwrap();
    assert_eq!(status.phase, WorkspacePhase::Pending);
    assert_eq!(status.conditions[0].reason, reasons::MISSING_STORAGE_CLASS);
    assert_eq!(status.conditions[0].status, "False");
}

/// Whose a claim is that says so of its owner.
fn owner(uid: &str, kind: &str, name: &str) -> ClaimOwner {
    let claim = json!({"ownerReferences": [
        {"apiVersion": "runledger.dev/v1alpha1", "kind": kind, "name": name, "uid": uid},
    ]});
    let claim = serde_json::from_value(claim).unwrap();
    ClaimOwner::of(&claim, &place(json!({})).metadata)
}

#[test]
fn a_claim_is_the_workspaces_by_its_uid_and_not_by_its_name() {
    assert_eq!(owner("w-uid", "Workspace", "w"), ClaimOwner::Workspace);
    assert_eq!(owner("old-uid", "Workspace", "w"), ClaimOwner::Earlier);
    assert_eq!(owner("old-uid", "Workspace", "v"), ClaimOwner::Stranger);
    assert_eq!(owner("old-uid", "StatefulSet", "w"), ClaimOwner::Stranger);
    let own = place(json!({})).metadata;
    assert_eq!(
        ClaimOwner::of(&Default::default(), &own),
        ClaimOwner::Stranger
    );
    let unmade = Workspace::new("w", serde_json::from_value(json!({})).unwrap()).metadata;
    assert_eq!(
        ClaimOwner::of(&Default::default(), &unmade),
        ClaimOwner::Stranger
    );
}

#[test]
fn a_claim_that_is_not_the_workspaces_is_given_to_no_run_and_said() {
    for (owner, says) in [
        (ClaimOwner::Earlier, "an earlier Workspace's"),
        (ClaimOwner::Stranger, "delete it"),
    ] {
        let mut strange = state(place(json!({})), vec![candidate("a", 1)]);
        let claim = strange.claim.as_mut().unwrap();
        (claim.owner, claim.bound) = (owner, true);
        let decided = plan(&strange, at(10));
        let status = decided.status.as_ref().unwrap();
        assert_eq!(status.claim_name, None);
        assert_eq!(status.phase, WorkspacePhase::Pending);
        assert_eq!(status.conditions[0].status, "False");
        let said = &status.conditions[0].message;
        assert!(
            said.contains("workspace-w") && said.contains(says),
            "{said}"
        );
        assert!(decided.claim.is_none() && decided.again.is_some());

        // It has gone, and the Workspace's own is made.
        strange.workspace = Arc::new(settle(&strange, &decided));
        strange.claim = None;
        let decided = plan(&strange, at(20));
        assert_eq!(decided.claim.as_deref(), Some("workspace-w"));
        let status = decided.status.unwrap();
        assert_eq!(status.claim_name.as_deref(), Some("workspace-w"));
        assert_eq!(status.phase, WorkspacePhase::InUse);
        assert_eq!(decided.again, None);
    }
}
