//! A run's change as patches, on its way from the seal to the ledger.

use serde::{Deserialize, Serialize};

/// Most bytes of a run's patches together, but for the names of what is left out. A journal whose
/// volume is full still has room for so much and the seal behind it.
pub const MAX_PATCH_BYTES: usize = 1024 * 1024;

/// What a run changed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Patch {
    /// HEAD before the run; absent in an empty repository.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initial_commit: Option<String>,
    /// HEAD after it; absent where there is no commit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub final_commit: Option<String>,
    /// From the initial commit to the final one.
    pub committed: PatchText,
    /// From the final commit to what was in the worktree at the end, files that git did not know
    /// included.
    pub uncommitted: PatchText,
}

impl Patch {
    /// All but the patches themselves.
    pub fn without_text(&self) -> Self {
        let without = |part: &PatchText| PatchText {
            text: Vec::new(),
            unknown: part.unknown.clone(),
            ..*part
        };
        Self {
            initial_commit: self.initial_commit.clone(),
            final_commit: self.final_commit.clone(),
            committed: without(&self.committed),
            uncommitted: without(&self.uncommitted),
        }
    }
}

/// A patch that `git apply` takes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PatchText {
    /// As `git diff -M --full-index` writes it. What is not in it is named at its head, in lines that
    /// begin with `#`. Bytes, since contents need not be UTF-8.
    #[serde(default, with = "base64_text", skip_serializing_if = "Vec::is_empty")]
    pub text: Vec<u8>,
    /// Files that it shows.
    pub files: u64,
    /// Binary files that came or changed, which are only named.
    pub binary: u64,
    /// Other files that it does not show: too large for it, or in conflict.
    pub left_out: u64,
    /// Bytes that it would have with those that are too large; absent where somebody would have to
    /// read more than is reasonable to tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    /// Why there is none, where it could not be made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unknown: Option<String>,
}

impl PatchText {
    /// None could be made, for that reason.
    pub fn unknown(why: String) -> Self {
        Self {
            unknown: Some(why),
            ..Self::default()
        }
    }

    /// Whether there was nothing to show.
    pub fn is_empty(&self) -> bool {
        self.text.is_empty() && self.unknown.is_none()
    }
}

mod base64_text {
    use base64::Engine;
    use base64::engine::general_purpose::STANDARD;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(bytes))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Vec<u8>, D::Error> {
        let text = String::deserialize(deserializer)?;
        STANDARD.decode(text).map_err(D::Error::custom)
    }
}
