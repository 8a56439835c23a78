//! What pages and reports ask, one call after another, each time for something else.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use jiff::{Timestamp, ToSpan as _, tz::TimeZone};
use runledger::ledger::report::{By, Query};
use sqlx::Connection as _;

use crate::fill::Size;
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
        if large { 100 } else { 50 },
        &cost,
        &trip,
    );
    Ok(())
}
