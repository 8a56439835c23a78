//! The branch that a run delivers to: its name made from a template, and whether an agent may push
//! there. Pure, and shared by the controller, which refuses a spec, and the supervisor, which pushes.

/// Longest name of a branch, in bytes.
const MAX_BRANCH: usize = 244;

/// What a template's placeholders stand for.
#[derive(Clone, Copy, Debug)]
pub struct Placeholders<'a> {
    /// `{run}`
    pub run: &'a str,
    /// `{uid}`
    pub uid: &'a str,
    /// `{namespace}`
    pub namespace: &'a str,
    /// `{session}`
    pub session: &'a str,
    /// `{workflow}`
    pub workflow: &'a str,
}

/// The branch that a template names; else a sentence that says what is wrong with it.
pub fn branch(template: &str, with: &Placeholders<'_>) -> Result<String, String> {
    let mut name = template.to_owned();
    for (placeholder, value) in [
        ("{run}", with.run),
        ("{uid}", with.uid),
        ("{namespace}", with.namespace),
        ("{session}", with.session),
        ("{workflow}", with.workflow),
    ] {
        name = name.replace(placeholder, value);
    }
    if name.contains(['{', '}']) {
        return Err(format!(
            "{template} holds a placeholder that is none of {{run}}, {{uid}}, {{namespace}}, {{session}} and {{workflow}}"
        ));
    }
    let sound = |part: &str| !part.is_empty() && !part.starts_with('.') && !part.ends_with(".lock");
    if name.len() > MAX_BRANCH || name.ends_with('.') || !name.split('/').all(sound) {
        return Err(format!(
            "{template} makes {name} for this run, which is no name of a branch"
        ));
    }
    Ok(name)
}

/// Whether others live by a branch of this name, so that it is pushed to only where `allowed` names
/// it.
pub fn is_protected(branch: &str, allowed: &[String]) -> bool {
    let lower = branch.to_ascii_lowercase();
    let known = matches!(lower.as_str(), "main" | "master" | "release");
    (known || lower.starts_with("release/")) && !allowed.iter().any(|name| name == branch)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    const WITH: Placeholders<'_> = Placeholders {
        run: "fix-1.lock",
        uid: "0a",
        namespace: "team",
        session: "parser",
        workflow: "surgeon",
    };

    #[test]
    fn a_template_becomes_the_runs_own_branch() {
        let name = branch("bots/{namespace}/{workflow}-{session}-{uid}", &WITH);
        assert_eq!(name.unwrap(), "bots/team/surgeon-parser-0a");
        assert_eq!(branch("plain", &WITH).unwrap(), "plain");
    }

    #[test]
    fn a_template_that_makes_no_branch_is_refused_with_what_it_makes() {
        let why = branch("a/{run}", &WITH).unwrap_err();
        assert!(why.contains("a/fix-1.lock for this run"), "{why}");
        let why = branch("a/{ran}", &WITH).unwrap_err();
        assert!(why.contains("none of {run}"), "{why}");
        assert!(branch(&"{namespace}".repeat(80), &WITH).is_err());
    }

    #[test]
    fn branches_that_others_live_by_are_protected_unless_named() {
        for name in [
            "main",
            "master",
            "Main",
            "release/1.0",
            "RELEASE/x",
            "release",
        ] {
            assert!(is_protected(name, &[]), "{name}");
            assert!(is_protected(name, &["develop".to_owned()]), "{name}");
            assert!(!is_protected(name, &[name.to_owned()]), "{name}");
        }
        assert!(is_protected("Main", &["main".to_owned()]));
        for name in ["agent/run-1", "fix", "mainly", "releases"] {
            assert!(!is_protected(name, &[]), "{name}");
        }
    }
}
