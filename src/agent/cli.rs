//! How the Claude CLI is started: its arguments, its environment, and whether it takes a transcript
//! up again. Nothing secret is in either: the key is the supervisor's.

use std::ffi::OsString;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use uuid::Uuid;

use super::Args;
use crate::pod::paths;
use crate::wire::door::Start;

/// What the CLI takes for a key; the metering proxy puts the real one in its place.
const NO_KEY: &str = "supervised";

/// Longest line of a transcript that is looked at.
const MAX_TRANSCRIPT_LINE: u64 = 64 * 1024 * 1024;

/// Whether HOME holds a transcript of that session that the CLI can take up again. One in which
/// nobody has said anything yet (a pod was lost in its first moments) it can neither take up nor
/// begin anew, so that such a file is moved out of its way.
pub(super) fn has_transcript(home: &Path, session: Uuid) -> bool {
    let name = format!("{session}.jsonl");
    let projects = std::fs::read_dir(home.join(".claude").join("projects"));
    let files = projects.into_iter().flatten().flatten();
    let files = files.map(|project| project.path().join(&name));
    let (usable, unusable): (Vec<_>, Vec<_>) = files
        .filter(|file| file.is_file())
        .partition(|file| has_user_line(file));
    for file in unusable {
        tracing::warn!(file = %file.display(), "a transcript without a word is set aside");
        if let Err(error) = std::fs::rename(&file, file.with_extension("jsonl.unusable")) {
            tracing::warn!(%error, "it can't be moved");
        }
    }
    !usable.is_empty()
}

fn has_user_line(file: &Path) -> bool {
    let Ok(file) = std::fs::File::open(file) else {
        return false;
    };
    let mut reader = BufReader::new(file);
    let mut line = Vec::new();
    loop {
        line.clear();
        let mut limited = (&mut reader).take(MAX_TRANSCRIPT_LINE);
        match limited.read_until(b'\n', &mut line) {
            Ok(read) if read > 0 => {
                let parsed = serde_json::from_slice::<Value>(&line);
                if parsed.is_ok_and(|line| line["type"] == "user") {
                    return true;
                }
            }
            _ => return false,
        }
    }
}

/// The CLI's command line.
pub(super) fn arguments(start: &Start, resumed: bool) -> Vec<OsString> {
    let mut arguments: Vec<OsString> = [
        "-p",
        "--verbose",
        "--output-format",
        "stream-json",
        "--input-format",
        "stream-json",
        "--permission-mode",
        "bypassPermissions",
    ]
    .map(OsString::from)
    .to_vec();
    let mut option = |name: &str, value: String| arguments.extend([name.into(), value.into()]);
    option(
        if resumed { "--resume" } else { "--session-id" },
        start.session_id.to_string(),
    );
    if let Some(model) = &start.model {
        option("--model", model.clone());
    }
    if let Some(turns) = start.max_turns {
        option("--max-turns", turns.to_string());
    }
    arguments
}

/// The CLI as it is started, in a process group of its own.
pub(super) fn command(args: &Args, start: &Start, resumed: bool) -> Command {
    use std::os::unix::process::CommandExt;
    let work = args.path(paths::WORK);
    let mut command = Command::new(&args.claude);
    command
        .args(arguments(start, resumed))
        .current_dir(&work)
        .env("HOME", args.path(paths::HOME))
        .env(
            "ANTHROPIC_BASE_URL",
            format!("http://127.0.0.1:{}", args.proxy_port),
        )
        .env("ANTHROPIC_API_KEY", NO_KEY)
        .env("CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC", "1")
        .env("DISABLE_AUTOUPDATER", "1")
        // The pod is the sandbox: without this the CLI refuses to work as root without asking.
        .env("IS_SANDBOX", "1")
        // The folder belongs to the volume's root, not to the agent's user.
        .env("GIT_CONFIG_COUNT", "1")
        .env("GIT_CONFIG_KEY_0", "safe.directory")
        .env("GIT_CONFIG_VALUE_0", &work)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0);
    for (name, value) in [
        ("TMPDIR", "/tmp"),
        ("GIT_AUTHOR_NAME", "Claude"),
        ("GIT_AUTHOR_EMAIL", "noreply@anthropic.com"),
        ("GIT_COMMITTER_NAME", "Claude"),
        ("GIT_COMMITTER_EMAIL", "noreply@anthropic.com"),
    ] {
        if std::env::var_os(name).is_none() {
            command.env(name, value);
        }
    }
    command
}

/// The task, as the CLI reads it.
pub(super) fn user_line(task: &str) -> Vec<u8> {
    line(&json!({"type": "user", "message": {"role": "user", "content": task}}))
}

/// Asks the CLI to stop what it is doing.
pub(super) fn interrupt_line() -> Vec<u8> {
    line(
        &json!({"type": "control_request", "request_id": "stop", "request": {"subtype": "interrupt"}}),
    )
}

fn line(value: &Value) -> Vec<u8> {
    let mut line = value.to_string().into_bytes();
    line.push(b'\n');
    line
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    fn start() -> Start {
        Start {
            task: "--dangerous; rm -rf /".into(),
            session_id: Uuid::from_u128(5),
            model: Some("opus".into()),
            max_turns: Some(3),
        }
    }

    #[test]
    fn the_task_is_no_argument() {
        let arguments = arguments(&start(), false);
        assert!(
            !arguments
                .iter()
                .any(|a| a.to_string_lossy().contains("rm -rf"))
        );
        let line: Value = serde_json::from_slice(&user_line(&start().task)).unwrap();
        assert_eq!(line["message"]["content"], "--dangerous; rm -rf /");
    }

    #[test]
    fn a_session_whose_transcript_is_there_is_taken_up_again() {
        let home = tempfile::tempdir().unwrap();
        let session = start().session_id;
        assert!(!has_transcript(home.path(), session));
        let project = home.path().join(".claude/projects/-workspace");
        std::fs::create_dir_all(&project).unwrap();
        let said = "{\"type\":\"queue-operation\"}\n{\"type\":\"user\"}\n{\"ty";
        std::fs::write(project.join(format!("{session}.jsonl")), said).unwrap();
        assert!(has_transcript(home.path(), session));
        assert!(arguments(&start(), true).contains(&"--resume".into()));
        assert!(!arguments(&start(), true).contains(&"--session-id".into()));
    }

    #[test]
    fn a_transcript_in_which_nobody_has_spoken_is_set_aside() {
        let home = tempfile::tempdir().unwrap();
        let session = start().session_id;
        let project = home.path().join(".claude/projects/-workspace");
        std::fs::create_dir_all(&project).unwrap();
        let file = project.join(format!("{session}.jsonl"));
        for text in [
            "",
            "{\"type\":\"queue-operation\"}\n",
            "{\"type\":\"user\",\"mess",
        ] {
            std::fs::write(&file, text).unwrap();
            assert!(!has_transcript(home.path(), session), "{text}");
            assert!(!file.exists(), "{text}");
        }
    }
}
