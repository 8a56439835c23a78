//! What of a batch is there already: guessed where the batch seems to be its attempt's next, else read.

use std::collections::HashSet;

use jiff::civil::Date;
use jiff_sqlx::ToSqlx;
use sqlx::{Postgres, Transaction};
use uuid::Uuid;

use super::Attempt;
use crate::ledger::Error;
use crate::ledger::effects::Stored;

/// What of a batch is there already, and how far its attempt's events are stored without a gap.
#[derive(Debug, Default)]
pub(in crate::ledger) struct Known {
    pub(in crate::ledger) acknowledged: i64,
    /// Rising.
    pub(super) sequences: Vec<i64>,
    pub(super) messages: HashSet<Uuid>,
}

impl Known {
    /// Of a batch that goes on where the stored events end: nothing. Of any other it isn't known.
    pub(in crate::ledger) fn of_the_next(stored: &Stored, acknowledged: i64) -> Option<Self> {
        let goes_on = (acknowledged + 1..)
            .zip(&stored.events)
            .all(|(next, event)| event.sequence == next);
        // The task is said in each attempt.
        let says_again = stored.attempt > 1 && stored.says_the_task();
        (goes_on && !says_again).then(|| Self {
            acknowledged,
            ..Self::default()
        })
    }

    /// Reads it.
    pub(in crate::ledger) async fn read(
        tx: &mut Transaction<'_, Postgres>,
        stored: &Stored,
        attempt: Attempt,
        day: Date,
    ) -> Result<Self, Error> {
        let sequences = stored.sequences();
        let messages = stored.messages(&sequences);
        let messages: Vec<Uuid> = messages.iter().map(|(_, m)| m.id).collect();
        let row = sqlx::query!(
            r#"SELECT a.acknowledged,
                      ARRAY(SELECT e.sequence FROM run_events e
                            WHERE e.run_id = $1 AND e.attempt = $2 AND e.started_day = $3
                              AND e.sequence BETWEEN $4 AND $5 ORDER BY e.sequence) AS "sequences!",
                      ARRAY(SELECT m.id FROM messages m WHERE m.id = ANY ($6::uuid[])) AS "messages!"
               FROM run_attempts a WHERE a.run_id = $1 AND a.attempt = $2"#,
            attempt.run,
            attempt.attempt,
            day.to_sqlx() as _,
            sequences.first().copied(),
            sequences.last().copied(),
            &messages,
        )
        .fetch_one(&mut **tx)
        .await?;
        Ok(Self {
            acknowledged: row.acknowledged,
            sequences: row.sequences,
            messages: row.messages.into_iter().collect(),
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use jiff::Timestamp;

    use super::*;
    use crate::wire::{Batch, Event, EventBody, Message, MessageKind, Role, Source};

    fn stored(attempt: u32, sequences: &[u64], kind: MessageKind) -> Stored {
        let body = EventBody::Message(Message {
            id: Uuid::nil(),
            role: Role::User,
            kind,
            text: String::new(),
            tool_calls: vec![],
            tool_outputs: vec![],
            model: None,
            tokens: None,
            source: Source::Supervisor,
            altered: false,
        });
        let event = |sequence: &u64| Event {
            sequence: *sequence,
            at: Timestamp::UNIX_EPOCH,
            body: body.clone(),
        };
        Stored::of(&Batch {
            run_id: Uuid::nil(),
            attempt,
            session_id: Uuid::nil(),
            session_name: "s".to_owned(),
            events: sequences.iter().map(event).collect(),
        })
        .unwrap()
    }

    #[test]
    fn only_what_goes_on_where_the_stored_events_end_is_guessed_to_be_new() {
        use MessageKind::{Assistant, WorkflowStart};
        for (attempt, sequences, kind, guessed) in [
            (1, &[5, 6, 7][..], Assistant, true),
            (1, &[], Assistant, true),
            (1, &[4, 5], Assistant, false),
            (1, &[6, 7], Assistant, false),
            (1, &[5, 7], Assistant, false),
            (1, &[5], WorkflowStart, true),
            // The earlier attempt has said it.
            (2, &[5], WorkflowStart, false),
            (2, &[5], Assistant, true),
        ] {
            let stored = stored(attempt, sequences, kind);
            assert_eq!(
                Known::of_the_next(&stored, 4).is_some(),
                guessed,
                "{attempt} {sequences:?} {kind:?}"
            );
        }
    }
}
