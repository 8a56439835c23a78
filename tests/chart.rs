//! What the chart asks of a cluster, judged on the rendered chart that is committed
//! (`tests/generated` proves it current): rights, confinement of the pods, where secrets are.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use runledger::names;
use serde_json::{Value, json};

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn documents(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap();
    let all: Vec<Value> = serde_saphyr::from_multiple(&text).unwrap();
    assert!(!all.is_empty(), "{} is empty", path.display());
    all
}

fn rendered() -> Vec<Value> {
    documents(&root().join("tests/chart/rendered.yaml"))
}

fn of_kind<'a>(all: &'a [Value], kinds: &[&str]) -> Vec<&'a Value> {
    all.iter()
        .filter(|object| kinds.contains(&object["kind"].as_str().unwrap()))
        .collect()
}

fn named<'a>(all: &'a [Value], kind: &str, name: &str) -> &'a Value {
    of_kind(all, &[kind])
        .into_iter()
        .find(|object| object["metadata"]["name"] == name)
        .unwrap_or_else(|| panic!("no {kind} {name}"))
}

/// Every pod template, by the name of what makes pods of it.
fn pods(all: &[Value]) -> Vec<(String, &Value)> {
    of_kind(all, &["Deployment", "Job", "CronJob"])
        .into_iter()
        .map(|object| {
            let spec = match &object["spec"]["jobTemplate"]["spec"] {
                Value::Null => &object["spec"],
                job => job,
            };
            let name = object["metadata"]["name"].as_str().unwrap();
            (name.to_owned(), &spec["template"])
        })
        .collect()
}

fn strings(value: &Value) -> Vec<&str> {
    value
        .as_array()
        .map(|list| list.iter().map(|item| item.as_str().unwrap()).collect())
        .unwrap_or_default()
}

/// Equal, but that 1 and 1.0 are the same number.
fn same(one: &Value, other: &Value) -> bool {
    match (one, other) {
        (Value::Number(one), Value::Number(other)) => one.as_f64() == other.as_f64(),
        (Value::Array(one), Value::Array(other)) => {
            one.len() == other.len() && one.iter().zip(other).all(|(one, other)| same(one, other))
        }
        (Value::Object(one), Value::Object(other)) => {
            one.len() == other.len()
                && one
                    .iter()
                    .all(|(key, value)| other.get(key).is_some_and(|other| same(value, other)))
        }
        _ => one == other,
    }
}

#[test]
fn the_chart_carries_the_generated_definitions() {
    let here = root().join("crds");
    let chart = root().join("charts/runledger/files/crds");
    let names = |dir: &Path| {
        let mut names: Vec<_> = fs::read_dir(dir)
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        names.sort();
        names
    };
    assert_eq!(names(&here), names(&chart));
    for name in names(&here) {
        let (one, other) = (
            fs::read(here.join(&name)).unwrap(),
            fs::read(chart.join(&name)).unwrap(),
        );
        assert!(one == other, "{name:?} differs: make generated");
        let definition = documents(&here.join(&name)).remove(0);
        let name = definition["metadata"]["name"].as_str().unwrap();
        let all = rendered();
        assert!(
            same(
                &named(&all, "CustomResourceDefinition", name)["spec"],
                &definition["spec"]
            ),
            "{name} as rendered differs: make generated"
        );
    }
}

#[test]
fn nobody_has_a_right_to_secrets_but_the_controller_to_the_servers_certificate() {
    let all = rendered();
    let mut rights = Vec::new();
    for role in of_kind(&all, &["Role", "ClusterRole"]) {
        for rule in role["rules"].as_array().unwrap() {
            if strings(&rule["resources"]).contains(&"secrets") {
                rights.push((role["kind"].clone(), role["metadata"]["name"].clone(), rule));
            }
        }
    }
    assert_eq!(rights.len(), 1, "{rights:?}");
    let (kind, name, rule) = &rights[0];
    assert_eq!(
        (kind, name),
        (&json!("Role"), &json!("runledger-controller"))
    );
    assert_eq!(strings(&rule["resourceNames"]), ["runledger-server-tls"]);
    assert_eq!(strings(&rule["verbs"]), ["get", "update"]);
}

#[test]
fn no_role_has_a_wildcard_or_lets_its_holder_gain_rights() {
    for role in of_kind(&rendered(), &["Role", "ClusterRole"]) {
        for rule in role["rules"].as_array().unwrap() {
            for list in ["apiGroups", "resources", "verbs"] {
                for word in strings(&rule[list]) {
                    assert!(
                        !word.contains('*') && !["bind", "escalate", "impersonate"].contains(&word),
                        "{role}"
                    );
                    assert!(
                        ![
                            "configmaps",
                            "pods/exec",
                            "pods/ephemeralcontainers",
                            "serviceaccounts/token",
                            "nodes/proxy",
                        ]
                        .contains(&word),
                        "{role}"
                    );
                }
            }
        }
    }
}

#[test]
fn the_server_may_review_tokens_read_runs_make_events_and_nothing_else() {
    let all = rendered();
    assert_eq!(
        named(&all, "ClusterRole", "runledger-server")["rules"],
        json!([
            {"apiGroups": ["authentication.k8s.io"], "resources": ["tokenreviews"], "verbs": ["create"]},
            {"apiGroups": ["runledger.dev"], "resources": ["workflowruns"], "verbs": ["get"]},
            {"apiGroups": ["events.k8s.io"], "resources": ["events"], "verbs": ["create"]},
        ])
    );
    for binding in of_kind(&all, &["RoleBinding", "ClusterRoleBinding"]) {
        let bound = binding["subjects"][0]["name"] == "runledger-server";
        assert_eq!(bound, binding["metadata"]["name"] == "runledger-server");
    }
}

#[test]
fn every_pod_is_restricted_and_has_a_read_only_root() {
    let all = rendered();
    assert!(pods(&all).len() >= 5);
    for (name, pod) in pods(&all) {
        let spec = &pod["spec"];
        assert_eq!(spec["securityContext"]["runAsNonRoot"], true, "{name}");
        assert_eq!(
            spec["securityContext"]["seccompProfile"]["type"], "RuntimeDefault",
            "{name}"
        );
        for flag in ["hostNetwork", "hostPID", "hostIPC", "initContainers"] {
            assert!(spec[flag].is_null(), "{name}: {flag}");
        }
        for container in spec["containers"].as_array().unwrap() {
            assert_eq!(
                container["securityContext"],
                json!({
                    "allowPrivilegeEscalation": false,
                    "readOnlyRootFilesystem": true,
                    "capabilities": {"drop": ["ALL"]},
                }),
                "{name}"
            );
            assert!(
                container["resources"]["limits"]["memory"].is_string(),
                "{name}"
            );
        }
        for volume in spec["volumes"].as_array().into_iter().flatten() {
            assert!(volume["hostPath"].is_null(), "{name}");
        }
    }
}

#[test]
fn the_database_reaches_only_those_who_need_it_and_never_an_argument() {
    let all = rendered();
    let with_database: Vec<_> = pods(&all)
        .into_iter()
        .filter(|(_, pod)| pod.to_string().contains("runledger-database"))
        .map(|(name, _)| name)
        .collect();
    assert_eq!(
        with_database,
        [
            "runledger-controller",
            "runledger-server",
            "runledger-prune",
            "runledger-migrate"
        ]
    );
    for (name, pod) in pods(&all) {
        for env in pod["spec"]["containers"][0]["env"]
            .as_array()
            .into_iter()
            .flatten()
        {
            if env["name"] == "DATABASE_URL" {
                assert!(env["value"].is_null(), "{name}");
                assert_eq!(env["valueFrom"]["secretKeyRef"]["key"], "uri", "{name}");
            }
        }
    }
}

#[test]
fn who_does_not_ask_the_api_server_has_no_token_for_it() {
    let all = rendered();
    for (name, pod) in pods(&all) {
        let account = &pod["spec"]["serviceAccountName"];
        if ["runledger-migrate", "runledger-prune"].contains(&name.as_str()) {
            assert!(account.is_null());
            assert_eq!(pod["spec"]["automountServiceAccountToken"], false);
        } else {
            assert_eq!(account, &json!(name));
        }
    }
}

#[test]
fn what_is_pruned_is_what_was_named_an_age_for_and_by_one_at_a_time() {
    let all = rendered();
    let spec = &named(&all, "CronJob", "runledger-prune")["spec"];
    assert_eq!(spec["concurrencyPolicy"], "Forbid");
    assert_eq!(
        spec["jobTemplate"]["spec"]["template"]["spec"]["containers"][0]["args"],
        json!([
            "prune",
            "--events=30",
            "--patches=90",
            "--messages=180",
            "--runs=365",
            "--sessions=365",
            "--audit=730"
        ])
    );
    let values = documents(&root().join("charts/runledger/values.yaml")).remove(0);
    let ages = values["prune"]["keepDays"].as_object().unwrap();
    assert!(ages.values().all(Value::is_null), "nothing unless asked");
}

#[test]
fn the_certificate_is_not_the_charts_to_write() {
    let all = rendered();
    let secrets = of_kind(&all, &["Secret"]);
    assert_eq!(secrets.len(), 1);
    assert_eq!(secrets[0]["metadata"]["name"], "runledger-server-tls");
    assert!(secrets[0]["data"].is_null() && secrets[0]["stringData"].is_null());
    assert_eq!(
        secrets[0]["type"], "Opaque",
        "a Secret of type kubernetes.io/tls can't be empty"
    );
}

#[test]
fn runs_are_given_the_controllers_finalizer_once_it_binds_the_policy_and_an_uninstall_may_end_that()
{
    let all = rendered();
    let name = names::ADMISSION_POLICY;
    let policy = &named(&all, "MutatingAdmissionPolicy", name)["spec"];
    // For some seconds after an install, the API server would refuse each run.
    assert!(of_kind(&all, &["MutatingAdmissionPolicyBinding"]).is_empty());
    let pods = pods(&all);
    let controller = pods.iter().find(|(pod, _)| pod == "runledger-controller");
    let args = strings(&controller.unwrap().1["spec"]["containers"][0]["args"]);
    assert!(args.contains(&"--admission-policy=v1beta1"), "{args:?}");
    let matched = &policy["matchConstraints"]["resourceRules"];
    assert_eq!(matched.as_array().unwrap().len(), 1);
    assert_eq!(matched[0]["apiGroups"], json!([names::GROUP]));
    assert_eq!(matched[0]["resources"], json!(["workflowruns"]));
    assert_eq!(matched[0]["operations"], json!(["CREATE"]));
    assert_eq!(
        policy["failurePolicy"], "Ignore",
        "the controller does it too"
    );
    let expression = &policy["mutations"][0]["jsonPatch"]["expression"];
    let literals = expression.as_str().unwrap().split('"').skip(1).step_by(2);
    let finalizers: Vec<_> = literals
        .filter(|text| text.starts_with(names::GROUP))
        .collect();
    assert_eq!(finalizers, [names::finalizers::RUN; 3]);
    for (role, verbs) in [
        ("runledger-controller", json!(["get", "create", "patch"])),
        ("runledger-uninstall", json!(["delete"])),
    ] {
        let rules = &named(&all, "ClusterRole", role)["rules"];
        let of_bindings: Vec<_> = rules
            .as_array()
            .unwrap()
            .iter()
            .filter(|rule| rule["resources"] == json!(["mutatingadmissionpolicybindings"]))
            .collect();
        assert_eq!(of_bindings.len(), 1, "{role}");
        assert_eq!(of_bindings[0]["resourceNames"], json!([name]), "{role}");
        assert_eq!(of_bindings[0]["verbs"], verbs, "{role}");
    }
}

#[test]
fn an_uninstall_sees_whether_the_controllers_pods_are_gone() {
    let all = rendered();
    let wanted = names::CONTROLLER_PODS
        .split(',')
        .map(|label| label.split_once('=').unwrap());
    let wanted: Vec<(&str, &str)> = wanted.collect();
    for (name, template) in pods(&all) {
        let labels = &template["metadata"]["labels"];
        let is_meant = wanted.iter().all(|(key, value)| labels[*key] == **value);
        assert_eq!(is_meant, name == "runledger-controller", "{name}");
    }
    let role = named(&all, "ClusterRole", "runledger-uninstall");
    let may_list = |rule: &Value| {
        strings(&rule["resources"]).contains(&"pods") && strings(&rule["verbs"]).contains(&"list")
    };
    assert!(role["rules"].as_array().unwrap().iter().any(may_list));
}

#[test]
fn each_pod_has_a_network_policy_of_its_own() {
    let all = rendered();
    for (name, pod) in pods(&all) {
        let labels: BTreeMap<String, Value> =
            serde_json::from_value(pod["metadata"]["labels"].clone()).unwrap();
        let policies = of_kind(&all, &["NetworkPolicy"])
            .into_iter()
            .filter(|policy| {
                policy["spec"]["podSelector"]["matchLabels"]
                    .as_object()
                    .unwrap()
                    .iter()
                    .all(|(key, value)| labels.get(key) == Some(value))
            })
            .map(|policy| policy["metadata"]["name"].as_str().unwrap())
            .collect::<Vec<_>>();
        assert_eq!(policies, [name]);
    }
}

#[test]
fn port_53_is_open_to_the_clusters_dns_and_to_nobody_else() {
    let all = rendered();
    let policies = of_kind(&all, &["NetworkPolicy"]);
    assert!(policies.len() >= 5);
    for policy in policies {
        let rules = policy["spec"]["egress"].as_array().unwrap();
        let mut to_dns = rules.iter().filter(|rule| {
            let ports = rule["ports"].as_array().unwrap();
            ports.iter().any(|port| port["port"] == 53)
        });
        let rule = to_dns.next().unwrap();
        assert!(to_dns.next().is_none());
        assert_eq!(
            rule["to"],
            json!([{
                "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kube-system"}},
                "podSelector": {"matchLabels": {"k8s-app": "kube-dns"}},
            }]),
            "{}",
            policy["metadata"]["name"]
        );
    }
}

#[test]
fn a_runs_pod_reaches_dns_the_server_and_what_is_far_away() {
    let all = rendered();
    let spec = &named(&all, "NetworkPolicy", "runledger-runs")["spec"];
    assert_eq!(
        spec["podSelector"]["matchLabels"],
        json!({"app.kubernetes.io/managed-by": "runledger"})
    );
    assert_eq!(spec["policyTypes"], json!(["Ingress", "Egress"]));
    assert_eq!(spec["ingress"], json!([]));
    let egress = spec["egress"].as_array().unwrap();
    for rule in egress {
        assert!(rule["to"].is_array() && rule["ports"].is_array(), "{rule}");
        for to in rule["to"].as_array().unwrap() {
            if to["ipBlock"]["cidr"] == "0.0.0.0/0" {
                let except = strings(&to["ipBlock"]["except"]);
                for near in [
                    "169.254.0.0/16",
                    "10.0.0.0/8",
                    "172.16.0.0/12",
                    "192.168.0.0/16",
                ] {
                    assert!(except.contains(&near), "{near} is not excepted");
                }
            }
        }
    }
    let ports: Vec<Vec<i64>> = egress
        .iter()
        .map(|rule| {
            rule["ports"]
                .as_array()
                .unwrap()
                .iter()
                .map(|port| port["port"].as_i64().unwrap())
                .collect()
        })
        .collect();
    assert_eq!(ports, [vec![53, 53], vec![8443], vec![443], vec![3000]]);
}

#[test]
fn the_controllers_requests_are_served_as_those_of_kubernetes_own() {
    let all = rendered();
    let spec = &named(&all, "FlowSchema", "runledger-controller")["spec"];
    assert_eq!(spec["priorityLevelConfiguration"]["name"], "workload-high");
    let subjects = &spec["rules"][0]["subjects"];
    assert_eq!(
        subjects,
        &json!([{"kind": "ServiceAccount", "serviceAccount": {
            "name": "runledger-controller", "namespace": "runledger-system",
        }}])
    );
    // That of all service accounts is asked at 9000, and the first that fits counts.
    assert!(spec["matchingPrecedence"].as_i64().unwrap() < 9000);
}

#[test]
fn every_value_is_described_and_used() {
    let values = documents(&root().join("charts/runledger/values.yaml")).remove(0);
    let schema: Value = serde_json::from_str(
        &fs::read_to_string(root().join("charts/runledger/values.schema.json")).unwrap(),
    )
    .unwrap();
    let mut templates = String::new();
    for entry in fs::read_dir(root().join("charts/runledger/templates")).unwrap() {
        templates.push_str(&fs::read_to_string(entry.unwrap().path()).unwrap());
    }
    let mut stack = vec![(Vec::<String>::new(), &values, &schema)];
    while let Some((path, value, schema)) = stack.pop() {
        let described = schema["properties"].as_object();
        match (value.as_object(), described) {
            (Some(object), Some(described)) => {
                assert_eq!(schema["additionalProperties"], false, "{path:?}");
                for (key, value) in object {
                    let schema = described
                        .get(key)
                        .unwrap_or_else(|| panic!("{path:?}: {key} is not in the schema"));
                    let mut path = path.clone();
                    path.push(key.clone());
                    stack.push((path, value, schema));
                }
            }
            _ => {
                let name = format!(".{}", path.last().unwrap());
                assert!(templates.contains(&name), "{path:?} does nothing");
            }
        }
    }
}
