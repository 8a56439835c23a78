//! Where a report says something else than the git command would: a closed list. Each has its reason
//! and a test of the name that it gives; any other difference is a bug.

/// A difference on purpose.
#[derive(Clone, Copy, Debug)]
pub struct Difference {
    /// What git does, and what a report does.
    pub what: &'static str,
    /// Why it does.
    pub why: &'static str,
    /// The test that shows it.
    pub test: &'static str,
}

/// All of them.
pub const DIFFERENCES: &[Difference] = &[
    Difference {
        what: "git obeys configuration (diff.*, core.autocrlf, core.fileMode, core.excludesFile, \
               filter and diff drivers, working-tree-encoding, ident); a report has none of it",
        why: "the repository is hostile ground: its configuration names programs and files",
        test: "configuration_changes_no_figure",
    },
    Difference {
        what: "the attributes of a run's report are those of its final commit; git takes those of the \
               worktree, or of the index where a submodule has changed",
        why: "the figures of two commits may not depend on what lies about beside them",
        test: "attributes_are_the_final_commits",
    },
    Difference {
        what: "git leaves commits out, or counts too many, where dates go backwards for long; a report \
               does not",
        why: "dates are the agent's to choose",
        test: "commits_are_counted_whatever_their_dates_say",
    },
    Difference {
        what: "before 2.44 git looked for renames without a last line that has no end",
        why: "it was a fault there",
        test: "a_last_line_without_an_end_counts_for_a_rename",
    },
    Difference {
        what: "files of more than 100 MiB, or that differ and have more than two million lines, are \
               binary; for git they are from 512 MiB on",
        why: "comparing takes memory that a supervisor does not have",
        test: "a_huge_file_is_counted_as_binary_and_pushed",
    },
    Difference {
        what: "a submodule is compared by its commit only, as with --ignore-submodules=dirty",
        why: "looking into it would be opening another hostile repository",
        test: "what_is_changed_in_a_submodule_is_its_own_affair",
    },
    Difference {
        what: "files in conflict are listed by themselves, neither staged nor unstaged",
        why: "they have no one content to count the lines of",
        test: "conflicts_are_listed_by_themselves",
    },
    Difference {
        what: "git reads a .gitignore that is skipped in the worktree (sparse checkout) from the index",
        why: "rules that the agent does not see are not its rules",
        test: "only_ignore_rules_that_are_there_are_heeded",
    },
    Difference {
        what: "a FIFO, socket or device in the place of a file is a binary change; git tries to read it",
        why: "it would wait for ever",
        test: "a_fifo_in_the_place_of_a_file_is_a_change_and_never_opened",
    },
];
