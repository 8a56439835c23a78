//! Which deleted file became which added one, judged as git judges it (`diffcore-rename.c` and
//! `diffcore-delta.c`, without copies): same content first, then a name that occurs once on each
//! side, then the best score of all pairs. libgit2 scores by other means and finds other pairs.

use std::collections::{HashMap, HashSet};

use git2::Oid;

use super::content::Content;
use super::lines::MAX_READ;
use super::tree_diff::Side;
use super::{Error, threads};

const MAX_SCORE: f64 = 60_000.0;
/// `-M` without a number: half of the content.
const MIN_SCORE: f64 = 30_000.0;
/// What a name that occurs once on each side must reach.
const MIN_BASE_NAME_SCORE: f64 = 45_000.0;
/// git's `diff.renameLimit`: beyond its square only the first two steps are taken.
const RENAME_LIMIT: usize = 1000;
/// How many hashes there are of chunks.
const HASHES: u32 = 107_927;
/// Candidates that are kept for each target.
const CANDIDATES: usize = 4;
/// Bytes and chunks looked at, after which no more pairs are scored: an agent's commit may not keep
/// a run from its end.
const BUDGET: u64 = 2_000_000_000;
/// Most files that are looked at side by side, before they are scored one by one, and the largest of them
/// in bytes.
const MAX_AHEAD: usize = 4 * RENAME_LIMIT;
const MAX_AHEAD_BYTES: u64 = 256 * 1024;

/// Where a file was, and how much of it is as it was there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Origin {
    /// Index of the source.
    pub(super) source: usize,
    /// In percent, as git's `similarity index`.
    pub(super) similarity: u8,
}

impl Origin {
    fn new(source: usize, score: f64) -> Self {
        Self {
            source,
            // Never above 100.
            similarity: (score * 100.0 / MAX_SCORE) as u8,
        }
    }
}

/// For each of `targets` the source that it was renamed from.
pub(super) fn find(
    content: &Content<'_>,
    sources: &[&Side],
    targets: &[&Side],
) -> Result<Vec<Option<Origin>>, Error> {
    let mut found = vec![None; targets.len()];
    if sources.is_empty() || targets.is_empty() {
        return Ok(found);
    }
    let mut used = HashSet::new();
    same_content(sources, targets, &mut found, &mut used);
    let mut scorer = Scorer {
        content,
        seen: HashMap::new(),
        budget: BUDGET,
    };
    same_base_name(sources, targets, &mut found, &mut used, &mut scorer)?;
    best_scores(sources, targets, &mut found, &mut used, &mut scorer)?;
    Ok(found)
}

fn same_content(
    sources: &[&Side],
    targets: &[&Side],
    found: &mut [Option<Origin>],
    used: &mut HashSet<usize>,
) {
    let mut by_id: HashMap<Oid, Vec<usize>> = HashMap::new();
    for (at, source) in sources.iter().enumerate() {
        by_id.entry(source.id).or_default().push(at);
    }
    for (target, slot) in targets.iter().zip(found) {
        let mut best: Option<usize> = None;
        for &at in by_id.get(&target.id).map(Vec::as_slice).unwrap_or_default() {
            let source = sources[at];
            let kinds_fit =
                source.is_regular() && target.is_regular() || source.mode == target.mode;
            if used.contains(&at) || !kinds_fit {
                continue;
            }
            let same_name = source.base_name() == target.base_name();
            if best.is_none() || same_name {
                best = Some(at);
            }
            if same_name {
                break;
            }
        }
        if let Some(at) = best {
            used.insert(at);
            *slot = Some(Origin::new(at, MAX_SCORE));
        }
    }
}

fn same_base_name(
    sources: &[&Side],
    targets: &[&Side],
    found: &mut [Option<Origin>],
    used: &mut HashSet<usize>,
    scorer: &mut Scorer<'_>,
) -> Result<(), Error> {
    fn unique<'a>(
        names: impl Iterator<Item = (usize, &'a [u8])>,
    ) -> HashMap<&'a [u8], Option<usize>> {
        let mut unique = HashMap::new();
        for (at, name) in names {
            unique
                .entry(name)
                .and_modify(|once| *once = None)
                .or_insert(Some(at));
        }
        unique
    }
    let free = (0..sources.len()).filter(|at| !used.contains(at));
    let from = unique(free.map(|at| (at, sources[at].base_name())));
    let open = (0..targets.len()).filter(|&at| found[at].is_none());
    let to = unique(open.map(|at| (at, targets[at].base_name())));
    let both = |side: &&&Side| {
        let name = side.base_name();
        matches!(
            (from.get(name), to.get(name)),
            (Some(Some(_)), Some(Some(_)))
        )
    };
    let all = sources.iter().chain(targets).filter(both);
    scorer.look_ahead(all.copied());
    for (at, one) in sources.iter().enumerate() {
        let name = one.base_name();
        let (Some(Some(source)), Some(Some(target))) = (from.get(name), to.get(name)) else {
            continue;
        };
        if *source == at
            && found[*target].is_none()
            && let Some(score) = scorer.score(one, targets[*target], MIN_BASE_NAME_SCORE)?
            && score >= MIN_BASE_NAME_SCORE
        {
            found[*target] = Some(Origin::new(at, score));
            used.insert(at);
        }
    }
    Ok(())
}

#[derive(Clone, Copy)]
struct Candidate {
    score: f64,
    same_name: bool,
    source: usize,
    target: usize,
}

impl Candidate {
    /// Better first: the score, then the name.
    fn order(&self, other: &Self) -> std::cmp::Ordering {
        other
            .score
            .total_cmp(&self.score)
            .then(other.same_name.cmp(&self.same_name))
    }
}

fn best_scores(
    sources: &[&Side],
    targets: &[&Side],
    found: &mut [Option<Origin>],
    used: &mut HashSet<usize>,
    scorer: &mut Scorer<'_>,
) -> Result<(), Error> {
    let free: Vec<usize> = (0..sources.len()).filter(|at| !used.contains(at)).collect();
    let open: Vec<usize> = (0..targets.len())
        .filter(|&at| found[at].is_none())
        .collect();
    if free.len().saturating_mul(open.len()) > RENAME_LIMIT * RENAME_LIMIT {
        return Ok(());
    }
    let all = free.iter().map(|&at| sources[at]);
    scorer.look_ahead(all.chain(open.iter().map(|&at| targets[at])));
    let mut all = Vec::new();
    for target in open {
        // As in git: a candidate takes the place of the worst of the few that are kept.
        let mut kept: Vec<Candidate> = Vec::with_capacity(CANDIDATES);
        for &source in &free {
            let (one, two) = (sources[source], targets[target]);
            let Some(score) = scorer.score(one, two, MIN_SCORE)? else {
                continue;
            };
            let same_name = one.base_name() == two.base_name();
            let candidate = Candidate {
                score,
                same_name,
                source,
                target,
            };
            if kept.len() < CANDIDATES {
                kept.push(candidate);
                continue;
            }
            let mut worst = 0;
            for at in 1..kept.len() {
                if kept[at].order(&kept[worst]).is_gt() {
                    worst = at;
                }
            }
            if kept[worst].order(&candidate).is_gt() {
                kept[worst] = candidate;
            }
        }
        all.extend(kept);
    }
    all.sort_by(Candidate::order);
    for candidate in all
        .iter()
        .take_while(|candidate| candidate.score >= MIN_SCORE)
    {
        if found[candidate.target].is_none() && used.insert(candidate.source) {
            found[candidate.target] = Some(Origin::new(candidate.source, candidate.score));
        }
    }
    Ok(())
}

/// A file as a bag of chunks: lines, cut at 64 bytes, hashed. Sorted by hash, with bytes in each.
struct Chunks {
    size: u64,
    bytes: Vec<(u32, u64)>,
}

struct Scorer<'c> {
    content: &'c Content<'c>,
    seen: HashMap<Oid, Option<Chunks>>,
    budget: u64,
}

impl Scorer<'_> {
    /// How much of the larger file is in the other too, up to [`MAX_SCORE`]; nothing once the budget
    /// is used up.
    fn score(&mut self, one: &Side, two: &Side, least: f64) -> Result<Option<f64>, Error> {
        if self.budget == 0 {
            return Ok(None);
        }
        if !one.is_regular() || !two.is_regular() {
            return Ok(Some(0.0));
        }
        let (size_one, size_two) = (self.size(one)?, self.size(two)?);
        let (large, small) = (size_one.max(size_two), size_one.min(size_two));
        if (large as f64) * (MAX_SCORE - least) < (large - small) as f64 * MAX_SCORE {
            return Ok(Some(0.0));
        }
        self.look_at(one)?;
        self.look_at(two)?;
        let (Some(Some(one)), Some(Some(two))) = (self.seen.get(&one.id), self.seen.get(&two.id))
        else {
            return Ok(Some(0.0));
        };
        self.budget = self
            .budget
            .saturating_sub((one.bytes.len() + two.bytes.len()) as u64);
        if two.size == 0 {
            return Ok(Some(0.0));
        }
        Ok(Some(
            (common(one, two) as f64 * MAX_SCORE / large as f64).trunc(),
        ))
    }

    /// Looks at many small files, side by side. Those that can't be read are left to whoever wants to know.
    fn look_ahead<'s>(&mut self, sides: impl Iterator<Item = &'s Side>) {
        let is_new = |side: &&Side| side.is_regular() && !self.seen.contains_key(&side.id);
        let sides: Vec<&Side> = sides.filter(is_new).take(MAX_AHEAD).collect();
        let content = self.content;
        let look = |side: &&Side| {
            let is_small = content.size(side).is_ok_and(|size| size <= MAX_AHEAD_BYTES);
            let text = is_small.then(|| content.text(side).ok()).flatten();
            Ok(text.map(|text| chunks(text.bytes(), text.as_text().is_some())))
        };
        let looked = threads::each(&sides, look).unwrap_or_default();
        for (side, chunks) in sides.iter().zip(looked) {
            if let Some(chunks) = chunks {
                self.budget = self.budget.saturating_sub(chunks.size);
                self.seen.insert(side.id, Some(chunks));
            }
        }
    }

    fn size(&self, side: &Side) -> Result<u64, Error> {
        match self.seen.get(&side.id) {
            Some(Some(chunks)) => Ok(chunks.size),
            _ => self.content.size(side),
        }
    }

    fn look_at(&mut self, side: &Side) -> Result<(), Error> {
        if self.seen.contains_key(&side.id) {
            return Ok(());
        }
        let size = self.content.size(side)?;
        let chunks = if size <= MAX_READ {
            self.budget = self.budget.saturating_sub(size);
            let text = self.content.text(side)?;
            Some(chunks(text.bytes(), text.as_text().is_some()))
        } else {
            None
        };
        self.seen.insert(side.id, chunks);
        Ok(())
    }
}

fn chunks(content: &[u8], is_text: bool) -> Chunks {
    let mut bytes = Vec::with_capacity((content.len() / 32).min(HASHES as usize));
    let (mut one, mut two, mut length) = (0u32, 0u32, 0u64);
    let mut end = |one: u32, two: u32, length: u64| {
        if bytes.len() == 4 * HASHES as usize {
            add_up(&mut bytes);
        }
        bytes.push((one.wrapping_add(two.wrapping_mul(0x61)) % HASHES, length));
    };
    for (at, &byte) in content.iter().enumerate() {
        if is_text && byte == b'\r' && content.get(at + 1) == Some(&b'\n') {
            continue;
        }
        let before = one;
        one = (one << 7) ^ (two >> 25);
        two = (two << 7) ^ (before >> 25);
        one = one.wrapping_add(u32::from(byte));
        length += 1;
        if length == 64 || byte == b'\n' {
            end(one, two, length);
            (one, two, length) = (0, 0, 0);
        }
    }
    if length > 0 {
        end(one, two, length);
    }
    add_up(&mut bytes);
    Chunks {
        size: content.len() as u64,
        bytes,
    }
}

/// Sorts by hash, and makes one of all of a hash.
fn add_up(bytes: &mut Vec<(u32, u64)>) {
    bytes.sort_unstable();
    bytes.dedup_by(|next, kept| {
        let is_same = next.0 == kept.0;
        if is_same {
            kept.1 += next.1;
        }
        is_same
    });
}

/// Bytes of `two` that are in `one` as well.
fn common(one: &Chunks, two: &Chunks) -> u64 {
    let mut rest = two.bytes.iter().peekable();
    let mut sum = 0;
    for (hash, length) in &one.bytes {
        while rest.next_if(|(other, _)| other < hash).is_some() {}
        if let Some((_, other)) = rest.next_if(|(other, _)| other == hash) {
            sum += length.min(other);
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn common_content_is_counted_in_bytes_of_whole_lines() {
        let one = chunks(b"alpha\nbeta\ngamma\n", true);
        let two = chunks(b"gamma\nalpha\nother\n", true);
        assert_eq!(common(&one, &two), 12);
        assert_eq!(common(&chunks(b"a\r\nb", true), &chunks(b"a\nb", true)), 3);
    }
}
