//! `runledger migrate`, and what it says.

use runledger::ledger::migrate::{Args, Error, migrate};
use sqlx::{Connection, PgConnection};

use crate::database::empty;

async fn told(url: &str) -> Result<String, Error> {
    let mut out = Vec::new();
    let args = Args {
        connection: runledger::ledger::connection::Connection::to(url),
        wait: 0,
        ..Default::default()
    };
    migrate(&args, &mut out)
        .await
        .map(|()| String::from_utf8(out).unwrap())
}

#[tokio::test]
async fn what_was_applied_is_named_and_the_second_time_nothing_is() {
    let url = empty().await;
    let first = told(&url).await.unwrap();
    assert!(
        first.starts_with("applied 0001 ledger\n")
            && first.lines().all(|line| line.starts_with("applied ")),
        "{first}"
    );
    assert_eq!(
        told(&url).await.unwrap(),
        "nothing to apply: the ledger is up to date\n"
    );
}

#[tokio::test]
async fn two_at_once_apply_it_once() {
    let url = empty().await;
    let (one, other) = tokio::join!(told(&url), told(&url));
    one.unwrap();
    other.unwrap();
}

#[tokio::test]
async fn a_user_without_rights_is_told_what_to_grant() {
    let url = empty().await;
    let mut owner = PgConnection::connect(&url).await.unwrap();
    sqlx::raw_sql(
        "DO $$ BEGIN CREATE ROLE stranger LOGIN; EXCEPTION WHEN duplicate_object THEN NULL; END $$;
                   REVOKE CREATE ON SCHEMA public FROM PUBLIC",
    )
    .execute(&mut owner)
    .await
    .unwrap();
    let error = told(&url.replace("//runledger@", "//stranger@"))
        .await
        .unwrap_err();
    assert!(
        error
            .to_string()
            .ends_with("GRANT CREATE, USAGE ON SCHEMA public TO stranger"),
        "{error}"
    );
}

#[tokio::test]
async fn a_database_that_is_not_there_is_told_at_once_and_a_silent_host_after_waiting() {
    let url = empty().await;
    let missing = told(&format!("{url}_missing")).await.unwrap_err();
    assert!(matches!(missing, Error::Denied(_)), "{missing:?}");
    // Nothing listens on the discard port.
    let away = told("postgres://u:hunter2@127.0.0.1:9/d")
        .await
        .unwrap_err();
    assert!(matches!(away, Error::Away(0, _)), "{away:?}");
    assert!(!format!("{away} {away:?}").contains("hunter2"));
}

#[tokio::test]
async fn a_database_of_a_newer_release_is_left_alone() {
    let url = empty().await;
    told(&url).await.unwrap();
    let mut owner = PgConnection::connect(&url).await.unwrap();
    sqlx::raw_sql("INSERT INTO _sqlx_migrations VALUES (9999, 'later', now(), true, '', 0)")
        .execute(&mut owner)
        .await
        .unwrap();
    assert!(matches!(told(&url).await, Err(Error::Newer(9999))));
}
