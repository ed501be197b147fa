//! Rows of one source whose printed figures cannot all be true.
//!
//! Nothing is dropped for it: scores count every row, and the report says beside them what they are without the rows named
//! here. Three kinds are looked for, each a proof from figures of the source itself:
//!
//! - **More work in no time.** Two runs differ in the global batch alone. The larger one's further micro-batches must take
//!   at least their arithmetic at the datasheet's peak; printed is less, by more than the noise of both times.
//! - **Exchanged columns.** Two rows of one configuration print each other's seconds as TFLOP/s and the other way round.
//! - **Out of memory beside room.** A run of the same layout and micro-batch on the same machine went, with a printed peak
//!   to which twice what the ledger adds can be added without reaching the capacity.

use super::facts::Facts;
use super::score::RowResult;
use std::collections::BTreeMap;

/// Printed times move by this share from run to run.
const NOISE: f64 = 0.03;
/// A run that failed is granted this many times what the ledger adds to a run that went.
const GRANTED: f64 = 2.0;

/// Figures that exclude each other.
#[derive(Debug, Clone, PartialEq)]
pub struct Contradiction {
    /// The rows that print them.
    pub rows: [String; 2],
    /// The proof, one sentence.
    pub text: String,
}

/// Finds all contradictions, in the order of the rows.
pub fn find(rows: &[RowResult]) -> Vec<Contradiction> {
    let mut peers: BTreeMap<&str, Vec<(&RowResult, &Facts)>> = BTreeMap::new();
    let mut sisters: BTreeMap<&str, Vec<(&RowResult, &Facts)>> = BTreeMap::new();
    let strong = rows.iter().filter(|r| !r.weak && !r.doubtful);
    for (row, facts) in strong.filter_map(|r| Some((r, r.facts.as_ref()?))) {
        peers.entry(&facts.peers).or_default().push((row, facts));
        sisters.entry(&facts.sisters).or_default().push((row, facts));
    }
    let mut found = Vec::new();
    for members in peers.values() {
        for (index, a) in members.iter().enumerate() {
            for b in &members[index + 1..] {
                let (small, large) = if a.1.batch <= b.1.batch { (a, b) } else { (b, a) };
                found.extend(more_work_in_no_time(*small, *large).or_else(|| exchanged(*a, *b)));
            }
        }
    }
    for members in sisters.values() {
        for failed in members.iter().filter(|(row, _)| row.ran == Some(false) && row.fits == Some(true)) {
            found.extend(room_beside(*failed, members));
        }
    }
    found
}

fn more_work_in_no_time(small: (&RowResult, &Facts), large: (&RowResult, &Facts)) -> Option<Contradiction> {
    let (Some(short), Some(long)) = (small.1.seconds, large.1.seconds) else { return None };
    let least = large.1.ideal? - small.1.ideal?;
    let more = long - short;
    let noise = NOISE * long.max(short);
    (large.1.batch > small.1.batch && more + noise < least).then(|| Contradiction {
        rows: [small.0.id.clone(), large.0.id.clone()],
        text: format!(
            "{} sequences in {short} s and {} in {long} s: the further {} would have taken {more:.2} s, of which their \
             arithmetic at the datasheet's peak alone is {least:.1} s",
            small.1.batch,
            large.1.batch,
            large.1.batch - small.1.batch
        ),
    })
}

fn exchanged(a: (&RowResult, &Facts), b: (&RowResult, &Facts)) -> Option<Contradiction> {
    let (seconds, tflops) = (a.1.seconds?, a.1.tflops?);
    let same = |x: f64, y: Option<f64>| y.is_some_and(|y| (x - y).abs() < 1e-9);
    let swapped = same(seconds, b.1.tflops) && same(tflops, b.1.seconds) && !same(seconds, Some(tflops));
    (swapped && same(a.1.batch, Some(b.1.batch))).then(|| Contradiction {
        rows: [a.0.id.clone(), b.0.id.clone()],
        text: format!(
            "one configuration, printed as {seconds} s and {tflops} TFLOP/s and as {tflops} s and {seconds} TFLOP/s"
        ),
    })
}

fn room_beside(failed: (&RowResult, &Facts), others: &[(&RowResult, &Facts)]) -> Option<Contradiction> {
    let needed = failed.1.ledger?;
    // The run that is nearest by the ledger says most.
    let went = others.iter().filter(|(row, facts)| row.ran == Some(true) && facts.peak.is_some());
    let distance = |facts: &Facts| facts.ledger.map_or(f64::INFINITY, |l| (needed - l).abs());
    let (row, facts) = went.min_by(|a, b| distance(a.1).total_cmp(&distance(b.1)))?;
    let (peak, more) = (facts.peak?, needed - facts.ledger?);
    let granted = peak + GRANTED * more.max(0.0);
    (granted < failed.1.capacity).then(|| Contradiction {
        rows: [failed.0.id.clone(), row.id.clone()],
        text: format!(
            "the first ran out of {:.0} GiB; the second, alike but for layers and heads, went with a printed peak of {peak} GB. \
             By the ledger the first needs {more:+.1} GiB; even {GRANTED} times that would leave {:.0} GiB free",
            failed.1.capacity,
            failed.1.capacity - granted
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::validate::score::Status;

    fn row(id: &str, ran: bool, facts: Facts) -> RowResult {
        RowResult {
            id: id.to_owned(),
            source: "s".to_owned(),
            weak: false,
            doubtful: false,
            gpu: String::new(),
            mixture: false,
            status: Status::Predicted,
            stack: String::new(),
            entries: Vec::new(),
            scored: None,
            memory: None,
            fits: Some(true),
            ran: Some(ran),
            candidate: None,
            notes: Vec::new(),
            breakdown: Vec::new(),
            doubts: Vec::new(),
            facts: Some(facts),
        }
    }

    fn timed(batch: f64, seconds: f64) -> Facts {
        Facts { batch, seconds: Some(seconds), ideal: Some(batch / 50.0), ..Facts::default() }
    }

    #[test]
    fn more_sequences_need_their_arithmetic() {
        let pair = |seconds: f64| {
            find(&[row("a", true, timed(1500.0, seconds)), row("b", true, timed(2000.0, 100.0))])
        };
        // 500 sequences are 10 s at peak; both times are good to 3 s.
        assert!(pair(92.5).is_empty() && pair(75.0).is_empty());
        let found = pair(98.0);
        assert_eq!((found.len(), &found[0].rows[0][..]), (1, "a"));
    }

    #[test]
    fn columns_are_exchanged_only_where_both_are() {
        let printed = |seconds: f64, tflops: f64| Facts { tflops: Some(tflops), ..timed(8.0, seconds) };
        let pair = |b: Facts| find(&[row("a", true, printed(134.0, 120.0)), row("b", true, b)]).len();
        assert_eq!([pair(printed(120.0, 134.0)), pair(printed(120.0, 135.0))], [1, 0]);
        assert_eq!(pair(printed(134.0, 120.0)), 0);
    }

    #[test]
    fn a_run_out_of_memory_is_doubted_only_with_room_to_spare() {
        let held = |peak: Option<f64>, ledger: f64| Facts {
            peak,
            ledger: Some(ledger),
            capacity: 80.0,
            ..Facts::default()
        };
        let pair = |ledger: f64| {
            find(&[row("out", false, held(None, ledger)), row("ran", true, held(Some(67.0), 64.0))]).len()
        };
        // 67 + 2 · 6 is below the capacity, 67 + 2 · 7 is not.
        assert_eq!([pair(63.0), pair(70.0), pair(71.0)], [1, 1, 0]);
        // Two that ran contradict nobody.
        let both = [row("a", true, held(Some(60.0), 64.0)), row("b", true, held(Some(67.0), 64.0))];
        assert!(find(&both).is_empty());
    }
}
