//! The last resort against an agent that outlives its run's time limit, should its supervisor not have
//! stopped it: the controller deletes the pod. Pure.
//!
//! It counts from the agent's start. A pod's own `activeDeadlineSeconds` counts from when a node took
//! the pod and can't be lengthened, so it would end runs for having waited: for a Secret, an image, or a
//! git host that is away.

use jiff::{SignedDuration, Timestamp};

use crate::api::WorkflowRun;

use super::config::Config;
use super::validate;
use super::view::PodView;

/// What a seal takes at the utmost beside its flush: looking at what was changed, and five minutes of
/// asking a git host that does not answer.
const SEAL_SECONDS: u64 = 900;
/// The clocks of the nodes and ours may differ by so much.
const CLOCKS: SignedDuration = SignedDuration::from_mins(15);
/// No alarm is set for later.
const DAY: SignedDuration = SignedDuration::from_hours(24);

/// Of a run that has a time limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LastResort {
    /// Longer than any agent runs that its supervisor stops in time, seal and all.
    overdue: SignedDuration,
}

impl LastResort {
    /// That of the run, should it have a time limit.
    pub(super) fn of(run: &WorkflowRun, config: &Config) -> Option<Self> {
        let seconds = validate::timeout(run)?
            .saturating_add(config.flush_timeout_seconds)
            .saturating_add(SEAL_SECONDS);
        let seconds = i64::try_from(seconds).unwrap_or(i64::MAX);
        Some(Self {
            overdue: SignedDuration::from_secs(seconds),
        })
    }

    /// How much is left until the pod of an agent that started then is deleted; of more than a day, a day.
    pub(super) fn left(self, started: Timestamp, now: Timestamp) -> SignedDuration {
        let ran = now.duration_since(started);
        let last = self.overdue.saturating_add(CLOCKS);
        last.saturating_sub(ran).min(DAY)
    }

    /// The pod has ended, and its agent had run for so long that nothing else can have ended it.
    pub(super) fn was_taken(self, pod: &PodView) -> bool {
        pod.agent_started()
            .zip(pod.finished())
            .is_some_and(|(started, finished)| finished.duration_since(started) >= self.overdue)
    }
}
