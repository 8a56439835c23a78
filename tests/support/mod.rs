//! A real API server for tests: the one of `RUNLEDGER_TEST_KUBECONFIG`, which `make test` sets to a
//! cluster of its own. Without it a test is skipped, but under `CI=true` it fails.
#![allow(dead_code)]

use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};

/// The client, or nothing where the test is to be skipped.
pub(crate) async fn client() -> Option<Client> {
    let Ok(path) = std::env::var("RUNLEDGER_TEST_KUBECONFIG") else {
        assert!(
            std::env::var("CI").as_deref() != Ok("true"),
            "RUNLEDGER_TEST_KUBECONFIG names no cluster"
        );
        eprintln!("skipped: RUNLEDGER_TEST_KUBECONFIG names no cluster");
        return None;
    };
    let _ = rustls::crypto::ring::default_provider().install_default();
    let kubeconfig = Kubeconfig::read_from(path).unwrap();
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
        .await
        .unwrap();
    Some(Client::try_from(config).unwrap())
}
