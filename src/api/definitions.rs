//! The CustomResourceDefinitions: generated from the Rust types, and trimmed to what the API server
//! knows how to read. `runledger crds` prints them; `crds/` holds what it printed.

use std::io::Write as _;
use std::path::PathBuf;

use kube::CustomResourceExt as _;
use serde_json::{Map, Value, json};

use super::{WorkflowRun, Workspace};

/// `runledger crds`: prints the CustomResourceDefinitions.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Write one file per definition into this directory, instead of printing them.
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
}

/// What can go wrong in printing them.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A definition does not serialize.
    #[error("cannot write a definition as JSON")]
    Json(#[from] serde_json::Error),
    /// A definition does not serialize.
    #[error("cannot write a definition as YAML")]
    Yaml(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// A file or stdout does not take it.
    #[error("cannot write {path}")]
    Write {
        /// Where to.
        path: String,
        /// Why not.
        source: std::io::Error,
    },
}

/// Prints or writes the definitions.
pub fn run(args: &Args) -> Result<(), Error> {
    for (file, text) in files()? {
        if let Some(dir) = &args.dir {
            let path = dir.join(file);
            std::fs::write(&path, text).map_err(|source| Error::Write {
                path: path.display().to_string(),
                source,
            })?;
        } else {
            std::io::stdout()
                .write_all(format!("---\n{text}").as_bytes())
                .map_err(|source| Error::Write {
                    path: "the standard output".to_owned(),
                    source,
                })?;
        }
    }
    Ok(())
}

/// File name and YAML text of each definition.
pub fn files() -> Result<Vec<(&'static str, String)>, Error> {
    let mut files = Vec::new();
    for (file, definition) in [
        ("workflowruns.runledger.dev.yaml", WorkflowRun::crd()),
        ("workspaces.runledger.dev.yaml", Workspace::crd()),
    ] {
        let mut value = serde_json::to_value(&definition)?;
        trim(&mut value);
        let text = serde_saphyr::to_string(&value).map_err(|error| Error::Yaml(Box::new(error)))?;
        files.push((file, text));
    }
    Ok(files)
}

fn trim(definition: &mut Value) {
    let Some(versions) = definition
        .pointer_mut("/spec/versions")
        .and_then(Value::as_array_mut)
    else {
        return;
    };
    for version in versions {
        if let Some(schema) = version.pointer_mut("/schema/openAPIV3Schema") {
            readable(schema);
            if let Some(status) = schema.pointer_mut("/properties/status") {
                without_defaults(status);
                status["default"] = unseen();
            }
        }
    }
}

/// An explicit null is the same as nothing (the API server prunes it where null is not allowed),
/// and the API server knows no unsigned formats.
fn readable(schema: &mut Value) {
    each_schema(schema, &mut |schema| {
        schema.remove("nullable");
        let unsigned =
            schema
                .get("format")
                .and_then(Value::as_str)
                .and_then(|format| match format {
                    "uint32" | "uint64" | "uint" => Some("int64"),
                    _ => None,
                });
        if let Some(format) = unsigned {
            schema.insert("format".to_owned(), format.into());
        }
    });
}

/// What the controller has not written is absent, not zero.
fn without_defaults(schema: &mut Value) {
    each_schema(schema, &mut |schema| {
        schema.remove("default");
    });
}

/// The status of what no controller has seen yet. Whoever waits for an object as kstatus does (Flux, Argo
/// CD) sees by the generation that nothing has been said of this one: without a status it would count as
/// done.
fn unseen() -> Value {
    json!({"observedGeneration": -1, "phase": "Pending"})
}

fn each_schema(schema: &mut Value, change: &mut impl FnMut(&mut Map<String, Value>)) {
    let Some(object) = schema.as_object_mut() else {
        return;
    };
    change(object);
    if let Some(properties) = object.get_mut("properties").and_then(Value::as_object_mut) {
        for property in properties.values_mut() {
            each_schema(property, change);
        }
    }
    for inner in ["items", "additionalProperties"] {
        if let Some(inner) = object.get_mut(inner) {
            each_schema(inner, change);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests {
    use super::*;

    #[test]
    fn the_files_in_crds_are_what_the_types_generate() {
        for (file, text) in files().unwrap() {
            let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
                .join("crds")
                .join(file);
            let there = std::fs::read_to_string(&path).unwrap_or_default();
            assert!(
                there == text,
                "crds/{file} is out of date: runledger crds --dir crds"
            );
        }
    }

    #[test]
    fn every_rule_has_a_message_that_names_its_field() {
        for (file, text) in files().unwrap() {
            let definition: Value = serde_saphyr::from_str(&text).unwrap();
            let mut rules = 0;
            let mut stack = vec![&definition];
            while let Some(value) = stack.pop() {
                if let Some(list) = value
                    .get("x-kubernetes-validations")
                    .and_then(Value::as_array)
                {
                    for rule in list {
                        let message = rule["message"].as_str().unwrap();
                        assert!(message.starts_with("spec."), "{file}: {message}");
                        rules += 1;
                    }
                }
                match value {
                    Value::Object(object) => stack.extend(object.values()),
                    Value::Array(list) => stack.extend(list),
                    _ => {}
                }
            }
            assert!(rules > 2, "{file} has {rules} rules");
        }
    }

    #[test]
    fn a_workspace_lasts_unless_the_run_says_otherwise() {
        let (_, text) = files().unwrap().into_iter().next().unwrap();
        let definition: Value = serde_saphyr::from_str(&text).unwrap();
        let spec = definition
            .pointer("/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties")
            .unwrap();
        assert_eq!(
            spec.pointer("/workspace/properties/persistent/default"),
            Some(&true.into())
        );
        assert_eq!(
            spec.pointer("/workspace/default/persistent"),
            Some(&true.into())
        );
    }

    #[test]
    fn no_field_is_nullable_and_no_format_unknown() {
        for (file, text) in files().unwrap() {
            assert!(!text.contains("nullable"), "{file}");
            assert!(!text.contains("uint"), "{file}");
        }
    }
}
