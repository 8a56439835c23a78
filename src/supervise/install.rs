//! Brings the static binary into the agent's container, which may have any image: the supervisor
//! copies the one that it runs from into a folder that the agent sees.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// Copies the running binary into the folder. One that is there is whole, and the agent may run it:
/// a supervisor that was restarted leaves it.
pub(super) fn install(folder: &Path) -> io::Result<()> {
    let there = folder.join("runledger");
    if there.exists() {
        return Ok(());
    }
    let beside = folder.join(".runledger.new");
    fs::copy(std::env::current_exe()?, &beside)?;
    fs::set_permissions(&beside, fs::Permissions::from_mode(0o755))?;
    fs::rename(&beside, there)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
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

        fs::write(&there, "run by the agent").unwrap();
        install(folder.path()).unwrap();
        assert_eq!(fs::read_to_string(&there).unwrap(), "run by the agent");
    }
}
