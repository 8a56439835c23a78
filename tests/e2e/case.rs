//! What a test is given: the world, and namespaces of its own with the Secrets that runs need.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::Result;
use serde_json::json;

use crate::witness::Witness;
use crate::world::World;

/// One running test.
#[derive(Clone)]
pub(crate) struct Case {
    pub(crate) world: Arc<World>,
    pub(crate) name: &'static str,
    spaces: Arc<Mutex<Vec<Space>>>,
}

/// A namespace of a test. It enforces the `restricted` PodSecurity level, as every run namespace may.
#[derive(Clone)]
pub(crate) struct Space {
    pub(crate) world: Arc<World>,
    pub(crate) namespace: String,
    pub(crate) witness: Witness,
}

impl Case {
    pub(crate) fn new(world: Arc<World>, name: &'static str) -> Self {
        Self {
            world,
            name,
            spaces: Arc::default(),
        }
    }

    /// The namespaces that the test has made.
    pub(crate) fn spaces(&self) -> Vec<Space> {
        self.spaces.lock().unwrap().clone()
    }

    /// A new namespace with both Secrets in it.
    pub(crate) async fn space(&self, word: &str) -> Result<Space> {
        let space = self.bare_space(word).await?;
        space
            .apply(&space.world.stage.model_secret("model"))
            .await?;
        space.apply(&space.world.stage.git_secret("git")).await?;
        Ok(space)
    }

    /// A new namespace without anything in it.
    pub(crate) async fn bare_space(&self, word: &str) -> Result<Space> {
        let random = uuid::Uuid::new_v4().simple().to_string();
        let namespace = format!("e2e-{word}-{}", random.get(..5).unwrap_or("0"));
        let object = json!({
            "apiVersion": "v1", "kind": "Namespace",
            "metadata": {
                "name": namespace,
                "labels": {
                    "pod-security.kubernetes.io/enforce": "restricted",
                    "pod-security.kubernetes.io/warn": "restricted",
                },
            },
        });
        self.world
            .kubectl(&["create", "-f", "-"], Some(&object.to_string()))
            .await?;
        let witness = Witness::start(&self.world, &namespace);
        let space = Space {
            world: Arc::clone(&self.world),
            namespace,
            witness,
        };
        self.spaces.lock().unwrap().push(space.clone());
        Ok(space)
    }

    /// Removes the test's namespaces; whoever waits for that does so elsewhere.
    pub(crate) async fn tidy(&self) {
        for space in self.spaces() {
            let arguments = [
                "delete",
                "namespace",
                &space.namespace,
                "--wait=false",
                "--ignore-not-found",
            ];
            if let Err(error) = self.world.kubectl(&arguments, None).await {
                eprintln!("{}: {error:#}", self.name);
            }
        }
    }
}

impl Space {
    /// kubectl in this namespace, which has to succeed.
    pub(crate) async fn kubectl(&self, arguments: &[&str], input: Option<&str>) -> Result<String> {
        let mut all = vec!["-n", self.namespace.as_str()];
        all.extend(arguments);
        self.world.kubectl(&all, input).await
    }

    /// kubectl in this namespace, whatever its end is.
    pub(crate) async fn try_kubectl(
        &self,
        arguments: &[&str],
        input: Option<&str>,
    ) -> Result<crate::sh::Output> {
        let mut all = vec!["-n", self.namespace.as_str()];
        all.extend(arguments);
        self.world.try_kubectl(&all, input).await
    }

    /// Applies an object to this namespace.
    pub(crate) async fn apply(&self, object: &serde_json::Value) -> Result<()> {
        self.kubectl(&["apply", "-f", "-"], Some(&object.to_string()))
            .await?;
        Ok(())
    }

    /// The tag by which the model's log knows a run.
    pub(crate) fn tag(&self, run: &str) -> String {
        format!("{}.{run}", self.namespace)
    }

    /// A task that the model answers from that scenario.
    pub(crate) fn task(&self, run: &str, scenario: &str) -> String {
        format!(
            "Do what the scenario says. [scenario: {scenario} #{}]",
            self.tag(run)
        )
    }
}

/// Time for a pod to be scheduled, for its images to be there, for a checkout: on two busy cores.
pub(crate) const START: Duration = Duration::from_secs(120);
/// Time for a whole short run, in company.
pub(crate) const WHOLE: Duration = Duration::from_secs(240);
