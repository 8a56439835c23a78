//! The end-to-end suite: the shipped chart and images on a cluster of the suite's own, with the real
//! CLI in the pods and a scripted model behind the Messages API. Every number is checked against
//! somebody other than who reported it: git, the model's log, the CLI, the API server's audit log.
//!
//! `cargo test --test e2e [-- WORD...]` runs the tests whose names contain one of the words.
//! `RUNLEDGER_E2E_CLUSTER=<name>` keeps that cluster between runs, for working on the suite;
//! `RUNLEDGER_E2E_PARALLEL` says how many tests share it at a time;
//! `RUNLEDGER_E2E_SEED` repeats the random moments of an earlier run.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr,
    missing_docs
)]

mod bad_input;
mod bad_manifests;
mod case;
mod certificate;
mod chaos;
mod check;
mod confined;
mod crowd;
mod dump;
mod ends;
mod failures;
mod git;
mod happy;
mod held;
mod kill;
mod ledger;
mod model;
mod planted;
mod references;
mod restarts;
mod reuse;
mod runner;
mod runs;
mod seal;
mod secrets;
mod servers;
mod sh;
mod stage;
mod uninstall;
mod wait;
mod witness;
mod world;
mod writes;

use runner::{Test, alone, shared};

/// The suite, in order. What stops a part of the product, or looks at all of it, runs alone.
fn suite() -> Vec<Test> {
    vec![
        shared!(happy::a_run_completes_pushes_and_every_figure_agrees_with_its_source),
        shared!(happy::kubectl_get_shows_what_the_run_did),
        shared!(happy::a_run_without_a_repository_completes),
        shared!(happy::a_task_from_a_config_map_is_the_first_message),
        alone!(writes::a_run_on_an_empty_dir_costs_at_most_eight_writes),
        alone!(writes::a_run_with_a_new_workspace_costs_at_most_twelve_writes),
        shared!(secrets::nothing_in_the_agents_reach_holds_a_secret_and_no_door_opens_further),
        shared!(secrets::an_event_for_another_run_is_refused),
        shared!(confined::a_run_in_a_confined_namespace_completes_and_reaches_nothing_else),
        // Early, as it mostly waits.
        shared!(certificate::a_lost_certificate_is_made_anew_and_a_run_in_mid_work_trusts_it),
        shared!(failures::a_model_error_fails_the_run_and_keeps_the_partial_work),
        shared!(failures::the_turn_limit_fails_the_run_and_keeps_the_partial_work),
        shared!(failures::a_crash_of_the_cli_fails_the_run_and_keeps_the_partial_work),
        shared!(failures::out_of_memory_fails_the_run_and_keeps_the_partial_work),
        shared!(ends::a_run_killed_in_mid_work_leaves_its_workspace_to_the_next_of_its_session),
        shared!(ends::a_second_run_of_a_session_goes_on_and_pays_only_for_itself),
        shared!(reuse::a_reset_saves_the_former_runs_work_and_an_event_says_where),
        shared!(ends::a_run_deleted_in_mid_work_is_killed_in_the_ledger),
        shared!(ends::a_run_killed_while_pending_never_gets_a_pod),
        shared!(held::a_run_deleted_in_its_first_moment_is_killed_in_the_ledger),
        shared!(held::a_run_that_is_applied_again_stays_held),
        shared!(seal::a_hung_cli_is_stopped_at_the_time_limit),
        shared!(seal::a_hung_cli_is_stopped_when_its_run_is_deleted),
        shared!(planted::a_planted_git_config_gets_nothing_executed_read_or_sent),
        shared!(bad_input::thirty_bad_manifests_are_refused_with_the_name_of_the_field),
        shared!(references::missing_secrets_are_named_and_the_runs_go_on_when_they_appear),
        shared!(references::a_missing_config_map_is_named_and_the_run_goes_on_when_it_appears),
        shared!(references::a_missing_storage_class_is_named_and_the_run_goes_on_when_it_appears),
        shared!(references::somebody_elses_claim_is_not_touched_and_the_run_goes_on_when_it_is_out_of_the_way),
        shared!(references::an_image_that_cannot_be_pulled_is_named_and_the_run_goes_on_when_it_is_there),
        shared!(references::an_unreachable_repository_is_named_and_the_run_goes_on_when_it_answers),
        shared!(references::a_wrong_password_is_named_and_the_run_goes_on_with_the_right_one),
        shared!(servers::an_unknown_ssh_host_is_named_with_its_fingerprint_and_once_known_the_run_is_pushed),
        shared!(servers::a_repository_that_has_moved_fails_the_run_with_its_new_address),
        shared!(servers::another_ca_fails_the_run_and_names_what_to_set),
        shared!(servers::a_token_that_expires_in_mid_run_is_told_and_with_a_new_one_all_is_delivered),
        shared!(servers::a_repository_of_fifty_thousand_files_is_checked_out_counted_and_pushed),
        shared!(servers::a_fetch_that_takes_its_time_says_how_far_it_is_until_the_run_works),
        shared!(servers::a_git_server_that_is_gone_at_the_push_and_comes_back_gets_the_branch),
        shared!(references::a_pod_without_a_node_is_named_and_the_run_goes_on_when_there_is_room),
        alone!(restarts::no_part_of_the_product_ended_in_all_of_this),
        alone!(bad_input::refused_runs_are_soon_left_alone),
        alone!(held::without_the_policy_a_run_is_held_before_it_has_a_pod_and_costs_no_more),
        alone!(crowd::twenty_runs_at_once_all_complete_with_exact_sums),
        alone!(seal::the_agent_still_runs_when_the_termination_message_is_written),
        alone!(chaos::a_killed_supervisor_goes_on_where_it_was),
        alone!(chaos::killed_controllers_and_servers_lose_and_double_nothing),
        alone!(chaos::a_minute_without_postgres_loses_and_doubles_nothing),
        alone!(restarts::nothing_but_the_kills_restarted_a_part),
        alone!(writes::a_resync_in_which_nothing_changed_writes_nothing),
        alone!(held::without_a_controller_finalizers_come_off_by_hand),
        alone!(uninstall::uninstalling_finishes_with_runs_still_there),
    ]
}

fn main() -> std::process::ExitCode {
    runner::main(suite())
}
