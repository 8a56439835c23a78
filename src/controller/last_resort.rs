//! The last resort against an agent that outlives its run's time limit, should its supervisor not have
//! stopped it: the controller deletes the pod, and where no controller is there, the kubelet ends it. Pure.
//!
//! The controller counts from the agent's start. A pod's `activeDeadlineSeconds` counts from when a node
//! took the pod and can't be lengthened, so it would end runs for having waited: for a Secret, an image, or
//! a git host that is away. It has a week for that.

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
/// How long a pod may wait until its agent starts, and have all of its time left by the kubelet's count.
const WAIT: SignedDuration = SignedDuration::from_hours(7 * 24);
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
        Some(Self::after(validate::timeout(run)?, config))
    }

    /// That of a run with so many seconds.
    pub(super) fn after(timeout: u64, config: &Config) -> Self {
        let seconds = timeout
            .saturating_add(config.flush_timeout_seconds)
            .saturating_add(SEAL_SECONDS);
        let seconds = i64::try_from(seconds).unwrap_or(i64::MAX);
        Self {
            overdue: SignedDuration::from_secs(seconds),
        }
    }

    /// The pod's `activeDeadlineSeconds`, which at most fits into 32 bits.
    pub(super) fn deadline(self) -> i64 {
        let seconds = self.overdue.saturating_add(WAIT).as_secs();
        seconds.min(i64::from(i32::MAX))
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
