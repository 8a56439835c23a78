//! Who may hand in what: pure decisions about a token's claim and a run's status. No client, no
//! clock.

use k8s_openapi::api::authentication::v1::TokenReviewStatus;
use uuid::Uuid;

use crate::api::WorkflowRun;
use crate::api::run::Phase;
use crate::names::TOKEN_AUDIENCE;

/// Where the API server puts the pod that a token is bound to.
const POD_UID: &str = "authentication.kubernetes.io/pod-uid";

/// What a reviewed token says: it is bound to this pod, of this namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// Namespace of the service account, and so of the pod.
    pub namespace: String,
    /// The pod's uid.
    pub pod_uid: String,
}

/// What of a WorkflowRun decides who may hand in its events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// `metadata.uid`.
    pub uid: Uuid,
    /// `status.podUID`.
    pub pod_uid: Option<String>,
    /// `status.attempt`.
    pub attempt: u32,
    /// `status.sessionID`.
    pub session_id: Option<Uuid>,
    /// `status.workspace`.
    pub workspace: Option<String>,
    /// Its phase is a terminal one.
    pub ended: bool,
}

impl Run {
    /// Of the custom resource; nothing where it has no uid yet.
    pub fn of(run: &WorkflowRun) -> Option<Self> {
        let status = run.status.clone().unwrap_or_default();
        Some(Self {
            uid: run.metadata.uid.as_deref()?.parse().ok()?,
            pod_uid: status.pod_uid,
            attempt: status.attempt.unwrap_or_default(),
            session_id: status.session_id.and_then(|id| id.parse().ok()),
            workspace: status.workspace,
            ended: matches!(
                status.phase,
                Phase::Completed | Phase::Failed | Phase::Killed
            ),
        })
    }
}

/// What a batch says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Batched {
    pub(super) run: Uuid,
    pub(super) attempt: u32,
    pub(super) session: Uuid,
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It may.
    Yes,
    /// The run is gone: whether it ended on the workspace of this run only the ledger knows.
    AskLedger(Uuid),
    /// It may not, for this reason.
    No(&'static str),
}

/// The claim of a reviewed token, or why it makes none.
pub(super) fn claim(status: &TokenReviewStatus) -> Result<Claim, &'static str> {
    if status.authenticated != Some(true) {
        return Err("the token is not valid for this server");
    }
    // An authenticator that knows no audiences leaves them out: such a token was not made for us.
    let audiences = status.audiences.as_deref().unwrap_or_default();
    if !audiences.iter().any(|audience| audience == TOKEN_AUDIENCE) {
        return Err("the token's audience is not runledger");
    }
    let user = status.user.as_ref();
    let namespace = user
        .and_then(|user| user.username.as_deref())
        .and_then(|name| name.strip_prefix("system:serviceaccount:"))
        .and_then(|rest| rest.split_once(':'))
        .map(|(namespace, _)| namespace)
        .filter(|namespace| !namespace.is_empty())
        .ok_or("the token is not a service account's")?;
    let pods = user
        .and_then(|user| user.extra.as_ref())
        .and_then(|extra| extra.get(POD_UID));
    match pods.map(Vec::as_slice) {
        Some([pod]) if !pod.is_empty() => Ok(Claim {
            namespace: namespace.to_owned(),
            pod_uid: pod.clone(),
        }),
        _ => Err("the token is not bound to a pod"),
    }
}

/// Whether the pod may hand in this batch as its own run's: of the current attempt or an older one,
/// whose journal it found on its volume.
pub(super) fn own(claim: &Claim, batch: Batched, target: Option<&Run>) -> Verdict {
    let Some(target) = target else {
        return Verdict::No("there is no such run");
    };
    if target.uid != batch.run {
        return Verdict::No("the run of that name has another uid");
    }
    if target.pod_uid.as_deref() != Some(claim.pod_uid.as_str()) {
        return Verdict::No("the token's pod is not the run's current one");
    }
    fits(target, batch)
}

/// Whether the pod of another run may hand in this batch: only what an ended run left on the
/// workspace that both worked on.
pub(super) fn left_behind(
    claim: &Claim,
    batch: Batched,
    target: Option<&Run>,
    pod_run: Option<&Run>,
) -> Verdict {
    let Some(pod_run) = pod_run else {
        return Verdict::No("there is no run of the name in x-runledger-pod-run");
    };
    if pod_run.pod_uid.as_deref() != Some(claim.pod_uid.as_str()) {
        return Verdict::No("the token's pod is not that of the run in x-runledger-pod-run");
    }
    if pod_run.workspace.is_none() {
        return Verdict::No("the run in x-runledger-pod-run has no workspace that lasts");
    }
    match target {
        Some(target) if target.uid == batch.run => {
            if target.workspace != pod_run.workspace {
                Verdict::No("the two runs don't share a workspace")
            } else if !target.ended {
                Verdict::No("the run has not ended")
            } else {
                fits(target, batch)
            }
        }
        _ => Verdict::AskLedger(pod_run.uid),
    }
}

/// Whether the batch's attempt and session are the run's.
fn fits(target: &Run, batch: Batched) -> Verdict {
    if batch.attempt == 0 || batch.attempt > target.attempt {
        Verdict::No("the run has no such attempt")
    } else if target
        .session_id
        .is_some_and(|session| session != batch.session)
    {
        Verdict::No("the run belongs to another session")
    } else {
        Verdict::Yes
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;
    use k8s_openapi::api::authentication::v1::UserInfo;
    use uuid::uuid;

    const RUN: Uuid = uuid!("00000000-0000-4000-8000-000000000001");
    const OTHER: Uuid = uuid!("00000000-0000-4000-8000-000000000002");

    fn pod() -> Claim {
        Claim {
            namespace: "ns".to_owned(),
            pod_uid: "pod-1".to_owned(),
        }
    }

    fn run(uid: Uuid, pod: &str) -> Run {
        Run {
            uid,
            pod_uid: Some(pod.to_owned()),
            attempt: 2,
            session_id: Some(OTHER),
            workspace: Some("w".to_owned()),
            ended: false,
        }
    }

    fn batch(attempt: u32) -> Batched {
        Batched {
            run: RUN,
            attempt,
            session: OTHER,
        }
    }

    fn refused(verdict: &Verdict) -> bool {
        matches!(verdict, Verdict::No(_))
    }

    fn review() -> TokenReviewStatus {
        TokenReviewStatus {
            authenticated: Some(true),
            audiences: Some(vec![TOKEN_AUDIENCE.to_owned()]),
            error: None,
            user: Some(UserInfo {
                username: Some("system:serviceaccount:ns:default".to_owned()),
                extra: Some([(POD_UID.to_owned(), vec!["pod-1".to_owned()])].into()),
                ..UserInfo::default()
            }),
        }
    }

    #[test]
    fn a_token_bound_to_a_pod_for_our_audience_makes_a_claim() {
        assert_eq!(claim(&review()), Ok(pod()));
    }

    #[test]
    fn any_other_token_makes_none() {
        let mut not_authenticated = review();
        not_authenticated.authenticated = None;
        let mut no_audience = review();
        no_audience.audiences = None;
        let mut other_audience = review();
        other_audience.audiences = Some(vec!["https://kubernetes.default.svc".to_owned()]);
        let mut person = review();
        person.user.as_mut().unwrap().username = Some("admin".to_owned());
        let mut unbound = review();
        unbound.user.as_mut().unwrap().extra = None;
        let mut two = review();
        two.user.as_mut().unwrap().extra =
            Some([(POD_UID.to_owned(), vec!["a".to_owned(), "b".to_owned()])].into());
        for wrong in [
            not_authenticated,
            no_audience,
            other_audience,
            person,
            unbound,
            two,
        ] {
            assert!(claim(&wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn the_current_pod_hands_in_its_attempt_and_older_ones() {
        let target = run(RUN, "pod-1");
        assert_eq!(own(&pod(), batch(2), Some(&target)), Verdict::Yes);
        assert_eq!(own(&pod(), batch(1), Some(&target)), Verdict::Yes);
        assert!(refused(&own(&pod(), batch(3), Some(&target))));
        assert!(refused(&own(&pod(), batch(0), Some(&target))));
    }

    #[test]
    fn another_pod_another_uid_and_another_session_are_refused() {
        assert!(refused(&own(&pod(), batch(1), Some(&run(RUN, "pod-0")))));
        assert!(refused(&own(&pod(), batch(1), Some(&run(OTHER, "pod-1")))));
        assert!(refused(&own(&pod(), batch(1), None)));
        let mut no_pod = run(RUN, "pod-1");
        no_pod.pod_uid = None;
        assert!(refused(&own(&pod(), batch(1), Some(&no_pod))));
        let mut other_session = run(RUN, "pod-1");
        other_session.session_id = Some(RUN);
        assert!(refused(&own(&pod(), batch(1), Some(&other_session))));
    }

    #[test]
    fn a_later_run_hands_in_what_an_ended_one_left_on_their_workspace() {
        let mine = run(OTHER, "pod-1");
        let mut target = run(RUN, "pod-0");
        assert!(refused(&left_behind(
            &pod(),
            batch(2),
            Some(&target),
            Some(&mine)
        )));
        target.ended = true;
        assert_eq!(
            left_behind(&pod(), batch(2), Some(&target), Some(&mine)),
            Verdict::Yes
        );
        assert!(refused(&left_behind(
            &pod(),
            batch(3),
            Some(&target),
            Some(&mine)
        )));
        target.workspace = Some("another".to_owned());
        assert!(refused(&left_behind(
            &pod(),
            batch(2),
            Some(&target),
            Some(&mine)
        )));
    }

    #[test]
    fn of_a_run_that_is_gone_the_ledger_is_asked() {
        let mine = run(OTHER, "pod-1");
        let recreated = run(uuid!("00000000-0000-4000-8000-000000000003"), "pod-9");
        for target in [None, Some(&recreated)] {
            assert_eq!(
                left_behind(&pod(), batch(1), target, Some(&mine)),
                Verdict::AskLedger(OTHER)
            );
        }
    }

    #[test]
    fn two_runs_without_a_lasting_workspace_share_none() {
        let mut mine = run(OTHER, "pod-1");
        mine.workspace = None;
        let mut target = run(RUN, "pod-0");
        target.ended = true;
        target.workspace = None;
        assert!(refused(&left_behind(
            &pod(),
            batch(1),
            Some(&target),
            Some(&mine)
        )));
        assert!(refused(&left_behind(&pod(), batch(1), None, Some(&mine))));
        assert!(refused(&left_behind(&pod(), batch(1), Some(&target), None)));
        let elsewhere = run(OTHER, "pod-2");
        assert!(refused(&left_behind(
            &pod(),
            batch(1),
            Some(&target),
            Some(&elsewhere)
        )));
    }
}
