//! One step's work: tokens with their places in the sequence and in the cache.

/// Tokens of a step. Tokens of one sequence stand together, in order.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Batch {
    /// Token ids.
    pub tokens: Vec<u32>,
    /// Position of each token in its sequence.
    pub positions: Vec<u32>,
    /// Cached tokens that each token sees, itself included.
    pub lengths: Vec<u32>,
    /// Place in the cache where each token's keys and values go: page · tokens per page + offset.
    pub slots: Vec<u32>,
    /// Pages of each token's sequence, `columns` per token (unused columns are 0).
    pub tables: Vec<u32>,
    /// Columns of `tables`.
    pub columns: usize,
    /// Rows whose scores give a new token, and the sequences that they belong to.
    pub samples: Vec<(u32, u32)>,
    /// Of the tokens: those of decoding sequences.
    pub decode: usize,
}

impl Batch {
    /// Nothing to compute.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// Places in the cache of the first `context` tokens of the sequence that `row` belongs to.
    pub(super) fn places(&self, row: usize, context: usize, page: usize) -> Vec<u32> {
        let pages = &self.tables[row * self.columns..][..self.columns];
        (0..context).map(|position| pages[position / page] * page as u32 + (position % page) as u32).collect()
    }

    /// Sequences that get a token, in the order of the samples.
    pub fn sampled(&self) -> impl Iterator<Item = usize> + '_ {
        self.samples.iter().map(|s| s.1 as usize)
    }

    /// As numbers that a transport carries: all are far below 2^24, where floats are exact.
    pub(super) fn encode(&self) -> Vec<f32> {
        let sizes = [self.tokens.len(), self.columns, self.samples.len(), self.decode];
        let whole = sizes.into_iter().map(|n| n as u32);
        let samples = self.samples.iter().flat_map(|&(row, sequence)| [row, sequence]);
        whole
            .chain(
                [&self.tokens, &self.positions, &self.lengths, &self.slots, &self.tables]
                    .into_iter()
                    .flatten()
                    .copied(),
            )
            .chain(samples)
            .map(|n| n as f32)
            .collect()
    }

    /// The inverse of [`Batch::encode`].
    pub(super) fn decode(letter: &[f32]) -> Self {
        let mut numbers = letter.iter().map(|&n| n as u32);
        let mut size = || numbers.next().unwrap_or(0) as usize;
        let (rows, columns, samples, decode) = (size(), size(), size(), size());
        let mut take = |count: usize| -> Vec<u32> { numbers.by_ref().take(count).collect() };
        let (tokens, positions, lengths, slots) = (take(rows), take(rows), take(rows), take(rows));
        let tables = take(rows * columns);
        let samples = take(2 * samples).chunks_exact(2).map(|s| (s[0], s[1])).collect();
        Self { tokens, positions, lengths, slots, tables, columns, samples, decode }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_survives_the_wire() {
        let batch = Batch {
            tokens: vec![5, 6, 7],
            positions: vec![0, 1, 9],
            lengths: vec![1, 2, 10],
            slots: vec![8, 9, 21],
            tables: vec![2, 0, 2, 0, 5, 6],
            columns: 2,
            samples: vec![(1, 0), (2, 3)],
            decode: 1,
        };
        assert_eq!(Batch::decode(&batch.encode()), batch);
        assert_eq!(Batch::decode(&Batch::default().encode()), Batch::default());
    }
}
