//! Any sequence of events, seen fresh or stale, applied whole or cut off: never two pods for one
//! attempt, never two at once, an end is an end, and what has settled is left alone.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::controller::shapes::{Ledger, Unprotect};
use crate::controller::view::Ended;
use crate::names::reasons;

/// An API server with one run, its pods and a ledger.
#[derive(Clone)]
struct World {
    run: WorkflowRun,
    version: u64,
    pods: BTreeMap<String, PodView>,
    made: Vec<(u32, String)>,
    ledger_away: bool,
    crowded: bool,
    row: Option<Phase>,
    clock: i64,
    gone: bool,
    /// Our finalizer was on the run; before, nobody can hold it.
    protected: bool,
}

/// What a cache holds.
#[derive(Clone)]
struct Cache {
    run: WorkflowRun,
    pods: BTreeMap<String, PodView>,
}

#[derive(Clone, Copy, Debug)]
enum Step {
    /// Reconcile; from the cache as it was this many changes ago; cut off after this many effects.
    Reconcile {
        age: usize,
        effects: usize,
    },
    AgentStarts,
    /// The supervisor says that its checkout can't work; the kubelet would start it again.
    CheckoutFails,
    PodCompletes,
    PodFails,
    PodStopped,
    PodForcedAway,
    PodDeletedBySomebody,
    Kill,
    Delete,
    Ledger(bool),
    Crowd(bool),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (0..3_usize, prop_oneof![4 => Just(usize::MAX), 1 => 0..6_usize])
            .prop_map(|(age, effects)| Step::Reconcile { age, effects }),
        4 => Just(Step::AgentStarts),
        1 => Just(Step::CheckoutFails),
        2 => Just(Step::PodCompletes),
        1 => Just(Step::PodFails),
        2 => Just(Step::PodStopped),
        2 => Just(Step::PodForcedAway),
        2 => Just(Step::PodDeletedBySomebody),
        1 => Just(Step::Kill),
        1 => Just(Step::Delete),
        1 => any::<bool>().prop_map(Step::Ledger),
        1 => any::<bool>().prop_map(Step::Crowd),
    ]
}

impl World {
    fn new() -> Self {
        let mut run = run(json!({}));
        run.metadata.finalizers = None;
        Self {
            run,
            version: 1,
            pods: BTreeMap::new(),
            made: Vec::new(),
            ledger_away: false,
            crowded: false,
            row: None,
            clock: 1,
            gone: false,
            protected: false,
        }
    }

    fn cache(&self) -> Cache {
        Cache {
            run: self.run.clone(),
            pods: self.pods.clone(),
        }
    }

    /// As `observe` does, with its live look at a pod that the cache misses.
    fn observe(&self, cache: &Cache) -> Observed {
        let run = &cache.run;
        let attempt = plan::current_attempt(run);
        let name = naming::pod("hello", attempt);
        let known = run.status.as_ref().and_then(|s| s.pod_uid.clone());
        let is_final = run.status.as_ref().is_some_and(|s| s.phase.is_final());
        let seen = match cache.pods.get(&name) {
            Some(pod) => Some(pod),
            None if is_final || (known.is_none() && plan::stop(run).is_none()) => None,
            None => self.pods.get(&name),
        };
        let pod = match seen {
            Some(pod) => CurrentPod::There(Box::new(pod.clone())),
            None if known.is_none() => CurrentPod::None,
            None => CurrentPod::Gone,
        };
        let leftovers = (1..attempt)
            .filter_map(|n| cache.pods.get(&naming::pod("hello", n)).cloned())
            .collect();
        Observed {
            pod,
            leftovers,
            crowded: self.crowded,
            ..observed(run.clone())
        }
    }

    fn changed(&mut self) {
        self.version += 1;
        self.run.metadata.resource_version = Some(self.version.to_string());
        self.vanish();
    }

    fn vanish(&mut self) {
        let held = self
            .run
            .metadata
            .finalizers
            .as_ref()
            .is_some_and(|all| !all.is_empty());
        self.gone |= self.run.metadata.deletion_timestamp.is_some() && !held;
    }

    /// As `apply` does, in its order, against resource versions and uids; stops after so many effects.
    fn apply(&mut self, plan: Plan, seen: &WorkflowRun, effects: usize) {
        let mut left = effects;
        let mut version = seen.metadata.resource_version.clone();
        let mut spend = || {
            let may = left > 0;
            left = left.saturating_sub(1);
            may
        };
        let fresh = |world: &Self, version: &Option<String>| {
            !world.gone && world.run.metadata.resource_version == *version
        };
        let Plan {
            protect,
            verify,
            workspace,
            pod,
            ledger,
            status,
            status_unrecorded,
            event: _,
            release,
            delete,
            unprotect,
            again: _,
        } = plan;
        assert!(workspace.is_none(), "it has an emptyDir");
        if protect {
            if !spend() || !fresh(self, &version) {
                return;
            }
            self.run.metadata.finalizers = Some(vec![finalizers::RUN.to_owned()]);
            self.protected = true;
            self.changed();
            version = self.run.metadata.resource_version.clone();
        } else if verify && !fresh(self, &version) {
            return;
        }
        if let Some(new) = pod {
            if !spend() {
                return;
            }
            let name = naming::pod("hello", new.attempt);
            if !self.pods.contains_key(&name) {
                let uid = format!("pod-{}-{}", new.attempt, self.made.len());
                let view = PodView {
                    name: name.clone(),
                    uid: uid.clone(),
                    run_uid: UID.to_owned(),
                    attempt: new.attempt,
                    created: Some(at(self.clock)),
                    held: true,
                    phase: "Pending".to_owned(),
                    ..PodView::default()
                };
                self.pods.insert(name.clone(), view);
                self.made.push((new.attempt, uid));
            }
        }
        let mut recorded = None;
        if let Ledger::Final(row) = &ledger {
            if !spend() {
                return;
            }
            recorded = Some(!self.ledger_away);
            if !self.ledger_away {
                // The ledger takes the first end and keeps it.
                assert!(
                    self.row.is_none_or(|was| was == row.phase),
                    "{:?} then {:?}",
                    self.row,
                    row.phase
                );
                self.row = Some(row.phase);
            }
        }
        let unrecorded = recorded == Some(false);
        if let Some(status) = if unrecorded {
            status_unrecorded
        } else {
            status
        } {
            if !spend() || !fresh(self, &version) {
                return;
            }
            let was = self
                .run
                .status
                .as_ref()
                .map(|s| s.phase)
                .unwrap_or_default();
            assert!(
                !was.is_final() || was == status.phase,
                "{was:?} then {:?}",
                status.phase
            );
            assert!(
                was != Phase::Running || status.phase != Phase::Pending,
                "no way back"
            );
            self.run.status = Some(*status);
            self.changed();
        }
        for one in release {
            if !spend() {
                return;
            }
            if let Some(pod) = self
                .pods
                .get_mut(&one.name)
                .filter(|pod| pod.uid == one.uid)
            {
                pod.held = false;
            }
            self.collect();
        }
        for one in delete {
            if !spend() {
                return;
            }
            if let Some(pod) = self
                .pods
                .get_mut(&one.name)
                .filter(|pod| pod.uid == one.uid)
            {
                pod.deleting = true;
            }
            self.collect();
        }
        let lets_go = match unprotect {
            Unprotect::No => false,
            Unprotect::WhenRecorded => recorded == Some(true),
            Unprotect::Now => true,
        };
        if lets_go && spend() {
            self.run.metadata.finalizers = None;
            self.changed();
        }
    }

    fn collect(&mut self) {
        self.pods
            .retain(|_, pod| pod.held || !pod.deleting || !pod.has_ended());
    }

    fn live(&mut self) -> Option<&mut PodView> {
        self.pods.values_mut().find(|pod| !pod.has_ended())
    }

    fn ends(&mut self, outcome: Outcome, reason: &str) {
        let message = said(&termination(outcome, reason));
        if let Some(pod) = self.live() {
            // A checkout that can't work does not come about later.
            let failed = pod.supervisor.last.as_ref();
            let message = failed.map_or(message, |failed| failed.message.clone());
            let model = ended_pod(pod.attempt, &message);
            let was_started = pod.agent_started().is_some();
            pod.phase = model.phase;
            pod.supervisor = model.supervisor;
            pod.agent = if was_started {
                model.agent
            } else {
                pod.agent.clone()
            };
        }
        self.collect();
    }

    fn step(&mut self, step: Step, caches: &[Cache]) {
        self.clock += 1;
        match step {
            Step::Reconcile { age, effects } => {
                if self.gone {
                    return;
                }
                let cache = &caches[caches.len().saturating_sub(age + 1)];
                let seen = self.observe(cache);
                let plan = decide(&seen, self.clock);
                self.apply(plan, &seen.run, effects);
            }
            Step::AgentStarts => {
                let since = at(self.clock);
                let may = |pod: &&mut PodView| !pod.deleting && pod.supervisor.last.is_none();
                if let Some(pod) = self.live().filter(may) {
                    pod.phase = "Running".to_owned();
                    pod.scheduled = true;
                    pod.supervisor.started = true;
                    pod.agent.running = Some(since);
                }
            }
            Step::CheckoutFails => {
                let message = said(&termination(Outcome::Failed, reasons::CHECKOUT_FAILED));
                if let Some(pod) = self.live().filter(|pod| pod.agent.running.is_none()) {
                    pod.supervisor.last = Some(Ended {
                        code: 1,
                        message,
                        ..Ended::default()
                    });
                }
            }
            Step::PodCompletes => self.ends(Outcome::Completed, reasons::COMPLETED),
            Step::PodFails => self.ends(Outcome::Failed, reasons::MODEL_ERROR),
            Step::PodStopped => {
                if self.live().is_some_and(|pod| pod.deleting) {
                    self.ends(Outcome::Stopped, reasons::KILLED);
                }
            }
            Step::PodForcedAway => {
                // Somebody takes the finalizer off by hand; of pods that are known and have not come to
                // an end: that may be in the ledger before it is in the status, and a controller cut
                // off in between has only the pod to read it from again.
                let known = self.run.status.as_ref().and_then(|s| s.pod_uid.clone());
                let is_at_its_end =
                    |pod: &PodView| pod.has_ended() || pod.supervisor.last.is_some();
                self.pods
                    .retain(|_, pod| is_at_its_end(pod) || Some(&pod.uid) != known.as_ref());
            }
            Step::PodDeletedBySomebody => {
                if let Some(pod) = self.live() {
                    pod.deleting = true;
                }
            }
            Step::Kill => {
                if !self.gone {
                    self.run.spec.desired_state = crate::api::run::DesiredState::Killed;
                    self.changed();
                }
            }
            Step::Delete => {
                if !self.gone {
                    self.run = deleted(self.run.clone());
                    self.changed();
                }
            }
            Step::Ledger(away) => self.ledger_away = away,
            Step::Crowd(is_there) => self.crowded = is_there,
        }
    }

    fn check(&self) {
        for (n, (attempt, _)) in self.made.iter().enumerate() {
            let twice = self
                .made
                .iter()
                .skip(n + 1)
                .any(|(other, _)| other == attempt);
            assert!(!twice, "two pods for attempt {attempt}: {:?}", self.made);
        }
        let live = self.pods.values().filter(|pod| !pod.has_ended()).count();
        assert!(live <= 1, "{live} pods at once");
        if self.gone && self.protected {
            assert!(self.row.is_some(), "it went without a row");
            assert_eq!(live, 0, "it went before its pod, which has the volume");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_there_is_one_pod_for_an_attempt_and_one_end(
        steps in prop::collection::vec(step(), 1..60)
    ) {
        let mut world = World::new();
        let mut caches = vec![world.cache()];
        for step in steps {
            world.step(step, &caches);
            world.check();
            if !world.gone {
                caches.push(world.cache());
            }
        }
        // Left in peace, with its pods ending, it comes to an end.
        world.ledger_away = false;
        for _ in 0..80 {
            for step in [
                Step::Reconcile { age: 0, effects: usize::MAX },
                Step::AgentStarts,
                Step::PodStopped,
                Step::PodCompletes,
            ] {
                if !world.gone {
                    caches.push(world.cache());
                }
                world.step(step, &caches);
                world.check();
            }
        }
        if !world.gone {
            let status = world.run.status.clone().unwrap();
            prop_assert!(status.phase.is_final(), "{:?}", status.reason);
            prop_assert_eq!(world.row, Some(status.phase));
            prop_assert!(world.run.metadata.finalizers.is_none());
            let last = world.observe(&world.cache());
            prop_assert!(is_idle(&decide(&last, world.clock)), "it has settled");
        }
        prop_assert!(world.pods.is_empty(), "no pod is left");
    }
}
