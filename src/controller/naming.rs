//! How the objects of a run are named. Names are made of the run's own, so that the same thing made
//! twice collides instead of being there twice. Pure.

use sha2::{Digest as _, Sha256};

/// Longest name of what we make: a pod's name becomes its host name, and ends in labels.
const LONGEST: usize = 63;

/// Name of the pod of that attempt.
pub(super) fn pod(run: &str, attempt: u32) -> String {
    bounded(run, &format!("-{attempt}"))
}

/// Name of the Workspace of a run that names neither a Workspace nor a session.
pub(super) fn workspace(run: &str) -> String {
    bounded(run, "")
}

/// Name of the PersistentVolumeClaim of that Workspace.
pub(super) fn claim(workspace: &str) -> String {
    format!("workspace-{workspace}")
}

/// A value for a label: cut to what labels take.
pub(super) fn label(value: &str) -> String {
    value[..value.floor_char_boundary(LONGEST)]
        .trim_end_matches(|c: char| !c.is_ascii_alphanumeric())
        .to_owned()
}

/// `name` and `suffix`, with the middle replaced by a hash where they are too long together.
fn bounded(name: &str, suffix: &str) -> String {
    if name.len() + suffix.len() <= LONGEST {
        return format!("{name}{suffix}");
    }
    let hash: String = Sha256::digest(name.as_bytes())
        .iter()
        .take(4)
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let end = name.floor_char_boundary(LONGEST - suffix.len() - hash.len() - 1);
    let head = name[..end].trim_end_matches(['-', '.']);
    format!("{head}-{hash}{suffix}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_name_is_kept() {
        assert_eq!(pod("hello", 1), "hello-1");
        assert_eq!(workspace("hello.world"), "hello.world");
    }

    #[test]
    fn a_long_name_is_cut_and_stays_its_own() {
        let (a, b) = ("a".repeat(253), format!("{}b", "a".repeat(252)));
        assert_eq!(pod(&a, 12).len(), 63);
        assert!(pod(&a, 12).ends_with("-12"));
        assert_ne!(pod(&a, 1), pod(&b, 1));
        assert_ne!(workspace(&a), workspace(&b));
        assert_eq!(workspace(&a).len(), 63);
    }

    #[test]
    fn a_cut_never_leaves_a_dot_before_the_hash() {
        let name = format!("{}.{}", "a".repeat(51), "b".repeat(60));
        assert!(!pod(&name, 1).contains(".-"), "{}", pod(&name, 1));
        assert!(
            label(&name)
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || c == '.')
        );
        assert!(!label(&format!("{}..", "a".repeat(62))).ends_with('.'));
    }
}
