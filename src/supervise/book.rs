//! What a journal says, reduced: the one state of a supervisor. It is built by [`Book::apply`]
//! alone, from records as they are appended and from the same records after a crash, so that a
//! restarted supervisor knows exactly what the killed one had promised. Pure: no file, no clock.

use std::collections::{BTreeMap, HashSet, VecDeque};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use uuid::Uuid;

use crate::wire::door::End;
use crate::wire::{Event, EventBody, Termination, Tokens, Usage};

/// Answers of the model that wait for the agent to name them; older ones are forgotten.
const MAX_ANSWERS: usize = 64;
/// The same, in bytes of what they say.
const MAX_ANSWERS_BYTES: usize = 16 * 1024 * 1024;

/// One line of a journal. It is written whole or not at all: what belongs together (an agent's
/// line and the events that came of it) is in one record.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Record {
    /// For the server.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) events: Vec<Event>,
    /// Number of the agent's last line that this record deals with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) line: Option<u64>,
    /// For the supervisor itself.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) notes: Vec<Note>,
}

/// What a supervisor must know again after a crash and the server need not.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(
    tag = "note",
    rename_all = "snake_case",
    rename_all_fields = "camelCase"
)]
pub(crate) enum Note {
    /// The door accepts this nonce from now on, and still the one that was just used: the agent
    /// may not have got the `Welcome` that named the next one.
    Nonce {
        /// What the agent has just shown, if it has.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        used: Option<String>,
        /// For the next connection.
        next: String,
    },
    /// The agent has connected for the first time: the time-out counts from here.
    Connected {
        /// When.
        at: Timestamp,
    },
    /// What the session had cost before this attempt.
    Baseline {
        /// As of the session's last result.
        cost_micro_usd: u64,
    },
    /// The CLI has been started.
    Began {
        /// It took its transcript up again, so that its cost includes the baseline.
        resumed: bool,
    },
    /// The head of a response has come.
    Seen {
        /// As in `RequestStarted`.
        request: u64,
        /// What is known so far.
        #[serde(flatten)]
        seen: Seen,
    },
    /// A response that ended well, kept until the agent names its message.
    Answer(Answer),
    /// The agent was told to stop because its time was up.
    TimedOut,
    /// The run is ended for a reason that is neither the agent's nor the pod's.
    GivenUp(GivenUp),
    /// The agent has reported the end.
    Ended {
        /// How.
        end: End,
    },
}

/// Why a supervisor gave its run up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(
    tag = "because",
    rename_all = "snake_case",
    rename_all_fields = "camelCase"
)]
pub(crate) enum GivenUp {
    /// The journal could not be written any more.
    Unwritable {
        /// In the system's words.
        cause: String,
        /// There was no room left.
        full: bool,
    },
    /// While it was down, somebody in the pod took a port of its own.
    PortTaken {
        /// Which.
        port: u16,
    },
}

/// Head of a response.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Seen {
    /// The message's id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) message_id: Option<String>,
    /// The model, in the response's words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) model: Option<String>,
    /// Tokens so far.
    pub(crate) tokens: Tokens,
}

/// What the meter read of one API message.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Answer {
    /// The message's id.
    pub(crate) message_id: String,
    /// The model, in the response's words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) model: Option<String>,
    /// Text blocks, joined.
    pub(crate) text: String,
    /// Tool use blocks.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) tool_calls: Vec<Value>,
    /// Its tokens.
    pub(crate) tokens: Tokens,
    /// It was too long to be kept whole, or could not be read in part.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) altered: bool,
}

impl Answer {
    /// Bytes of what it says.
    fn size(&self) -> usize {
        let calls = self.tool_calls.iter().map(|call| call.to_string().len());
        self.text.len() + calls.sum::<usize>()
    }
}

/// A request without an end.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Open {
    /// Size of its body.
    pub(crate) bytes: u64,
    /// When it was accepted.
    pub(crate) at: Timestamp,
    /// Head of its response, if one has come.
    pub(crate) seen: Option<Seen>,
}

/// The last `result` of the CLI.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct LastResult {
    /// `success`, `error_max_turns`, …
    pub(crate) subtype: String,
    /// The SDK's own flag.
    pub(crate) is_error: bool,
    /// Its text.
    pub(crate) text: String,
}

/// The checkout as it was journalled.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Started {
    /// HEAD before the agent.
    pub(crate) initial_commit: Option<String>,
}

/// The state of an attempt.
#[derive(Clone, Debug, Default)]
pub(crate) struct Book {
    /// Last event's sequence.
    pub(crate) sequence: u64,
    /// Of the attempt so far.
    pub(crate) usage: Usage,
    /// Number of the last request.
    pub(crate) requests: u64,
    /// Requests without an end.
    pub(crate) open: BTreeMap<u64, Open>,
    /// Answers that no message came of yet, oldest first.
    pub(crate) answers: VecDeque<Answer>,
    /// Ids of the messages that were journalled.
    pub(crate) told: HashSet<Uuid>,
    /// Number of the agent's last line that is dealt with.
    pub(crate) line: u64,
    /// Nonces that the door accepts: the one used last, and the next.
    pub(crate) nonces: [Option<String>; 2],
    /// When the agent first connected.
    pub(crate) connected_at: Option<Timestamp>,
    /// The checkout is there.
    pub(crate) started: Option<Started>,
    /// What the session had cost before.
    pub(crate) baseline_micro_usd: u64,
    /// What the session has cost, as of the last result that named a cost.
    pub(crate) session_cost_micro_usd: Option<u64>,
    /// The CLI took its transcript up again.
    pub(crate) resumed: bool,
    /// The CLI's last result.
    pub(crate) result: Option<LastResult>,
    /// The model that answered last.
    pub(crate) model: Option<String>,
    /// The agent was told that its time is up.
    pub(crate) timed_out: bool,
    /// Which CLI it is, in its own words.
    pub(crate) cli_version: Option<String>,
    /// The supervisor gave the run up.
    pub(crate) given_up: Option<GivenUp>,
    /// How the agent ended.
    pub(crate) end: Option<End>,
    /// The seal.
    pub(crate) sealed: Option<Termination>,
}

impl Book {
    /// Takes a record in.
    pub(crate) fn apply(&mut self, record: &Record) {
        for event in &record.events {
            self.sequence = self.sequence.max(event.sequence);
            self.apply_event(event);
        }
        for note in &record.notes {
            self.apply_note(note);
        }
        if let Some(line) = record.line {
            self.line = self.line.max(line);
        }
    }

    fn apply_event(&mut self, event: &Event) {
        match &event.body {
            EventBody::AttemptStarted { initial_commit, .. } => {
                self.started = Some(Started {
                    initial_commit: initial_commit.clone(),
                });
            }
            EventBody::AgentStarted { version } => self.cli_version = Some(version.clone()),
            EventBody::Message(message) => {
                self.told.insert(message.id);
            }
            EventBody::RequestStarted { request, bytes } => {
                self.requests = self.requests.max(*request);
                self.open.insert(
                    *request,
                    Open {
                        bytes: *bytes,
                        at: event.at,
                        seen: None,
                    },
                );
            }
            EventBody::RequestEnded {
                request,
                model,
                usage,
                ..
            } => {
                self.open.remove(request);
                self.usage = *usage;
                if model.is_some() {
                    self.model.clone_from(model);
                }
            }
            EventBody::AgentResult {
                subtype,
                is_error,
                text,
                session_cost_micro_usd,
                usage,
            } => {
                self.usage = *usage;
                self.result = Some(LastResult {
                    subtype: subtype.clone(),
                    is_error: *is_error,
                    text: text.clone(),
                });
                if let Some(cost) = *session_cost_micro_usd {
                    self.session_cost_micro_usd = Some(cost);
                    self.baseline_micro_usd = self.baseline_below(cost);
                }
            }
            EventBody::Omitted { .. } | EventBody::Patch(_) => {}
            EventBody::Sealed(termination) => self.sealed = Some(termination.clone()),
        }
    }

    fn apply_note(&mut self, note: &Note) {
        match note {
            Note::Nonce { used, next } => self.nonces = [used.clone(), Some(next.clone())],
            Note::Connected { at } => self.connected_at = Some(*at),
            Note::Baseline { cost_micro_usd } => self.baseline_micro_usd = *cost_micro_usd,
            Note::Began { resumed } => self.resumed = *resumed,
            Note::Seen { request, seen } => {
                if let Some(open) = self.open.get_mut(request) {
                    open.seen = Some(seen.clone());
                }
            }
            Note::Answer(answer) => {
                self.answers.push_back(answer.clone());
                while self.answers.len() > 1
                    && (self.answers.len() > MAX_ANSWERS
                        || self.answers.iter().map(Answer::size).sum::<usize>() > MAX_ANSWERS_BYTES)
                {
                    self.answers.pop_front();
                }
            }
            Note::TimedOut => self.timed_out = true,
            Note::GivenUp(why) => self.given_up = Some(why.clone()),
            Note::Ended { end } => self.end = Some(end.clone()),
        }
    }

    /// Whether a response of that message is still on its way.
    pub(crate) fn is_streaming(&self, message_id: &str) -> bool {
        self.open.values().any(|open| {
            open.seen
                .as_ref()
                .is_some_and(|seen| seen.message_id.as_deref() == Some(message_id))
        })
    }

    /// The meter's word on that message.
    pub(crate) fn answer(&self, message_id: &str) -> Option<&Answer> {
        self.answers
            .iter()
            .rev()
            .find(|a| a.message_id == message_id)
    }

    /// The event that ends a request, and the attempt's usage with it.
    pub(crate) fn request_ended(
        &self,
        request: u64,
        outcome: &RequestOutcome,
        now: Timestamp,
    ) -> EventBody {
        let mut usage = self.usage;
        usage.tokens = usage.tokens + outcome.seen.tokens;
        usage.requests = usage.requests.saturating_add(1);
        if outcome.estimated {
            usage.estimated_requests = usage.estimated_requests.saturating_add(1);
        }
        let since = self.open.get(&request).map_or(now, |open| open.at);
        EventBody::RequestEnded {
            request,
            status: outcome.status,
            model: outcome.seen.model.clone(),
            message_id: outcome.seen.message_id.clone(),
            tokens: outcome.seen.tokens,
            estimated: outcome.estimated,
            milliseconds: u64::try_from(now.duration_since(since).as_millis()).unwrap_or(0),
            usage,
        }
    }

    /// The end of the first request that a killed supervisor left open, if there is one: with what
    /// its head said, else with an estimate of its input.
    pub(crate) fn lost_request(&self, now: Timestamp) -> Option<EventBody> {
        let (request, open) = self.open.first_key_value()?;
        let status = open.seen.as_ref().map(|_| 200);
        let seen = open.seen.clone().unwrap_or_else(|| Seen {
            tokens: estimated_input(open.bytes),
            ..Seen::default()
        });
        let outcome = RequestOutcome {
            status,
            seen,
            estimated: true,
        };
        Some(self.request_ended(*request, &outcome, now))
    }

    /// Cost and turns of the attempt once a result has named them. A result that names no cost leaves
    /// it as it was: not known is not nothing.
    pub(crate) fn usage_with_result(
        &self,
        session_cost_micro_usd: Option<u64>,
        turns: u32,
    ) -> Usage {
        let mut usage = self.usage;
        if let Some(cost) = session_cost_micro_usd {
            usage.cost_micro_usd = Some(cost.saturating_sub(self.baseline_below(cost)));
        }
        usage.turns = usage.turns.saturating_add(turns);
        usage
    }

    /// What of a session's cost is from before this attempt. A figure that only rises and is below
    /// what it began with was counted anew.
    fn baseline_below(&self, session_cost_micro_usd: u64) -> u64 {
        if self.resumed && session_cost_micro_usd >= self.baseline_micro_usd {
            self.baseline_micro_usd
        } else {
            0
        }
    }
}

/// How a request ended.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct RequestOutcome {
    /// HTTP status, where one came.
    pub(crate) status: Option<u16>,
    /// What the response said.
    pub(crate) seen: Seen,
    /// It did not end.
    pub(crate) estimated: bool,
}

/// Tokens of a request of which nothing but its size is known.
pub(crate) fn estimated_input(bytes: u64) -> Tokens {
    Tokens {
        input: bytes / 4,
        ..Tokens::default()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests;
