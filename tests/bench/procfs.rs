//! What `/proc` says of the machine's processes.

use anyhow::{Context, Result};

/// All of them.
pub(crate) fn processes() -> Result<Vec<u32>> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir("/proc")? {
        let name = entry?.file_name();
        all.extend(name.to_str().and_then(|pid| pid.parse::<u32>().ok()));
    }
    Ok(all)
}

/// The numbers of /proc/PID/stat, from the third field on; what is no number is 0.
pub(crate) fn stat(pid: u32) -> Result<Vec<u64>> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // Its second field is a name that may hold anything.
    let (_, fields) = stat.rsplit_once(')').context("/proc/PID/stat")?;
    let numbers = fields.split_whitespace();
    Ok(numbers.map(|field| field.parse().unwrap_or(0)).collect())
}
