//! Decoding attention of one layer, tabled by sequences and tokens that each reads.

/// Shortest length of the table, tokens; two lines an octave follow.
const SHORTEST: f64 = 16.0;
/// Lines of lengths: 16 to 2 Mi tokens.
const LENGTHS: usize = 35;
/// Lines of batches: 1, 2, 3, 4, 6, 8, 12 … 8,192.
const BATCHES: usize = 26;

fn batch(line: usize) -> f64 {
    match line {
        0 => 1.0,
        _ if line % 2 == 1 => (1u32 << line.div_ceil(2)) as f64,
        _ => 1.5 * (1u32 << (line / 2)) as f64,
    }
}

/// The last line that is no larger than a batch.
fn batch_line(sequences: u32) -> usize {
    let octave = (31 - sequences.leading_zeros()) as usize;
    let half = usize::from(octave > 0 && sequences >= 3u32 << (octave - 1));
    (2 * octave).saturating_sub(1) + half
}

fn length(line: usize) -> f64 {
    let odd = if line % 2 == 1 { std::f64::consts::SQRT_2 } else { 1.0 };
    (16u64 << (line / 2)) as f64 * odd
}

/// The line at or below a length above the shortest.
fn line_of(each: f64) -> usize {
    let octave = (((each / SHORTEST).to_bits() >> 52) as usize).saturating_sub(1023);
    let line = 2 * octave;
    let next = usize::from(each >= length(line + 1));
    (line + next).min(LENGTHS - 2)
}

/// Seconds of one layer's kernel, rising along both axes.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct DecodeTable {
    seconds: Vec<f64>,
}

impl DecodeTable {
    /// Tables `f(sequences, tokens each)`; what falls along an axis is raised to the value before it.
    pub(super) fn new(f: impl Fn(f64, f64) -> f64) -> Self {
        let mut seconds = vec![0.0; BATCHES * LENGTHS];
        for b in 0..BATCHES {
            for l in 0..LENGTHS {
                let mut value = f(batch(b), length(l));
                if b > 0 {
                    value = value.max(seconds[(b - 1) * LENGTHS + l]);
                }
                if l > 0 {
                    value = value.max(seconds[b * LENGTHS + l - 1]);
                }
                seconds[b * LENGTHS + l] = value;
            }
        }
        Self { seconds }
    }

    /// The line of a batch.
    pub(super) fn row(&self, sequences: u32) -> DecodeRow<'_> {
        let n = f64::from(sequences.max(1));
        let last = BATCHES - 1;
        let line = batch_line(sequences.max(1)).min(last - 1);
        let row = |line: usize| &self.seconds[line * LENGTHS..(line + 1) * LENGTHS];
        let (low, high) = (batch(line), batch(line + 1));
        let (share, scale) = if n > high { (1.0, n / high) } else { ((n - low) / (high - low), 1.0) };
        DecodeRow { low: row(line), high: row(line + 1), share, scale, sequences: n }
    }
}

/// Decoding attention of a batch by the tokens read.
#[derive(Debug, Clone, Copy)]
pub(super) struct DecodeRow<'a> {
    low: &'a [f64],
    high: &'a [f64],
    share: f64,
    scale: f64,
    sequences: f64,
}

impl DecodeRow<'_> {
    /// Tokens read by the batch from which on another line of the table holds.
    pub(super) fn straight_to(&self, context: f64) -> f64 {
        let each = context / self.sequences;
        let next = if each < SHORTEST {
            SHORTEST
        } else if each >= length(LENGTHS - 1) {
            f64::INFINITY
        } else {
            length(line_of(each) + 1)
        };
        next * self.sequences
    }

    /// Seconds of one layer in which the batch reads `context` tokens; on chords between lines, in proportion beyond.
    pub(super) fn seconds(&self, context: f64) -> f64 {
        let each = context / self.sequences;
        let at = |line: usize| self.low[line] + self.share * (self.high[line] - self.low[line]);
        let one = if each <= SHORTEST {
            at(0)
        } else if each >= length(LENGTHS - 1) {
            at(LENGTHS - 1) * each / length(LENGTHS - 1)
        } else {
            let line = line_of(each);
            let (a, b) = (length(line), length(line + 1));
            let share = ((each - a) / (b - a)).clamp(0.0, 1.0);
            at(line) + share * (at(line + 1) - at(line))
        };
        one * self.scale
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_rise() {
        let batches: Vec<f64> = (0..BATCHES).map(batch).collect();
        assert_eq!(batches[..8], [1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0]);
        assert!(batches.windows(2).all(|w| w[0] < w[1]) && batches[BATCHES - 1] == 8192.0, "{batches:?}");
    }

    #[test]
    fn the_line_of_a_batch_is_the_last_below_it() {
        for n in (1..10_000).chain([20_000, u32::MAX]) {
            let slow = (0..BATCHES - 1).rev().find(|l| batch(*l) <= f64::from(n)).unwrap();
            assert_eq!(batch_line(n).min(BATCHES - 2), slow, "{n}");
        }
    }

    #[test]
    fn reads_back_a_linear_function() {
        let table = DecodeTable::new(|n, l| 3e-6 + 1e-9 * n * l);
        for n in [1, 2, 5, 64, 100, 3000, 20_000] {
            for each in [16.0, 100.0, 4097.0, 1e6] {
                let context = f64::from(n) * each;
                let value = table.row(n).seconds(context);
                let exact = 3e-6 + 1e-9 * context;
                assert!((value / exact - 1.0).abs() < 0.05, "{n} {each}: {value} against {exact}");
            }
        }
    }
}
