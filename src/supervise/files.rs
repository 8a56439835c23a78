//! Small files that are replaced whole or not at all.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

/// Writes `body` beside `path` and renames it there.
pub(crate) fn replace(path: &Path, body: &[u8]) -> io::Result<()> {
    let beside = path.with_extension("new");
    let mut file = File::create(&beside)?;
    file.write_all(body)?;
    file.sync_data()?;
    fs::rename(&beside, path)
}
