//! What a person wants to see of a failed test: its runs, pods, events, logs and rows.

use std::fmt::Write;

use crate::case::{Case, Space};
use crate::world::{SYSTEM, World};

/// Lines kept of each log.
const TAIL: &str = "--tail=40";

/// Everything about the test's namespaces, and the product's logs.
pub(crate) async fn of(case: &Case) -> String {
    let world = &case.world;
    let mut text = String::new();
    for space in case.spaces() {
        of_space(world, &space, &mut text).await;
    }
    for name in ["runledger-controller", "runledger-server"] {
        let target = format!("deployment/{name}");
        section(world, &mut text, &["-n", SYSTEM, "logs", &target, TAIL]).await;
    }
    section(
        world,
        &mut text,
        &["-n", SYSTEM, "get", "pods", "-o", "wide"],
    )
    .await;
    text
}

async fn of_space(world: &World, space: &Space, text: &mut String) {
    let namespace = space.namespace.as_str();
    for what in ["wfr,wfws,pvc,pods", "wfr"] {
        let format = if what == "wfr" { "yaml" } else { "wide" };
        section(world, text, &["-n", namespace, "get", what, "-o", format]).await;
    }
    section(
        world,
        text,
        &["-n", namespace, "get", "events", "--sort-by=.lastTimestamp"],
    )
    .await;
    let pods = world
        .kubectl(&["-n", namespace, "get", "pods", "-o", "name"], None)
        .await
        .unwrap_or_default();
    for pod in pods.lines() {
        section(world, text, &["-n", namespace, "describe", pod]).await;
        for container in ["supervisor", "agent"] {
            section(
                world,
                text,
                &["-n", namespace, "logs", pod, "-c", container, TAIL],
            )
            .await;
            section(
                world,
                text,
                &[
                    "-n",
                    namespace,
                    "logs",
                    pod,
                    "-c",
                    container,
                    "--previous",
                    TAIL,
                ],
            )
            .await;
        }
    }
    rows(world, namespace, text).await;
}

async fn section(world: &World, text: &mut String, arguments: &[&str]) {
    let shown = match world.try_kubectl(arguments, None).await {
        Ok(output) => output.all(),
        Err(error) => format!("{error:#}"),
    };
    let _ = writeln!(text, "---- kubectl {}\n{shown}", arguments.join(" "));
}

async fn rows(world: &World, namespace: &str, text: &mut String) {
    let queries = [
        "SELECT row_to_json(r)::text FROM workflow_runs r WHERE namespace = $1",
        "SELECT row_to_json(a)::text FROM run_attempts a JOIN workflow_runs r ON r.id = a.run_id WHERE r.namespace = $1",
        "SELECT format('%s attempt %s event %s %s %s', r.name, e.attempt, e.sequence, e.type, left(e.body::text, 300)) \
         FROM run_events e JOIN workflow_runs r ON r.id = e.run_id WHERE r.namespace = $1 \
         ORDER BY r.name, e.attempt, e.sequence LIMIT 200",
    ];
    for query in queries {
        let _ = writeln!(text, "---- {query}");
        match sqlx::query_scalar::<_, String>(query)
            .bind(namespace)
            .fetch_all(&world.ledger)
            .await
        {
            Ok(lines) => text.push_str(&lines.join("\n")),
            Err(error) => text.push_str(&error.to_string()),
        }
        text.push('\n');
    }
}
