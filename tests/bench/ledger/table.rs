//! What is printed: the table, and what it was measured on, to be quoted together.

use std::fmt;
use std::time::Duration;

use crate::fill::Size;

/// All that was measured.
pub(crate) struct Table {
    machine: String,
    pub(crate) postgres: String,
    size: Size,
    rows: Vec<[String; 5]>,
}

impl Table {
    pub(crate) fn new(machine: String, size: Size) -> Self {
        Self {
            machine,
            postgres: String::new(),
            size,
            rows: Vec::new(),
        }
    }

    /// Something that is like no other.
    pub(crate) fn row(
        &mut self,
        what: &str,
        reach: &str,
        ours: String,
        reference: String,
        ratio: String,
    ) {
        self.rows
            .push([what.to_owned(), reach.to_owned(), ours, reference, ratio]);
    }

    /// A rate beside that of the reference; the ratio is what counts.
    pub(crate) fn rate(&mut self, what: &str, reach: f64, ours: f64, reference: (&str, f64)) {
        self.row(
            what,
            &format!("≥ {reach} ×"),
            format!("{ours:.0}/s"),
            format!("{} {:.0}/s", reference.0, reference.1),
            format!("{:.2}", ours / reference.1),
        );
    }

    /// Times of single calls, and what the round trip alone takes.
    pub(crate) fn times(&mut self, what: &str, reach: u32, times: &Times, trip: &Times) {
        self.row(
            what,
            &format!("p99 ≤ {reach} ms"),
            times.to_string(),
            format!("an empty round trip {trip}"),
            format!("{:.1}", times.p99 / trip.p99),
        );
    }
}

/// Quantiles of times, in milliseconds.
pub(crate) struct Times {
    p50: f64,
    p99: f64,
}

impl Times {
    pub(crate) fn of(mut times: Vec<Duration>) -> Self {
        times.sort_unstable();
        let at = |part: usize| {
            let index = (times.len() * part).div_ceil(100).saturating_sub(1);
            times[index].as_secs_f64() * 1000.0
        };
        Self {
            p50: at(50),
            p99: at(99),
        }
    }
}

impl fmt::Display for Times {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.2} / {:.2} ms", self.p50, self.p99)
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "`make bench-ledger SCALE={}`: {}.\nPostgres {}, which waits for the disk at each commit; {} runs, {} messages; one client unless said otherwise.\n",
            self.size.scale, self.machine, self.postgres, self.size.runs, self.size.messages
        )?;
        writeln!(f, "| | reach | measured (p50 / p99) | reference | ratio |")?;
        writeln!(f, "|---|---|---:|---:|---:|")?;
        for row in &self.rows {
            writeln!(f, "| {} |", row.join(" | "))?;
        }
        Ok(())
    }
}
