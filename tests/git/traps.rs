//! A workspace as a former run could have left it, one trap at a time, and every step that trusted code
//! takes in it: take-over, report, push, the next run's checkout. Nothing is executed, nothing outside
//! is read or written, nothing hangs, nobody else is called.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use nix::sys::stat::Mode;
use runledger::api::repository::OnReuse;
use runledger::git::{self, Access, Limits, Wanted};
use uuid::Uuid;

use crate::fuzz::copy;
use crate::lab::*;
use crate::server::{Manner, Server};

const SECRET: &str = "s3cr3t-of-somebody-else";

/// What stands around a trap.
struct Scene<'s> {
    lab: &'s Lab,
    /// A program that leaves a mark.
    script: &'s str,
    /// A repository that is nobody's business, with the secret in it.
    outside: &'s Path,
    /// Where nobody may call.
    elsewhere: &'s str,
    /// The repository's own base URL.
    server: &'s str,
}

impl Scene<'_> {
    fn git(&self, name: &str) -> PathBuf {
        self.lab.work().join(".git").join(name)
    }

    fn put(&self, name: &str, text: impl AsRef<[u8]>) {
        write(&self.lab.work().join(".git"), name, text);
    }

    /// A line for each way that git's configuration names a program, a file or a host.
    fn config(&self) -> String {
        let (script, outside, elsewhere, server) = (
            self.script,
            self.outside.display(),
            self.elsewhere,
            self.server,
        );
        format!(
            "[core]\n\trepositoryformatversion = 0\n\tworktree = {outside}\n\tfsmonitor = {script}\n\
             \thooksPath = {outside}\n\tsshCommand = {script}\n\tgitProxy = {script}\n\taskPass = {script}\n\
             \tpager = {script}\n\teditor = {script}\n\tattributesFile = {outside}/token\n\
             \texcludesFile = {outside}/token\n\talternateRefsCommand = {script}\n\
             [include]\n\tpath = {outside}/config\n[includeIf \"gitdir:/\"]\n\tpath = {outside}/config\n\
             [url \"{elsewhere}\"]\n\tinsteadOf = {server}\n\tpushInsteadOf = {server}\n\
             [remote \"origin\"]\n\turl = {elsewhere}project.git\n\tpushurl = {elsewhere}project.git\n\
             \tuploadpack = {script}\n\treceivepack = {script}\n\tproxy = {elsewhere}\n\tvcs = {script}\n\
             [credential]\n\thelper = !{script}\n[http]\n\tproxy = {elsewhere}\n\tsslVerify = false\n\
             \tcookieFile = {outside}/token\n\tsslCert = {outside}/token\n\
             [filter \"x\"]\n\tclean = {script}\n\tsmudge = {script}\n\tprocess = {script}\n\trequired = true\n\
             [diff]\n\texternal = {script}\n[diff \"x\"]\n\ttextconv = {script}\n\tcommand = {script}\n\
             [merge \"x\"]\n\tdriver = {script}\n[gpg]\n\tprogram = {script}\n[commit]\n\tgpgSign = true\n\
             [gc]\n\trecentObjectsHook = {script}\n[uploadpack]\n\tpackObjectsHook = {script}\n\
             [extensions]\n\tworktreeConfig = true\n\tobjectFormat = sha1\n"
        )
    }
}

/// What may come of a trap.
#[derive(Clone, Copy)]
enum Then {
    /// The run's commit is counted and pushed as if nothing were.
    Works,
    /// The take-over, or the report, may say that it can't be read.
    MayBeRefused,
}
use Then::{MayBeRefused, Works};

type Trap = (&'static str, Then, fn(&Scene<'_>));

const HOOKS: [&str; 27] = [
    "applypatch-msg",
    "pre-applypatch",
    "post-applypatch",
    "pre-commit",
    "pre-merge-commit",
    "prepare-commit-msg",
    "commit-msg",
    "post-commit",
    "pre-rebase",
    "post-checkout",
    "post-merge",
    "pre-push",
    "pre-receive",
    "update",
    "proc-receive",
    "post-receive",
    "post-update",
    "reference-transaction",
    "push-to-checkout",
    "pre-auto-gc",
    "post-rewrite",
    "sendemail-validate",
    "fsmonitor-watchman",
    "p4-changelist",
    "p4-pre-submit",
    "post-index-change",
    "pre-solve-refs",
];

/// Files that git itself reads.
const READ: [&str; 16] = [
    ".git/HEAD",
    ".git/config",
    ".git/config.worktree",
    ".git/packed-refs",
    ".git/index",
    ".git/shallow",
    ".git/commondir",
    ".git/info/exclude",
    ".git/info/attributes",
    ".git/refs/heads/trunk",
    ".git/objects/info/alternates",
    ".git/objects/pack/pack-0123456789012345678901234567890123456789.pack",
    ".git/objects/pack/pack-0123456789012345678901234567890123456789.idx",
    ".gitignore",
    ".gitattributes",
    "README.md",
];

fn replace(scene: &Scene<'_>, name: &str, with: impl Fn(&Path)) {
    let path = scene.lab.work().join(name);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    let _ = std::fs::remove_file(&path);
    with(&path);
}

/// Takes a folder away and puts a link to another in its place.
fn lead_away(scene: &Scene<'_>, name: &str, to: &Path) {
    let path = scene.lab.work().join(name);
    let _ = std::fs::remove_dir_all(&path);
    symlink(to, path).unwrap();
}

/// A commit on top of HEAD with a tree that git itself would not write.
fn commit_tree(scene: &Scene<'_>, entries: &[&str]) {
    let work = scene.lab.work();
    let blob = git(work, &["rev-parse", "HEAD:README.md"]);
    let id = |hex: &str| -> Vec<u8> {
        let byte = |at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap();
        (0..40).step_by(2).map(byte).collect()
    };
    let object = |bytes: &[u8]| {
        std::fs::write(scene.lab.path("raw"), bytes).unwrap();
        let arguments = ["hash-object", "-t", "tree", "-w", "--literally", "../raw"];
        git(work, &arguments)
    };
    let inner = object(&[b"100644 planted\0", id(&blob).as_slice()].concat());
    let mut bytes = Vec::new();
    for entry in entries {
        let is_folder = entry.starts_with("40000 ");
        bytes.extend(entry.bytes().chain([0]));
        bytes.extend(id(if is_folder { &inner } else { &blob }));
    }
    let tree = object(&bytes);
    let evil = git(work, &["commit-tree", "-p", "HEAD", "-m", "Evil", &tree]);
    std::fs::write(scene.git("refs/heads/trunk"), evil + "\n").unwrap();
}

const TRAPS: &[Trap] = &[
    ("configuration", Works, |s| {
        s.put("config", s.config());
        s.put("config.worktree", s.config());
        for name in [".gitattributes", ".git/info/attributes"] {
            write(s.lab.work(), name, "* filter=x diff=x merge=x\n");
        }
    }),
    ("hooks", Works, |s| {
        for hook in HOOKS {
            let path = s.git("hooks").join(hook);
            std::fs::copy(s.script, &path).unwrap();
            std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
        }
    }),
    ("alternates", Works, |s| {
        let objects = s.outside.join(".git/objects");
        s.put(
            "objects/info/alternates",
            format!("{}\n", objects.display()),
        );
        s.put(
            "objects/info/http-alternates",
            format!("{}objects\n", s.elsewhere),
        );
    }),
    ("commondir", Works, |s| {
        s.put(
            "commondir",
            format!("{}\n", s.outside.join(".git").display()),
        );
        s.put("gitdir", format!("{}\n", s.outside.join(".git").display()));
    }),
    (".git is a link", MayBeRefused, |s| {
        let away = s.lab.path("away");
        std::fs::rename(s.git(""), &away).unwrap();
        symlink(s.outside.join(".git"), s.lab.work().join(".git")).unwrap();
    }),
    (".git is a file", MayBeRefused, |s| {
        std::fs::rename(s.git(""), s.lab.path("away")).unwrap();
        let text = format!("gitdir: {}\n", s.outside.join(".git").display());
        std::fs::write(s.lab.work().join(".git"), text).unwrap();
    }),
    ("submodules", Works, |s| {
        let hostile = [
            ("a", "ext::sh -c touch% executed", "vendor/a"),
            ("b", "--upload-pack=touch executed", "-b"),
            ("../../hooks", "file:///", "../outside"),
            ("c", s.elsewhere, ".git/modules"),
        ];
        let text: String = hostile
            .iter()
            .map(|(name, url, path)| {
                format!(
                    "[submodule \"{name}\"]\n\turl = {url}\n\tpath = {path}\n\tupdate = !{}\n",
                    s.script
                )
            })
            .collect();
        write(s.lab.work(), ".gitmodules", text);
        s.put("modules/a/config", s.config());
        s.put("modules/a/HEAD", "ref: refs/heads/main\n");
        write(
            s.lab.work(),
            "vendor/a/.git",
            "gitdir: ../../.git/modules/a\n",
        );
        let nested = s.lab.work().join("vendor/b");
        copy(&s.outside.join(".git"), &nested.join(".git"));
        std::fs::write(nested.join(".git/config"), s.config()).unwrap();
        let outside = format!("gitdir: {}\n", s.outside.join(".git").display());
        write(s.lab.work(), "vendor/c/.git", outside);
        symlink(s.outside, s.lab.work().join("vendor/d")).unwrap();
        let head = git(s.lab.work(), &["rev-parse", "HEAD"]);
        for name in ["a", "b", "c", "d"] {
            let module = format!("160000,{head},vendor/{name}");
            let staged = ["update-index", "--add", "--cacheinfo", &module];
            git(s.lab.work(), &staged);
        }
    }),
    ("trees that lead out", MayBeRefused, |s| {
        commit_tree(s, &["40000 .."])
    }),
    ("trees that name .git", MayBeRefused, |s| {
        commit_tree(s, &["40000 .git"])
    }),
    ("trees that name .GIT", MayBeRefused, |s| {
        commit_tree(s, &["40000 .GIT"])
    }),
    ("trees with paths for names", MayBeRefused, |s| {
        commit_tree(
            s,
            &[
                "100644 ../outside/token",
                "100644 /etc/x",
                "100644 .git/hooks/x",
            ],
        );
    }),
    ("trees with one name twice", MayBeRefused, |s| {
        commit_tree(s, &["120000 src", "40000 src"]);
    }),
    ("an index that leads out", Works, |s| {
        write(s.lab.work(), "aa/outside/token", "1\n");
        write(s.lab.work(), "bgit/hooks/update", "1\n");
        git(s.lab.work(), &["add", "-A"]);
        let mut bytes = std::fs::read(s.git("index")).unwrap();
        for (from, to) in [
            ("aa/outside/token", "../outside/token"),
            ("bgit/hooks", ".git/hooks"),
        ] {
            let at = bytes
                .windows(from.len())
                .position(|w| w == from.as_bytes())
                .unwrap();
            bytes[at..at + from.len()].copy_from_slice(to.as_bytes());
        }
        std::fs::write(s.git("index"), bytes).unwrap();
    }),
    ("links out of the tree", Works, |s| {
        lead_away(s, "src", s.outside);
        for (name, to) in [
            ("README.md", Path::new("/dev/zero")),
            ("work", &s.outside.join("token")),
            (".gitignore", &s.outside.join("token")),
            (".gitattributes", Path::new("/dev/zero")),
            ("circle", Path::new("circle")),
        ] {
            replace(s, name, |path| symlink(to, path).unwrap());
        }
    }),
    ("folders of .git that lead out", MayBeRefused, |s| {
        for name in ["objects/pack", "refs/heads", "info", "logs", "hooks"] {
            lead_away(
                s,
                &format!(".git/{name}"),
                &s.outside.join(".git").join(name),
            );
        }
    }),
    ("objects that lead out", MayBeRefused, |s| {
        lead_away(s, ".git/objects", &s.outside.join(".git/objects"));
    }),
    ("HEAD that leads out", MayBeRefused, |s| {
        s.put("HEAD", "ref: refs/heads/../../../../outside/head\n");
    }),
    (
        "HEAD that names a commit of another repository",
        MayBeRefused,
        |s| {
            let stolen = git(s.outside, &["rev-parse", "HEAD"]);
            s.put("HEAD", stolen + "\n");
            let objects = s.outside.join(".git/objects");
            s.put(
                "objects/info/alternates",
                format!("{}\n", objects.display()),
            );
        },
    ),
    ("FIFOs", MayBeRefused, |s| {
        for name in READ {
            replace(s, name, |path| {
                nix::unistd::mkfifo(path, Mode::S_IRWXU).unwrap()
            });
        }
    }),
    ("FIFOs but for HEAD", MayBeRefused, |s| {
        for name in READ.iter().filter(|name| **name != ".git/HEAD") {
            replace(s, name, |path| {
                nix::unistd::mkfifo(path, Mode::S_IRWXU).unwrap()
            });
        }
    }),
    ("files without end", MayBeRefused, |s| {
        for name in READ.iter().filter(|name| **name != ".git/HEAD") {
            replace(s, name, |path| symlink("/dev/zero", path).unwrap());
        }
    }),
    ("packs that lie", Works, |s| {
        let name =
            |c: char, kind| format!("objects/pack/pack-{}.{kind}", String::from(c).repeat(40));
        s.put(&name('1', "pack"), b"PACK\0\0\0\x02\xff\xff\xff\xff");
        s.put(
            &name('2', "pack"),
            b"PACK\0\0\0\x02\0\0\0\x01\xb0rubbish-rubbish-rubbish-rubbish",
        );
        s.put(&name('3', "idx"), b"\xfftOc\0\0\0\x02");
        s.put("objects/pack/multi-pack-index", "MIDX");
        s.put("objects/info/commit-graph", "CGPH");
        s.put("objects/info/packs", "P ../../../outside/token\n");
    }),
];

/// Everything that can be got out of a repository, as text.
fn all_of(repository: &Path) -> String {
    let every = ["cat-file", "--batch-all-objects", "--batch", "--unordered"];
    let output = command(repository, &every).output().unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Each file of a folder and its content.
fn snapshot(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut files = Vec::new();
    let mut folders = vec![dir.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap().flatten() {
            match entry.file_type().unwrap().is_dir() {
                true => folders.push(entry.path()),
                false => files.push((entry.path(), std::fs::read(entry.path()).unwrap())),
            }
        }
    }
    files.sort();
    files
}

/// Take-over, report, push and the next run's checkout, which finds that the remote has moved on;
/// whether the commit was delivered.
fn every_step(lab: &Lab, wanted: &Wanted, initial: &str, branch: &str) -> Result<(), git::Error> {
    let url = &wanted.url;
    let delivered = git::take_over(&lab.place).and_then(|head| {
        let changes = git::changes(&lab.place, url, Some(initial), &head)?;
        assert_eq!(changes.repository, url.as_str());
        git::patch(&lab.place, Some(initial), &head, Limits::NONE)?;
        let commit = head.commit.unwrap_or_default();
        git::push(&lab.place, url, &commit, branch, &Access::default())
    });
    let _ = git::inspect(lab.work(), initial);
    let _ = git::inspect_patch(lab.work(), initial, Limits::NONE);
    let again = lab.try_wanted(wanted, &Access::default());
    // One more, which finds no `.git` and makes it anew from what was taken over.
    let git = lab.work().join(".git");
    match git.symlink_metadata().unwrap().is_dir() {
        true => std::fs::remove_dir_all(git).unwrap(),
        false => std::fs::remove_file(git).unwrap(),
    }
    let another = Wanted {
        run: Uuid::new_v4(),
        ..wanted.clone()
    };
    let _ = lab.try_wanted(&another, &Access::default());
    delivered.and(again.map(drop))
}

#[test]
fn no_trap_that_a_former_run_has_left_catches_any_step_of_the_next() {
    let template = Lab::new();
    let clone = template.project();
    let server = template.plain_server();
    let url = server.url("project.git");
    let initial = template.checkout(&url).initial_commit.unwrap();
    write(template.work(), "work", "1\n");
    commit(template.work(), "Work");
    let elsewhere = Server::start(&template.served(), Manner::default());
    let calls = elsewhere.url("").to_string();
    let base = server.url("").to_string();
    let marker = template.path("executed");
    let script = template.path("script");
    std::fs::write(&script, format!("#!/bin/sh\ntouch {}\n", marker.display())).unwrap();
    std::fs::set_permissions(&script, PermissionsExt::from_mode(0o755)).unwrap();

    // What the next run may want has to be written where the traps are.
    for name in [
        "README.md",
        "src/main.rs",
        "hooks/update",
        "vendor/d/token",
        "token",
    ] {
        write(&clone, name, "theirs\n");
    }
    commit(&clone, "Theirs");
    git(&clone, &["push", "-q", "origin", "HEAD:trunk"]);

    let modes = [OnReuse::Keep, OnReuse::Update, OnReuse::Reset];
    let all = TRAPS.iter().flat_map(|trap| modes.map(|mode| (trap, mode)));
    for (at, ((name, then, plant), mode)) in all.enumerate() {
        let lab = Lab::new();
        copy(template.work(), lab.work());
        copy(&template.place.trusted, &lab.place.trusted);
        let outside = lab.path("outside");
        std::fs::create_dir(&outside).unwrap();
        git(&outside, &["init", "-q"]);
        write(&outside, "token", format!("{SECRET}\n"));
        write(&outside, "main.rs", format!("{SECRET}\n"));
        write(
            &outside,
            "config",
            format!("[core]\n\tfsmonitor = {}\n", script.display()),
        );
        let head = commit(&outside, "Secret");
        write(&outside, "head", head + "\n");
        plant(&Scene {
            lab: &lab,
            script: script.to_str().unwrap(),
            outside: &outside,
            elsewhere: &calls,
            server: &base,
        });
        let before = snapshot(&outside);
        let branch = format!("trap-{at}");
        let wanted = Wanted {
            run: Uuid::new_v4(),
            on_reuse: mode,
            ..Wanted::new(url.clone())
        };
        let name = &format!("{name}, {mode:?}");
        let done = within(60, || every_step(&lab, &wanted, &initial, &branch));
        if let (Works, Err(error)) = (then, &done) {
            panic!("{name}: {error}");
        }
        println!("{name}: {done:?}");
        assert!(!marker.exists(), "{name}: something was executed");
        assert_eq!(elsewhere.requests(), 0, "{name}: somebody else was called");
        assert!(
            snapshot(&outside) == before,
            "{name}: something outside was written"
        );
        for name in ["planted", "hooks", "executed"] {
            assert!(!lab.path(name).exists(), "{name} is outside");
        }
        let ours = lab.place.trusted.join("repository.git");
        for repository in [ours, template.served().join("project.git")] {
            let came_in = all_of(&repository).contains(SECRET);
            assert!(!came_in, "{name}: the secret came in");
        }
        assert_eq!(
            files_with(&lab.place.trusted, SECRET),
            Vec::<PathBuf>::new(),
            "{name}"
        );
    }
}
