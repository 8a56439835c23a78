//! Deterministic ids (UUIDv5), so that nothing waits for a round trip to be named and every part
//! that names the same thing gives it the same name.

use uuid::{Uuid, uuid};

/// Namespace of all our ids: UUIDv5 of `runledger.dev` in the DNS namespace (RFC 9562, section 6.6).
const RUNLEDGER: Uuid = uuid!("1dc13957-b698-56c1-9f43-6f6aec35b7a0");

/// Id of the session of that name in that Kubernetes namespace.
pub fn session(namespace: &str, name: &str) -> Uuid {
    Uuid::new_v5(&RUNLEDGER, format!("session/{namespace}/{name}").as_bytes())
}

/// Id of a message of a run; `key` is what makes it unique in the run (an API message's id,
/// a tool call's id, `task`).
pub fn message(run: Uuid, key: &str) -> Uuid {
    Uuid::new_v5(&run, format!("message/{key}").as_bytes())
}

/// Id of the row of a run of the earlier system, whose `run_id` could be any text.
pub fn legacy_run(run_id: &str) -> Uuid {
    Uuid::new_v5(&RUNLEDGER, format!("legacy/{run_id}").as_bytes())
}
