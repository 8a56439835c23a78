//! Commands of the host: started with a deadline, output collected, failure told with its output.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

/// What a command left behind.
pub(crate) struct Output {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Output {
    /// Both streams, for a person or a search.
    pub(crate) fn all(&self) -> String {
        format!("{}{}", self.stdout, self.stderr)
    }
}

/// Runs a command to its end, whatever that is.
pub(crate) async fn attempt(
    command: &mut Command,
    input: Option<&str>,
    deadline: Duration,
) -> Result<Output> {
    let what = describe(command);
    command.stdin(if input.is_some() {
        Stdio::piped()
    } else {
        Stdio::null()
    });
    command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    let mut child = command
        .spawn()
        .with_context(|| format!("starting {what}"))?;
    if let (Some(text), Some(mut stdin)) = (input, child.stdin.take()) {
        let text = text.to_owned();
        tokio::spawn(async move {
            let _ = stdin.write_all(text.as_bytes()).await;
        });
    }
    let Ok(output) = tokio::time::timeout(deadline, child.wait_with_output()).await else {
        bail!("{what} did not end within {} s", deadline.as_secs());
    };
    let output = output.with_context(|| format!("waiting for {what}"))?;
    Ok(Output {
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}

/// Runs a command that has to succeed and returns its standard output.
pub(crate) async fn run(
    command: &mut Command,
    input: Option<&str>,
    deadline: Duration,
) -> Result<String> {
    let what = describe(command);
    let output = attempt(command, input, deadline).await?;
    if output.code != 0 {
        bail!("{what} ended with {}:\n{}", output.code, output.all());
    }
    Ok(output.stdout)
}

/// Runs a command whose progress a person wants to see, on standard error; returns standard output.
pub(crate) async fn run_loudly(command: &mut Command, deadline: Duration) -> Result<String> {
    let what = describe(command);
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .kill_on_drop(true);
    let child = command
        .spawn()
        .with_context(|| format!("starting {what}"))?;
    let Ok(output) = tokio::time::timeout(deadline, child.wait_with_output()).await else {
        bail!("{what} did not end within {} s", deadline.as_secs());
    };
    let output = output?;
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        bail!("{what} ended with {}:\n{stdout}", output.status);
    }
    Ok(stdout)
}

/// Variables as they are after a shell has read that script: it is the one reader of its own quoting.
pub(crate) async fn evaluate(script: &str, names: &[&str]) -> Result<BTreeMap<String, String>> {
    let mut printed = format!("{script}\n");
    for name in names {
        printed.push_str(&format!("printf '%s\\n' \"${name}\"\n"));
    }
    let values = run(
        Command::new("sh").args(["-c", &printed]),
        None,
        Duration::from_secs(10),
    )
    .await?;
    Ok(names
        .iter()
        .map(ToString::to_string)
        .zip(values.lines().map(str::to_owned))
        .collect())
}

fn describe(command: &Command) -> String {
    let command = command.as_std();
    std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(OsStr::to_string_lossy)
        .collect::<Vec<_>>()
        .join(" ")
}
