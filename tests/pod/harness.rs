//! A pod in a folder: its files, its ports, its two processes.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use runledger::ids;
use runledger::pod::{
    AgentAssignment, Assignment, ModelEndpoint, RepositoryAssignment, ServerEndpoint,
};
use runledger::wire::{Termination, Tokens};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::app;
use crate::server::{Server, TOKEN};

pub(crate) const KEY: &str = "sk-secret-of-the-test";
const PATIENCE: Duration = Duration::from_secs(60);

/// The world outside of the pod.
pub(crate) struct World {
    pub(crate) server: Server,
    client: reqwest::Client,
    assignment: Assignment,
}

impl World {
    /// A model that says `scenario` (YAML) to a task without a marker, and a server.
    pub(crate) async fn new(scenario: &str) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let certificate = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let (pem, key) = (
            certificate.cert.pem(),
            certificate.signing_key.serialize_pem(),
        );
        let parsed = serde_saphyr::from_str(scenario).unwrap();
        let model = app::App::new(
            [("default".to_owned(), parsed)].into(),
            Some(KEY.into()),
            false,
        );
        let ca = reqwest::Certificate::from_pem(pem.as_bytes()).unwrap();
        let client = reqwest::Client::builder()
            .tls_certs_only([ca])
            .build()
            .unwrap();
        let server = Server::default();
        let model_port = serve(app::router(model), &pem, &key).await;
        let server_port = serve(server.router(), &pem, &key).await;
        let assignment = Assignment {
            run_id: Uuid::new_v4(),
            namespace: "ns".into(),
            name: "a-run".into(),
            attempt: 1,
            workflow_name: "builder".into(),
            session_id: ids::session("ns", "talk"),
            session_name: "talk".into(),
            persistent: true,
            repository: None,
            agent: AgentAssignment {
                model: Some("claude-sonnet-4-5".into()),
                max_turns: None,
            },
            timeout_seconds: None,
            model: ModelEndpoint {
                url: format!("https://localhost:{model_port}").parse().unwrap(),
                ca: Some(pem.clone()),
            },
            server: ServerEndpoint {
                url: format!("https://localhost:{server_port}").parse().unwrap(),
                ca: pem,
            },
            flush_timeout_seconds: 20,
        };
        Self {
            server,
            client,
            assignment,
        }
    }

    /// What the model has sent.
    pub(crate) async fn sent(&self) -> Vec<Value> {
        let url = self.assignment.model.url.join("log").unwrap();
        self.client
            .get(url)
            .send()
            .await
            .unwrap()
            .json()
            .await
            .unwrap()
    }
}

async fn serve(router: axum::Router, pem: &str, key: &str) -> u16 {
    let config = axum_server::tls_rustls::RustlsConfig::from_pem(pem.into(), key.into());
    let config = config.await.unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let port = listener.local_addr().unwrap().port();
    let serving = axum_server::from_tcp_rustls(listener, config).unwrap();
    tokio::spawn(serving.serve(router.into_make_service()));
    port
}

/// The CLI, or nothing where the test is to be skipped.
pub(crate) fn claude() -> Option<PathBuf> {
    let path = std::env::var_os("RUNLEDGER_CLAUDE").map(PathBuf::from);
    if path.is_none() {
        let in_ci = std::env::var("CI").as_deref() == Ok("true");
        assert!(!in_ci, "RUNLEDGER_CLAUDE names no CLI");
        eprintln!("skipped: RUNLEDGER_CLAUDE names no CLI");
    }
    path
}

/// One pod.
pub(crate) struct Pod {
    pub(crate) root: PathBuf,
    /// Kept for as long as the pod.
    _folder: Option<tempfile::TempDir>,
    pub(crate) ports: [u16; 3],
    pub(crate) assignment: Assignment,
    claude: PathBuf,
    /// Largest file that the supervisor may write, in KiB: its full disk.
    pub(crate) file_limit: Option<u64>,
    supervisor: Option<Child>,
    agent: Option<Child>,
}

impl Pod {
    /// A pod with nothing started yet, for that task.
    pub(crate) fn new(world: &World, task: &str, claude: PathBuf) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().to_owned();
        let mut pod = Self {
            root,
            _folder: Some(folder),
            ports: free_ports(),
            assignment: world.assignment.clone(),
            claude,
            file_limit: None,
            supervisor: None,
            agent: None,
        };
        pod.write("etc/runledger/given/task", task);
        pod.write("etc/runledger/model/ANTHROPIC_API_KEY", KEY);
        let model = pod.assignment.model.url.port().unwrap();
        pod.write("etc/runledger/model/hosts", &format!("localhost:{model}"));
        pod.write("etc/runledger/given/token", TOKEN);
        pod.write("dev/termination-log", "");
        for folder in ["run/runledger", "workspace", "home/agent", "state"] {
            std::fs::create_dir_all(pod.root.join(folder)).unwrap();
        }
        pod.assign(|_| {});
        pod
    }

    /// The pod of the next attempt, on the same volume, after this one was lost.
    pub(crate) fn next_attempt(mut self) -> Self {
        self.kill_agent();
        self.kill_supervisor();
        self.ports = free_ports();
        self.assign(|assignment| assignment.attempt += 1);
        let _ = std::fs::remove_file(self.root.join("run/runledger/nonce"));
        self.write("dev/termination-log", "");
        self
    }

    /// The same volume, another run in the same session.
    pub(crate) fn next_run(self) -> Self {
        let mut pod = self.next_attempt();
        pod.assign(|assignment| {
            assignment.run_id = Uuid::new_v4();
            assignment.attempt = 1;
        });
        pod
    }

    pub(crate) fn write(&self, path: &str, body: &str) {
        let path = self.root.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, body).unwrap();
    }

    pub(crate) fn assign(&mut self, change: impl FnOnce(&mut Assignment)) {
        change(&mut self.assignment);
        let body = serde_json::to_string(&self.assignment).unwrap();
        self.write("etc/runledger/given/assignment", &body);
    }

    pub(crate) fn repository(&mut self, repository: RepositoryAssignment) {
        self.assign(|assignment| assignment.repository = Some(repository));
    }

    fn command(&self, name: &str, ports: &[(&str, u16)]) -> Command {
        let mut command = match self.file_limit.filter(|_| name == "supervise") {
            Some(limit) => {
                let mut command = Command::new("bash");
                let script = format!("trap '' XFSZ; ulimit -f {limit}; exec \"$0\" \"$@\"");
                command.args(["-c", &script, env!("CARGO_BIN_EXE_runledger")]);
                command
            }
            None => Command::new(env!("CARGO_BIN_EXE_runledger")),
        };
        command.arg(name).arg("--root").arg(&self.root);
        for (flag, port) in ports {
            command.arg(flag).arg(port.to_string());
        }
        let log = self.root.join(format!("{name}.log"));
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(log)
            .unwrap();
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        command.env("RUST_LOG", "info,runledger=debug");
        command
    }

    pub(crate) fn start_supervisor(&mut self) {
        let [proxy, door, started] = self.ports;
        let ports = [
            ("--proxy-port", proxy),
            ("--door-port", door),
            ("--started-port", started),
        ];
        self.supervisor = Some(self.command("supervise", &ports).spawn().unwrap());
    }

    pub(crate) fn start_agent(&mut self) {
        let [proxy, door, _] = self.ports;
        let mut command = self.command("agent", &[("--proxy-port", proxy), ("--door-port", door)]);
        command.arg("--claude").arg(&self.claude);
        self.agent = Some(command.spawn().unwrap());
    }

    /// As Kubernetes does: the agent once the startup probe has succeeded.
    pub(crate) async fn start(&mut self) {
        self.start_supervisor();
        self.wait_until_started().await;
        self.start_agent();
    }

    pub(crate) async fn wait_until_started(&self) {
        let url = format!("http://127.0.0.1:{}/started", self.ports[2]);
        let answers = async || {
            reqwest::get(&url)
                .await
                .is_ok_and(|r| r.status().is_success())
        };
        eventually("the startup probe to succeed", answers).await;
    }

    /// kill -9.
    pub(crate) fn kill_supervisor(&mut self) {
        if let Some(mut child) = self.supervisor.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// kill -9. In a pod the kernel ends every process of the container with its first one; here that is on us.
    pub(crate) fn kill_agent(&mut self) {
        if let Some(mut child) = self.agent.take() {
            let below = descendants(child.id());
            let _ = child.kill();
            let _ = child.wait();
            for pid in below {
                let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
            }
        }
    }

    pub(crate) fn term_agent(&self) {
        term(self.agent.as_ref());
    }

    pub(crate) fn term_supervisor(&self) {
        term(self.supervisor.as_ref());
    }

    /// The agent's exit code, once it has ended; none if a signal ended it.
    pub(crate) async fn agent_exit(&mut self) -> Option<i32> {
        exit(self.agent.as_mut().unwrap(), "the agent to exit").await
    }

    pub(crate) async fn supervisor_exit(&mut self) -> Option<i32> {
        exit(self.supervisor.as_mut().unwrap(), "the supervisor to exit").await
    }

    /// Most memory that the supervisor has had, in KiB.
    pub(crate) fn supervisor_peak(&self) -> u64 {
        let pid = self.supervisor.as_ref().unwrap().id();
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmHWM:"));
        let figure = line.unwrap().split_whitespace().nth(1);
        figure.unwrap().parse().unwrap()
    }

    pub(crate) fn is_agent_running(&mut self) -> bool {
        self.agent
            .as_mut()
            .is_some_and(|child| child.try_wait().unwrap().is_none())
    }

    /// The termination message, if one is there.
    pub(crate) fn termination(&self) -> Option<Termination> {
        let body = std::fs::read(self.root.join("dev/termination-log")).unwrap();
        assert!(body.len() <= 1024, "{} bytes", body.len());
        serde_json::from_slice(&body).ok()
    }

    /// Lets the run come to its end: the agent exits, then the pod is stopped.
    pub(crate) async fn finish(&mut self) -> (Option<i32>, Termination) {
        let code = self.agent_exit().await;
        let termination = self
            .termination()
            .expect("it is written before the agent goes");
        self.term_supervisor();
        assert_eq!(self.supervisor_exit().await, Some(0));
        (code, termination)
    }

    /// What the CLI itself wrote down of the conversation, in HOME.
    pub(crate) fn transcript(&self) -> Vec<Value> {
        let projects = self.root.join("home/agent/.claude/projects");
        let [project] = std::fs::read_dir(projects)
            .unwrap()
            .collect::<Vec<_>>()
            .try_into()
            .unwrap();
        let file = format!("{}.jsonl", self.assignment.session_id);
        let text = std::fs::read_to_string(project.unwrap().path().join(file)).unwrap();
        text.lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }

    pub(crate) fn log(&self, name: &str) -> String {
        let log = std::fs::read(self.root.join(format!("{name}.log"))).unwrap_or_default();
        String::from_utf8_lossy(&log).into_owned()
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!(
                "--- supervisor\n{}\n--- agent\n{}",
                self.log("supervise"),
                self.log("agent")
            );
        }
        self.kill_agent();
        self.kill_supervisor();
    }
}

/// The processes that `ancestor` started, and those that they did.
fn descendants(ancestor: u32) -> Vec<nix::unistd::Pid> {
    let parents: Vec<(u32, u32)> = std::fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter_map(|pid: u32| {
            let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
            let parent = status.lines().find_map(|line| line.strip_prefix("PPid:"))?;
            Some((pid, parent.trim().parse().ok()?))
        })
        .collect();
    let mut found = vec![ancestor];
    let mut next = 0;
    while let Some(&parent) = found.get(next) {
        let children = parents.iter().filter(|(_, of)| *of == parent);
        found.extend(children.map(|(pid, _)| *pid));
        next += 1;
    }
    let below = found.iter().skip(1);
    below
        .map(|pid| nix::unistd::Pid::from_raw(i32::try_from(*pid).unwrap()))
        .collect()
}

fn term(child: Option<&Child>) {
    let pid = i32::try_from(child.unwrap().id()).unwrap();
    let pid = nix::unistd::Pid::from_raw(pid);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
}

async fn exit(child: &mut Child, what: &str) -> Option<i32> {
    let mut code = None;
    eventually(what, async || match child.try_wait().unwrap() {
        Some(status) => {
            code = Some(status.code());
            true
        }
        None => false,
    })
    .await;
    code.unwrap()
}

/// Waits until it is so, and fails after a minute.
pub(crate) async fn eventually(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so().await {
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn free_ports() -> [u16; 3] {
    let listeners = [(); 3].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    listeners.map(|listener| listener.local_addr().unwrap().port())
}

/// A CLI of a few lines of shell, for ends that the real one does not come to on request.
pub(crate) fn shell_cli(folder: &Path, script: &str) -> PathBuf {
    use std::os::unix::fs::PermissionsExt;
    let path = folder.join("claude");
    std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path
}

/// A header of a door's frame, for strangers.
pub(crate) fn hello(nonce: &str) -> Value {
    json!({"frame": "hello", "nonce": nonce})
}

/// The model's words for tokens in ours.
pub(crate) fn tokens_of(usage: &Value) -> Tokens {
    let ours = json!({
        "input": usage["input"], "output": usage["output"],
        "cacheRead": usage["cache_read"], "cacheCreation": usage["cache_creation"],
    });
    serde_json::from_value(ours).unwrap()
}
