//! The pure parts stay pure: they can't reach a client, a database, a repository or the clock.

const PURE: &[(&str, &str)] = &[
    ("config.rs", include_str!("../config.rs")),
    ("end.rs", include_str!("../end.rs")),
    ("figures.rs", include_str!("../figures.rs")),
    ("last_resort.rs", include_str!("../last_resort.rs")),
    ("naming.rs", include_str!("../naming.rs")),
    ("plan.rs", include_str!("../plan.rs")),
    ("plan/begin.rs", include_str!("../plan/begin.rs")),
    ("plan/finish.rs", include_str!("../plan/finish.rs")),
    ("plan/waits.rs", include_str!("../plan/waits.rs")),
    ("pod.rs", include_str!("../pod.rs")),
    ("pod/volumes.rs", include_str!("../pod/volumes.rs")),
    ("record.rs", include_str!("../record.rs")),
    ("shapes.rs", include_str!("../shapes.rs")),
    ("status.rs", include_str!("../status.rs")),
    ("trouble.rs", include_str!("../trouble.rs")),
    ("validate.rs", include_str!("../validate.rs")),
    ("view.rs", include_str!("../view.rs")),
    ("workspace/plan.rs", include_str!("../workspace/plan.rs")),
];

#[test]
fn the_pure_parts_can_not_reach_the_world() {
    let impure = [
        "kube::Client",
        "Client",
        "kube::Api",
        "kube::runtime",
        "sqlx",
        "git2",
        "tokio",
        "reqwest",
        "std::fs",
        "std::env",
        "std::net",
        "std::process",
        "SystemTime",
        "Instant",
        "Timestamp::now",
        "Zoned::now",
        "async fn",
        "super::context",
        "super::observe",
        "super::apply",
        "Ledger::connect",
    ];
    for (file, text) in PURE {
        let code = text.split("#[cfg(test)]").next().unwrap();
        for line in code
            .lines()
            .filter(|line| !line.trim_start().starts_with("//"))
        {
            for word in impure {
                assert!(!line.contains(word), "{file} reaches for {word}: {line}");
            }
        }
    }
}

#[test]
fn a_plan_is_applied_whole() {
    for text in [
        include_str!("../apply.rs"),
        include_str!("../workspace/apply.rs"),
    ] {
        let destructured = text.split("let Plan {").nth(1).unwrap();
        let fields = destructured.split('}').next().unwrap();
        assert!(!fields.contains(".."), "a new field could be forgotten");
    }
}
