//! The scripted model: a stand-in for Anthropic's Messages API that answers from scenarios.
//! It serves tests and demo; nothing in the product knows of it. This file owns the command line
//! and the listener; what is answered is the business of [`app`].

use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::Context;
use clap::Parser;

mod app;

/// Answers the Messages API from scenarios.
#[derive(Parser)]
struct Options {
    /// Directory of scenarios: `<name>.yaml` each. `default.yaml` serves a task without a marker.
    #[arg(long, env = "SCENARIOS")]
    scenarios: PathBuf,
    /// Address to listen on.
    #[arg(long, env = "LISTEN", default_value = "0.0.0.0:8443")]
    listen: SocketAddr,
    /// PEM file of the certificate chain; with `--key` the model speaks TLS.
    #[arg(long, env = "TLS_CERT", requires = "key")]
    cert: Option<PathBuf>,
    /// PEM file of the certificate's key.
    #[arg(long, env = "TLS_KEY", requires = "cert")]
    key: Option<PathBuf>,
    /// The one `x-api-key` that is let in; any where absent. From the environment only, since
    /// arguments can be read by others.
    #[arg(skip = std::env::var("EXPECTED_API_KEY").ok())]
    api_key: Option<String>,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    let scenarios = app::scenario::read_all(&options.scenarios)?;
    let router = app::router(app::App::new(scenarios, options.api_key, true));
    let service = router.into_make_service();
    let serve = async {
        match (&options.cert, &options.key) {
            (Some(cert), Some(key)) => {
                // An earlier provider is as good: the error only says that there is one.
                let _ = rustls::crypto::ring::default_provider().install_default();
                let tls = axum_server::tls_rustls::RustlsConfig::from_pem_file(cert, key)
                    .await
                    .context("can't read the certificate or its key")?;
                axum_server::bind_rustls(options.listen, tls)
                    .serve(service)
                    .await
            }
            _ => axum_server::bind(options.listen).serve(service).await,
        }
        .with_context(|| format!("can't serve on {}", options.listen))
    };
    // PID 1 of a container gets no default action for SIGTERM: it has to ask for it.
    let mut term = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    tokio::select! {
        served = serve => served,
        _ = term.recv() => Ok(()),
    }
}
