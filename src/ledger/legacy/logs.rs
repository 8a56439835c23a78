//! The earlier system's log files: JSON lines `run_{run_id}.log` or `{workflow}_{claude_session_id}.log`.
//! They lie where agents could write: bounded, and no link is followed.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde_json::{Map, Value};

use super::facts::Facts;
use super::values;

/// Longest line that is read; a longer one is passed over.
const MAX_LINE: u64 = 1 << 20;
/// Most runs of one file.
const MAX_RUNS: usize = 1_000;

/// What a file knows.
#[derive(Debug, Default)]
pub(super) struct Log {
    pub(super) name: String,
    pub(super) bytes: u64,
    /// By run; entries that name none are of the run that the file's name says.
    pub(super) runs: BTreeMap<String, Facts>,
    pub(super) passed_over: u64,
}

/// A folder of such files.
#[derive(Clone, Debug)]
pub(super) struct Logs(pub(super) PathBuf);

impl Logs {
    /// The files of a run, by both their names.
    pub(super) fn of(
        &self,
        run_id: &str,
        workflow: Option<&str>,
        claude_session: Option<&str>,
    ) -> Vec<Log> {
        let mut names = vec![format!("run_{run_id}.log")];
        if let (Some(workflow), Some(session)) = (workflow, claude_session) {
            names.push(format!("{workflow}_{session}.log"));
        }
        names
            .iter()
            .filter(|name| is_plain(name))
            .filter_map(|name| self.read(name).ok())
            .collect()
    }

    /// Names of all log files, one after the other; why, where one has none that can be used.
    pub(super) fn names(
        &self,
    ) -> std::io::Result<impl Iterator<Item = Result<String, (String, String)>> + use<>> {
        let entries = std::fs::read_dir(&self.0)?;
        Ok(entries.filter_map(|entry| {
            let name = match entry {
                Ok(entry) => entry.file_name(),
                Err(error) => return Some(Err((error.to_string(), "a file".to_owned()))),
            };
            if !name.as_encoded_bytes().ends_with(b".log") {
                return None;
            }
            Some(name.into_string().map_err(|name| {
                let why = "its name is not UTF-8".to_owned();
                (why, name.to_string_lossy().into_owned())
            }))
        }))
    }

    /// Reads a file line by line.
    pub(super) fn read(&self, name: &str) -> std::io::Result<Log> {
        let file = open(&self.0.join(name))?;
        let mut log = Log {
            name: name.to_owned(),
            bytes: file.metadata()?.len(),
            ..Log::default()
        };
        let own = run_of(name);
        let mut times: BTreeMap<String, (Option<Timestamp>, Option<Timestamp>)> = BTreeMap::new();
        let mut reader = BufReader::new(file);
        let mut line = Vec::new();
        loop {
            line.clear();
            let read = (&mut reader).take(MAX_LINE).read_until(b'\n', &mut line)?;
            if read == 0 {
                break;
            }
            if line.last() != Some(&b'\n') && read as u64 == MAX_LINE {
                log.passed_over += 1;
                skip_line(&mut reader)?;
                continue;
            }
            let entry = match serde_json::from_slice(&line) {
                Ok(Value::Object(entry)) => entry,
                _ if line.trim_ascii().is_empty() => continue,
                _ => {
                    log.passed_over += 1;
                    continue;
                }
            };
            let run = entry.get("run_id").and_then(values::name);
            let Some(run) = run.or_else(|| own.map(str::to_owned)) else {
                log.passed_over += 1;
                continue;
            };
            if !log.runs.contains_key(&run) && log.runs.len() >= MAX_RUNS {
                log.passed_over += 1;
                continue;
            }
            let at = entry.get("timestamp").and_then(values::time);
            let (first, last) = times.entry(run.clone()).or_default();
            *first = first.or(at);
            *last = (*last).max(at);
            let known = log.runs.entry(run).or_default();
            add(known, &entry);
        }
        for (run, facts) in &mut log.runs {
            let (first, last) = times.get(run).copied().unwrap_or_default();
            facts.lasted(first, last);
            facts.run_id = Some(run.clone());
            if facts.workflow_name.is_none() && own.is_none() {
                let workflow = name.trim_end_matches(".log").rsplit_once('_');
                facts.workflow_name = workflow.map(|(workflow, _)| workflow.to_owned());
            }
        }
        Ok(log)
    }
}

/// The latest word counts, of entries that speak of the run and not of its tools.
fn add(facts: &mut Facts, entry: &Map<String, Value>) {
    let word = |key: &str| entry.get(key).and_then(Value::as_str).unwrap_or_default();
    let (kind, category) = (word("event_type"), word("event_category"));
    let speaks = |text: &str| {
        [
            "workflow",
            "run",
            "process",
            "execution",
            "session",
            "result",
            "lifecycle",
        ]
        .iter()
        .any(|of| text.starts_with(of))
    };
    if !speaks(kind) && !speaks(category) {
        return;
    }
    if let Some(data) = entry.get("data").and_then(values::object) {
        let known = std::mem::take(facts);
        *facts = Facts::of_metadata(&data).or(known);
    }
    facts.said(kind.rsplit(['_', '.']).next().unwrap_or_default());
}

/// The run that a file's name says.
pub(super) fn run_of(name: &str) -> Option<&str> {
    name.strip_prefix("run_")?.strip_suffix(".log")
}

/// A name and no path.
fn is_plain(name: &str) -> bool {
    !name.contains(['/', '\0']) && name.len() < 256
}

fn open(path: &Path) -> std::io::Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK)
        .open(path)?;
    if file.metadata()?.is_file() {
        Ok(file)
    } else {
        Err(std::io::ErrorKind::InvalidInput.into())
    }
}

fn skip_line(reader: &mut impl BufRead) -> std::io::Result<()> {
    loop {
        let buffer = reader.fill_buf()?;
        if buffer.is_empty() {
            return Ok(());
        }
        let end = buffer.iter().position(|byte| *byte == b'\n');
        let used = end.map_or(buffer.len(), |end| end + 1);
        reader.consume(used);
        if end.is_some() {
            return Ok(());
        }
    }
}
