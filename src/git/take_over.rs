//! Taking over what the agent has committed. `work/.git` is hostile ground: it is read file by file
//! (see [`super::volume`]); objects come in by their content alone, each under the name that its
//! hash gives. Configuration, hooks, alternates and indexes of packs are never looked at.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufReader, Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use flate2::read::ZlibDecoder;
use git2::{Indexer, Odb, OdbLookupFlags, Oid, Repository};

use super::locks;
use super::loose::{is_named, object_head};
use super::objects::Objects;
use super::pack;
use super::record::Record;
use super::refs::{self, AgentRefs};
use super::trusted;
use super::volume::{Folder, Found};
use super::{Error, Head, Place};

/// Largest loose object that is held in memory on its way, in bytes of its file and of its content.
const MAX_HELD: u64 = 4 * 1024 * 1024;
/// Largest pack that is taken over, in bytes.
const MAX_PACK: u64 = 16 * 1024 * 1024 * 1024;
/// Most objects of which it is kept in mind why they were left out.
const MAX_NAMED: usize = 1000;
/// Most packs.
const MAX_PACKS: usize = 10_000;
/// Most loose objects with the same first byte; git itself packs them long before.
const MAX_LOOSE: usize = 100_000;

/// See [`super::take_over`].
pub(super) fn take_over(place: &Place) -> Result<Head, Error> {
    let mut record = Record::read(place)?
        .filter(|record| record.ready)
        .ok_or_else(|| Error::checkout("there is no checkout to take anything over from"))?;
    locks::clear_ours(place)?;
    let worktree = Folder::open(&place.worktree)
        .map_err(|e| Error::file(format_args!("open {}", place.worktree.display()), &e))?;
    let git = match worktree.folder(".git").map_err(|e| foreign(&e))? {
        Found::Here(git) => git,
        Found::Absent => return Err(Error::checkout("the agent has removed .git")),
        Found::Odd => {
            return Err(Error::checkout(
                "the workspace's .git is not a folder that can be read: a file or symlink there is not followed",
            ));
        }
    };
    // Refs before objects: what a ref names was written before it.
    let refs = refs::read(&git)?;
    let mut left_out = LeftOut::new();
    if let Found::Here(objects) = git.folder("objects").map_err(|e| foreign(&e))? {
        take_packs(place, &objects)?;
        left_out = take_loose(place, &objects)?;
    }
    let repo = trusted::open(place)?;
    let head = Head {
        branch: refs.branch.clone(),
        commit: refs.commit.map(|id| id.to_string()),
    };
    let ours = Objects::of(&repo)?;
    if let Some(id) = refs.commit {
        ours.commit(id).map_err(|e| {
            let why = left_out.get(&id).cloned();
            Error::checkout(format!(
                "the workspace's HEAD names commit {id}, which its .git does not hold whole: {}",
                why.unwrap_or_else(|| e.to_string())
            ))
        })?;
    }
    set_refs(&repo, &ours, &refs).map_err(|e| Error::local("note the agent's branches", &e))?;
    record.set_head(&head);
    record.write(place)?;
    Ok(head)
}

fn foreign(why: &io::Error) -> Error {
    Error::file("read the workspace's .git", why)
}

/// `refs/agent/heads/` becomes what the agent's branches are; a branch that is broken is left out.
fn set_refs(repo: &Repository, ours: &Objects<'_>, refs: &AgentRefs) -> Result<(), git2::Error> {
    for old in repo.references_glob("refs/agent/heads/*")? {
        let mut old = old?;
        let kept = old
            .name()
            .ok()
            .and_then(|name| name.strip_prefix("refs/agent/heads/"));
        if kept.and_then(|branch| refs.heads.get(branch)) != old.target().as_ref() {
            old.delete()?;
        }
    }
    for (branch, id) in &refs.heads {
        if ours.commit(*id).is_err() {
            tracing::warn!(branch, commit = %id, "a branch of the agent's is broken, and left out");
            continue;
        }
        repo.reference(&format!("refs/agent/heads/{branch}"), *id, true, "")?;
    }
    Ok(())
}

/// Takes packs that we don't have. Their indexes are made anew, so that a pack can't lie.
fn take_packs(place: &Place, objects: &Folder) -> Result<(), Error> {
    let Some(packs) = objects.folder("pack").map_err(|e| foreign(&e))?.here() else {
        return Ok(());
    };
    let ours = place.git_dir().join("objects").join("pack");
    for name in packs.names(MAX_PACKS * 4).map_err(|e| foreign(&e))? {
        // A pack of ours without its index is one that we were killed over.
        let Some(stem) = name.strip_suffix(".pack") else {
            continue;
        };
        if ours.join(format!("{stem}.idx")).exists() {
            continue;
        }
        let Some(file) = packs.file(&name).map_err(|e| foreign(&e))?.here() else {
            continue;
        };
        if let Err(why) = take_pack(place, file) {
            // If it held anything that HEAD needs, that is found missing later.
            tracing::warn!(pack = name, %why, "a pack of the agent's is damaged, and left out");
        }
    }
    Ok(())
}

fn take_pack(place: &Place, file: File) -> Result<(), String> {
    let incoming = place.incoming();
    let ours = place.git_dir().join("objects").join("pack");
    renew(&incoming).map_err(|e| e.to_string())?;
    // A copy, so that what is indexed is what was looked through.
    let mut file = copy(file, &incoming.join("foreign")).map_err(|e| e.to_string())?;
    let repo = trusted::open(place).map_err(|e| e.to_string())?;
    let odb = repo.odb().map_err(|e| e.message().to_owned())?;
    let mut indexer =
        Indexer::new(Some(&odb), &incoming, 0o444, false).map_err(|e| e.message().to_owned())?;
    let mut buffer = vec![0; 256 * 1024];
    loop {
        match file.read(&mut buffer).map_err(|e| e.to_string())? {
            0 => break,
            n => indexer.write_all(&buffer[..n]).map_err(|e| e.to_string())?,
        }
    }
    let hash = indexer.commit().map_err(|e| e.message().to_owned())?;
    // The pack first: a pack without its index is not seen, an index without its pack is an error.
    for extension in ["pack", "idx"] {
        let name = format!("pack-{hash}.{extension}");
        fs::rename(incoming.join(&name), ours.join(&name)).map_err(|e| e.to_string())?;
    }
    fs::remove_dir_all(&incoming).map_err(|e| e.to_string())
}

/// A pack's own copy, looked through and ready to be read.
fn copy(from: File, to: &Path) -> io::Result<File> {
    let mut to = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(to)?;
    let length = io::copy(&mut from.take(MAX_PACK + 1), &mut to)?;
    if length > MAX_PACK {
        return Err(io::Error::other(format!(
            "it has more than {MAX_PACK} bytes"
        )));
    }
    to.rewind()?;
    pack::check(to.try_clone()?, length)?;
    to.rewind()?;
    Ok(to)
}

/// Objects that were not taken, and why.
type LeftOut = BTreeMap<Oid, String>;

/// Takes loose objects that we don't have.
fn take_loose(place: &Place, objects: &Folder) -> Result<LeftOut, Error> {
    let store = place.git_dir().join("objects");
    let mut left_out = LeftOut::new();
    let repo = trusted::open(place)?;
    let ours = repo
        .odb()
        .map_err(|e| Error::local("open our objects", &e))?;
    for byte in 0..=u8::MAX {
        let prefix = format!("{byte:02x}");
        let Some(folder) = objects.folder(&prefix).map_err(|e| foreign(&e))?.here() else {
            continue;
        };
        for rest in folder.names(MAX_LOOSE).map_err(|e| foreign(&e))? {
            let Some(id) = trusted::parse_id(&format!("{prefix}{rest}")) else {
                continue;
            };
            if ours.exists_ext(id, OdbLookupFlags::NO_REFRESH) {
                continue;
            }
            let Some(file) = folder.file(&rest).map_err(|e| foreign(&e))?.here() else {
                continue;
            };
            if let Err(why) = take_object(&ours, &store, id, file) {
                // If HEAD needs it, it is found missing later.
                tracing::warn!(object = %id, %why, "an object of the agent's is left out");
                if left_out.len() < MAX_NAMED {
                    left_out.insert(id, why.to_string());
                }
            }
        }
    }
    Ok(left_out)
}

/// Copies an object. It is inflated here: libgit2's own reader loops for ever over a stream that has
/// been cut.
fn take_object(ours: &Odb<'_>, store: &Path, id: Oid, mut file: File) -> io::Result<()> {
    if file.metadata()?.len() <= MAX_HELD {
        let mut packed = Vec::new();
        (&mut file).take(MAX_HELD).read_to_end(&mut packed)?;
        if is_whole(&packed, id)? {
            return keep(store, id, &packed);
        }
        file.rewind()?;
    }
    take_large(ours, id, file)
}

/// Whether a small object is what its name says, down to the last byte; false for one that is not
/// small, once inflated.
fn is_whole(packed: &[u8], id: Oid) -> io::Result<bool> {
    let mut content = BufReader::new(ZlibDecoder::new(packed));
    let (kind, size) = object_head(&mut content)?;
    if size as u64 > MAX_HELD {
        return Ok(false);
    }
    let mut bytes = Vec::with_capacity(size);
    content
        .by_ref()
        .take(MAX_HELD + 1)
        .read_to_end(&mut bytes)?;
    let read = content.into_inner().total_in();
    if bytes.len() != size || read != packed.len() as u64 {
        return Err(io::Error::other("it has not the size that it claims"));
    }
    is_named(
        id,
        Oid::hash_object(kind, &bytes).map_err(io::Error::other)?,
    )?;
    Ok(true)
}

/// Puts an object's file, which is known to be whole, among ours.
fn keep(store: &Path, id: Oid, packed: &[u8]) -> io::Result<()> {
    let name = id.to_string();
    let (folder, rest) = name.split_at(2);
    let folder = store.join(folder);
    let draft = store.join("tmp_obj_taken_over");
    match fs::remove_file(&draft) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let mut file = File::options()
        .write(true)
        .create_new(true)
        .mode(0o444)
        .open(&draft)?;
    file.write_all(packed)?;
    fs::create_dir_all(&folder)?;
    fs::rename(&draft, folder.join(rest))
}

/// Copies a large object's content, which is hashed on its way in and never held in memory as a whole.
fn take_large(ours: &Odb<'_>, id: Oid, file: File) -> io::Result<()> {
    let mut content = BufReader::new(ZlibDecoder::new(file));
    let (kind, size) = object_head(&mut content)?;
    let mut writer = ours.writer(size, kind).map_err(io::Error::other)?;
    let copied = io::copy(&mut content.take(size as u64), &mut writer)?;
    if copied != size as u64 {
        return Err(io::Error::other("it ends too early"));
    }
    is_named(id, writer.finalize().map_err(io::Error::other)?)
}

/// Makes an empty folder, in place of what a killed supervisor may have left there.
fn renew(dir: &Path) -> io::Result<()> {
    match fs::remove_dir_all(dir) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    fs::create_dir_all(dir)
}
