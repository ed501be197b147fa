//! The program as a process: exit codes, streams, colours, a reader that goes away.
#![expect(clippy::unwrap_used, reason = "a test fails by panic")]

use std::io::Read;
use std::process::{Command, Output, Stdio};

fn psim() -> Command {
    Command::new(env!("CARGO_BIN_EXE_psim"))
}

fn run(arguments: &[&str]) -> Output {
    psim().args(arguments).output().unwrap()
}

#[test]
fn data_goes_to_stdout_and_talk_to_stderr() {
    let output = run(&["show", "clusters"]);
    assert!(output.status.success());
    assert!(String::from_utf8(output.stdout).unwrap().contains("h100x64"));
    assert!(String::from_utf8(output.stderr).unwrap().contains("Prices are assumptions"));
}

#[test]
fn exit_codes() {
    assert_eq!(run(&["--version"]).status.code(), Some(0));
    assert_eq!(run(&["--help"]).status.code(), Some(0));
    assert_eq!(run(&["plan", "--model", "llama3.1-405b", "--cluster", "h100x8"]).status.code(), Some(1));
    assert_eq!(run(&["plan", "--model", "nonsense", "--cluster", "h100x8"]).status.code(), Some(2));
    assert_eq!(run(&["calibrate"]).status.code(), Some(2));
}

#[test]
fn no_colour_where_nobody_sees_it() {
    let output = run(&["plan", "--model", "nonsense", "--cluster", "h100x8"]);
    assert!(!output.stderr.contains(&0x1b));
    let forced = psim()
        .args(["plan", "--model", "nonsense", "--cluster", "h100x8"])
        .env("CLICOLOR_FORCE", "1")
        .env_remove("NO_COLOR")
        .output()
        .unwrap();
    assert!(forced.stderr.contains(&0x1b));
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let mut child = psim()
        .args(["show", "models", "--json"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    let status = child.wait().unwrap();
    assert!(status.code().is_some_and(|c| c == 0), "{status:?}: {said}");
    assert!(!said.contains("panicked"), "{said}");
}
