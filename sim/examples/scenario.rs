//! Simulates scenario files that are not in the gallery: `cargo run --example scenario -- FILE…`.
#![expect(clippy::print_stdout, reason = "an example talks")]

fn main() {
    for path in std::env::args().skip(1) {
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        let start = std::time::Instant::now();
        match psim_sim::gallery::from_text(&text) {
            Ok(r) => println!(
                "{path}: simulated {:.4}, derived {}, published {:?} ({:.1} s)",
                r.simulated,
                r.scenario.derived,
                r.scenario.published,
                start.elapsed().as_secs_f64()
            ),
            Err(e) => println!("{path}: {e}"),
        }
    }
}
