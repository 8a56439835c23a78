//! What the ledger costs, beside what Postgres itself costs on the same server in the same run. Nothing
//! about time is asserted.
//!
//! `make bench-ledger [SCALE=1]` runs it, with SCALE million runs and ten times as many messages (ten
//! million at most); `ONLY="events upserts"` leaves the other parts out. It stands on a Postgres of its
//! own, and leaves nothing behind.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr,
    missing_docs
)]

mod events;
mod fill;
mod import;
#[path = "../machine.rs"]
mod machine;
mod reads;
mod server;
mod table;
mod upserts;

use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, ensure};

use fill::Size;
use server::Server;
use table::Table;

#[tokio::main]
async fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().collect();
    if let [_, word, url] = words.as_slice()
        && word == import::WORD
    {
        return import::run(url).await;
    }
    let scale = words.get(1).map_or(Ok(1.0), |scale| scale.parse());
    let scale: f64 = scale.context("usage: bench-ledger [SCALE [PART…]]")?;
    ensure!(
        (0.001..=100.0).contains(&scale),
        "SCALE is from 0.001 to 100"
    );
    let only = words.get(2..).unwrap_or_default();
    for part in only {
        ensure!(PARTS.contains(&part.as_str()), "the parts are {PARTS:?}");
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    bench(root, Size::of(scale), only).await
}

/// What can be asked for alone.
const PARTS: [&str; 4] = ["events", "reads", "upserts", "import"];

async fn bench(root: &Path, size: Size, only: &[String]) -> Result<()> {
    let wanted = |part: &str| only.is_empty() || only.iter().any(|word| word == part);
    let began = Instant::now();
    let say = |what: &str| eprintln!("[{:3.0} s] {what}", began.elapsed().as_secs_f64());
    let mut table = Table::new(machine::line(root)?, size);
    say("a Postgres is brought up");
    let server = Server::start(root).await?;
    table.postgres = server.version().await?;

    if wanted("events") {
        say("events and messages");
        events::measure(&server, &mut table).await?;
    }
    if wanted("reads") || wanted("upserts") {
        say(&format!(
            "{} runs and {} messages are made",
            size.runs, size.messages
        ));
        fill::fill(&server, size).await?;
    }
    if wanted("reads") {
        say("reads");
        reads::measure(&server, size, &mut table).await?;
    }
    if wanted("upserts") {
        say("status upserts");
        upserts::measure(&server, &mut table).await?;
    }
    if wanted("import") {
        say("the import of legacy rows");
        import::measure(&server, &mut table).await?;
    }
    say("done");
    println!("{table}");
    Ok(())
}
