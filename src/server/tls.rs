//! The server's certificate, from a mounted folder: waited for at the start, read again when it
//! changes. Who makes and renews it is [`super::certificate`].

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use axum_server::tls_rustls::RustlsConfig;
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
        match RustlsConfig::from_pem_file(folder.join("tls.crt"), folder.join("tls.key")).await {
            Ok(config) => return config,
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
            match config.reload_from_pem_file(&cert, &key).await {
                Ok(()) => {
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

/// When the files last changed.
async fn changed(cert: &Path, key: &Path) -> (Option<SystemTime>, Option<SystemTime>) {
    let of = async |path: &Path| {
        let metadata = tokio::fs::metadata(path).await.ok()?;
        metadata.modified().ok()
    };
    (of(cert).await, of(key).await)
}
