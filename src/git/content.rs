//! What git compares of a file: a blob, a link's target, a submodule's commit, or a file of the
//! worktree that is in no commit yet.

use super::Error;
use super::lines::looks_binary;
use super::objects::{Objects, SUBMODULE};
use super::tree_diff::Side;

/// Reads files of the worktree as they would be committed.
pub(super) trait OnDisk: Sync {
    /// The content of a file; an error where it has gone meanwhile.
    fn read(&self, side: &Side) -> Result<Vec<u8>, Error>;
    /// About how many bytes that will be.
    fn size(&self, side: &Side) -> Result<u64, Error>;
}

/// Where contents come from.
pub(super) struct Content<'c> {
    pub(super) objects: &'c Objects<'c>,
    pub(super) on_disk: Option<&'c dyn OnDisk>,
}

/// A content that has been read.
pub(super) struct Text<'c> {
    bytes: Bytes<'c>,
    is_binary: bool,
}

enum Bytes<'c> {
    Object(super::objects::Stored<'c>),
    Own(Vec<u8>),
}

impl Text<'_> {
    /// All of it.
    pub(super) fn bytes(&self) -> &[u8] {
        match &self.bytes {
            Bytes::Object(object) => object.data(),
            Bytes::Own(bytes) => bytes,
        }
    }

    /// All of it, unless it is binary.
    pub(super) fn as_text(&self) -> Option<&[u8]> {
        (!self.is_binary).then(|| self.bytes())
    }
}

impl Content<'_> {
    /// Bytes of a side, without reading it.
    pub(super) fn size(&self, side: &Side) -> Result<u64, Error> {
        match (side.mode, self.on_disk) {
            (SUBMODULE, _) => Ok(60),
            (_, Some(on_disk)) if side.on_disk => on_disk.size(side),
            _ => self.objects.blob_size(side.id),
        }
    }

    /// A side of a size that the caller has looked at.
    pub(super) fn text(&self, side: &Side) -> Result<Text<'_>, Error> {
        let bytes = match (side.mode, self.on_disk) {
            (SUBMODULE, _) => Bytes::Own(format!("Subproject commit {}\n", side.id).into_bytes()),
            (_, Some(on_disk)) if side.on_disk => Bytes::Own(on_disk.read(side)?),
            _ => Bytes::Object(self.objects.blob(side.id)?),
        };
        let mut text = Text {
            bytes,
            is_binary: false,
        };
        // As git decides: by the attribute, else by a NUL near the beginning.
        text.is_binary = !side.is_text.unwrap_or_else(|| !looks_binary(text.bytes()));
        Ok(text)
    }

    /// Whether a side is binary; a very large one is.
    pub(super) fn is_binary(&self, side: &Side) -> Result<bool, Error> {
        if let Some(is_text) = side.is_text {
            return Ok(!is_text);
        }
        if self.size(side)? > super::lines::MAX_READ {
            return Ok(true);
        }
        Ok(self.text(side)?.as_text().is_none())
    }
}
