//! `runledger install`: copies the running binary into a folder, so that an init container can
//! bring it into any image.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

/// `runledger install`
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Folder that the binary is copied into, under its own name.
    folder: PathBuf,
}

/// Copies the binary; a copy that is already there is replaced whole.
pub fn run(args: &Args) -> io::Result<()> {
    let beside = args.folder.join(".runledger.new");
    fs::copy(std::env::current_exe()?, &beside)?;
    fs::set_permissions(&beside, fs::Permissions::from_mode(0o755))?;
    fs::rename(&beside, args.folder.join("runledger"))
}
