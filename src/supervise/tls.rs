//! TLS of what a supervisor connects to: the model (public roots and what the assignment adds) and
//! the server (its own CA and nothing else).

use std::sync::Arc;
use std::time::Duration;

use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

use super::Error;

/// Roots for the model's API.
pub(super) fn for_model(ca: Option<&str>) -> Result<ClientConfig, Error> {
    let mut roots = RootCertStore::empty();
    roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
    if let Some(ca) = ca {
        add(&mut roots, ca)?;
    }
    config(roots)
}

/// Roots for the server.
pub(super) fn for_server(ca: &str) -> Result<ClientConfig, Error> {
    let mut roots = RootCertStore::empty();
    add(&mut roots, ca)?;
    config(roots)
}

/// A client over `tls` that goes where it is told and nowhere else.
pub(super) fn client(tls: ClientConfig) -> reqwest::ClientBuilder {
    reqwest::Client::builder()
        .tls_backend_preconfigured(tls)
        .https_only(true)
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .connect_timeout(Duration::from_secs(10))
}

fn add(roots: &mut RootCertStore, pem: &str) -> Result<(), Error> {
    for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
        let certificate = certificate.map_err(|_| Error::Certificate)?;
        roots.add(certificate).map_err(|_| Error::Certificate)?;
    }
    Ok(())
}

fn config(roots: RootCertStore) -> Result<ClientConfig, Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(Error::Tls)?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(config)
}
