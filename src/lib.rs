//! Runledger: a Kubernetes operator that runs the Claude SDK on a task in a pod, on a workspace
//! volume that lasts, and keeps the ledger of it in Postgres. ARCHITECTURE.md is the map.

pub mod admission;
pub mod agent;
pub mod api;
pub mod changes;
pub mod controller;
pub mod delivery;
pub mod git;
pub mod hosts;
pub mod ids;
pub mod ledger;
mod listen;
pub mod names;
pub mod pod;
pub mod report;
pub mod server;
pub mod supervise;
pub mod uninstall;
pub mod wire;
