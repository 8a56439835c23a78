//! One attempt from checkout to seal: which part starts when, and what is waited for.

mod doors;
mod ending;

use std::convert::Infallible;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::watch;

use self::doors::Ports;
use super::book::{GivenUp, Note};
use super::config::{self, Args};
use super::door::Orders;
use super::handover::{self, Unsent};
use super::install::install;
use super::journal::{Draft, Journal};
use super::proxy::Proxy;
use super::repository::Repository;
use super::uplink::{RunFile, Tail, Uplink};
use super::{Error, cost, tls};
use crate::pod::{Assignment, paths};
use crate::wire::door::Start;
use crate::wire::{
    CheckoutProgress, EarlierAttempt, EventBody, Message, MessageKind, Outcome, Role, Source,
    Termination,
};
use crate::{git, ids};

/// A checkout that is done by then is none that anybody waits for.
const BEFORE_PROGRESS: Duration = Duration::from_secs(15);
/// As often it is told how far it has come: each time costs a write of the run's status.
const BETWEEN_PROGRESS: Duration = Duration::from_secs(20);

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
    uplink: Uplink,
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
        tokio::spawn(tail.follow(uplink.clone(), journal.durable()));

        let repository = assignment
            .repository
            .as_ref()
            .map(|assigned| Repository::new(&args, assignment.run_id, assigned))
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
            uplink,
            orders,
            terminate,
        })
    }

    /// From checkout to seal; returns after the agent has been told, once the pod is to stop.
    pub(super) async fn run(mut self) -> Result<Termination, Error> {
        let sealed = self.journal.read(|book| book.sealed.is_some());
        let journal = self.journal.clone();
        let begun = tokio::select! {
            begun = self.begin(sealed) => begun,
            why = journal.unwritable() => Err(Error::State(io::Error::other(why.cause))),
        };
        let connected = match begun {
            Ok(connected) => Some(connected),
            Err(Error::Listen(port, error)) if self.agent_was_here() => {
                tracing::error!(port, %error, "somebody else in the pod has a port of ours");
                if !sealed {
                    let note = Note::GivenUp(GivenUp::PortTaken { port });
                    self.journal.append(|_| Draft::note(note)).durable().await;
                }
                None
            }
            Err(error) => return Err(error),
        };
        let has_doors = connected.is_some();
        let termination = if sealed {
            self.sealed()
        } else {
            let hurry = match connected {
                Some(connected) => self.wait_for_end(connected).await,
                None => false,
            };
            self.seal(hurry).await
        };
        super::write_termination(&self.args, &termination);
        let exit_code = i32::from(termination.outcome != Outcome::Completed);
        self.orders
            .send_modify(|orders| orders.sealed = Some(exit_code));
        tokio::select! {
            () = terminated(self.terminate.clone()) => {}
            () = self.open_doors_when_free(), if !has_doors => {}
        }
        Ok(termination)
    }

    /// Until the agent may start. A sealed run only opens its doors.
    async fn begin(&mut self, sealed: bool) -> Result<watch::Receiver<bool>, Error> {
        let ports = Ports::take(&self.args).await?;
        if !sealed {
            let proxy = self.proxy()?;
            let folder = self.args.install.clone();
            // While the checkout goes on; the agent's container starts after both.
            let installed =
                tokio::task::spawn_blocking(|| folder.map_or(Ok(()), |folder| install(&folder)));
            self.prepare().await?;
            installed
                .await
                .map_err(Error::Task)?
                .map_err(Error::Install)?;
            tokio::spawn(proxy.serve(ports.proxy));
            tokio::spawn(self.remember_costs());
        }
        self.open_doors(ports.door, ports.started).await
    }

    fn agent_was_here(&self) -> bool {
        self.journal.read(|book| book.connected_at.is_some())
    }

    /// The checkout, once, and what is journalled of it; what a crash left open is closed.
    async fn prepare(&mut self) -> Result<(), Error> {
        self.estimate_open_requests().await;
        if let Some(cost) = self.journal.read(|book| book.session_cost_micro_usd) {
            self.remember_cost(cost);
        }
        if self.journal.read(|book| book.started.is_some()) {
            return Ok(());
        }
        let checked_out = match &self.repository {
            Some(repository) => {
                let terminate = self.terminate.clone();
                let checkout = repository.checkout(terminated(terminate));
                tokio::select! {
                    done = checkout => Some(done?),
                    never = self.tell_progress(repository.progress()) => match never {},
                }
            }
            None => None,
        };
        let branch = checked_out.as_ref().and_then(|c| c.branch.clone());
        let notes = checked_out
            .as_ref()
            .map_or_else(Vec::new, |c| c.notes.clone());
        for note in &notes {
            tracing::warn!(note, "of the checkout");
        }
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
            notes,
        };
        let draft = Draft {
            events: vec![started, EventBody::Message(self.first_message())],
            notes: vec![Note::Baseline { cost_micro_usd }],
            line: None,
        };
        self.journal.append(|_| draft).durable().await;
        Ok(())
    }

    /// Tells how far the checkout has come, now and then, for as long as it takes.
    async fn tell_progress(&self, progress: Arc<git::Progress>) -> Infallible {
        let mut told = None;
        let mut pause = BEFORE_PROGRESS;
        loop {
            tokio::time::sleep(pause).await;
            pause = BETWEEN_PROGRESS;
            let far = progress.far();
            let Some((received_objects, total_objects, received_bytes)) =
                far.filter(|_| far != told)
            else {
                continue;
            };
            let progress = CheckoutProgress {
                run_id: self.assignment.run_id,
                attempt: self.assignment.attempt,
                session_id: self.assignment.session_id,
                received_objects,
                total_objects,
                received_bytes,
            };
            match self.uplink.tell_progress(&progress).await {
                Ok(()) => told = far,
                Err(error) => tracing::debug!(%error, "the checkout's progress can't be told"),
            }
        }
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
            altered: false,
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

    /// Keeps the session's file up to each result that names a cost.
    fn remember_costs(&self) -> impl Future<Output = ()> + use<> {
        let (journal, state) = (self.journal.clone(), self.args.path(paths::STATE));
        let session = self.assignment.session_id;
        async move {
            let mut last = None;
            loop {
                let cost = journal
                    .wait_for(|book| {
                        let cost = book.session_cost_micro_usd;
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
