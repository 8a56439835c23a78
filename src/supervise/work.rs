//! One attempt from checkout to seal: which part starts when, and what is waited for.

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::routing::get;
use jiff::Timestamp;
use tokio::net::TcpListener;
use tokio::sync::watch;

use super::book::Note;
use super::config::{self, Args};
use super::door::{Door, Orders};
use super::handover::{self, Unsent};
use super::journal::{Draft, Journal};
use super::proxy::Proxy;
use super::repository::Repository;
use super::uplink::{RunFile, Tail, Uplink};
use super::{Error, cost, tls};
use crate::ids;
use crate::pod::{Assignment, paths};
use crate::wire::door::Start;
use crate::wire::{
    EarlierAttempt, EventBody, Message, MessageKind, Outcome, Role, Source, Termination,
};

/// How long an agent that was told to stop may take to report.
const AFTER_TIMEOUT: Duration = Duration::from_secs(15);
/// How long the reason for it may take to reach the disk.
const AFTER_NOTE: Duration = Duration::from_secs(5);
/// The same under SIGTERM: its grace period is running.
const AFTER_TERM: Duration = Duration::from_secs(12);
/// How long an agent that is not connected may take to come back under SIGTERM.
const RECONNECT: Duration = Duration::from_secs(10);

/// What of earlier attempts the seal has to know.
#[derive(Debug, Default)]
pub(super) struct Earlier {
    /// Figures of lost attempts.
    pub(super) earlier: Vec<EarlierAttempt>,
    /// What the server acknowledged of their journals, and their last sequence.
    pub(super) own: Vec<(watch::Receiver<u64>, u64)>,
}

/// An attempt at work.
#[derive(Debug)]
pub(super) struct Work {
    args: Args,
    pub(super) assignment: Assignment,
    task: String,
    run: RunFile,
    folder: PathBuf,
    pub(super) repository: Option<Repository>,
    pub(super) journal: Arc<Journal>,
    pub(super) acknowledged: watch::Receiver<u64>,
    pub(super) left: Earlier,
    orders: watch::Sender<Orders>,
    terminate: watch::Receiver<bool>,
}

impl Work {
    /// Reads what is to be done, and what an earlier supervisor of this pod has done of it; starts
    /// telling the server.
    pub(super) fn open(args: Args, terminate: watch::Receiver<bool>) -> Result<Self, Error> {
        let assignment = config::assignment(&args)?;
        let task = config::task(&args)?;
        let state = args.path(paths::STATE);
        let folder = handover::run_folder(&state, assignment.run_id);
        std::fs::create_dir_all(&folder).map_err(Error::State)?;
        let run = run_file(&folder, &assignment).map_err(Error::State)?;
        let journal_file = handover::journal_file(&folder, assignment.attempt);
        let journal = Arc::new(Journal::open(&journal_file).map_err(Error::State)?);

        let server = &assignment.server;
        let uplink = Uplink::new(
            server.url.clone(),
            args.path(paths::TOKEN),
            Arc::new(run.clone()),
            tls::for_server(&server.ca)?,
        )?;
        let found = handover::collect(&state, assignment.run_id, assignment.attempt)
            .map_err(Error::State)?;
        let left = Earlier {
            earlier: found.earlier,
            own: found
                .own
                .iter()
                .map(|u: &Unsent| (u.tail.acknowledged(), u.last()))
                .collect(),
        };
        tokio::spawn(handover::hand_in(uplink.clone(), found.own, false));
        for other in found.others {
            // Each by itself: a run that no server takes any more must not hold up the others.
            tokio::spawn(handover::hand_in(uplink.clone(), vec![other], true));
        }
        let tail = Tail::new(Arc::new(run.clone()), assignment.attempt, journal_file);
        let acknowledged = tail.acknowledged();
        tokio::spawn(tail.follow(uplink, journal.durable()));

        let repository = assignment
            .repository
            .as_ref()
            .map(|assigned| Repository::new(&args, assigned))
            .transpose()?;
        let (orders, _) = watch::channel(Orders::default());
        Ok(Self {
            args,
            assignment,
            task,
            run,
            folder,
            repository,
            journal,
            acknowledged,
            left,
            orders,
            terminate,
        })
    }

    /// From checkout to seal; returns after the agent has been told, once the pod is to stop.
    pub(super) async fn run(mut self) -> Result<Termination, Error> {
        let sealed = self.journal.read(|book| book.sealed.is_some());
        let journal = self.journal.clone();
        let connected = tokio::select! {
            begun = self.begin(sealed) => begun?,
            why = journal.unwritable() => {
                return Err(Error::State(io::Error::other(why.cause)));
            }
        };
        let termination = if sealed {
            self.sealed()
        } else {
            let hurry = self.wait_for_end(connected).await;
            self.seal(hurry).await
        };
        super::write_termination(&self.args, &termination);
        let exit_code = i32::from(termination.outcome != Outcome::Completed);
        self.orders
            .send_modify(|orders| orders.sealed = Some(exit_code));
        terminated(self.terminate.clone()).await;
        Ok(termination)
    }

    /// Until the agent may start. A sealed run only opens its doors.
    async fn begin(&mut self, sealed: bool) -> Result<watch::Receiver<bool>, Error> {
        if !sealed {
            let proxy = self.proxy()?;
            self.prepare().await?;
            tokio::spawn(proxy.serve(listen("127.0.0.1", self.args.proxy_port).await?));
        }
        self.open_doors().await
    }

    /// The checkout, once, and what is journalled of it; what a crash left open is closed.
    async fn prepare(&mut self) -> Result<(), Error> {
        self.estimate_open_requests().await;
        if let Some(result) = self.journal.read(|book| book.result.clone()) {
            self.remember_cost(result.session_cost_micro_usd);
        }
        if self.journal.read(|book| book.started.is_some()) {
            return Ok(());
        }
        let checked_out = match &self.repository {
            Some(repository) => {
                let terminate = self.terminate.clone();
                Some(repository.checkout(terminated(terminate)).await?)
            }
            None => None,
        };
        let branch = checked_out.as_ref().and_then(|c| c.branch.clone());
        if let Some(commit) = checked_out.and_then(|c| c.initial_commit)
            && self.run.initial_commit.is_none()
        {
            // An attempt that goes on where a lost one was still counts from the run's beginning.
            self.run.initial_commit = Some(commit);
            handover::write_run(&self.folder, &self.run).map_err(Error::State)?;
        }
        let state = self.args.path(paths::STATE);
        let cost_micro_usd = cost::of_session(&state, self.assignment.session_id);
        let started = EventBody::AttemptStarted {
            repository: self
                .assignment
                .repository
                .as_ref()
                .map(|r| without_credentials(&r.url)),
            branch,
            initial_commit: self.run.initial_commit.clone(),
        };
        let draft = Draft {
            events: vec![started, EventBody::Message(self.first_message())],
            notes: vec![Note::Baseline { cost_micro_usd }],
            line: None,
        };
        self.journal.append(|_| draft).durable().await;
        Ok(())
    }

    fn first_message(&self) -> Message {
        Message {
            id: ids::message(self.assignment.run_id, "task"),
            role: Role::User,
            kind: MessageKind::WorkflowStart,
            text: self.task.clone(),
            tool_calls: Vec::new(),
            tool_outputs: Vec::new(),
            model: None,
            tokens: None,
            source: Source::Supervisor,
        }
    }

    /// The proxy is made before anything else is done: a key that may not be sent needs no checkout.
    fn proxy(&self) -> Result<Arc<Proxy>, Error> {
        let model = &self.assignment.model;
        let key = config::model_key(&self.args, &model.url)?;
        let tls = tls::for_model(model.ca.as_deref())?;
        Ok(Arc::new(Proxy::new(
            self.journal.clone(),
            model.url.clone(),
            &key,
            tls,
        )?))
    }

    /// Door and startup probe. A sealed run has them too, for the agent to be told.
    async fn open_doors(&self) -> Result<watch::Receiver<bool>, Error> {
        let (connected, is_connected) = watch::channel(false);
        let door = Arc::new(Door {
            journal: self.journal.clone(),
            run: self.assignment.run_id,
            start: self.start(),
            nonce_file: self.args.path(paths::NONCE),
            orders: self.orders.subscribe(),
            connected,
            current: Mutex::default(),
        });
        let listener = listen("127.0.0.1", self.args.door_port).await?;
        door.leave_nonce().await.map_err(Error::Nonce)?;
        tokio::spawn(door.serve(listener));
        tokio::spawn(self.remember_costs());

        // Last, for the agent's container starts once this answers.
        let probe = axum::Router::new().route("/started", get(async || "the checkout is there\n"));
        let listener = listen("0.0.0.0", self.args.started_port).await?;
        tokio::spawn(async move { axum::serve(listener, probe).await });
        Ok(is_connected)
    }

    fn start(&self) -> Start {
        let agent = &self.assignment.agent;
        Start {
            task: self.task_of_attempt(),
            session_id: self.assignment.session_id,
            model: agent.model.clone(),
            max_turns: agent.max_turns,
        }
    }

    /// An attempt after a lost one finds the files, and the conversation, as that one left them.
    fn task_of_attempt(&self) -> String {
        if self.assignment.attempt == 1 || !self.assignment.persistent {
            return self.task.clone();
        }
        format!(
            "The machine that worked on this task was lost in mid-work. You go on in its place: the working \
             folder is as it was left. See what is done already, and finish the task:\n\n{}",
            self.task
        )
    }

    /// Keeps the session's file up to each result.
    fn remember_costs(&self) -> impl Future<Output = ()> + use<> {
        let (journal, state) = (self.journal.clone(), self.args.path(paths::STATE));
        let session = self.assignment.session_id;
        async move {
            let mut last = None;
            loop {
                let cost = journal
                    .wait_for(|book| {
                        let cost = book.result.as_ref().map(|r| r.session_cost_micro_usd);
                        cost.filter(|cost| Some(*cost) != last)
                    })
                    .await;
                if let Err(error) = cost::set_of_session(&state, session, cost) {
                    tracing::warn!(%error, "the session's cost can't be kept");
                }
                last = Some(cost);
            }
        }
    }

    fn remember_cost(&self, cost_micro_usd: u64) {
        let state = self.args.path(paths::STATE);
        if let Err(error) = cost::set_of_session(&state, self.assignment.session_id, cost_micro_usd)
        {
            tracing::warn!(%error, "the session's cost can't be kept");
        }
    }

    /// Ends every request that is open in the journal with what is known of it.
    pub(super) async fn estimate_open_requests(&self) {
        loop {
            let mut found = false;
            let mut pending = self.journal.append(|book| {
                let lost = book.lost_request(Timestamp::now());
                found = lost.is_some();
                lost.map(Draft::event).unwrap_or_default()
            });
            if !found {
                // All of them are in the book before the disk is waited for.
                pending.durable().await;
                return;
            }
        }
    }

    /// Until the agent has reported its end, or will not any more. True when the pod is being
    /// stopped, so that there is no time to lose.
    async fn wait_for_end(&self, connected: watch::Receiver<bool>) -> bool {
        tokio::select! {
            () = self.ended() => {}
            () = self.deadline() => self.stop_agent(Note::TimedOut).await,
            why = self.journal.unwritable() => {
                tracing::error!(cause = why.cause, "the journal can't be written; ending the run");
                self.stop_agent(Note::Unwritable(why)).await;
            }
            () = terminated(self.terminate.clone()) => {
                self.orders.send_modify(|orders| orders.stop = true);
                self.wait_under_term(connected).await;
            }
        }
        let told_to_stop =
            |book: &super::book::Book| book.end.as_ref().is_some_and(|end| end.terminated);
        let by_us = |book: &super::book::Book| book.timed_out || book.unwritable.is_some();
        *self.terminate.borrow() || (!self.journal.read(by_us) && self.journal.read(told_to_stop))
    }

    /// Has the agent stopped, for a reason of this pod's own.
    async fn stop_agent(&self, why: Note) {
        let mut noted = self.journal.append(|_| Draft::note(why));
        // A disk that takes nothing more must not keep the agent running.
        let _ = tokio::time::timeout(AFTER_NOTE, noted.durable()).await;
        self.orders.send_modify(|orders| orders.stop = true);
        let _ = tokio::time::timeout(AFTER_TIMEOUT, self.ended()).await;
    }

    async fn ended(&self) {
        self.journal
            .wait_for(|book| book.end.is_some().then_some(()))
            .await;
    }

    /// When `limits.timeout` has passed since the agent first connected.
    async fn deadline(&self) {
        let Some(seconds) = self.assignment.timeout_seconds else {
            return std::future::pending().await;
        };
        let connected_at = self.journal.wait_for(|book| book.connected_at).await;
        let passed = Timestamp::now().duration_since(connected_at).unsigned_abs();
        tokio::time::sleep(Duration::from_secs(seconds).saturating_sub(passed)).await;
    }

    /// SIGTERM comes once the agent's container is gone, or when the node wants the pod away.
    async fn wait_under_term(&self, mut connected: watch::Receiver<bool>) {
        if self.journal.read(|book| book.connected_at.is_none()) {
            return;
        }
        let gone = async {
            loop {
                if connected.wait_for(|connected| !connected).await.is_err() {
                    return;
                }
                let back = connected.wait_for(|connected| *connected);
                if tokio::time::timeout(RECONNECT, back).await.is_err() {
                    return;
                }
            }
        };
        tokio::select! {
            () = self.ended() => {}
            () = gone => {}
            () = tokio::time::sleep(AFTER_TERM) => {}
        }
    }
}

/// Reads `run.json`, and writes it where it is not there.
fn run_file(folder: &std::path::Path, assignment: &Assignment) -> io::Result<RunFile> {
    if let Ok(run) = handover::read_run(folder) {
        return Ok(run);
    }
    let run = RunFile {
        run_id: assignment.run_id,
        namespace: assignment.namespace.clone(),
        name: assignment.name.clone(),
        session_id: assignment.session_id,
        session_name: assignment.session_name.clone(),
        initial_commit: None,
    };
    handover::write_run(folder, &run)?;
    Ok(run)
}

fn without_credentials(url: &url::Url) -> String {
    let mut url = url.clone();
    let _ = url.set_username("");
    let _ = url.set_password(None);
    url.to_string()
}

/// Resolves once SIGTERM has come.
pub(super) async fn terminated(mut terminate: watch::Receiver<bool>) {
    if terminate.wait_for(|terminated| *terminated).await.is_err() {
        std::future::pending::<()>().await;
    }
}

async fn listen(address: &str, port: u16) -> Result<TcpListener, Error> {
    TcpListener::bind((address, port))
        .await
        .map_err(Error::Listen)
}
