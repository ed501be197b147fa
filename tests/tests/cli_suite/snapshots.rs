//! Texts that change only on purpose: help, listings of names, errors.

use crate::harness::{directory, psim, psim_in};

#[test]
fn help() {
    insta::assert_snapshot!("help", psim("--help").transcript());
    insta::assert_snapshot!("help_plan", psim("plan --help").transcript());
    insta::assert_snapshot!("help_simulate", psim("simulate --help").transcript());
}

#[test]
fn no_command() {
    let run = psim("");
    assert_eq!(run.code, 2);
    assert!(run.err.contains("Usage"), "{}", run.err);
}

#[test]
fn unknown_command() {
    insta::assert_snapshot!("unknown_command", psim("plann --model 70b").transcript());
}

#[test]
fn unknown_names() {
    insta::assert_snapshot!("unknown_model", psim("plan --model 70bb --cluster h100x64").transcript());
    insta::assert_snapshot!("unknown_cluster", psim("plan --model 70b --cluster h100x46.toml").transcript());
    insta::assert_snapshot!(
        "unknown_stack",
        psim("plan --model 70b --cluster h100x64 --stack megatron").transcript()
    );
}

#[test]
fn a_cluster_file_with_a_typing_error() {
    let files = directory(&[(
        "mine.toml",
        b"schema = 1\n\n[[nodes]]\ncount = 8\nsystem = \"dgx-h100\"\nhost_memory = \"2TB/s\"\n",
    )]);
    insta::assert_snapshot!(
        "cluster_unit",
        psim_in(&files, "plan --model 70b --cluster mine.toml").transcript()
    );
}

#[test]
fn a_plan_file_that_does_not_divide() {
    let plan = b"schema = 1\ntp = 8\npp = 2\ndp = 4\nmicro_batch = 3\nglobal_batch = 512\n";
    let files = directory(&[("plan.toml", plan)]);
    let run = psim_in(&files, "simulate --model 70b --cluster h100x64 --plan plan.toml");
    insta::assert_snapshot!("plan_batch", run.transcript());
}

#[test]
fn a_plan_larger_than_the_cluster() {
    let plan = b"schema = 1\ntp = 8\npp = 8\ndp = 4\nmicro_batch = 1\nglobal_batch = 512\n";
    let files = directory(&[("plan.toml", plan)]);
    let run = psim_in(&files, "simulate --model 70b --cluster h100x64 --plan plan.toml");
    insta::assert_snapshot!("plan_too_large", run.transcript());
}

#[test]
fn cluster_listing() {
    insta::assert_snapshot!("show_clusters", psim("show clusters").transcript());
    insta::assert_snapshot!("show_cluster", psim("show clusters mixed-h100-a100").transcript());
}
