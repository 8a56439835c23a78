//! Parts that die at random moments: the run still ends in its right phase, and its books balance.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use runledger::api::run::Phase;
use runledger::names::{annotations, reasons};
use runledger::wire::{EventBody, Tokens};

use crate::case::{Case, START, Space};
use crate::check::Books;
use crate::runs::{Manifest, Run};
use crate::stage::STAGE;
use crate::wait::eventually;
use crate::world::SYSTEM;
use crate::{git, kill, ledger, model};

/// Time for a disturbed run: the kubelet's back-off and the CLI's own come on top.
const DISTURBED: Duration = Duration::from_secs(300);

/// Random moments, the same again for the same seed.
struct Moments(u64);

impl Moments {
    fn new() -> Self {
        let seed = std::env::var("RUNLEDGER_E2E_SEED")
            .ok()
            .and_then(|seed| seed.parse().ok())
            .unwrap_or_else(|| uuid::Uuid::new_v4().as_u64_pair().0);
        println!("    RUNLEDGER_E2E_SEED={seed}");
        Self(seed)
    }

    /// The next moment, between two times from now.
    fn between(&mut self, from: u64, to: u64) -> Duration {
        // splitmix64
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        Duration::from_millis(from + (mixed ^ (mixed >> 31)) % (to - from))
    }
}

/// What must hold of a run that was disturbed: no event lost or doubled, every answer that came
/// through told exactly once and with its tokens, and every one that was cut off marked as estimated.
async fn balances(case: &Case, run: &Run) -> Result<Books> {
    let status = run.ends(Phase::Completed, DISTURBED).await?;
    let books = Books::of(run, status).await?;
    books.sealed(run).await?;
    books
        .changes_are_gits(&git::Clone::of(&case.world).await?)
        .await?;
    let git = books.status.git.clone().context("no git")?;
    ensure!(git.commits == 10, "the scenario takes ten steps: {git:?}");
    let sent: BTreeMap<&str, Tokens> = books
        .sent
        .iter()
        .filter_map(|sent| Some((sent.message_id.as_deref()?, Tokens::from(sent.usage))))
        .collect();
    let (mut total, mut estimated, mut seen) = (Tokens::default(), 0, BTreeMap::new());
    for (_, body) in &books.bodies {
        let EventBody::RequestEnded {
            message_id,
            tokens,
            estimated: guessed,
            status,
            ..
        } = body
        else {
            continue;
        };
        total = total + *tokens;
        estimated += i64::from(*guessed);
        if *guessed || *status != Some(200) {
            continue;
        }
        let id = message_id
            .as_deref()
            .context("an answer without a message id")?;
        ensure!(
            sent.get(id) == Some(tokens),
            "{id}: ledger {tokens:?}, model {:?}",
            sent.get(id)
        );
        ensure!(
            seen.insert(id.to_owned(), ()).is_none(),
            "{id} is told twice"
        );
    }
    ensure!(
        books.tokens() == total,
        "row {:?}, events {total:?}",
        books.tokens()
    );
    let counted = ledger::estimated_requests(&case.world.ledger, run.id()).await?;
    ensure!(
        counted == estimated,
        "{counted} estimated requests in the row, {estimated} in the events"
    );
    // Whatever the model began to answer is told of, as a figure or as an estimate.
    let begun = books
        .bodies
        .iter()
        .filter(|(_, body)| matches!(body, EventBody::RequestStarted { .. }))
        .count();
    let ended = books
        .bodies
        .iter()
        .filter(|(_, body)| matches!(body, EventBody::RequestEnded { .. }))
        .count();
    ensure!(begun == ended, "{begun} requests began and {ended} ended");
    let whole = books
        .sent
        .iter()
        .filter(|sent| sent.complete && sent.status == 200)
        .count();
    ensure!(
        seen.len() + usize::try_from(estimated)? >= whole,
        "{} and {estimated} estimated of {whole}",
        seen.len()
    );
    Ok(books)
}

async fn after(moment: Duration) {
    tokio::time::sleep(moment).await;
}

/// Waits until the ledger knows of a request that has not ended.
async fn a_request_is_open(case: &Case, run: &Run) -> Result<()> {
    eventually("a request is on its way", START, || async {
        let events = ledger::events(&case.world.ledger, run.id()).await?;
        let begun = ledger::of_kind(&events, "request_started").count();
        let ended = ledger::of_kind(&events, "request_ended").count();
        ensure!(begun > ended, "{begun} requests began and {ended} ended");
        Ok(())
    })
    .await
}

pub(crate) async fn a_killed_supervisor_goes_on_where_it_was(case: Case) -> Result<()> {
    let space = case.space("chaos-sup").await?;
    let mut moments = Moments::new();
    let run = space
        .start(Manifest::new(&space, "steady", "steady"))
        .await?;
    let pod = run.running().await?.pod_uid.context("no pod")?;
    for (from, to) in [(4_000, 9_000), (12_000, 16_000)] {
        after(moments.between(from, to)).await;
        // The model takes its time over each answer: who is killed now cuts one off.
        a_request_is_open(&case, &run).await?;
        // Between two kills the kubelet waits: the one that is killed has to be there again.
        let supervisor = eventually("a supervisor is there", START, || async {
            kill::runledger(&pod, "supervise")
        })
        .await?;
        supervisor.signal(Signal::SIGKILL)?;
    }
    let books = balances(&case, &run).await?;
    ensure!(
        books.row.attempt == 1,
        "a killed supervisor is no lost pod: attempt {}",
        books.row.attempt
    );
    let cut = books.sent.iter().filter(|sent| !sent.complete).count();
    let estimated = ledger::estimated_requests(&case.world.ledger, run.id()).await?;
    ensure!(
        estimated >= i64::try_from(cut)?,
        "{cut} requests were cut off and {estimated} are estimated"
    );
    ensure!(
        cut >= 1 && estimated >= 1,
        "the kills cut no request off: {cut} cut, {estimated} estimated"
    );
    println!("    cut off by the kills: {cut}, marked estimated: {estimated}");
    Ok(())
}

pub(crate) async fn killed_controllers_and_servers_lose_and_double_nothing(
    case: Case,
) -> Result<()> {
    let space = case.space("chaos-ctl").await?;
    let mut moments = Moments::new();
    let one = space.start(Manifest::new(&space, "one", "steady")).await?;
    // At any moment of a run's life: also before its pod is there, and while it ends.
    after(moments.between(0, 1_500)).await;
    let mut killed = kill::product(&case.world, "controller").await?;
    let two = space.start(Manifest::new(&space, "two", "steady")).await?;
    for _ in 0..2 {
        after(moments.between(8_000, 14_000)).await;
        killed += kill::product(&case.world, "server").await?;
        after(moments.between(3_000, 10_000)).await;
        killed += kill::product(&case.world, "controller").await?;
    }
    // Fewer than there are pods, since some of them are in the kubelet's back-off when it is their turn.
    println!("    killed {killed} processes of the product");
    ensure!(
        killed >= 5,
        "only {killed} processes were there to be killed"
    );
    for run in [&one, &two] {
        balances(&case, run).await?;
        let estimated = ledger::estimated_requests(&case.world.ledger, run.id()).await?;
        ensure!(
            estimated == 0,
            "nothing was cut off, and {estimated} requests are estimated"
        );
    }
    for name in ["runledger-controller", "runledger-server"] {
        case.world
            .deployment_ready(SYSTEM, name, Duration::from_secs(180))
            .await?;
    }
    Ok(())
}

pub(crate) async fn a_minute_without_postgres_loses_and_doubles_nothing(case: Case) -> Result<()> {
    let space = case.space("chaos-pg").await?;
    let run = space
        .start(Manifest::new(&space, "steady", "steady"))
        .await?;
    run.running().await?;
    case.world.scale(STAGE, "postgres", 0).await?;
    let stopped = tokio::time::Instant::now();
    // A run that begins meanwhile starts as well.
    let meanwhile = space
        .start(Manifest::new(&space, "meanwhile", "steady"))
        .await?;
    let started = meanwhile.running().await;
    let skipped = the_annotation_lets_go(&space).await;
    tokio::time::sleep_until(stopped + Duration::from_secs(60)).await;
    case.world.scale(STAGE, "postgres", 1).await?;
    case.world.ledger_answers(START).await?;
    started.context("a run did not start while Postgres was away")?;
    // Who was deleted without the annotation went when the row could be written.
    let waited = skipped?;
    waited.gone(START).await?;
    let row = ledger::row(&case.world.ledger, waited.id()).await?;
    ensure!(
        row.status == "killed" && row.reason.as_deref() == Some(reasons::DELETED),
        "{row:?}"
    );
    for run in [&run, &meanwhile] {
        let books = balances(&case, run).await?;
        ensure!(
            model::total(&books.sent) == books.tokens(),
            "{:?} of {:?}",
            books.tokens(),
            books.sent
        );
        books.every_answer_is_a_message(run).await?;
        ensure!(
            books.row.transcript_missing_from.is_none(),
            "{:?}",
            books.row
        );
    }
    Ok(())
}

/// Deletes two runs and lets go of one of them, as README says; returns the other, which waits for its
/// final row.
async fn the_annotation_lets_go(space: &Space) -> Result<Run> {
    let pending = |name| Manifest::new(space, name, "slow").set("agent.secretName", "never");
    let (waits, skips) =
        tokio::try_join!(space.start(pending("waits")), space.start(pending("skips")))?;
    for run in [&waits, &skips] {
        run.pod().await?;
        run.delete().await?;
    }
    let annotation = format!("{}=true", annotations::SKIP_LEDGER);
    space
        .kubectl(&["annotate", "wfr", &skips.name, &annotation], None)
        .await?;
    skips.gone(START).await?;
    let still = waits.api().get(&waits.name).await;
    still.context("a run went though its final row was not written")?;
    Ok(waits)
}
