//! The rules that admission judges a spec by, as CEL: one function per kind of value, so that the
//! same kind is judged alike everywhere. Each message names the field and says what to write.

use kube::core::{Reason, Rule};
use schemars::{Schema, SchemaGenerator, json_schema};

/// Longest `spec.task`, in characters. Four bytes each, it still fits beside the assignment into
/// the 256 KiB that a pod's annotations may take.
pub const MAX_TASK: usize = 50_000;

fn rule(expression: impl Into<String>, message: impl AsRef<str>) -> Rule {
    Rule::new(expression).message(message.as_ref())
}

/// A DNS label: lower-case letters, digits and `-`.
pub(super) fn label(field: &str, what: &str) -> Rule {
    rule(
        "self.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')",
        format!("{field}: write {what}, in lower-case letters, digits and '-'"),
    )
}

/// The name of a Kubernetes object: DNS labels, separated by dots.
pub(super) fn object_name(field: &str, kind: &str) -> Rule {
    rule(
        "self.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?([.][a-z0-9]([-a-z0-9]*[a-z0-9])?)*$')",
        format!(
            "{field}: write the name of a {kind} of this namespace, \
             in lower-case letters, digits, '-' and '.'"
        ),
    )
}

/// As [`object_name`], for objects outside of namespaces.
pub(super) fn cluster_object_name(field: &str, kind: &str) -> Rule {
    rule(
        "self.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?([.][a-z0-9]([-a-z0-9]*[a-z0-9])?)*$')",
        format!("{field}: write the name of a {kind}, in lower-case letters, digits, '-' and '.'"),
    )
}

/// A key of a ConfigMap.
pub(super) fn config_key(field: &str) -> Rule {
    rule(
        "self.matches('^[-._a-zA-Z0-9]+$') && self != '.' && !self.startsWith('..')",
        format!("{field}: write a key of the ConfigMap, in letters, digits, '-', '_' and '.'"),
    )
}

/// Something to do, short enough for an annotation.
pub(super) fn task_is_not_blank() -> Rule {
    rule(
        r"self.matches('\\S')",
        "spec.task: write what the agent is to do; it is empty",
    )
}

/// See [`MAX_TASK`].
pub(super) fn task_is_short() -> Rule {
    rule(
        format!("size(self) <= {MAX_TASK}"),
        format!(
            "spec.task: at most {MAX_TASK} characters; put a longer task into a ConfigMap and use \
             spec.taskFrom"
        ),
    )
}

/// Postgres keeps no NUL.
pub(super) fn task_has_no_nul() -> Rule {
    rule(
        r"!self.contains('\u0000')",
        "spec.task: take out the NUL characters, the ledger can't keep them",
    )
}

/// An http(s) or ssh URL without credentials (ssh's user is none), query, or a path that climbs.
pub(super) fn repository_url() -> Rule {
    rule(
        r"self.matches('^(https?://|ssh://([A-Za-z0-9_][-A-Za-z0-9._]*@)?)([A-Za-z0-9]([-A-Za-z0-9._]*[A-Za-z0-9])?|\\[[0-9a-fA-F:.]+\\])(:[0-9]{1,5})?(/[^\\s\\x00-\\x1f\\x7f?#\\\\]*)?$') && !self.matches('/[.][.]?(/|$)')",
        "spec.repository.url: write an https://, http:// or ssh:// URL without password, query, \
         spaces or '..', e.g. https://git.example.com/team/project.git or \
         ssh://git@git.example.com/team/project.git; credentials go into a Secret that \
         spec.repository.secretName names",
    )
}

/// A name of a branch, a tag or a commit, as `git check-ref-format --branch` would take it.
pub(super) fn branch(field: &str) -> Rule {
    rule(
        r"self.matches('^[^-/.\\s~^:?*\\[\\\\\\x00-\\x1f\\x7f][^\\s~^:?*\\[\\\\\\x00-\\x1f\\x7f]*$') && !self.contains('..') && !self.contains('//') && !self.contains('/.') && !self.contains('@{') && !self.contains('.lock/') && !self.endsWith('.lock') && !self.endsWith('/') && !self.endsWith('.') && self != '@' && !self.startsWith('refs/')",
        format!(
            "{field}: write the name of a branch without refs/heads/, e.g. main or \
             feature/parser; no spaces, '..', leading '-', nor any of ~ ^ : ? * [ \\"
        ),
    )
}

/// Certificates in PEM.
pub(super) fn certificates(field: &str) -> Rule {
    rule(
        "self.contains('-----BEGIN CERTIFICATE-----')",
        format!("{field}: write certificates in PEM, from -----BEGIN CERTIFICATE----- on"),
    )
}

/// What git takes between the signs that it ends names and addresses by, and not only signs that
/// it takes off.
pub(super) fn author(field: &str, what: &str) -> Rule {
    rule(
        r"self.matches('^[^\\x00-\\x1f\\x7f<>]+$') && self.matches('[^\\s.,:;<>\\x22\\x27\\\\]')",
        format!("{field}: write {what} without '<', '>' or line breaks"),
    )
}

/// Branches that others build on are not for an agent to push to, unless somebody says so.
pub(super) fn unprotected() -> Rule {
    rule(
        "!has(self.branch) || !(self.branch.lowerAscii() in ['main', 'master', 'release'] || \
         self.branch.lowerAscii().startsWith('release/')) || \
         (has(self.allowProtected) && self.branch in self.allowProtected)",
        "spec.repository.push.branch: name another branch than main, master or release/…, \
         e.g. runledger/{run}, and merge from there; or name this one in \
         spec.repository.push.allowProtected too",
    )
}

/// A template's placeholders are known.
pub(super) fn placeholders() -> Rule {
    rule(
        "self.matches('^([^{}]|[{](run|uid|namespace|session|workflow)[}])*$')",
        "spec.repository.push.branch: write no other placeholders than {run}, {uid}, {namespace}, \
         {session} and {workflow}",
    )
}

/// A push has somewhere to go.
pub(super) fn push_has_branch() -> Rule {
    rule(
        "!has(self.when) || self.when == 'Never' || has(self.branch)",
        "spec.repository.push.branch: name the branch to push to, or set spec.repository.push.when \
         to Never",
    )
}

/// A size of a volume.
pub(super) fn size(field: &str) -> Rule {
    rule(
        "isQuantity(self) && quantity(self).compareTo(quantity('1Mi')) >= 0 \
         && quantity(self).compareTo(quantity('64Ti')) <= 0",
        format!("{field}: write a size from 1Mi to 64Ti, e.g. 10Gi"),
    )
}

/// A duration that ends.
pub(super) fn timeout() -> Rule {
    rule(
        "self.matches('^([0-9]{1,6}h)?([0-9]{1,6}m)?([0-9]{1,6}s)?$') && self != '' \
         && duration(self) > duration('0s') && duration(self) <= duration('168h')",
        "spec.limits.timeout: write a duration above 0s and up to 168h (seven days), e.g. 45m or \
         2h30m",
    )
}

/// An image reference; what is wrong beyond its letters, the kubelet says.
pub(super) fn image() -> Rule {
    rule(
        "self.matches('^[a-zA-Z0-9][-a-zA-Z0-9._:/@]*$')",
        "spec.agent.image: write an image reference, e.g. registry.example.com/team/agent:1.2",
    )
}

/// A model's name, which can't be taken for an option of the CLI.
pub(super) fn model() -> Rule {
    rule(
        r"self.matches('^[A-Za-z0-9][-A-Za-z0-9._:/@\\[\\]]*$')",
        "spec.agent.model: write a model's name or alias as the CLI takes it, e.g. sonnet",
    )
}

/// Labels and annotations that are ours are not for a run to set.
pub(super) fn foreign_keys(field: &str) -> Rule {
    rule(
        "self.all(key, !key.startsWith('runledger.dev/') && key != 'app.kubernetes.io/managed-by')",
        format!(
            "{field}: leave out runledger.dev/… and app.kubernetes.io/managed-by, Runledger sets them"
        ),
    )
}

/// Exactly one of the two ways to say what is to be done.
pub(super) fn one_task() -> Rule {
    rule(
        "has(self.task) != has(self.taskFrom)",
        "spec.task: write either spec.task or spec.taskFrom, and not both",
    )
}

/// A field of the spec that stays as it was written. On the field itself: a rule of the spec looks all
/// of the spec's fields up for each that it names, with every write of a status. Forbidden, so that the
/// refusal doesn't repeat the value, which may be a task of many pages.
pub(super) fn fixed(field: &str) -> Rule {
    rule(
        "self == oldSelf",
        format!("spec.{field}: a run's spec can't be changed; make a new WorkflowRun"),
    )
    .reason(Reason::FieldValueForbidden)
}

/// Of a field that may be absent: that it is there, or is not, which [`fixed`] can't judge.
pub(super) fn fixed_presence(field: &str) -> Rule {
    rule(
        format!("has(self.{field}) == has(oldSelf.{field})"),
        format!("spec.{field}: a run's spec can't be changed; make a new WorkflowRun"),
    )
    .reason(Reason::FieldValueForbidden)
}

/// Killing is for good.
pub(super) fn one_way() -> Rule {
    rule(
        "oldSelf == 'Running' || self == 'Killed'",
        "spec.desiredState: Killed is for good; make a new WorkflowRun to have the task done",
    )
}

/// A Workspace's volume keeps its class.
pub(super) fn fixed_class() -> Rule {
    rule(
        "has(self.storageClassName) == has(oldSelf.storageClassName) && \
         (!has(self.storageClassName) || self.storageClassName == oldSelf.storageClassName)",
        "spec.storageClassName: a volume can't change its class; make a new Workspace",
    )
}

/// A Workspace's volume keeps its size.
pub(super) fn fixed_size() -> Rule {
    rule(
        "self.size == oldSelf.size",
        "spec.size: a Workspace keeps the size that it was made with; make a new Workspace",
    )
}

/// Requests and limits, bounded so that comparing them has a known cost.
pub(super) fn resources(_: &mut SchemaGenerator) -> Schema {
    let list = json_schema!({
        "type": "object",
        "maxProperties": 16,
        "additionalProperties": {
            "x-kubernetes-int-or-string": true,
            "maxLength": 32,
            "pattern": "^(\\+|-)?(([0-9]+(\\.[0-9]*)?)|(\\.[0-9]+))(([KMGTPE]i)|[numkMGTPE]|([eE](\\+|-)?(([0-9]+(\\.[0-9]*)?)|(\\.[0-9]+))))?$",
            "anyOf": [{"type": "integer"}, {"type": "string"}]
        }
    });
    json_schema!({
        "type": "object",
        "description": "Of the agent's container: `requests` and `limits`.",
        "properties": {"requests": list, "limits": list}
    })
}

/// Labels of nodes, bounded.
pub(super) fn node_selector(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "maxProperties": 32,
        "additionalProperties": {"type": "string", "maxLength": 63}
    })
}

/// Labels, bounded.
pub(super) fn labels(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "maxProperties": 32,
        "additionalProperties": {"type": "string", "maxLength": 63}
    })
}

/// Annotations, bounded.
pub(super) fn annotations(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "maxProperties": 32,
        "additionalProperties": {"type": "string", "maxLength": 1024}
    })
}

/// Tolerations, bounded.
pub(super) fn tolerations(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "maxItems": 32,
        "items": {
            "type": "object",
            "properties": {
                "key": {"type": "string", "maxLength": 317},
                "operator": {"type": "string", "enum": ["Equal", "Exists"]},
                "value": {"type": "string", "maxLength": 63},
                "effect": {"type": "string", "enum": ["NoSchedule", "PreferNoSchedule", "NoExecute"]},
                "tolerationSeconds": {"type": "integer", "format": "int64"}
            }
        }
    })
}

/// Names of Secrets, bounded.
pub(super) fn secret_names(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "maxItems": 16,
        "items": {
            "type": "object",
            "required": ["name"],
            "properties": {"name": {
                "type": "string",
                "maxLength": 253,
                "pattern": "^[a-z0-9]([-a-z0-9]*[a-z0-9])?([.][a-z0-9]([-a-z0-9]*[a-z0-9])?)*$"
            }}
        }
    })
}
