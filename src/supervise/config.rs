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
        hosts,
        ca_files: ca_file.into_iter().collect(),
    })
}

fn allow(url: &Url, hosts: &[String], field: &str, default: &str) -> Result<(), Stop> {
    let host = url.host_str().unwrap_or_default();
    let with_port = format!("{host}:{}", url.port_or_known_default().unwrap_or_default());
    // As `git::Access` judges: without TLS the port must be named too.
    let named = |name: &String| {
        (url.scheme() == "https" && name.eq_ignore_ascii_case(host))
            || name.eq_ignore_ascii_case(&with_port)
    };
    if hosts.iter().any(named) {
        return Ok(());
    }
    let wanted = if url.scheme() == "https" {
        host
    } else {
        &with_port
    };
    Err(Stop {
        // The Secret can be completed, and the run goes on.
        outcome: Outcome::Waiting,
        reason: reasons::HOST_NOT_ALLOWED,
        message: format!(
            "The Secret of {field} may not be sent to {host}: its key `hosts` (default: {default}) \
             does not name it. Add the key `hosts` with the value `{wanted}` to the Secret."
        ),
    })
}

/// The host names of a Secret's key `hosts`, separated by commas or white space.
fn hosts(folder: &Path) -> Option<Vec<String>> {
    let text = secret(folder, "hosts")?;
    let names = text.split(|c: char| c == ',' || c.is_whitespace());
    Some(names.filter(|n| !n.is_empty()).map(str::to_owned).collect())
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

    fn url(text: &str) -> Url {
        text.parse().unwrap()
    }

    #[test]
    fn a_secret_goes_to_no_host_that_it_does_not_name() {
        let hosts = ["Git.example".to_owned(), "other.example:8443".to_owned()];
        assert!(allow(&url("https://git.example/r.git"), &hosts, "f", "d").is_ok());
        assert!(allow(&url("https://other.example:8443/r.git"), &hosts, "f", "d").is_ok());
        for bad in [
            "https://other.example/r",
            "https://evil.git.example/",
            "https://git.example.evil/",
        ] {
            let stop = allow(&url(bad), &hosts, "f", "d").unwrap_err();
            assert_eq!(stop.reason, reasons::HOST_NOT_ALLOWED, "{bad}");
        }
    }

    #[test]
    fn hosts_are_separated_by_commas_or_white_space() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(hosts(dir.path()), None);
        fs::write(
            dir.path().join("hosts"),
            "a.example, b.example\nc.example\n",
        )
        .unwrap();
        assert_eq!(
            hosts(dir.path()).unwrap(),
            ["a.example", "b.example", "c.example"]
        );
    }
}
