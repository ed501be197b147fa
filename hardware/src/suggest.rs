//! "Did you mean": the known name nearest to what somebody typed.

use std::cmp::Reverse;

/// Edit distance, common beginning, difference in length: smaller is nearer.
type Nearness = (usize, Reverse<usize>, usize);

/// The candidate with the smallest edit distance to `name`, if it is near enough to be a slip of the fingers.
pub fn closest<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    nearest(name, candidates).first().copied()
}

/// The candidates that are near enough to `name` to be meant by it, nearest first; equally near ones as they came.
pub fn nearest<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> Vec<&'a str> {
    let typed: Vec<char> = name.to_lowercase().chars().take(64).collect();
    let limit = (typed.len() / 3).max(2);
    let rank = |candidate: &'a str| -> Option<(Nearness, &'a str)> {
        let lower: Vec<char> = candidate.to_lowercase().chars().collect();
        // A name left unfinished is likelier than any slip; among equals a longer common beginning, then similar length.
        let unfinished = lower.starts_with(&typed);
        let distance = if unfinished { 0 } else { edit_distance(&typed, &lower) };
        let common = typed.iter().zip(&lower).take_while(|(a, b)| a == b).count();
        let rank = (distance, Reverse(common), lower.len().abs_diff(typed.len()));
        (!typed.is_empty() && distance <= limit).then_some((rank, candidate))
    };
    let mut ranked: Vec<(Nearness, &str)> = candidates.into_iter().filter_map(rank).collect();
    ranked.sort_by_key(|(rank, _)| *rank);
    ranked.into_iter().map(|(_, candidate)| candidate).collect()
}

/// Insertions, deletions, substitutions and swaps of neighbours (optimal string alignment).
fn edit_distance(a: &[char], b: &[char]) -> usize {
    let mut two_back = vec![0; b.len() + 1];
    let mut previous: Vec<usize> = (0..=b.len()).collect();
    for i in 1..=a.len() {
        let mut current = vec![i; b.len() + 1];
        for j in 1..=b.len() {
            let changed = usize::from(a[i - 1] != b[j - 1]);
            current[j] = (previous[j] + 1).min(current[j - 1] + 1).min(previous[j - 1] + changed);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                current[j] = current[j].min(two_back[j - 2] + 1);
            }
        }
        two_back = std::mem::replace(&mut previous, current);
    }
    previous[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slips_are_recognised_and_strangers_are_not() {
        let known = ["h100", "a100", "mi300x", "gb200-nvl72x8"];
        assert_eq!(closest("h10", known), Some("h100"));
        assert_eq!(closest("mi30x", known), Some("mi300x"));
        assert_eq!(closest("gb200-nlv72x8", known), Some("gb200-nvl72x8"));
        assert_eq!(closest("tpp", ["vpp", "tp"]), Some("tp"));
        assert_eq!(closest("cerebras", known), None);
        assert_eq!(closest("", ["abc", "a"]), None);
        assert_eq!(nearest("h00", ["h200", "h100", "a100"]), ["h200", "h100", "a100"]);
    }
}
