//! Brings the static binary into the agent's container, which may have any image: the supervisor
//! copies the one that it runs from into a folder that the agent sees.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// Copies the running binary into the folder. A supervisor that was restarted leaves what is there, since
/// the agent may run it, unless its size is another: a node that lost its power may have kept the name of
/// the file and not its content.
pub(super) fn install(folder: &Path) -> io::Result<()> {
    let there = folder.join("runledger");
    let own = std::env::current_exe()?;
    let whole = fs::metadata(&own)?.len();
    if fs::metadata(&there).is_ok_and(|file| file.len() == whole) {
        return Ok(());
    }
    let beside = folder.join(".runledger.new");
    fs::copy(own, &beside)?;
    fs::set_permissions(&beside, fs::Permissions::from_mode(0o755))?;
    fs::rename(&beside, there)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn the_binary_is_there_whole_and_once_and_may_be_run() {
        let folder = tempfile::tempdir().unwrap();
        // What a supervisor left that was killed in the middle of it.
        fs::write(folder.path().join(".runledger.new"), "half").unwrap();
        install(folder.path()).unwrap();
        let there = folder.path().join("runledger");
        let own = fs::metadata(std::env::current_exe().unwrap()).unwrap();
        let meta = fs::metadata(&there).unwrap();
        assert_eq!(meta.len(), own.len());
        assert_eq!(meta.permissions().mode() & 0o777, 0o755);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);

        let installed = meta.ino();
        install(folder.path()).unwrap();
        assert_eq!(fs::metadata(&there).unwrap().ino(), installed);

        // What a loss of power left.
        fs::write(&there, "").unwrap();
        install(folder.path()).unwrap();
        assert_eq!(fs::metadata(&there).unwrap().len(), own.len());
    }
}
