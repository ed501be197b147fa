//! The importers on every real sample, cut off and changed at many places: each is read or refused with a plain
//! sentence, never a panic, and what is read is what the whole file says.

use proptest::prelude::*;
use psim_calibration::import::{ImportError, kineto, nccl, nsys};
use std::path::PathBuf;

/// Real files of a folder, by name.
#[expect(clippy::print_stdout, reason = "a skipped test says so")]
fn samples(folder: &str) -> Vec<(String, Vec<u8>)> {
    let path = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/data")).join(folder);
    let Ok(entries) = std::fs::read_dir(&path) else {
        println!("SKIP: {} is not there, real files are not read", path.display());
        return Vec::new();
    };
    let mut files: Vec<(String, Vec<u8>)> = entries
        .filter_map(|e| {
            let path = e.ok()?.path();
            Some((path.file_name()?.to_string_lossy().into_owned(), std::fs::read(&path).ok()?))
        })
        .collect();
    files.sort();
    files
}

/// A sentence a person can use: names the kind of file or the line, one paragraph, no debug output of a library.
fn plain(error: &ImportError) {
    let text = error.to_string();
    assert!(text.len() > 10 && text.len() < 400 && !text.contains('\n'), "{text}");
    assert!(text.starts_with("not ") || text.starts_with("line "), "{text}");
    assert!(!text.contains("Error(") && !text.contains("Some("), "{text}");
}

/// Places to cut a file of this length: every line's neighbourhood would be too many for large ones.
fn cuts(len: usize, most: usize) -> impl Iterator<Item = usize> {
    (0..len).step_by(len.div_ceil(most).max(1)).chain(len.saturating_sub(3)..len)
}

#[test]
fn every_nccl_log() {
    for (name, bytes) in samples("nccl") {
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let whole = nccl::parse(&text);
        match &whole {
            Ok(log) => println!("{name}: {} rows, {:?}", log.rows.len(), log.operation),
            Err(error) => {
                plain(error);
                println!("{name}: refused: {error}");
            }
        }
        for cut in cuts(text.len(), 400).filter(|&c| text.is_char_boundary(c)) {
            match nccl::parse(&text[..cut]) {
                Err(error) => plain(&error),
                Ok(part) => {
                    let Ok(whole) = &whole else { continue };
                    for row in &part.rows {
                        // The last row may have lost its second measurement, nothing else.
                        let same =
                            |w: &nccl::Row| w == row || nccl::Row { in_place: None, ..w.clone() } == *row;
                        assert!(whole.rows.iter().any(same), "{name} cut at {cut}: {row:?}");
                    }
                }
            }
        }
    }
}

#[test]
fn every_kineto_trace() {
    for (name, bytes) in samples("kineto") {
        match kineto::parse(&bytes) {
            Ok(trace) => {
                let parts = trace.compute_us + trace.exposed_communication_us + trace.idle_us;
                assert!((parts - trace.span_us).abs() <= 1e-6 * trace.span_us.max(1.0), "{name}");
                assert!(trace.kernels.iter().all(|k| k.count > 0 && k.total_us >= 0.0), "{name}");
                println!("{name}: {} kinds of kernels, {:.0} us", trace.kernels.len(), trace.span_us);
            }
            Err(error) => {
                plain(&error);
                println!("{name}: refused: {error}");
            }
        }
        // A part of a file is never taken for a trace, packed or not.
        for cut in cuts(bytes.len(), 40).filter(|&c| c < bytes.len()) {
            plain(&kineto::parse(&bytes[..cut]).unwrap_err());
        }
        let text = psim_calibration::import::unpack(&bytes).unwrap();
        if text.len() < 1 << 20 {
            for cut in cuts(text.trim_ascii_end().len(), 40) {
                plain(&kineto::parse(&text[..cut]).unwrap_err());
            }
        }
    }
}

/// A log as nccl-tests prints it.
fn log(rows: &[(u64, f64)]) -> String {
    let mut text =
        String::from("# nThread 1 nGpus 1\n#  Rank  0 Group  0 Pid 7 on host device  0 [0x01] NVIDIA H100\n");
    text.push_str("# all_reduce_perf\n");
    for (bytes, us) in rows {
        let rate = *bytes as f64 / us / 1e3;
        text.push_str(&format!(
            "{bytes:>12} {:>12} float sum -1 {us:.2} {rate:.2} {rate:.2} 0 {us:.2} {rate:.2} {rate:.2} 0\n",
            bytes / 4
        ));
    }
    text.push_str("# Out of bounds values : 0 OK\n# Avg bus bandwidth    : 1.0\n");
    text
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn a_changed_log_is_read_or_refused(
        rows in prop::collection::vec((3_u32..30, 5.0_f64..1e5), 1..8),
        changes in prop::collection::vec((0_usize..2000, 32_u8..127), 0..6),
    ) {
        let rows: Vec<(u64, f64)> = rows.into_iter().map(|(p, us)| (1 << p, us)).collect();
        let mut bytes = log(&rows).into_bytes();
        prop_assert_eq!(nccl::parse(&log(&rows)).unwrap().rows.len(), rows.len());
        for (at, with) in changes {
            let at = at % bytes.len();
            bytes[at] = with;
        }
        match nccl::parse(&String::from_utf8_lossy(&bytes)) {
            Err(error) => plain(&error),
            Ok(log) => {
                for row in &log.rows {
                    let expected = row.bytes as f64 / row.out_of_place.time_us.max(1e-9) / 1e3;
                    prop_assert!((row.out_of_place.algbw - expected).abs() <= 0.02 * expected + 0.01);
                }
                // What is read can be used or is refused, too.
                if let Err(error) = nccl::curve(&log, None, None) {
                    plain(&error);
                }
            }
        }
    }

    #[test]
    fn a_changed_trace_is_read_or_refused(
        kernels in prop::collection::vec((0.0_f64..1e6, 0.0_f64..1e3), 1..6),
        changes in prop::collection::vec((0_usize..4000, 32_u8..127), 0..5),
    ) {
        let events: Vec<String> = kernels
            .iter()
            .map(|(ts, dur)| {
                format!("{{\"ph\":\"X\",\"cat\":\"kernel\",\"name\":\"gemm\",\"ts\":{ts},\"dur\":{dur},\"args\":{{\"device\":0}}}}")
            })
            .collect();
        let mut bytes = format!("{{\"traceEvents\":[{}]}}", events.join(",")).into_bytes();
        prop_assert!(kineto::parse(&bytes).is_ok());
        for (at, with) in changes {
            let at = at % bytes.len();
            bytes[at] = with;
        }
        if let Err(error) = kineto::parse(&bytes) {
            plain(&error);
        }
    }

    #[test]
    fn anything_at_all_is_refused_or_read(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        if let Err(error) = kineto::parse(&bytes) {
            plain(&error);
        }
        if let Err(error) = nsys::parse(&bytes) {
            plain(&error);
        }
        if let Err(error) = nccl::parse(&String::from_utf8_lossy(&bytes)) {
            plain(&error);
        }
    }
}
