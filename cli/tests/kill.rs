//! Kill -9 at random moments: a calibration and a closed loop go on where they stopped, nothing that was measured is
//! lost, and no file is ever seen half-written.
#![expect(clippy::unwrap_used, reason = "a test fails by panic")]
#![expect(clippy::print_stdout, reason = "a test says what it saw")]

use psim_hardware::profile::AcceleratorProfile;
use psim_sim::residual::Residuals;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Moments between zero and `most` milliseconds, more of them early.
struct Moments(u64);

impl Moments {
    fn next(&mut self, most: u64) -> Duration {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        let share = (self.0 >> 11) as f64 / (1_u64 << 53) as f64;
        Duration::from_micros((most as f64 * 1e3 * share * share.sqrt()) as u64)
    }
}

fn start(folder: &Path, arguments: &[&str]) -> Child {
    Command::new(env!("CARGO_BIN_EXE_psim"))
        .current_dir(folder)
        .args(arguments)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// The whole lines of a journal.
fn whole_lines(path: &Path) -> Vec<u8> {
    let bytes = std::fs::read(path).unwrap_or_default();
    let end = bytes.iter().rposition(|&b| b == b'\n').map_or(0, |at| at + 1);
    bytes[..end].to_vec()
}

fn finished(lines: &[u8]) -> bool {
    lines.ends_with(b"\"complete\"\n")
}

fn samples(lines: &[u8]) -> usize {
    lines.iter().filter(|&&b| b == b'\n').count()
}

/// Kills `arguments` at `count` random moments, then lets it finish. `journal` finds the journal; `check` reads every
/// file that a reader could see: after each kill, and again and again while the program runs.
fn kill(
    folder: &Path,
    arguments: &[&str],
    count: usize,
    most: u64,
    journal: impl Fn() -> Option<PathBuf>,
    check: impl Fn() + Sync,
) {
    let over = AtomicBool::new(false);
    let reads = std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut reads = 0_u64;
            while !over.load(Ordering::Relaxed) {
                check();
                reads += 1;
                std::thread::sleep(Duration::from_millis(1));
            }
            reads
        });
        // The reader ends whether or not the kills go well.
        let _end = End(&over);
        kill_and_finish(folder, arguments, count, most, journal, &check);
        over.store(true, Ordering::Relaxed);
        reader.join().unwrap()
    });
    println!("read {reads} times meanwhile, always whole");
}

/// Tells the reader to end.
struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn kill_and_finish(
    folder: &Path,
    arguments: &[&str],
    count: usize,
    most: u64,
    journal: impl Fn() -> Option<PathBuf>,
    check: impl Fn(),
) {
    let begin = Instant::now();
    let seed = seed();
    let mut moments = Moments(seed);
    let mut before: Vec<u8> = Vec::new();
    let (mut killed, mut ran_out) = (0, 0);
    let mut most = most;
    while killed < count {
        let mut child = start(folder, arguments);
        let (started, moment) = (Instant::now(), moments.next(most));
        while child.try_wait().unwrap().is_none() && started.elapsed() < moment {
            std::thread::sleep(Duration::from_millis(2).min(moment.saturating_sub(started.elapsed())));
        }
        let waited = started.elapsed();
        let _ = child.kill();
        let status = child.wait().unwrap();
        check();
        let now = journal().map(|path| whole_lines(&path)).unwrap_or_default();
        if finished(&before) {
            // A finished journal is set aside by the next run, or is still there.
            before.clear();
        }
        assert!(now.starts_with(&before), "lost: {} lines before, {} after", samples(&before), samples(&now));
        before = now;
        if status.success() {
            // On a fast machine a whole run is shorter: later moments lie within one.
            most = most.min(waited.as_millis() as u64).max(20);
            ran_out += 1;
            assert!(ran_out < 50, "it ends before it can be killed");
        } else {
            killed += 1;
        }
    }
    let output = start(folder, arguments).wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    check();
    let last = whole_lines(&journal().unwrap());
    assert!(finished(&last));
    if !finished(&before) {
        assert!(last.starts_with(&before), "the last run lost samples");
    }
    println!(
        "seed {seed:#x}: {killed} kills in {:.0} s ({ran_out} runs ended by themselves), {} lines in the journal",
        begin.elapsed().as_secs_f64(),
        samples(&last)
    );
}

fn calibration(count: usize) {
    let folder = tempfile::tempdir().unwrap();
    let profile = folder.path().join("cpu.toml");
    let arguments = ["calibrate", "--device", "cpu", "--out", "cpu.toml", "--minutes", "0.06"];
    kill(
        folder.path(),
        &arguments,
        count,
        700,
        || Some(folder.path().join("cpu.toml.samples.jsonl")),
        || {
            if let Ok(text) = std::fs::read_to_string(&profile) {
                toml::from_str::<AcceleratorProfile>(&text).unwrap();
            }
            if let Ok(text) = std::fs::read_to_string(folder.path().join("cpu.cluster.toml")) {
                psim_hardware::schema::parse_cluster("cpu.cluster.toml", &text).unwrap();
            }
        },
    );
    let text = std::fs::read_to_string(&profile).unwrap();
    assert!(toml::from_str::<AcceleratorProfile>(&text).unwrap().machine.is_some());
}

/// Files of a closed loop on this machine's processor.
struct Loop {
    folder: tempfile::TempDir,
}

impl Loop {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let arguments =
            ["calibrate", "--device", "cpu", "--out", "cpu.toml", "--minutes", "0.06", "--ranks", "2"];
        assert!(start(folder.path(), &arguments).wait_with_output().unwrap().status.success());
        Self { folder }
    }

    /// Kills a loop with these arguments again and again; what it has learned in the end.
    fn kill(&self, count: usize, more: &[&str]) -> Residuals {
        let folder = self.folder.path();
        let residuals = folder.join("r.toml");
        let journal = || {
            let entries = std::fs::read_dir(folder).ok()?;
            entries.filter_map(|e| Some(e.ok()?.path())).find(|p| p.to_string_lossy().ends_with(".journal"))
        };
        let example = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/tiny-gpt");
        let arguments =
            ["plan", "--model", example, "--cluster", "cpu.cluster.toml", "--profile", "cpu.toml"];
        let arguments =
            [&arguments[..], &["--execute-top", "3", "--steps", "2", "--residuals", "r.toml"], more].concat();
        let read = || {
            let text = std::fs::read_to_string(&residuals).ok()?;
            Some(toml::from_str::<Residuals>(&text).unwrap())
        };
        kill(folder, &arguments, count, 2500, journal, || drop(read()));
        read().unwrap()
    }
}

fn closed_loop(count: usize) {
    let residuals = Loop::new().kill(count, &["--global-batch", "8", "--tokens", "1M"]);
    // More where a loop ended by itself and the next one, having learned, chose other plans.
    assert!(residuals.observations.len() >= 3);
}

const TRAFFIC: &str = r#"schema = 1
name = "tiny"

[[tenant]]
name = "all"
arrival = "poisson"
rate = 100.0
requests = 12
input = 16
output = 6
slo = "ttft<2s@p90"
"#;

fn serving_loop(count: usize) {
    let files = Loop::new();
    std::fs::write(files.folder.path().join("traffic.toml"), TRAFFIC).unwrap();
    let residuals = files.kill(count, &["--workload", "traffic.toml"]);
    assert!(residuals.serving.len() >= 3 && residuals.observations.is_empty());
}

/// Kills of each test: as many as it asks for, or `PSIM_KILLS`.
fn kills(usual: usize) -> usize {
    std::env::var("PSIM_KILLS").ok().and_then(|text| text.parse().ok()).unwrap_or(usual)
}

/// Seed of the moments: `PSIM_KILL_SEED`, or a fixed one.
fn seed() -> u64 {
    let given = std::env::var("PSIM_KILL_SEED").ok().and_then(|text| text.parse().ok());
    given.unwrap_or(0x9E37_79B9_7F4A_7C15_u64) | 1
}

#[test]
fn a_killed_calibration_goes_on() {
    calibration(kills(50));
}

#[test]
fn a_killed_closed_loop_goes_on() {
    closed_loop(kills(50));
}

#[test]
fn a_killed_serving_loop_goes_on() {
    serving_loop(kills(15));
}
