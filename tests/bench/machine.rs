//! What a benchmark was measured on, to be quoted with it.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// The date, the commit and the machine.
pub(crate) fn line(root: &Path) -> Result<String> {
    let read = |file: &str| std::fs::read_to_string(file).with_context(|| file.to_owned());
    let cpus = read("/proc/cpuinfo")?;
    let model = cpus
        .lines()
        .find_map(|line| line.strip_prefix("model name"));
    let model = model.map_or("unknown CPU", |line| {
        line.trim_start_matches([' ', '\t', ':'])
    });
    let cores = std::thread::available_parallelism()?;
    let memory = read("/proc/meminfo")?;
    let memory: f64 = memory
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))
        .and_then(|line| line.split_whitespace().next())
        .context("/proc/meminfo")?
        .parse()?;
    let kernel = read("/proc/sys/kernel/osrelease")?;
    let load = read("/proc/loadavg")?;
    let load = load.split(' ').next().unwrap_or_default();
    let commit = git(root, &["rev-parse", "--short", "HEAD"])?;
    let changed = !git(root, &["status", "--porcelain", "--untracked-files=no"])?.is_empty();
    Ok(format!(
        "{}, commit {}{}; {cores} cores ({model}), {:.0} GiB, Linux {}, load {load} before the start",
        jiff::Zoned::now()
            .with_time_zone(jiff::tz::TimeZone::UTC)
            .strftime("%Y-%m-%d %H:%M UTC"),
        commit.trim(),
        if changed { " with changes" } else { "" },
        memory / f64::from(1 << 20),
        kernel.trim(),
    ))
}

fn git(root: &Path, arguments: &[&str]) -> Result<String> {
    let output = Command::new("git")
        .current_dir(root)
        .args(arguments)
        .output()?;
    ensure!(output.status.success(), "git {}", arguments.join(" "));
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
