//! A git server: `git http-backend` behind basic authentication and a certificate of its own CA.

use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex};

use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::http::{Response, StatusCode, header};
use axum_server::tls_rustls::RustlsConfig;
use base64::Engine;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use tokio::io::AsyncWriteExt;
use url::Url;

pub(crate) const USER: &str = "ada";
pub(crate) const PASSWORD: &str = "hunter2-äöü/@:";

/// How a server behaves.
#[derive(Clone, Default)]
pub(crate) struct Manner {
    pub(crate) https: bool,
    pub(crate) wants_password: bool,
    /// Answer everything with this status.
    pub(crate) status: Option<u16>,
    /// Answer everything with a redirect to this base URL.
    pub(crate) redirect: Option<String>,
}

/// A running server; it ends with the test's process.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    https: bool,
    /// Its own CA, in PEM.
    pub(crate) ca: PathBuf,
    /// The Authorization header (or nothing) of each request.
    pub(crate) seen: Arc<Mutex<Vec<Option<String>>>>,
}

#[derive(Clone)]
struct Behind {
    root: PathBuf,
    manner: Manner,
    seen: Arc<Mutex<Vec<Option<String>>>>,
}

impl Server {
    /// Serves the repositories below `root`.
    pub(crate) fn start(root: &Path, manner: Manner) -> Self {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let ca = root.join(format!("ca-{}.crt", address.port()));
        let names = ["127.0.0.1".to_owned(), "localhost".to_owned()];
        let (ca_pem, chain, key) = certificates(&names);
        std::fs::write(&ca, ca_pem).unwrap();
        let https = manner.https;
        let behind = Behind {
            root: root.to_owned(),
            manner,
            seen: seen.clone(),
        };
        let app = axum::Router::new()
            .fallback(answer)
            .with_state(behind)
            .into_make_service();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build();
            runtime.unwrap().block_on(async move {
                if https {
                    let _ = rustls::crypto::ring::default_provider().install_default();
                    let config = RustlsConfig::from_pem(chain.into(), key.into())
                        .await
                        .unwrap();
                    let server = axum_server::from_tcp_rustls(listener, config).unwrap();
                    server.serve(app).await.unwrap();
                } else {
                    axum_server::from_tcp(listener)
                        .unwrap()
                        .serve(app)
                        .await
                        .unwrap();
                }
            });
        });
        Self {
            address,
            https,
            ca,
            seen,
        }
    }

    /// The URL of a repository, by way of `host`.
    pub(crate) fn url_at(&self, host: &str, repository: &str) -> Url {
        let scheme = if self.https { "https" } else { "http" };
        format!("{scheme}://{host}:{}/{repository}", self.address.port())
            .parse()
            .unwrap()
    }

    pub(crate) fn url(&self, repository: &str) -> Url {
        self.url_at("127.0.0.1", repository)
    }

    pub(crate) fn requests(&self) -> usize {
        self.seen.lock().unwrap().len()
    }

    pub(crate) fn passwords_seen(&self) -> usize {
        self.seen.lock().unwrap().iter().flatten().count()
    }
}

/// A CA, and a certificate of its for these hosts with its key; all in PEM.
pub(crate) fn certificates(hosts: &[String]) -> (String, String, String) {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params
        .distinguished_name
        .push(DnType::CommonName, format!("CA {}", uuid::Uuid::new_v4()));
    let key = KeyPair::generate().unwrap();
    let ca = params.self_signed(&key).unwrap().pem();
    let issuer = Issuer::new(params, key);
    let own = KeyPair::generate().unwrap();
    let mut leaf = CertificateParams::new(hosts.to_vec()).unwrap();
    leaf.distinguished_name
        .push(DnType::CommonName, "git server");
    let leaf = leaf.signed_by(&own, &issuer).unwrap();
    (ca, leaf.pem(), own.serialize_pem())
}

async fn answer(State(behind): State<Behind>, request: Request) -> Response<Body> {
    let (parts, body) = request.into_parts();
    let text = |name: &str| {
        parts
            .headers
            .get(name)
            .map(|v| String::from_utf8_lossy(v.as_bytes()).into_owned())
    };
    let authorization = text("authorization");
    behind.seen.lock().unwrap().push(authorization.clone());
    let respond = || Response::builder();
    if let Some(status) = behind.manner.status {
        return respond().status(status).body(Body::empty()).unwrap();
    }
    let uri = parts.uri.path_and_query().unwrap().as_str();
    if let Some(base) = &behind.manner.redirect {
        return respond()
            .status(StatusCode::FOUND)
            .header(header::LOCATION, format!("{base}{uri}"))
            .body(Body::empty())
            .unwrap();
    }
    let pair = base64::engine::general_purpose::STANDARD.encode(format!("{USER}:{PASSWORD}"));
    if behind.manner.wants_password && authorization != Some(format!("Basic {pair}")) {
        return respond()
            .status(StatusCode::UNAUTHORIZED)
            .header(header::WWW_AUTHENTICATE, "Basic realm=\"git\"")
            .body(Body::empty())
            .unwrap();
    }
    let body = to_bytes(body, 1 << 30).await.unwrap();
    let mut backend = tokio::process::Command::new("git")
        .arg("http-backend")
        .env("GIT_PROJECT_ROOT", &behind.root)
        .env("GIT_HTTP_EXPORT_ALL", "1")
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("HOME", &behind.root)
        .env("REMOTE_USER", USER)
        .env("REMOTE_ADDR", "127.0.0.1")
        .env("REQUEST_METHOD", parts.method.as_str())
        .env("PATH_INFO", parts.uri.path())
        .env("QUERY_STRING", parts.uri.query().unwrap_or(""))
        .env("CONTENT_TYPE", text("content-type").unwrap_or_default())
        .env(
            "HTTP_CONTENT_ENCODING",
            text("content-encoding").unwrap_or_default(),
        )
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = backend.stdin.take().unwrap();
    let feed = tokio::spawn(async move { drop(stdin.write_all(&body).await) });
    let output = backend.wait_with_output().await.unwrap().stdout;
    feed.await.unwrap();
    let end = output
        .windows(4)
        .position(|w| w == b"\r\n\r\n")
        .expect("a CGI head");
    let mut response = respond();
    for line in String::from_utf8_lossy(&output[..end]).lines() {
        let (name, value) = line.split_once(": ").unwrap();
        response = match name {
            "Status" => response.status(&value[..3]),
            _ => response.header(name, value),
        };
    }
    response
        .body(Body::from(output[end + 4..].to_vec()))
        .unwrap()
}
