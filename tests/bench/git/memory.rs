//! How much memory a command has at the most, with all the processes that it starts: the git command
//! leaves much of its work to others. A page that several processes have counts for each in part.

use std::collections::HashSet;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::procfs;

/// Looking at memory holds a process up, so this has rounds of its own.
pub(crate) const ROUNDS: usize = 3;
/// From one look to the next.
const PAUSE: Duration = Duration::from_micros(300);

/// This program under another name, whose pages are not this process' too.
pub(crate) fn copy_of_this(dir: &Path) -> PathBuf {
    let copy = dir.join("program");
    std::fs::copy(std::env::current_exe().unwrap(), &copy).unwrap();
    copy
}

/// Runs it; MiB at the most of all of its processes together.
pub(crate) fn mebibytes(mut command: Command) -> f64 {
    let mut child = super::start(command.process_group(0));
    let (mut most, mut strangers) = (0, HashSet::new());
    loop {
        most = most.max(kibibytes(child.id(), &mut strangers));
        if let Some(done) = child.try_wait().unwrap() {
            assert!(done.success(), "{command:?}: {done}");
            return f64::from(most) / 1024.0;
        }
        std::thread::sleep(PAUSE);
    }
}

/// What the processes of a group have now. Whoever was found outside of it is not looked at again.
fn kibibytes(group: u32, strangers: &mut HashSet<u32>) -> u32 {
    let mut sum = 0;
    for process in procfs::processes().unwrap() {
        if strangers.contains(&process) {
            continue;
        }
        // The fifth field, counted from the third.
        let its = procfs::stat(process)
            .ok()
            .and_then(|stat| stat.get(2).copied());
        match its == Some(u64::from(group)) {
            true => sum += share(process).unwrap_or(0),
            false => drop(strangers.insert(process)),
        }
    }
    sum
}

/// KiB of a process; of a page that several have, its part.
fn share(process: u32) -> Option<u32> {
    let rollup = std::fs::read_to_string(format!("/proc/{process}/smaps_rollup")).ok()?;
    let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:"))?;
    line.trim().strip_suffix(" kB")?.parse().ok()
}
