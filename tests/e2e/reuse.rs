//! A workspace in use: what a later run makes of it, and what its owner is told.

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::Event;
use kube::api::ListParams;
use runledger::api::run::Phase;
use runledger::names::reasons;

use crate::case::{Case, START, WHOLE};
use crate::runs::Manifest;
use crate::wait::eventually;

pub(crate) async fn a_reset_saves_the_former_runs_work_and_an_event_says_where(
    case: Case,
) -> Result<()> {
    let space = case.space("reset").await?;
    let manifest =
        |name: &str| Manifest::new(&space, name, "happy").set("workspace.name", "shared");
    let first = manifest("first").set("repository.push.when", "Never");
    let first = space
        .start(first)
        .await?
        .ends(Phase::Completed, WHOLE)
        .await?;
    let before = first.git.context("no git")?;
    let second = manifest("second").set("repository.onReuse", "Reset");
    let second = space.start(second).await?;
    let after = second.ends(Phase::Completed, WHOLE).await?;
    let after = after.git.context("no git")?;
    ensure!(before.commits == 2, "{before:?}");
    ensure!(
        after.initial_commit == before.initial_commit && after.commits == 2,
        "{before:?}, then {after:?}"
    );
    let backup = format!("refs/runledger/backup/{}", second.uid);
    let events = case.world.api::<Event>(&space.namespace);
    eventually("an Event that names the backup", START, || async {
        let fields = format!("involvedObject.uid={}", second.uid);
        let events = events.list(&ListParams::default().fields(&fields)).await?;
        let told = events.items.iter().filter(|event| {
            event.reason.as_deref() == Some(reasons::CHECKED_OUT)
                && (event.message.as_deref()).is_some_and(|message| message.contains(&backup))
        });
        ensure!(told.count() == 1, "{:#?}", events.items);
        Ok(())
    })
    .await
}
