//! What pages and reports ask, one call after another, each time for something else.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use jiff::{Timestamp, ToSpan as _, tz::TimeZone};
use runledger::api::run::Phase;
use runledger::ledger::query::{Direction, Order, RunFilter};
use runledger::ledger::report::{By, Query};
use sqlx::Connection as _;
use uuid::Uuid;

use crate::fill::{NAMESPACES, SESSIONS, Size};
use crate::server::Server;
use crate::table::{Table, Times};

/// Calls that are measured.
const CALLS: u32 = 1000;
/// Calls before them.
const WARM: u32 = 50;

/// Times of that many calls; each is told its number.
async fn timed<F: Future<Output = Result<()>>>(
    calls: u32,
    call: impl Fn(u32) -> F,
) -> Result<Times> {
    let mut times = Vec::new();
    for number in 0..WARM + calls {
        let began = Instant::now();
        call(number).await?;
        let took: Duration = began.elapsed();
        if number >= WARM {
            times.push(took);
        }
    }
    Ok(Times::of(times))
}

pub(crate) async fn measure(server: &Server, size: Size, table: &mut Table) -> Result<()> {
    let trip = timed(CALLS, |_| async {
        server.pool.acquire().await?.ping().await?;
        Ok(())
    })
    .await?;
    let large = size.runs > 1_000_000;
    let reach = |small: u32, larger: u32| if large { larger } else { small };
    let ids = |of: &'static str, many: i32| async move {
        sqlx::query_scalar::<_, Uuid>(
            "SELECT md5($1 || 1 + floor(random() * $2)::int)::uuid FROM generate_series(1, $3)",
        )
        .bind(of)
        .bind(many)
        .bind(i32::try_from(WARM + CALLS)?)
        .fetch_all(&server.pool)
        .await
        .map_err(anyhow::Error::from)
    };
    let list = |filter: fn(u32) -> RunFilter| {
        timed(CALLS, move |number| async move {
            let order = (Order::CreatedAt, Direction::Descending);
            let page = server
                .ledger
                .runs(&filter(number), order.0, order.1, None, 50)
                .await?;
            ensure!(
                page.runs.len() == 50 || size.scale < 1.0,
                "a page of {}",
                page.runs.len()
            );
            Ok(())
        })
    };
    let by_status = list(|number| RunFilter {
        namespace: Some(format!("ns-{}", number % NAMESPACES)),
        phase: Some(
            [
                Phase::Completed,
                Phase::Failed,
                Phase::Killed,
                Phase::Running,
            ][number as usize % 4],
        ),
        ..RunFilter::default()
    })
    .await?;
    let by_label = list(|number| RunFilter {
        namespace: Some(format!("ns-{}", number % NAMESPACES)),
        label: Some(("team".to_owned(), format!("team-{}", number % 20))),
        ..RunFilter::default()
    })
    .await?;
    table.times(
        "list of 50 by namespace and status, newest first",
        reach(5, 20),
        &by_status,
        &trip,
    );
    table.times(
        "list of 50 by namespace and label, newest first",
        reach(5, 20),
        &by_label,
        &trip,
    );

    let runs = ids("run", size.runs).await?;
    let by_id = timed(CALLS, |number| {
        let id = runs[number as usize];
        async move {
            ensure!(server.ledger.run(id).await?.is_some(), "no run {id}");
            Ok(())
        }
    })
    .await?;
    table.times("one run by id", 2, &by_id, &trip);
    let sessions = ids("session", SESSIONS).await?;
    let said = timed(CALLS, |number| {
        let id = sessions[number as usize];
        async move {
            let said = server.ledger.conversation(id, None, 100).await?;
            ensure!(
                said.len() == 100 || size.scale < 1.0,
                "{} messages",
                said.len()
            );
            Ok(())
        }
    })
    .await?;
    table.times("a session's last 100 messages", 5, &said, &trip);

    let today = Timestamp::now().to_zoned(TimeZone::UTC).date();
    let query = Query {
        since: today.saturating_sub(29.days()),
        until: today,
        namespace: None,
        workflow: None,
        model: None,
        repository: None,
        by: vec![By::Workflow, By::Model],
    };
    let cost = timed(100, |_| async {
        let lines = server.ledger.report(&query).await?;
        ensure!(!lines.is_empty(), "the report is empty");
        Ok(())
    })
    .await?;
    table.times(
        "30-day cost by workflow and model",
        reach(50, 100),
        &cost,
        &trip,
    );
    Ok(())
}
