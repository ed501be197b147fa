//! Functions of token counts, tabled once per deployment.

/// Token counts of the table: exact up to 8, then four an octave.
fn grid() -> Vec<u32> {
    let mut out: Vec<u32> = (1..=8).collect();
    let mut octave = 8u32;
    while octave < 65_536 {
        out.extend([octave / 4 * 5, octave / 4 * 6, octave / 4 * 7, octave * 2]);
        octave *= 2;
    }
    out
}

/// A function of token counts, tabled.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Table {
    tokens: Vec<u32>,
    seconds: Vec<f64>,
}

impl Table {
    pub(super) fn new(f: impl Fn(f64) -> f64) -> Self {
        let tokens = grid();
        // A call that would run faster with more tokens is padded to them: times never fall.
        let mut seconds: Vec<f64> = tokens.iter().map(|t| f(f64::from(*t))).collect();
        for i in (0..seconds.len() - 1).rev() {
            seconds[i] = seconds[i].min(seconds[i + 1]);
        }
        Self { tokens, seconds }
    }

    /// Between two points on their chord, which lies above every convex bound that holds at the points; beyond the
    /// last in proportion, which does too.
    pub(super) fn at(&self, tokens: u32) -> f64 {
        if tokens == 0 {
            return 0.0;
        }
        if tokens <= 8 {
            return self.seconds[tokens as usize - 1];
        }
        let last = self.tokens.len() - 1;
        if tokens >= self.tokens[last] {
            return self.seconds[last] * f64::from(tokens) / f64::from(self.tokens[last]);
        }
        // Octave by leading zeros, then the quarter inside it.
        let octave = 31 - tokens.leading_zeros();
        let quarter = (tokens >> (octave - 2)) & 3;
        let i = 7 + 4 * (octave as usize - 3) + quarter as usize;
        let (t0, t1) = (f64::from(self.tokens[i]), f64::from(self.tokens[i + 1]));
        let share = (f64::from(tokens) - t0) / (t1 - t0);
        self.seconds[i] + share * (self.seconds[i + 1] - self.seconds[i])
    }

    /// The sum of tables, each times its factor.
    pub(super) fn sum(parts: &[(&Self, f64)]) -> Self {
        let tokens = grid();
        let at = |i: usize| parts.iter().map(|(table, factor)| table.seconds[i] * factor).sum();
        let seconds = (0..tokens.len()).map(at).collect();
        Self { tokens, seconds }
    }
}
