//! Objects of packs, read without libgit2, which inflates each with a slower zlib into memory of its own,
//! and again for its size. Only what is small and sound is read here; whatever else there may be in a
//! pack (large objects, bases in other packs, damage of any kind) is left to libgit2, and so is every
//! complaint. Files are read and not mapped: somebody may cut them meanwhile.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use git2::{ObjectType, Oid};

use self::delta::apply;
use self::index::Pack;
use self::unpack::{Hands, Head};
use super::volume::Folder;

pub(super) use self::delta::varying;
pub(super) use self::unpack::{NAME_DELTA, OFFSET_DELTA};

mod delta;
mod index;
mod unpack;

/// Largest object that is read, in bytes, and the largest that it may be made from.
const MAX_SMALL: usize = 1024 * 1024;
/// Most packs that are kept open.
const MAX_PACKS: usize = 64;
/// Most names in their folder.
const MAX_NAMES: usize = 10_000;
/// Most objects that one is made from; git makes chains of 50.
const MAX_CHAIN: usize = 512;
/// Bytes of objects that are kept by their names, and as many by their places.
const MAX_KEPT: usize = 4 * 1024 * 1024;

/// Content and kind.
pub(super) type Object = (ObjectType, Arc<Vec<u8>>);

/// The packs of a folder `objects`.
pub(super) struct Packs {
    packs: Vec<Pack>,
    /// What was read last: by its name, known to be what that says, and by its place.
    named: Mutex<Kept<Oid>>,
    bases: Mutex<Kept<(usize, u64)>>,
    idle: Mutex<Vec<Hands>>,
}

impl Packs {
    /// Opens what can be read here; nothing of it need be there.
    pub(super) fn open(objects: &Path) -> Self {
        Self {
            packs: packs(objects).unwrap_or_default(),
            named: Mutex::default(),
            bases: Mutex::default(),
            idle: Mutex::default(),
        }
    }

    /// The object of this name, if it is one that is read here.
    pub(super) fn read(&self, id: Oid) -> Option<Object> {
        if let Some(known) = lock(&self.named).get(&id) {
            return Some(known);
        }
        let at = |(number, pack): (usize, &Pack)| pack.find(id).map(|at| (number, at));
        let place = self.packs.iter().enumerate().find_map(at)?;
        let idle = lock(&self.idle).pop();
        let mut hands = idle.unwrap_or_else(Hands::new);
        hands.turn_to(place.0);
        let object = self.unpack(place, &mut hands);
        lock(&self.idle).push(hands);
        let object = object.filter(|(kind, content)| is(id, *kind, content))?;
        lock(&self.named).keep(id, &object);
        Some(object)
    }

    /// The object at a place of a pack, made from others where it is a difference.
    fn unpack(&self, (number, at): (usize, u64), hands: &mut Hands) -> Option<Object> {
        let (pack, mut at) = (&self.packs[number], at);
        let mut chain = Vec::new();
        let (kind, mut content) = loop {
            if let Some(known) = lock(&self.bases).get(&(number, at)) {
                break known;
            }
            let head = Head::read(pack, hands, at)?;
            if head.size > MAX_SMALL || chain.len() == MAX_CHAIN {
                return None;
            }
            let Some(base) = head.base else {
                let content = hands.inflate(pack, head.content, head.size)?;
                let object = (head.kind?, Arc::new(content));
                lock(&self.bases).keep((number, at), &object);
                break object;
            };
            chain.push((at, head));
            at = base;
        };
        while let Some((at, head)) = chain.pop() {
            let delta = hands.inflate(pack, head.content, head.size)?;
            content = Arc::new(apply(&content, &delta)?);
            lock(&self.bases).keep((number, at), &(kind, content.clone()));
        }
        Some((kind, content))
    }
}

fn lock<T>(what: &Mutex<T>) -> MutexGuard<'_, T> {
    what.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether an object is what its name says.
fn is(id: Oid, kind: ObjectType, content: &[u8]) -> bool {
    use sha1::{Digest, Sha1};

    let mut hash = Sha1::new();
    hash.update(format!("{} {}\0", kind.str(), content.len()));
    hash.update(content);
    hash.finalize()[..] == *id.as_bytes()
}

fn packs(objects: &Path) -> Option<Vec<Pack>> {
    let folder = Folder::open(objects).ok()?.folder("pack").ok()?.here()?;
    let mut packs = Vec::new();
    for name in folder.names(MAX_NAMES).ok()? {
        let Some(stem) = name.strip_suffix(".idx") else {
            continue;
        };
        let file = |extension: &str| folder.file(format!("{stem}.{extension}")).ok()?.here();
        if packs.len() < MAX_PACKS
            && let (Some(index), Some(pack)) = (file("idx"), file("pack"))
        {
            packs.extend(Pack::new(index, pack));
        }
    }
    Some(packs)
}

/// Objects that were read last.
struct Kept<K> {
    known: HashMap<K, Object>,
    order: VecDeque<K>,
    bytes: usize,
}

impl<K> Default for Kept<K> {
    fn default() -> Self {
        Self {
            known: HashMap::new(),
            order: VecDeque::new(),
            bytes: 0,
        }
    }
}

impl<K: Copy + Eq + Hash> Kept<K> {
    fn get(&self, key: &K) -> Option<Object> {
        self.known.get(key).cloned()
    }

    fn keep(&mut self, key: K, object: &Object) {
        if self.known.insert(key, object.clone()).is_some() {
            // Another thread was faster; it is the same.
            return;
        }
        self.order.push_back(key);
        self.bytes += object.1.len();
        while self.bytes > MAX_KEPT
            && let Some(oldest) = self.order.pop_front()
        {
            let gone = self.known.remove(&oldest);
            self.bytes -= gone.map_or(0, |(_, content)| content.len());
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::path::PathBuf;

    use git2::{Odb, Repository};
    use tempfile::TempDir;

    use super::*;

    /// Texts that grow out of each other, in one pack, and nothing beside it.
    fn repository() -> (TempDir, PathBuf, Vec<(Oid, Vec<u8>)>) {
        let dir = tempfile::tempdir().unwrap();
        let repo = Repository::init_bare(dir.path()).unwrap();
        let memory = repo.odb().unwrap();
        memory.add_new_mempack_backend(1000).unwrap();
        let mut text: Vec<u8> = (0..300u32)
            .flat_map(|n| format!("{}\n", n * n).into_bytes())
            .collect();
        let mut all = Vec::new();
        for n in 0..12 {
            text.extend(format!("and then {n}\n").into_bytes());
            text[n * 7] = b'x';
            all.push((repo.blob(&text).unwrap(), text.clone()));
        }
        all.push((repo.blob(b"").unwrap(), Vec::new()));
        let mut builder = repo.packbuilder().unwrap();
        for (id, _) in &all {
            builder.insert_object(*id, None).unwrap();
        }
        let objects = dir.path().join("objects");
        builder.write(&objects.join("pack"), 0o600).unwrap();
        let packed = Odb::new().unwrap();
        packed
            .add_disk_alternate(objects.to_str().unwrap())
            .unwrap();
        assert!(all.iter().all(|(id, _)| packed.exists(*id)));
        (dir, objects, all)
    }

    fn the_file(objects: &Path, extension: &str) -> PathBuf {
        let files = std::fs::read_dir(objects.join("pack")).unwrap();
        let mut paths = files.map(|file| file.unwrap().path());
        paths
            .find(|path| path.extension().unwrap() == extension)
            .unwrap()
    }

    #[test]
    fn what_is_in_a_pack_is_read_and_what_is_not_is_left_to_others() {
        let (_dir, objects, all) = repository();
        let pack = std::fs::metadata(the_file(&objects, "pack")).unwrap();
        assert!(pack.len() < 3000, "there are no differences in it");
        let packs = Packs::open(&objects);
        for (id, content) in all.iter().chain(&all).rev() {
            let (kind, read) = packs.read(*id).unwrap();
            assert_eq!((kind, read.as_ref()), (ObjectType::Blob, content));
        }
        assert!(packs.read(Oid::ZERO_SHA1).is_none());
        assert!(
            Packs::open(&objects.join("nowhere"))
                .read(all[0].0)
                .is_none()
        );
    }

    #[test]
    fn no_damage_is_ever_taken_for_content() {
        let (_dir, objects, all) = repository();
        let mut told = 0;
        for extension in ["pack", "idx"] {
            let path = the_file(&objects, extension);
            let sound = std::fs::read(&path).unwrap();
            std::fs::remove_file(&path).unwrap();
            for at in (0..sound.len()).step_by(7) {
                let mut bytes = sound.clone();
                bytes[at] ^= 1 << (at % 8);
                if at % 5 == 0 {
                    bytes.truncate(at);
                }
                std::fs::write(&path, bytes).unwrap();
                let packs = Packs::open(&objects);
                for (id, content) in &all {
                    match packs.read(*id) {
                        Some((kind, read)) => {
                            assert_eq!((kind, read.as_ref()), (ObjectType::Blob, content));
                        }
                        None => told += 1,
                    }
                }
            }
            std::fs::write(&path, sound).unwrap();
        }
        assert!(told > 200);
    }

    #[test]
    fn an_index_that_takes_one_object_for_another_is_not_believed() {
        let (_dir, objects, all) = repository();
        let path = the_file(&objects, "idx");
        let mut index = std::fs::read(&path).unwrap();
        // The places of all, behind the names and their sums, in another order.
        let places = 8 + 1024 + all.len() * 24;
        index[places..places + all.len() * 4].rotate_left(4);
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, index).unwrap();
        let packs = Packs::open(&objects);
        assert!(all.iter().all(|(id, _)| packs.read(*id).is_none()));
    }
}
