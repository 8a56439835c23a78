//! What a supervisor is told: its assignment, its task and its Secrets, read from files. It owns
//! the paths and ports, which tests move, and the check that a Secret names the host that it would
//! be sent to.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use url::Url;

use super::Stop;
use crate::git::Access;
use crate::names::reasons;
use crate::pod::{Assignment, paths, ports};
use crate::wire::Outcome;

/// Host that the model's key may be sent to where its Secret names none.
const DEFAULT_MODEL_HOST: &str = "api.anthropic.com";
/// Largest task, key or other small file that is read.
const MAX_FILE: u64 = 2 * 1024 * 1024;

/// `runledger supervise`
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Folder that this binary is copied into, for the agent's container.
    #[arg(long, value_name = "FOLDER")]
    pub(super) install: Option<PathBuf>,
    /// Folder that every path of the pod is below.
    #[arg(long, default_value = "/", hide = true)]
    root: PathBuf,
    /// Port of the metering proxy.
    #[arg(long, default_value_t = ports::PROXY, hide = true)]
    pub(super) proxy_port: u16,
    /// Port of the door.
    #[arg(long, default_value_t = ports::DOOR, hide = true)]
    pub(super) door_port: u16,
    /// Port of the startup probe.
    #[arg(long, default_value_t = ports::STARTED, hide = true)]
    pub(super) started_port: u16,
}

impl Args {
    /// A path of [`paths`], below the root.
    pub(super) fn path(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }
}

/// The assignment as the controller wrote it.
pub(super) fn assignment(args: &Args) -> Result<Assignment, Stop> {
    let path = args.path(paths::ASSIGNMENT);
    let bytes = read(&path).map_err(|e| {
        invalid(format!(
            "The assignment {} can't be read: {e}.",
            path.display()
        ))
    })?;
    let assignment: Assignment = serde_json::from_slice(&bytes)
        .map_err(|e| invalid(format!("The assignment can't be understood: {e}.")))?;
    for url in [&assignment.model.url, &assignment.server.url] {
        if url.scheme() != "https" || url.host_str().is_none() {
            return Err(invalid(format!("{url} is not an https URL.")));
        }
    }
    Ok(assignment)
}

/// The task: inline, or from a ConfigMap.
pub(super) fn task(args: &Args) -> Result<String, Stop> {
    for path in [paths::TASK, paths::TASK_FROM] {
        match read(&args.path(path)) {
            Ok(bytes) if bytes.is_empty() => {}
            Ok(bytes) => {
                return String::from_utf8(bytes)
                    .map_err(|_| invalid("The task is not UTF-8.".to_owned()));
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(invalid(format!("The task can't be read: {e}."))),
        }
    }
    Err(Stop {
        outcome: Outcome::Waiting,
        reason: reasons::MISSING_CONFIG_MAP,
        message: "There is no task: neither spec.task nor the key that spec.taskFrom names."
            .to_owned(),
    })
}

/// The model's key, if its Secret says that it may be sent to `url`.
pub(super) fn model_key(args: &Args, url: &Url) -> Result<String, Stop> {
    let folder = args.path(paths::MODEL_SECRET);
    let allowed = hosts(&folder).unwrap_or_else(|| vec![DEFAULT_MODEL_HOST.to_owned()]);
    allow(url, &allowed, "agent.secretName", DEFAULT_MODEL_HOST)?;
    secret(&folder, "ANTHROPIC_API_KEY")
        .filter(|key| !key.is_empty())
        .ok_or_else(|| Stop {
            outcome: Outcome::Waiting,
            reason: reasons::MISSING_SECRET,
            message: "The Secret of agent.secretName has no key ANTHROPIC_API_KEY.".to_owned(),
        })
}

/// The repository's Secret, if it says that it may be sent to `url`.
pub(super) fn git_secret(args: &Args, url: &Url) -> Result<Access, Stop> {
    let folder = args.path(paths::GIT_SECRET);
    let hosts = hosts(&folder).unwrap_or_default();
    allow(url, &hosts, "repository.secretName", "nothing")?;
    let ca_file = Some(folder.join("ca.crt")).filter(|path| path.is_file());
    Ok(Access {
        username: secret(&folder, "username"),
        password: secret(&folder, "password"),
        // What is read by lines ends with one.
        private_key: secret(&folder, "ssh-privatekey").map(|key| key + "\n"),
        ssh_home: None,
        hosts,
        ca_files: ca_file.into_iter().collect(),
    })
}

/// The hosts that a key is shown to; nothing where the Secret does not say.
pub(super) fn known_hosts(args: &Args) -> Option<String> {
    secret(&args.path(paths::GIT_SECRET), "known_hosts").map(|hosts| hosts + "\n")
}

fn allow(url: &Url, hosts: &[String], field: &str, default: &str) -> Result<(), Stop> {
    if crate::hosts::allow(hosts, url) {
        return Ok(());
    }
    let wanted = crate::hosts::wanted(url).unwrap_or_default();
    Err(Stop {
        // The Secret can be completed, and the run goes on.
        outcome: Outcome::Waiting,
        reason: reasons::HOST_NOT_ALLOWED,
        message: format!(
            "The Secret of {field} may not be sent to {wanted}: its key `hosts` (default: {default}) \
             does not name it. Add the key `hosts` with the value `{wanted}` to the Secret."
        ),
    })
}

/// The names under a Secret's key `hosts`.
fn hosts(folder: &Path) -> Option<Vec<String>> {
    secret(folder, "hosts").map(|text| crate::hosts::parse(&text))
}

fn secret(folder: &Path, key: &str) -> Option<String> {
    let bytes = read(&folder.join(key)).ok()?;
    let text = String::from_utf8(bytes).ok()?;
    Some(text.trim_end_matches(['\r', '\n']).to_owned())
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    if fs::metadata(path)?.len() > MAX_FILE {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    fs::read(path)
}

fn invalid(message: String) -> Stop {
    Stop {
        outcome: Outcome::Failed,
        reason: reasons::INVALID_SPEC,
        message,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_that_names_no_host_names_none_and_one_that_is_not_there_is_told() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(hosts(dir.path()), None);
        fs::write(dir.path().join("hosts"), "git.example\n").unwrap();
        assert_eq!(hosts(dir.path()).unwrap(), ["git.example"]);
        let url = Url::parse("https://git.example:8443/r.git").unwrap();
        let stop = allow(&url, &hosts(dir.path()).unwrap(), "f", "d").unwrap_err();
        assert_eq!(stop.reason, reasons::HOST_NOT_ALLOWED);
        assert!(stop.message.contains("`git.example:8443`"), "{stop}");
    }
}
