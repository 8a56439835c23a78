//! Runs the tests: brings the world up once, lets the shared ones overlap and the others run alone,
//! and prints each one's end. What a test does is the test's.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use futures::StreamExt;
use futures::future::BoxFuture;

use crate::case::Case;
use crate::dump;
use crate::world::World;

/// No test may take longer; what it waited for says so earlier.
const LONGEST: Duration = Duration::from_secs(8 * 60);

pub(crate) struct Test {
    pub(crate) name: &'static str,
    pub(crate) alone: bool,
    pub(crate) body: fn(Case) -> BoxFuture<'static, Result<()>>,
}

/// A test that may overlap with others, in namespaces of its own.
macro_rules! shared {
    ($module:ident::$name:ident) => {
        $crate::runner::Test {
            name: concat!(stringify!($module), "::", stringify!($name)),
            alone: false,
            body: |case| Box::pin($crate::$module::$name(case)),
        }
    };
}

/// A test that stops what others use, or counts what others would disturb.
macro_rules! alone {
    ($module:ident::$name:ident) => {
        $crate::runner::Test {
            alone: true,
            ..$crate::runner::shared!($module::$name)
        }
    };
}

pub(crate) use {alone, shared};

pub(crate) fn main(tests: Vec<Test>) -> ExitCode {
    let words: Vec<String> = std::env::args()
        .skip(1)
        .filter(|argument| !argument.starts_with('-'))
        .collect();
    let tests: Vec<Test> = tests
        .into_iter()
        .filter(|test| {
            words.is_empty() || words.iter().any(|word| test.name.contains(word.as_str()))
        })
        .collect();
    if std::env::args().any(|argument| argument == "--list") {
        for test in &tests {
            println!("{}: test", test.name);
        }
        return ExitCode::SUCCESS;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    match runtime.block_on(run(tests)) {
        Ok(0) => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("the suite could not run: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(tests: Vec<Test>) -> Result<usize> {
    let began = Instant::now();
    let _ = rustls::crypto::ring::default_provider().install_default();
    let world = Arc::new(World::up().await.context("bringing the cluster up")?);
    println!(
        "cluster and product are up after {:.0} s",
        began.elapsed().as_secs_f64()
    );
    println!("running {} tests", tests.len());
    let parallel = std::env::var("RUNLEDGER_E2E_PARALLEL")
        .ok()
        .and_then(|count| count.parse().ok())
        .unwrap_or(5);
    let (together, by_itself): (Vec<Test>, Vec<Test>) =
        tests.into_iter().partition(|test| !test.alone);
    let mut failed: Vec<&str> = futures::stream::iter(together)
        .map(|test| one(&world, test))
        .buffer_unordered(parallel)
        .filter_map(std::future::ready)
        .collect()
        .await;
    for test in by_itself {
        failed.extend(one(&world, test).await);
    }
    println!(
        "test result: {}; {} failed; {:.0} s",
        if failed.is_empty() { "ok" } else { "FAILED" },
        failed.len(),
        began.elapsed().as_secs_f64()
    );
    for name in &failed {
        println!("    {name}");
    }
    Ok(failed.len())
}

/// Runs one test and returns its name if it failed.
async fn one(world: &Arc<World>, test: Test) -> Option<&'static str> {
    let began = Instant::now();
    let case = Case::new(Arc::clone(world), test.name);
    let task = tokio::spawn(tokio::time::timeout(LONGEST, (test.body)(case.clone())));
    let error = match task.await {
        Ok(Ok(Ok(()))) => None,
        Ok(Ok(Err(error))) => Some(format!("{error:#}")),
        Ok(Err(_)) => Some(format!("not done after {} s", LONGEST.as_secs())),
        Err(panic) => Some(panic_text(panic)),
    };
    let seconds = began.elapsed().as_secs_f64();
    let Some(error) = error else {
        println!("test {} ... ok ({seconds:.1} s)", test.name);
        case.tidy().await;
        return None;
    };
    let state = dump::of(&case).await;
    println!(
        "test {} ... FAILED ({seconds:.1} s)\n{error}\n{state}",
        test.name
    );
    Some(test.name)
}

fn panic_text(error: tokio::task::JoinError) -> String {
    match error.try_into_panic() {
        Ok(panic) => panic
            .downcast_ref::<String>()
            .cloned()
            .or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string))
            .unwrap_or_else(|| "panicked".to_owned()),
        Err(error) => error.to_string(),
    }
}
