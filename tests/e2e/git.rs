//! The git server as another client sees it: a clone made with git itself, and git's own counts.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;
use tokio::process::Command;

use crate::sh;
use crate::world::World;

/// A clone of the stage's repository.
pub(crate) struct Clone {
    folder: TempDir,
}

/// What git counts between two commits.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) commits: u32,
    pub(crate) files: u32,
    pub(crate) added: u64,
    pub(crate) removed: u64,
}

impl Clone {
    /// Clones every branch that the server has.
    pub(crate) async fn of(world: &World) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let ca = folder.path().join("ca.crt");
        std::fs::write(&ca, &world.stage.ca)?;
        let mut clone = git(folder.path());
        clone.env("GIT_SSL_CAINFO", &ca).args([
            "clone",
            "--quiet",
            "--mirror",
            &world.stage.git_outside_url,
            "repository.git",
        ]);
        sh::run(&mut clone, None, Duration::from_secs(60)).await?;
        Ok(Self { folder })
    }

    /// Runs git in the clone.
    pub(crate) async fn git(&self, arguments: &[&str]) -> Result<String> {
        let mut command = git(self.folder.path());
        command.args(["-C", "repository.git"]).args(arguments);
        Ok(sh::run(&mut command, None, Duration::from_secs(60))
            .await?
            .trim()
            .to_owned())
    }

    /// Commit that a branch points at, if the server has it.
    pub(crate) async fn branch(&self, name: &str) -> Result<Option<String>> {
        let name = format!("refs/heads/{name}");
        let found = self
            .git(&["for-each-ref", "--format=%(objectname)", &name])
            .await?;
        Ok(Some(found).filter(|commit| !commit.is_empty()))
    }

    /// What `git rev-list` and `git diff --numstat` count.
    pub(crate) async fn counts(&self, from: &str, to: &str) -> Result<Counts> {
        let commits = self
            .git(&["rev-list", "--count", &format!("{from}..{to}")])
            .await?;
        let numstat = self.git(&["diff", "--numstat", "-M", from, to]).await?;
        let mut counts = Counts {
            commits: commits.parse()?,
            files: 0,
            added: 0,
            removed: 0,
        };
        for line in numstat.lines() {
            let mut fields = line.split('\t');
            let mut number = || fields.next().unwrap_or("-").parse::<u64>().unwrap_or(0);
            counts.added += number();
            counts.removed += number();
            counts.files += 1;
        }
        Ok(counts)
    }

    /// The tree that `git apply` makes of a commit's.
    pub(crate) async fn applied(&self, commit: &str, patch: &[u8]) -> Result<String> {
        let index = self.folder.path().join("index");
        let file = self.folder.path().join("run.patch");
        std::fs::write(&file, patch)?;
        let file = file.to_str().context("a path that is no text")?;
        let mut said = String::new();
        for arguments in [
            &["read-tree", commit][..],
            &["apply", "--cached", file],
            &["write-tree"],
        ] {
            let mut command = git(self.folder.path());
            command.env("GIT_INDEX_FILE", &index);
            command.args(["-C", "repository.git"]).args(arguments);
            said = sh::run(&mut command, None, Duration::from_secs(60)).await?;
        }
        Ok(said.trim().to_owned())
    }

    /// Text of a file at a commit.
    pub(crate) async fn show(&self, commit: &str, path: &str) -> Result<String> {
        self.git(&["show", &format!("{commit}:{path}")])
            .await
            .with_context(|| format!("{path} at {commit}"))
    }

    /// Everything that a branch holds, as bytes of one archive.
    pub(crate) async fn archive(&self, branch: &str) -> Result<Vec<u8>> {
        let mut command = git(self.folder.path());
        command.args(["-C", "repository.git", "archive", "--format=tar", branch]);
        let output = command.output().await?;
        ensure!(
            output.status.success(),
            "git archive {branch}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(output.stdout)
    }
}

/// git without anybody's configuration.
fn git(folder: &Path) -> Command {
    let mut command = Command::new("git");
    command
        .current_dir(folder)
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_TERMINAL_PROMPT", "0");
    command
}
