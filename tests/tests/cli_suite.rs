//! The command line, run in-process: exit code, stdout and stderr of every case.

#[path = "cli_suite/bad_inputs.rs"]
mod bad_inputs;
#[path = "cli_suite/harness.rs"]
mod harness;
#[path = "cli_suite/machine.rs"]
mod machine;
#[path = "cli_suite/output.rs"]
mod output;
#[path = "cli_suite/serving.rs"]
mod serving;
#[path = "cli_suite/serving_defects.rs"]
mod serving_defects;
#[path = "cli_suite/serving_files.rs"]
mod serving_files;
#[path = "cli_suite/snapshots.rs"]
mod snapshots;
