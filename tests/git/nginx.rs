//! A git server as teams run one: nginx with TLS and passwords before git's own http-backend, each a
//! process of its own on loopback, that can be killed and started again at the same address.

use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use runledger::git::Access;
use url::Url;

use crate::server::{PASSWORD, USER, certificates};

const PORT: u16 = 8443;

/// The right password, for the host of this URL alone.
pub(crate) fn access(url: &Url, ca: &Path) -> Access {
    Access {
        username: Some(USER.to_owned()),
        password: Some(PASSWORD.to_owned()),
        hosts: vec![format!("{}:{PORT}", url.host_str().unwrap())],
        ca_files: vec![ca.to_owned()],
        ..Access::default()
    }
}

/// The two processes; they end with this, or with the thread that started them.
pub(crate) struct Nginx {
    address: SocketAddr,
    root: PathBuf,
    dir: PathBuf,
    pub(crate) ca: PathBuf,
    running: Vec<Child>,
}

impl Nginx {
    /// Serves the repositories below `root`, with `manner` in the place that serves them: directives
    /// of nginx.
    pub(crate) fn start(root: &Path, manner: &str) -> Self {
        // An address of its own for each, so that nobody takes it while it is down.
        static COUNT: AtomicU8 = AtomicU8::new(1);
        let [.., high, low] = std::process::id().to_be_bytes();
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let address = Ipv4Addr::new(127, high | 128, low, count);
        let dir = root.join(format!(".nginx-{count}"));
        std::fs::create_dir_all(dir.join("tmp")).unwrap();
        let (ca, chain, key) = certificates(&[address.to_string()]);
        for (name, text) in [("ca.crt", ca), ("tls.crt", chain), ("tls.key", key)] {
            std::fs::write(dir.join(name), text).unwrap();
        }
        let mut this = Self {
            address: (address, PORT).into(),
            root: root.to_owned(),
            ca: dir.join("ca.crt"),
            dir,
            running: Vec::new(),
        };
        this.set_password(PASSWORD);
        this.go_on(manner);
        this
    }

    /// The only password that is taken, from now on.
    pub(crate) fn set_password(&self, password: &str) {
        let hash = Command::new("openssl")
            .args(["passwd", "-apr1", password])
            .output()
            .unwrap();
        let hash = String::from_utf8(hash.stdout).unwrap();
        std::fs::write(self.dir.join("htpasswd"), format!("{USER}:{hash}")).unwrap();
    }

    /// Starts, at the same address as before.
    pub(crate) fn go_on(&mut self, manner: &str) {
        self.stop();
        let (dir, socket) = (self.dir.display(), self.dir.join("socket"));
        let _ = std::fs::remove_file(&socket);
        let config = format!(
            r#"daemon off; master_process off; pid {dir}/pid; error_log {dir}/error.log; user root;
            events {{ worker_connections 64; }}
            http {{
                log_format seen "$request_method $request_uri $status [$http_authorization]";
                access_log {dir}/access.log seen;
                client_body_temp_path {dir}/tmp/1; fastcgi_temp_path {dir}/tmp/2;
                proxy_temp_path {dir}/tmp/3; scgi_temp_path {dir}/tmp/4; uwsgi_temp_path {dir}/tmp/5;
                client_max_body_size 0;
                server {{
                    listen {address} ssl;
                    ssl_certificate {dir}/tls.crt;
                    ssl_certificate_key {dir}/tls.key;
                    location / {{
                        auth_basic git; auth_basic_user_file {dir}/htpasswd;
                        include /etc/nginx/fastcgi_params;
                        fastcgi_pass unix:{dir}/socket;
                        fastcgi_param SCRIPT_FILENAME /usr/lib/git-core/git-http-backend;
                        fastcgi_param GIT_PROJECT_ROOT {root};
                        fastcgi_param GIT_HTTP_EXPORT_ALL "";
                        fastcgi_param PATH_INFO $uri;
                        fastcgi_param REMOTE_USER $remote_user;
                        fastcgi_param GIT_PROTOCOL $http_git_protocol;
                        {manner}
                    }}
                }}
            }}"#,
            address = self.address,
            root = self.root.display(),
        );
        std::fs::write(self.dir.join("nginx.conf"), config).unwrap();
        self.spawn(
            "/usr/sbin/fcgiwrap",
            &[&format!("-sunix:{}", socket.display())],
        );
        let config = self.dir.join("nginx.conf");
        let error_log = self.dir.join("error.log");
        let arguments = [
            "-e",
            error_log.to_str().unwrap(),
            "-c",
            config.to_str().unwrap(),
        ];
        self.spawn("/usr/sbin/nginx", &arguments);
        let deadline = Instant::now() + Duration::from_secs(20);
        while !socket.exists() || TcpStream::connect(self.address).is_err() {
            let log = std::fs::read_to_string(&error_log).unwrap_or_default();
            assert!(Instant::now() < deadline, "nginx does not come up: {log}");
            std::thread::yield_now();
        }
    }

    fn spawn(&mut self, program: &str, arguments: &[&str]) {
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "--", program])
            .args(arguments)
            .env("HOME", &self.dir)
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        self.running.push(child.unwrap());
    }

    /// Kills both, in the midst of whatever they do.
    pub(crate) fn stop(&mut self) {
        for mut child in self.running.drain(..) {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    pub(crate) fn host(&self) -> String {
        self.address.to_string()
    }

    pub(crate) fn url(&self, repository: &str) -> Url {
        format!("https://{}/{repository}", self.address)
            .parse()
            .unwrap()
    }

    /// The right password, for this host alone.
    pub(crate) fn access(&self) -> Access {
        access(&self.url(""), &self.ca)
    }

    /// Its log: method, path, status and, in brackets, what stood in `Authorization`.
    pub(crate) fn log(&self) -> Vec<String> {
        let log = std::fs::read_to_string(self.dir.join("access.log")).unwrap_or_default();
        log.lines().map(str::to_owned).collect()
    }

    /// The same, once a line begins with these words: what is asked is written down after its answer.
    pub(crate) fn log_with(&self, beginning: &str) -> Vec<String> {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let log = self.log();
            if log.iter().any(|line| line.starts_with(beginning)) {
                return log;
            }
            assert!(Instant::now() < deadline, "no {beginning}: {log:?}");
            std::thread::yield_now();
        }
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        self.stop();
    }
}
