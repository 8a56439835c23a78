use std::time::Duration;

use super::*;
use crate::server::certificate::dns_names;

fn names() -> BTreeSet<String> {
    dns_names("runledger-server", "runledger-system")
}

fn at(days: i64) -> Timestamp {
    Timestamp::from_second(1_790_000_000 + days * 86_400).unwrap()
}

fn fresh() -> Kept {
    let all = Due {
        key: true,
        authority: true,
        leaf: true,
    };
    renew(Kept::default(), all, &names(), at(0)).unwrap()
}

#[test]
fn an_empty_secret_is_filled_and_then_left_alone() {
    let empty = due(&Kept::default(), &names(), at(0));
    assert_eq!(
        empty,
        Due {
            key: true,
            authority: true,
            leaf: true
        }
    );
    let kept = renew(Kept::default(), empty, &names(), at(0)).unwrap();
    for day in [0, 1, 30, 58] {
        assert_eq!(due(&kept, &names(), at(day)), Due::default(), "day {day}");
    }
}

#[test]
fn the_leaf_is_renewed_at_two_thirds_of_its_life_and_the_authority_stays() {
    let kept = fresh();
    let leaf = Due {
        leaf: true,
        ..Due::default()
    };
    assert_eq!(due(&kept, &names(), at(62)), leaf);
    let renewed = renew(kept.clone(), leaf, &names(), at(62)).unwrap();
    assert_eq!(
        (&renewed.ca_crt, &renewed.ca_key),
        (&kept.ca_crt, &kept.ca_key)
    );
    assert_ne!(renewed.tls_crt, kept.tls_crt);
    assert_eq!(due(&renewed, &names(), at(62)), Due::default());
}

#[test]
fn a_renewed_authority_keeps_its_key_so_that_running_pods_go_on_trusting() {
    let old = fresh();
    let day = AUTHORITY_DAYS / 3 * 2 + 2;
    let needs = due(&old, &names(), at(day));
    assert_eq!(
        needs,
        Due {
            key: false,
            authority: true,
            leaf: true
        }
    );
    let new = renew(old.clone(), needs, &names(), at(day)).unwrap();
    assert_eq!(new.ca_key, old.ca_key);
    assert_ne!(new.ca_crt, old.ca_crt);
    assert_eq!(due(&new, &names(), at(day)), Due::default());
    assert!(
        trusts(&old.ca_crt, &new.tls_crt, at(day)),
        "the old authority's holders"
    );
    assert!(
        trusts(&new.ca_crt, &new.tls_crt, at(day)),
        "the new authority's holders"
    );
    assert!(
        !trusts(&fresh().ca_crt, &new.tls_crt, at(day)),
        "another authority's holders"
    );
}

#[test]
fn whatever_is_broken_is_made_anew() {
    let good = fresh();
    let other = fresh();
    let leaf = Due {
        leaf: true,
        ..Due::default()
    };
    let all = Due {
        key: true,
        authority: true,
        leaf: true,
    };
    let broken = |change: fn(&mut Kept, Kept)| {
        let mut kept = good.clone();
        change(&mut kept, other.clone());
        due(&kept, &names(), at(0))
    };
    assert_eq!(broken(|k, _| k.ca_key = "nonsense".to_owned()), all);
    assert_eq!(broken(|k, _| k.tls_crt.clear()), leaf);
    assert_eq!(broken(|k, other| k.tls_key = other.tls_key), leaf);
    assert_eq!(
        broken(|k, other| (k.tls_key, k.tls_crt) = (other.tls_key, other.tls_crt)),
        leaf
    );
    let authority = Due {
        authority: true,
        ..Due::default()
    };
    assert_eq!(broken(|k, _| k.ca_crt = "nonsense".to_owned()), authority);
    assert_eq!(broken(|k, other| k.ca_crt = other.ca_crt), authority);
}

#[test]
fn another_service_name_wants_another_certificate() {
    let names = dns_names("runledger-server", "elsewhere");
    assert_eq!(
        due(&fresh(), &names, at(0)),
        Due {
            leaf: true,
            ..Due::default()
        }
    );
}

#[test]
fn other_keys_of_the_secret_stay() {
    let mut secret = Secret {
        data: Some([("theirs".to_owned(), ByteString(b"x".to_vec()))].into()),
        ..Secret::default()
    };
    fresh().write(&mut secret);
    assert_eq!(secret.data.as_ref().unwrap().len(), 5);
    assert_eq!(due(&Kept::of(&secret), &names(), at(0)), Due::default());
}

/// Whether a supervisor that holds this authority takes that certificate, by rustls' own rules.
fn trusts(ca: &str, leaf: &str, now: Timestamp) -> bool {
    use rustls::client::WebPkiServerVerifier;
    use rustls::client::danger::ServerCertVerifier;
    use rustls_pki_types::pem::PemObject;
    use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
    let mut roots = rustls::RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_slice(ca.as_bytes()).unwrap())
        .unwrap();
    let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
    let verifier = WebPkiServerVerifier::builder_with_provider(roots.into(), provider)
        .build()
        .unwrap();
    let leaf = CertificateDer::from_pem_slice(leaf.as_bytes()).unwrap();
    let now = UnixTime::since_unix_epoch(Duration::from_secs(now.as_second().unsigned_abs()));
    names().iter().all(|name| {
        let name = ServerName::try_from(name.clone()).unwrap();
        verifier
            .verify_server_cert(&leaf, &[], &name, &[], now)
            .is_ok()
    })
}
