//! The custom resources, as Rust types from which `crds/` is generated. They own the words that
//! users write and read, and what admission can judge; what a spec means is the controller's.

pub mod definitions;
pub mod repository;
mod rules;
pub mod run;
pub mod workspace;

pub use rules::MAX_TASK;
pub use run::{WorkflowRun, WorkflowRunSpec, WorkflowRunStatus};
pub use workspace::{Workspace, WorkspaceSpec, WorkspaceStatus};
