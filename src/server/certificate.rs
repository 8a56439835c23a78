//! The server's certificate and its authority, kept in one Secret of our own namespace that the chart
//! renders empty: so the keeper needs no right to create Secrets, and no upgrade or rendered manifest
//! takes away what it filled in. The controller's leader runs it.
//!
//! The authority's key stays for as long as it can be read. A renewed authority has the same key and
//! name, so that pods which were given the old one go on trusting the server.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::time::Duration;

use jiff::tz::TimeZone;
use jiff::{Span, Timestamp};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{Api, PostParams};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PublicKeyData,
};
use tokio::sync::watch;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::pem::parse_x509_pem;
use x509_parser::prelude::FromDer;

/// Common name of the authority.
const AUTHORITY: &str = "Runledger server authority";
/// Life of the authority, in days.
const AUTHORITY_DAYS: i64 = 3650;
/// Life of the server's certificate, in days.
const LEAF_DAYS: i64 = 90;
/// Between two looks at the Secret.
const LOOK: Duration = Duration::from_secs(60);
/// After a look that failed, or found the Secret missing.
const AGAIN: Duration = Duration::from_secs(3);
/// Longest wait for one answer of the API server.
const ANSWER: Duration = Duration::from_secs(15);

/// Why the certificate could not be kept; the next look tries again.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("the certificate's Secret can't be read or written")]
    Kube(#[source] kube::Error),
    #[error("the API server did not answer within {} s", ANSWER.as_secs())]
    TimedOut,
    #[error("Secret {0} isn't there; the chart makes it, empty")]
    Missing(String),
    #[error("a certificate can't be made")]
    Make(#[source] rcgen::Error),
    #[error("a certificate's dates can't be computed")]
    Dates(#[source] jiff::Error),
}

/// Keeps the Secret filled with a valid certificate for the service, and tells the authority's PEM.
pub async fn keep(
    client: kube::Client,
    namespace: String,
    secret_name: String,
    service_name: String,
    ca: watch::Sender<Option<String>>,
) -> Infallible {
    let api = Api::<Secret>::namespaced(client, &namespace);
    let names = dns_names(&service_name, &namespace);
    let mut last = None;
    loop {
        let pause = match look(&api, &secret_name, &names).await {
            Ok(authority) => {
                last = None;
                ca.send_if_modified(|known| {
                    let new = known.as_ref() != Some(&authority);
                    *known = Some(authority);
                    new
                });
                LOOK
            }
            Err(error) => {
                let cause = std::error::Error::source(&error).map(ToString::to_string);
                let said = (error.to_string(), cause);
                // Once per cause, not every three seconds.
                if last.as_ref() != Some(&said) {
                    tracing::warn!(
                        error = said.0,
                        cause = said.1,
                        "the server's certificate can't be kept"
                    );
                    last = Some(said);
                }
                AGAIN
            }
        };
        tokio::time::sleep(pause).await;
    }
}

/// One look: renews what is due, and answers the authority's PEM.
async fn look(api: &Api<Secret>, name: &str, names: &BTreeSet<String>) -> Result<String, Error> {
    let mut secret = in_time(api.get_opt(name))
        .await?
        .ok_or_else(|| Error::Missing(name.to_owned()))?;
    let now = Timestamp::now();
    let kept = Kept::of(&secret);
    let due = due(&kept, names, now);
    if due == Due::default() {
        return Ok(kept.ca_crt);
    }
    let renewed = renew(kept, due, names, now)?;
    renewed.clone().write(&mut secret);
    // The whole object with its resourceVersion: of two keepers one loses, and looks again.
    in_time(api.replace(name, &PostParams::default(), &secret)).await?;
    tracing::info!(?due, "the server's certificate was renewed");
    Ok(renewed.ca_crt)
}

async fn in_time<T>(answer: impl Future<Output = Result<T, kube::Error>>) -> Result<T, Error> {
    tokio::time::timeout(ANSWER, answer)
        .await
        .map_err(|_| Error::TimedOut)?
        .map_err(Error::Kube)
}

/// Every name that the service answers to.
fn dns_names(service: &str, namespace: &str) -> BTreeSet<String> {
    [
        service.to_owned(),
        format!("{service}.{namespace}"),
        format!("{service}.{namespace}.svc"),
        format!("{service}.{namespace}.svc.cluster.local"),
    ]
    .into()
}

/// What the Secret holds, as PEM; empty where it holds nothing.
#[derive(Clone, Default)]
struct Kept {
    ca_crt: String,
    ca_key: String,
    tls_crt: String,
    tls_key: String,
}

impl Kept {
    fn of(secret: &Secret) -> Self {
        let text = |key: &str| {
            secret
                .data
                .as_ref()
                .and_then(|data| data.get(key))
                .and_then(|bytes| String::from_utf8(bytes.0.clone()).ok())
                .unwrap_or_default()
        };
        Self {
            ca_crt: text("ca.crt"),
            ca_key: text("ca.key"),
            tls_crt: text("tls.crt"),
            tls_key: text("tls.key"),
        }
    }

    fn write(self, secret: &mut Secret) {
        let Self {
            ca_crt,
            ca_key,
            tls_crt,
            tls_key,
        } = self;
        let data = secret.data.get_or_insert_default();
        for (key, text) in [
            ("ca.crt", ca_crt),
            ("ca.key", ca_key),
            ("tls.crt", tls_crt),
            ("tls.key", tls_key),
        ] {
            data.insert(key.to_owned(), ByteString(text.into_bytes()));
        }
    }
}

/// What must be made anew.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Due {
    /// The authority's key: whoever trusts the old one no longer trusts the server.
    key: bool,
    /// The authority's certificate.
    authority: bool,
    /// The server's key and certificate.
    leaf: bool,
}

/// What of the kept is missing, broken, for other names, or past two thirds of its life.
fn due(kept: &Kept, names: &BTreeSet<String>, now: Timestamp) -> Due {
    let Ok(key) = KeyPair::from_pem(&kept.ca_key) else {
        return Due {
            key: true,
            authority: true,
            leaf: true,
        };
    };
    let authority = !with_certificate(&kept.ca_crt, |ca| {
        ca.is_ca()
            && ca.public_key().raw == key.subject_public_key_info().as_slice()
            && common_name(ca.subject()) == Some(AUTHORITY)
            && ca.verify_signature(None).is_ok()
            && is_fresh(ca, now)
    });
    let leaf = !with_certificate(&kept.tls_crt, |leaf| {
        let own = KeyPair::from_pem(&kept.tls_key)
            .is_ok_and(|own| own.subject_public_key_info().as_slice() == leaf.public_key().raw);
        let signed =
            x509_parser::x509::SubjectPublicKeyInfo::from_der(&key.subject_public_key_info())
                .is_ok_and(|(_, public)| leaf.verify_signature(Some(&public)).is_ok());
        own && signed
            && common_name(leaf.issuer()) == Some(AUTHORITY)
            && alternative_names(leaf) == *names
            && is_fresh(leaf, now)
    });
    Due {
        key: false,
        authority,
        leaf,
    }
}

/// Asks the certificate in this PEM; no where there is none.
fn with_certificate(pem: &str, ask: impl FnOnce(&X509Certificate<'_>) -> bool) -> bool {
    let Ok((_, pem)) = parse_x509_pem(pem.as_bytes()) else {
        return false;
    };
    pem.parse_x509().is_ok_and(|certificate| ask(&certificate))
}

fn common_name<'a>(name: &'a x509_parser::x509::X509Name<'_>) -> Option<&'a str> {
    name.iter_common_name()
        .next()
        .and_then(|name| name.as_str().ok())
}

fn alternative_names(certificate: &X509Certificate<'_>) -> BTreeSet<String> {
    let Ok(Some(extension)) = certificate.subject_alternative_name() else {
        return BTreeSet::new();
    };
    extension
        .value
        .general_names
        .iter()
        .filter_map(|name| match name {
            GeneralName::DNSName(name) => Some((*name).to_owned()),
            _ => None,
        })
        .collect()
}

/// Valid, and not yet past two thirds of its life.
fn is_fresh(certificate: &X509Certificate<'_>, now: Timestamp) -> bool {
    let validity = certificate.validity();
    let (from, to) = (
        validity.not_before.timestamp(),
        validity.not_after.timestamp(),
    );
    let now = now.as_second();
    from <= now && now < from + (to - from) / 3 * 2
}

/// Makes anew what is due, and keeps the rest.
fn renew(
    mut kept: Kept,
    due: Due,
    names: &BTreeSet<String>,
    now: Timestamp,
) -> Result<Kept, Error> {
    let key = if due.key {
        let key = KeyPair::generate().map_err(Error::Make)?;
        kept.ca_key = key.serialize_pem();
        key
    } else {
        KeyPair::from_pem(&kept.ca_key).map_err(Error::Make)?
    };
    let authority = authority(now)?;
    if due.authority {
        kept.ca_crt = authority.self_signed(&key).map_err(Error::Make)?.pem();
    }
    if due.leaf {
        let own = KeyPair::generate().map_err(Error::Make)?;
        let issuer = Issuer::from_params(&authority, &key);
        kept.tls_crt = leaf(names, now)?
            .signed_by(&own, &issuer)
            .map_err(Error::Make)?
            .pem();
        kept.tls_key = own.serialize_pem();
    }
    Ok(kept)
}

fn authority(now: Timestamp) -> Result<CertificateParams, Error> {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::CommonName, AUTHORITY);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.serial_number = Some(u64::try_from(now.as_second()).unwrap_or_default().into());
    live(&mut params, now, AUTHORITY_DAYS)?;
    Ok(params)
}

fn leaf(names: &BTreeSet<String>, now: Timestamp) -> Result<CertificateParams, Error> {
    let mut params =
        CertificateParams::new(names.iter().cloned().collect::<Vec<_>>()).map_err(Error::Make)?;
    params.distinguished_name = rcgen::DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::CommonName, "Runledger server");
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    live(&mut params, now, LEAF_DAYS)?;
    Ok(params)
}

/// From yesterday, so that a clock that is behind takes it too.
fn live(params: &mut CertificateParams, now: Timestamp, days: i64) -> Result<(), Error> {
    let today = now.to_zoned(TimeZone::UTC).date();
    let day = |offset: i64| {
        let date = today
            .checked_add(Span::new().days(offset))
            .map_err(Error::Dates)?;
        let part = |part: i8| u8::try_from(part).unwrap_or(1);
        Ok(rcgen::date_time_ymd(
            date.year().into(),
            part(date.month()),
            part(date.day()),
        ))
    };
    params.not_before = day(-1)?;
    params.not_after = day(days)?;
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

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
}
