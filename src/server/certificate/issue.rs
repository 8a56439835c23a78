//! What of an authority and a server's certificate must be made anew, and how it is made: from PEM
//! and a moment to PEM. It asks nobody.

use std::collections::BTreeSet;

use jiff::tz::TimeZone;
use jiff::{Span, Timestamp};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PublicKeyData,
};
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

/// Why a certificate could not be made.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("a certificate can't be made")]
    Make(#[source] rcgen::Error),
    #[error("a certificate's dates can't be computed")]
    Dates(#[source] jiff::Error),
}

/// What the Secret holds, as PEM; empty where it holds nothing.
#[derive(Clone, Default)]
pub(super) struct Kept {
    pub(super) ca_crt: String,
    ca_key: String,
    tls_crt: String,
    tls_key: String,
}

impl Kept {
    pub(super) fn of(secret: &Secret) -> Self {
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

    pub(super) fn write(self, secret: &mut Secret) {
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
pub(super) struct Due {
    /// The authority's key: whoever trusts the old one no longer trusts the server.
    key: bool,
    /// The authority's certificate.
    authority: bool,
    /// The server's key and certificate.
    leaf: bool,
}

/// What of the kept is missing, broken, for other names, or past two thirds of its life.
pub(super) fn due(kept: &Kept, names: &BTreeSet<String>, now: Timestamp) -> Due {
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
pub(super) fn renew(
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
mod tests;
