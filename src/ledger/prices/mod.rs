//! What tokens cost: the table `model_prices`, its YAML form, and what follows where a price comes to
//! be known. A run's cost is worked out in the database, where its tokens are summed.

pub mod command;

use std::collections::HashSet;
use std::path::PathBuf;

use jiff::civil::Date;
use jiff::tz::TimeZone;
use jiff_sqlx::ToSqlx;
use rust_decimal::Decimal;
use serde::Deserialize;
use uuid::Uuid;

use super::effects::UNKNOWN_MODEL;
use super::{Error, Ledger};

/// Longest name of a model, in bytes.
const MAX_PATTERN: usize = 200;
/// A price beyond this is a slip: US dollars for a million tokens.
const MAX_PRICE: u32 = 100_000;
/// Runs whose cost is worked out again in one transaction.
const PAGE: i64 = 500;
/// Largest file of prices, in bytes.
const MAX_FILE: u64 = 1024 * 1024;

/// What a model costs from a day on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Price {
    /// Name of the model; `*` stands for any characters.
    pub model: String,
    /// UTC day from which on it holds.
    pub from: Date,
    /// US dollars for a million tokens: input, output, cache read, cache creation.
    pub usd_per_million: [Decimal; 4],
}

/// Kinds of tokens, in the order of [`Price::usd_per_million`].
pub const KINDS: [&str; 4] = ["input", "output", "cache_read", "cache_creation"];

/// What [`Ledger::load_prices`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Loaded {
    /// Prices that are new or different.
    pub written: u64,
    /// Runs whose cost was unknown, or known in part, and has been worked out again.
    pub runs: u64,
}

/// A model that was used, and whose price nobody has told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unpriced {
    /// Its name.
    pub model: String,
    /// In how many attempts it was used.
    pub attempts: i64,
}

/// One entry of the file. Figures are read as they are written, never as floats.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Entry {
    model: String,
    from: String,
    input: String,
    output: String,
    cache_read: String,
    cache_creation: String,
}

/// Reads prices, or says what is wrong with them and where.
pub fn read(yaml: &str) -> Result<Vec<Price>, Error> {
    let entries: Vec<Entry> = serde_saphyr::from_str(yaml)
        .map_err(|error| Error::Refused(format!("the prices can't be read: {error}")))?;
    let mut seen = HashSet::new();
    let mut prices = Vec::with_capacity(entries.len());
    for entry in entries {
        let price = price(&entry).map_err(|wrong| {
            Error::Refused(format!(
                "price of {:?} from {}: {wrong}",
                entry.model, entry.from
            ))
        })?;
        if !seen.insert((price.model.clone(), price.from)) {
            return Err(Error::Refused(format!(
                "price of {:?} from {}: it is there twice",
                entry.model, entry.from
            )));
        }
        prices.push(price);
    }
    if prices.is_empty() {
        return Err(Error::Refused("the file holds no prices".to_owned()));
    }
    Ok(prices)
}

/// Reads a file of prices.
pub fn read_file(path: &PathBuf) -> Result<Vec<Price>, Error> {
    let refused = |error: std::io::Error| {
        Error::Refused(format!("{} can't be read: {error}", path.display()))
    };
    let size = std::fs::metadata(path).map_err(refused)?.len();
    if size > MAX_FILE {
        return Err(Error::Refused(format!(
            "{} has {size} bytes; a list of prices has at most {MAX_FILE}",
            path.display()
        )));
    }
    read(&std::fs::read_to_string(path).map_err(refused)?)
}

fn price(entry: &Entry) -> Result<Price, String> {
    if entry.model.is_empty() || entry.model.len() > MAX_PATTERN || entry.model.contains('\0') {
        return Err(format!(
            "`model` is a name of 1 to {MAX_PATTERN} bytes, or a pattern with *"
        ));
    }
    let from = entry
        .from
        .parse()
        .map_err(|_| "`from` is a day, e.g. 2026-01-31".to_owned())?;
    let figure = |name: &str, text: &str| {
        let wrong =
            format!("`{name}` is US dollars for a million tokens, e.g. 3.75, and not {text:?}");
        let figure: Decimal = text.parse().map_err(|_| wrong.clone())?;
        if figure.is_sign_negative() && !figure.is_zero() || figure > Decimal::from(MAX_PRICE) {
            return Err(wrong);
        }
        if figure.normalize().scale() > 6 {
            return Err(format!("`{name}` has more than six decimals"));
        }
        Ok(figure)
    };
    Ok(Price {
        model: entry.model.clone(),
        from,
        usd_per_million: [
            figure("input", &entry.input)?,
            figure("output", &entry.output)?,
            figure("cacheRead", &entry.cache_read)?,
            figure("cacheCreation", &entry.cache_creation)?,
        ],
    })
}

impl Ledger {
    /// All prices: by model, the newest first.
    pub async fn prices(&self) -> Result<Vec<Price>, Error> {
        let rows = Self::tries(|| async {
            Ok(sqlx::query!(
                r#"SELECT pattern, valid_from AS "from: jiff_sqlx::Timestamp", kind, usd_per_million
                   FROM model_prices ORDER BY pattern, valid_from DESC, kind"#
            )
            .fetch_all(&self.readers)
            .await?)
        })
        .await?;
        let mut prices: Vec<Price> = Vec::new();
        for row in rows {
            let from = row.from.to_jiff().to_zoned(TimeZone::UTC).date();
            let Some(kind) = KINDS.iter().position(|kind| *kind == row.kind) else {
                continue;
            };
            match prices.last_mut() {
                Some(last) if last.model == row.pattern && last.from == from => {
                    last.usd_per_million[kind] = row.usd_per_million;
                }
                _ => {
                    let mut usd_per_million = [Decimal::ZERO; 4];
                    usd_per_million[kind] = row.usd_per_million;
                    prices.push(Price {
                        model: row.pattern,
                        from,
                        usd_per_million,
                    });
                }
            }
        }
        Ok(prices)
    }

    /// Models that were used and have no price.
    pub async fn unpriced_models(&self) -> Result<Vec<Unpriced>, Error> {
        Self::tries(|| async {
            Ok(sqlx::query_as!(
                Unpriced,
                r#"SELECT model, count(*) AS "attempts!" FROM run_model_usage
                   WHERE cost_micro_usd IS NULL GROUP BY model ORDER BY model LIMIT 100"#
            )
            .fetch_all(&self.readers)
            .await?)
        })
        .await
    }

    /// Adds these prices, or puts them in the place of those of the same model and day, and works out
    /// what was unknown. A cost that is known stays as it is.
    pub async fn load_prices(&self, prices: &[Price]) -> Result<Loaded, Error> {
        let all = || {
            prices.iter().flat_map(|price| {
                KINDS
                    .iter()
                    .zip(price.usd_per_million)
                    .map(move |k| (price, k))
            })
        };
        let patterns: Vec<String> = all().map(|(price, _)| price.model.clone()).collect();
        let kinds: Vec<String> = all().map(|(_, (kind, _))| (*kind).to_owned()).collect();
        let figures: Vec<Decimal> = all().map(|(_, (_, figure))| figure).collect();
        let mut days = Vec::with_capacity(patterns.len());
        for (price, _) in all() {
            let midnight = price
                .from
                .to_zoned(TimeZone::UTC)
                .map_err(|error| Error::Refused(format!("{}: {error}", price.from)))?;
            days.push(midnight.timestamp().to_sqlx());
        }
        let written = Self::tries(|| async {
            let done = sqlx::query!(
                "INSERT INTO model_prices AS p (pattern, kind, valid_from, usd_per_million)
                 SELECT * FROM unnest($1::text[], $2::text[], $3::timestamptz[], $4::numeric[])
                 ON CONFLICT (pattern, kind, valid_from) DO UPDATE SET usd_per_million = EXCLUDED.usd_per_million
                 WHERE p.usd_per_million <> EXCLUDED.usd_per_million",
                &patterns,
                &kinds,
                &days as _,
                &figures,
            )
            .execute(&self.pool)
            .await?;
            Ok(done.rows_affected())
        })
        .await?;
        let mut runs = 0;
        let mut after = Uuid::nil();
        while let Some((count, last)) = Self::tries(|| self.price_unknown(after)).await? {
            runs += count;
            after = last;
        }
        Ok(Loaded { written, runs })
    }

    /// Works out the unknown costs of some runs after that one; answers how many, and the last.
    async fn price_unknown(&self, after: Uuid) -> Result<Option<(u64, Uuid)>, Error> {
        let mut tx = self.pool.begin().await?;
        // The runs first, as everywhere; their attempts and what those used follow.
        let runs = sqlx::query_scalar!(
            "SELECT r.id FROM workflow_runs r
             WHERE r.id > $1 AND r.id IN (SELECT m.run_id FROM run_model_usage m WHERE m.cost_micro_usd IS NULL
                AND runledger_cost(m.model, m.first_at, m.input_tokens, m.output_tokens,
                                   m.cache_read_tokens, m.cache_creation_tokens) IS NOT NULL)
             ORDER BY r.id LIMIT $2 FOR NO KEY UPDATE",
            after,
            PAGE
        )
        .fetch_all(&mut *tx)
        .await?;
        let Some(last) = runs.last().copied() else {
            return Ok(None);
        };
        sqlx::query_file!("src/ledger/prices/late.sql", &runs, UNKNOWN_MODEL)
            .execute(&mut *tx)
            .await?;
        sqlx::query!(
            "SELECT runledger_sum_run(id) FROM unnest($1::uuid[]) AS id",
            &runs
        )
        .execute(&mut *tx)
        .await?;
        tx.commit().await?;
        Ok(Some((runs.len() as u64, last)))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    const ENTRY: &str = "- model: claude-a*\n  from: 2026-01-31\n  input: 3\n  output: 15.00\n  cacheRead: 0.30\n  cacheCreation: 3.75\n";

    #[test]
    fn figures_are_read_digit_by_digit() {
        let prices = read(ENTRY).unwrap();
        assert_eq!(prices[0].model, "claude-a*");
        let texts = prices[0].usd_per_million.map(|figure| figure.to_string());
        assert_eq!(texts, ["3", "15.00", "0.30", "3.75"]);
    }

    #[test]
    fn what_is_wrong_is_named_with_its_place() {
        for (from, to, says) in [
            (
                "input: 3",
                "input: -3",
                "price of \"claude-a*\" from 2026-01-31: `input` is US dollars for a million tokens, e.g. 3.75, and not \"-3\"",
            ),
            ("input: 3", "input: much", "not \"much\""),
            ("input: 3", "input: 300000", "not \"300000\""),
            (
                "input: 3",
                "input: 0.0000001",
                "`input` has more than six decimals",
            ),
            ("2026-01-31", "yesterday", "`from` is a day"),
            ("claude-a*", "''", "`model` is a name"),
            ("input: 3", "inputs: 3", "inputs"),
            ("  output: 15.00\n", "", "output"),
        ] {
            let error = read(&ENTRY.replace(from, to)).unwrap_err().to_string();
            assert!(error.contains(says), "{to}: {error}");
        }
        let twice = read(&ENTRY.repeat(2)).unwrap_err().to_string();
        assert!(twice.ends_with("it is there twice"), "{twice}");
        assert_eq!(
            read("[]").unwrap_err().to_string(),
            "the file holds no prices"
        );
    }
}
