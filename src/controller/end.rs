//! How a pod ended, from what it left behind. Pure. The supervisor's word is taken as a stranger's:
//! bounded, and judged beside what the kubelet saw.

use crate::api::run::Phase;
use crate::names::reasons;
use crate::wire::{Changes, Outcome, Termination};

use super::last_resort::LastResort;
use super::view::{Ended, PodView};

/// Longest termination message that is looked at; the kubelet cuts at 6144 with two containers.
const LONGEST_MESSAGE: usize = 12 * 1024;
/// Longest sentence that goes on into a status.
const LONGEST_SENTENCE: usize = 1024;
/// Largest count that is believed, and that JSON readers everywhere can hold.
const LARGEST: u64 = 1 << 53;

/// Why a run is to end though its agent has not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stop {
    /// `desiredState` is Killed.
    Killed,
    /// The run is being deleted.
    Deleted,
}

impl Stop {
    /// The reason that goes into the status.
    pub(super) fn reason(self) -> &'static str {
        match self {
            Self::Killed => reasons::KILLED,
            Self::Deleted => reasons::DELETED,
        }
    }

    /// The sentence that goes into the status.
    pub(super) fn message(self) -> &'static str {
        match self {
            Self::Killed => "The run was killed.",
            Self::Deleted => "The run was deleted before its end.",
        }
    }
}

/// How a pod ended.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum End {
    /// The run is over.
    Over(Verdict),
    /// It is not the run's fault that its pod is gone.
    Lost {
        /// What happened to the pod.
        why: String,
        /// What the supervisor still managed to say.
        termination: Option<Box<Termination>>,
    },
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Verdict {
    /// Completed, Failed or Killed.
    pub phase: Phase,
    /// One of [`reasons`].
    pub reason: String,
    /// A sentence.
    pub message: String,
    /// The supervisor's figures, should it have sealed the run.
    pub termination: Option<Box<Termination>>,
}

/// Reads the end of a pod for which [`PodView::has_ended`] holds.
pub(super) fn read(pod: &PodView, stop: Option<Stop>, last_resort: Option<LastResort>) -> End {
    // Once the agent has started, what an earlier try of the checkout said is history.
    let last = pod
        .supervisor
        .last
        .iter()
        .filter(|ended| pod.agent_started().is_none() || !is_waiting(&ended.message));
    let message = pod
        .supervisor
        .ended
        .iter()
        .chain(last)
        .find(|ended| !ended.message.is_empty())
        .map(|ended| parse(&ended.message));
    match message {
        Some(Ok(termination)) => sealed(pod, stop, last_resort, termination),
        Some(Err(unreadable)) => unsealed(pod, stop, last_resort, Some(unreadable)),
        None => unsealed(pod, stop, last_resort, None),
    }
}

fn is_waiting(message: &str) -> bool {
    parse(message).is_ok_and(|termination| termination.outcome == Outcome::Waiting)
}

/// What the supervisor says of a checkout that did not come about, while its pod goes on: read from
/// the state before its restart.
pub(super) fn checkout(pod: &PodView) -> Option<Termination> {
    if pod.agent_started().is_some() || pod.supervisor.started {
        return None;
    }
    let ended = pod
        .supervisor
        .ended
        .as_ref()
        .or(pod.supervisor.last.as_ref())?;
    parse(&ended.message).ok()
}

fn sealed(
    pod: &PodView,
    stop: Option<Stop>,
    last_resort: Option<LastResort>,
    termination: Termination,
) -> End {
    let over = |phase, reason: &str, message: &str, termination: Termination| {
        End::Over(Verdict {
            phase,
            reason: reason.to_owned(),
            message: message.to_owned(),
            termination: Some(Box::new(termination)),
        })
    };
    match termination.outcome {
        Outcome::Completed => {
            let message = termination.message.clone();
            over(Phase::Completed, reasons::COMPLETED, &message, termination)
        }
        Outcome::Failed if termination.reason == reasons::AGENT_CRASHED && out_of_memory(pod) => {
            over(
                Phase::Failed,
                reasons::OUT_OF_MEMORY,
                OUT_OF_MEMORY,
                termination,
            )
        }
        Outcome::Failed => {
            let (reason, message) = (termination.reason.clone(), termination.message.clone());
            over(Phase::Failed, &reason, &message, termination)
        }
        Outcome::Stopped | Outcome::Waiting => {
            if let Some(stop) = stop {
                over(Phase::Killed, stop.reason(), stop.message(), termination)
            } else if let Some((reason, message)) = own_fault(pod, last_resort) {
                over(Phase::Failed, reason, &message, termination)
            } else {
                End::Lost {
                    why: loss(pod).unwrap_or_else(|| "its pod was stopped".to_owned()),
                    termination: Some(Box::new(termination)),
                }
            }
        }
    }
}

fn unsealed(
    pod: &PodView,
    stop: Option<Stop>,
    last_resort: Option<LastResort>,
    unreadable: Option<String>,
) -> End {
    let over = |phase, reason: &str, message: String| {
        End::Over(Verdict {
            phase,
            reason: reason.to_owned(),
            message,
            termination: None,
        })
    };
    if let Some(stop) = stop {
        return over(Phase::Killed, stop.reason(), stop.message().to_owned());
    }
    if let Some((reason, message)) = own_fault(pod, last_resort) {
        return over(Phase::Failed, reason, message);
    }
    if let Some(why) = loss(pod) {
        return End::Lost {
            why,
            termination: None,
        };
    }
    if out_of_memory(pod) {
        return over(
            Phase::Failed,
            reasons::OUT_OF_MEMORY,
            OUT_OF_MEMORY.to_owned(),
        );
    }
    over(
        Phase::Failed,
        reasons::AGENT_CRASHED,
        crash(pod, unreadable),
    )
}

const OUT_OF_MEMORY: &str = "The agent's container ran out of memory; raise \
     spec.podTemplate.resources.limits.memory in a new run.";

fn out_of_memory(pod: &PodView) -> bool {
    pod.agent
        .ended
        .as_ref()
        .is_some_and(|ended| ended.reason == "OOMKilled")
}

/// The pod's own limits, also where the kubelet calls that an eviction.
fn own_fault(pod: &PodView, last_resort: Option<LastResort>) -> Option<(&'static str, String)> {
    let said = pod.message.as_deref().map(sentence);
    match pod.reason.as_deref() {
        // The kubelet counts from when a node took the pod. What it had to wait for until its agent
        // started is not the run's fault.
        Some("DeadlineExceeded")
            if pod.agent_started().is_some()
                && last_resort.is_none_or(|last| last.was_taken(pod)) =>
        {
            Some((reasons::TIMEOUT, OUTLIVED.to_owned()))
        }
        Some("Evicted") if pod.disruption.is_none() => Some((
            reasons::OUT_OF_DISK,
            said.unwrap_or_else(|| "The pod used more than its own limits allow.".to_owned()),
        )),
        _ if last_resort.is_some_and(|last| last.was_taken(pod)) => {
            Some((reasons::TIMEOUT, OUTLIVED.to_owned()))
        }
        _ => None,
    }
}

const OUTLIVED: &str = "The pod outlived spec.limits.timeout and was stopped.";

/// What of the surroundings took the pod away, if they did.
fn loss(pod: &PodView) -> Option<String> {
    let said = || pod.message.as_deref().map(sentence).unwrap_or_default();
    if let Some(reason) = &pod.disruption {
        return Some(format!("its pod was disrupted ({})", sentence(reason)));
    }
    if let Some(reason) = pod.reason.as_deref().filter(|_| pod.phase == "Failed") {
        // Whatever the kubelet or the control plane ends a pod for beside its own limits: node
        // shutdown or loss, preemption, an admission on the node that failed.
        return Some(
            format!(
                "its pod was ended by the node ({}) {}",
                sentence(reason),
                said()
            )
            .trim_end()
            .to_owned(),
        );
    }
    let unknown = |ended: &Option<Ended>| {
        ended
            .as_ref()
            .is_some_and(|ended| ended.reason == "ContainerStatusUnknown")
    };
    if unknown(&pod.agent.ended) || unknown(&pod.supervisor.ended) {
        return Some("its node lost the pod's containers".to_owned());
    }
    pod.deleting.then(|| "its pod was deleted".to_owned())
}

fn crash(pod: &PodView, unreadable: Option<String>) -> String {
    let of = |name: &str, ended: &Ended| {
        let reason = if ended.reason.is_empty() {
            "Error"
        } else {
            &ended.reason
        };
        let said = sentence(&ended.message);
        let said = if said.is_empty() {
            said
        } else {
            format!(": {said}")
        };
        format!(
            "the {name} container ended with exit code {} ({}){said}",
            ended.code,
            sentence(reason)
        )
    };
    let what = if let Some(ended) = &pod.agent.ended {
        of("agent", ended)
    } else if let Some(ended) = &pod.supervisor.ended {
        of(
            "supervisor",
            &Ended {
                message: String::new(),
                ..ended.clone()
            },
        )
    } else {
        "its containers ended".to_owned()
    };
    match unreadable {
        Some(why) => {
            format!("The pod ended, and what its supervisor left can't be read ({why}); {what}.")
        }
        None => format!("The pod ended without a word of its supervisor; {what}."),
    }
}

/// Parses and bounds a termination message.
fn parse(message: &str) -> Result<Termination, String> {
    if message.len() > LONGEST_MESSAGE {
        return Err(format!("{} bytes", message.len()));
    }
    let mut termination: Termination =
        serde_json::from_str(message).map_err(|_| "not the JSON that is expected".to_owned())?;
    let known = termination.reason.len() <= 64
        && !termination.reason.is_empty()
        && termination
            .reason
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric());
    if !known {
        termination.reason = reasons::AGENT_CRASHED.to_owned();
    }
    termination.message = sentence(&termination.message);
    termination.model = termination.model.as_deref().map(|model| cut(model, 256));
    termination.git = termination.git.map(bounded_changes);
    termination.earlier.truncate(16);
    for usage in std::iter::once(&mut termination.usage).chain(
        termination
            .earlier
            .iter_mut()
            .map(|earlier| &mut earlier.usage),
    ) {
        let tokens = &mut usage.tokens;
        for count in [
            &mut tokens.input,
            &mut tokens.output,
            &mut tokens.cache_read,
            &mut tokens.cache_creation,
        ] {
            *count = (*count).min(LARGEST / 64);
        }
        usage.cost_micro_usd = usage.cost_micro_usd.map(|cost| cost.min(LARGEST / 64));
        usage.turns = usage.turns.min(i32::MAX as u32);
    }
    Ok(termination)
}

fn bounded_changes(changes: Changes) -> Changes {
    Changes {
        repository: cut(&changes.repository, 2048),
        branch: cut(&changes.branch, 255),
        initial_commit: cut(&changes.initial_commit, 64),
        final_commit: cut(&changes.final_commit, 64),
        commits: changes.commits,
        files: changes.files,
        added: changes.added.min(LARGEST),
        removed: changes.removed.min(LARGEST),
        pushed: changes.pushed.map(|branch| cut(&branch, 255)),
        undelivered: changes.undelivered.map(|why| match why.as_str() {
            reasons::PUSH_CONFLICT => why,
            _ => reasons::PUSH_FAILED.to_owned(),
        }),
        stats: None,
    }
}

/// One line of readable text, cut to what a status takes.
pub(super) fn sentence(text: &str) -> String {
    let line: String = text
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    cut(line.trim(), LONGEST_SENTENCE)
}

fn cut(text: &str, longest: usize) -> String {
    if text.len() <= longest {
        return text.to_owned();
    }
    let end = text.floor_char_boundary(longest.saturating_sub('…'.len_utf8()));
    format!("{}…", &text[..end])
}
