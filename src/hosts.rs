//! Where a Secret may be sent to: the names under its key `hosts`, and the one rule by which both the
//! model's key and a repository's password are held back from every other place.

use url::Url;

/// The names of a key `hosts`, separated by commas or white space.
pub fn parse(text: &str) -> Vec<String> {
    text.split(|c: char| c == ',' || c.is_whitespace())
        .filter(|name| !name.is_empty())
        .map(str::to_owned)
        .collect()
}

/// Whether one of the names is that of the URL's host. A bare name means the default port of an
/// encrypted scheme; any other port, and any port without encryption, must be named: `host:port`.
pub fn allow(names: &[String], url: &Url) -> bool {
    let wanted = wanted(url);
    let with_port = with_port(url);
    names.iter().any(|name| {
        with_port
            .as_ref()
            .is_some_and(|with_port| name.eq_ignore_ascii_case(with_port))
            || wanted
                .as_ref()
                .is_some_and(|wanted| name.eq_ignore_ascii_case(wanted))
    })
}

/// What to write under `hosts` for this URL; nothing where it has no host.
pub fn wanted(url: &Url) -> Option<String> {
    let is_default = match url.scheme() {
        "https" => matches!(url.port(), None | Some(443)),
        "ssh" => matches!(url.port(), None | Some(22)),
        _ => false,
    };
    if is_default {
        Some(url.host_str()?.to_owned())
    } else {
        with_port(url)
    }
}

fn with_port(url: &Url) -> Option<String> {
    let port = match url.scheme() {
        "ssh" => url.port().or(Some(22)),
        _ => url.port_or_known_default(),
    };
    Some(format!("{}:{}", url.host_str()?, port?))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    fn allows(names: &str, url: &str) -> bool {
        allow(&parse(names), &url.parse().unwrap())
    }

    #[test]
    fn a_bare_name_means_the_default_port_and_no_other() {
        assert!(allows("git.example", "https://git.example/r.git"));
        assert!(allows("Git.Example", "https://git.EXAMPLE:443/r.git"));
        assert!(allows("git.example", "ssh://git@git.example/r.git"));
        assert!(!allows("git.example", "https://git.example:8443/r.git"));
        assert!(!allows("git.example", "ssh://git@git.example:2222/r.git"));
        assert!(allows("git.example:8443", "https://git.example:8443/r.git"));
        assert!(allows("git.example:443", "https://git.example/r.git"));
        assert!(allows("git.example:22", "ssh://git@git.example/r.git"));
        assert!(!allows("git.example:8443", "https://git.example/r.git"));
    }

    #[test]
    fn without_encryption_the_port_must_be_named_too() {
        assert!(!allows("git.example", "http://git.example/r.git"));
        assert!(!allows("git.example:443", "http://git.example/r.git"));
        assert!(allows("git.example:80", "http://git.example/r.git"));
    }

    #[test]
    fn no_other_name_is_taken_for_it() {
        for url in [
            "https://evil.git.example/",
            "https://git.example.evil/",
            "https://git.example@evil.example/",
            "https://example/",
        ] {
            assert!(!allows("git.example, other.example", url), "{url}");
        }
        assert!(!allows("", "https://git.example/"));
    }

    #[test]
    fn names_are_separated_by_commas_or_white_space() {
        assert_eq!(
            parse("a.example, b.example\nc.example:8443\n"),
            ["a.example", "b.example", "c.example:8443"]
        );
    }

    #[test]
    fn what_is_wanted_is_what_is_allowed() {
        for url in [
            "https://git.example/",
            "https://git.example:8443/",
            "http://git.example/",
            "https://[::1]:8443/",
            "ssh://git.example:2222/",
        ] {
            let wanted = wanted(&url.parse().unwrap()).unwrap();
            assert!(allows(&wanted, url), "{wanted} for {url}");
        }
    }
}
