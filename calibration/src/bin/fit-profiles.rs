//! Fits the built-in profiles: `fit-profiles MEASURED_FOLDER DATA_FOLDER`.

use psim_calibration::fit::Summary;
use psim_calibration::fit::assemble::{MEASURED, Tables, assemble};
use psim_calibration::fit::relatives;
use std::path::PathBuf;
use std::process::ExitCode;

#[expect(clippy::print_stdout, reason = "a command's result")]
fn print(s: &Summary) {
    println!(
        "{:22} {:30} {:5} in {:.3}/{:.3} held {:.3}/{:.3} core {:.3}/{:.3}  {}",
        s.machine,
        s.table,
        s.points,
        s.median,
        s.p90,
        s.held_median,
        s.held_p90,
        s.core_median,
        s.core_p90,
        s.law
    );
}

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1).map(PathBuf::from);
    let (Some(measured), Some(data)) = (arguments.next(), arguments.next()) else {
        return ExitCode::from(2);
    };
    let tables = Tables::read(&measured).unwrap();
    let mut all: Vec<_> = MEASURED.iter().filter_map(|gpu| assemble(&tables, gpu)).collect();
    relatives::complete(&mut all);
    for a in &mut all {
        relatives::fill_classes(&mut a.profile);
        for s in &a.summaries {
            print(s);
        }
        for n in &a.notes {
            println!("   {n}");
        }
        let text = toml::to_string(&a.profile).unwrap();
        let path = data.join("accelerators").join(format!("{}.toml", a.profile.accelerator));
        std::fs::write(path, text).unwrap();
    }
    ExitCode::SUCCESS
}
