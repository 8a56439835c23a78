//! The server's certificate, from a mounted folder: waited for at the start, read again when it
//! changes. Who makes and renews it is [`super::certificate`].

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use axum_server::tls_rustls::RustlsConfig;
use rustls::ServerConfig;
use tokio::task::JoinHandle;

/// Between two looks at the files, until they are there.
const WAIT: Duration = Duration::from_secs(1);
/// Between two looks at the files, afterwards.
const LOOK: Duration = Duration::from_secs(10);

/// Ends the task with its owner.
pub(super) struct Reload(JoinHandle<()>);

impl Drop for Reload {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The certificate, once it can be read.
pub(super) async fn load(folder: &Path) -> RustlsConfig {
    let mut said = false;
    loop {
        match read(folder).await {
            Ok(config) => return RustlsConfig::from_config(config),
            Err(error) if !said => {
                said = true;
                tracing::info!(folder = %folder.display(), %error, "waiting for the certificate");
            }
            Err(_) => {}
        }
        tokio::time::sleep(WAIT).await;
    }
}

/// Reads the certificate again whenever its files change; one that can't be read leaves the last.
pub(super) fn reload(config: RustlsConfig, folder: PathBuf) -> Reload {
    Reload(tokio::spawn(async move {
        let (cert, key) = (folder.join("tls.crt"), folder.join("tls.key"));
        let mut seen = (None, None);
        loop {
            tokio::time::sleep(LOOK).await;
            let now = changed(&cert, &key).await;
            if now == seen {
                continue;
            }
            match read(&folder).await {
                Ok(new) => {
                    config.reload_from_config(new);
                    seen = now;
                    tracing::info!("the certificate was read again");
                }
                Err(error) => {
                    tracing::warn!(%error, "the new certificate can't be read; the last one stays")
                }
            }
        }
    }))
}

/// The folder's certificate and key. Only HTTP/1.1 is offered, which is all that the server speaks.
async fn read(folder: &Path) -> std::io::Result<Arc<ServerConfig>> {
    let config =
        RustlsConfig::from_pem_file(folder.join("tls.crt"), folder.join("tls.key")).await?;
    let mut config = Arc::unwrap_or_clone(config.get_inner());
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// When the files last changed.
async fn changed(cert: &Path, key: &Path) -> (Option<SystemTime>, Option<SystemTime>) {
    let of = async |path: &Path| {
        let metadata = tokio::fs::metadata(path).await.ok()?;
        metadata.modified().ok()
    };
    (of(cert).await, of(key).await)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_client_that_could_do_http2_is_offered_only_what_the_server_speaks() {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let folder = tempfile::tempdir().unwrap();
        let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
        std::fs::write(folder.path().join("tls.crt"), made.cert.pem()).unwrap();
        std::fs::write(
            folder.path().join("tls.key"),
            made.signing_key.serialize_pem(),
        )
        .unwrap();
        let config = load(folder.path()).await.get_inner();
        assert_eq!(config.alpn_protocols, [b"http/1.1".to_vec()]);
    }
}
