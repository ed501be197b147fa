//! Does the prediction put configurations in the right order, and how much is lost by following it?

use super::row::Row;
use serde::Serialize;
use serde_json::Value;
use std::collections::BTreeMap;

/// Measured differences within this share say nothing about order (the noise of the measurements).
const NOISE: f64 = 0.03;

/// One configuration in a group of comparable ones.
#[derive(Debug, Clone, PartialEq)]
pub struct Candidate {
    /// What is equal in a group: model, machine, batch, sequence length, precision, framework and release.
    pub group: String,
    /// What differs.
    pub configuration: String,
    /// Measured time, any unit that is the same in the group.
    pub measured: f64,
    /// Predicted time.
    pub predicted: f64,
}

/// Score over groups.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct Ranking {
    /// Groups with at least three distinct configurations.
    pub groups: usize,
    /// Kendall's tau, mean over groups.
    pub kendall_tau: Option<f64>,
    /// Regret (measured time of the configuration predicted best over the measured best, less one), mean, percent.
    pub mean_regret: Option<f64>,
    /// The worst group's, percent.
    pub max_regret: Option<f64>,
}

/// One group's score, for reports.
#[derive(Debug, Clone, PartialEq)]
pub struct GroupRanking {
    /// Group key.
    pub group: String,
    /// Distinct configurations.
    pub configurations: usize,
    /// Kendall's tau; `None` if no pair differs by more than the noise.
    pub tau: Option<f64>,
    /// Regret, percent.
    pub regret: f64,
}

/// Group and configuration keys of a training row.
pub fn keys(row: &Row) -> (String, String) {
    let group = [
        of(row, "model", &["name", "layers", "hidden", "heads", "vocab", "experts", "top_k"]),
        of(row, "hardware", &["gpu", "gpus"]),
        of(row, "config", &["global_batch_seqs", "seq_len", "precision", "framework"]),
        release(row),
    ]
    .join("|");
    (group, configuration(row))
}

/// Keys of rows that differ in their global batch alone, and of rows that differ in their layers and heads alone.
pub fn relations(row: &Row) -> (String, String) {
    let model = of(row, "model", &["name", "layers", "hidden", "heads", "vocab", "experts", "top_k"]);
    let machine = of(row, "hardware", &["gpu", "gpus"]);
    let software = of(row, "config", &["seq_len", "precision", "framework"]);
    let source = super::row::source_of(&row.id);
    let peers = [source, &model, &machine, &software, &release(row), &configuration(row)].join("|");
    let layout = ["tp", "pp", "dp", "cp", "ep", "vpp", "micro_batch", "zero", "fsdp", "recompute"];
    let sisters = [source, &machine, &software, &of(row, "config", &layout)].join("|");
    (peers, sisters)
}

/// Values of some keys of a section, one after another.
fn of(row: &Row, section: &str, keys: &[&str]) -> String {
    let field = |key: &str| row.value.get(section).and_then(|s| s.get(key));
    keys.iter().map(|k| text(field(k))).collect::<Vec<_>>().join(",")
}

fn extra(row: &Row, keys: &[&str]) -> String {
    keys.iter().map(|k| text(row.config.extra.get(*k))).collect::<Vec<_>>().join(",")
}

fn text(value: Option<&Value>) -> String {
    value.filter(|v| !v.is_null()).map_or(String::new(), plain)
}

fn release(row: &Row) -> String {
    extra(row, &["container", "release", "date", "variant", "precision_label", "task"])
}

fn configuration(row: &Row) -> String {
    let layout = ["tp", "pp", "dp", "cp", "ep", "etp", "vpp", "micro_batch", "zero", "fsdp", "recompute"];
    [
        of(row, "config", &layout),
        of(row, "config", &["sequence_parallel", "flash_attention", "overlap", "schedule"]),
        extra(row, &["schedule_name", "pp_partition", "method", "position", "cp_comm_type"]),
        extra(row, &["recompute_modules_recipe_head", "layers_per_virtual_stage", "dispatcher", "ddp_impl"]),
        extra(row, &["cross_entropy_fusion", "mtp_layers", "moe_capacity_factor"]),
    ]
    .join("|")
}

/// A value without the difference between `181` and `181.0`.
fn plain(value: &Value) -> String {
    match value {
        Value::String(s) => s.clone(),
        Value::Number(n) => n.as_f64().map_or_else(|| n.to_string(), |f| f.to_string()),
        other => other.to_string(),
    }
}

/// Scores all groups.
pub fn rank(candidates: &[&Candidate]) -> Ranking {
    let groups = groups(candidates);
    let mean =
        |values: &[f64]| (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64);
    let taus: Vec<f64> = groups.iter().filter_map(|g| g.tau).collect();
    let regrets: Vec<f64> = groups.iter().map(|g| g.regret).collect();
    Ranking {
        groups: groups.len(),
        kendall_tau: mean(&taus),
        mean_regret: mean(&regrets),
        max_regret: regrets.iter().copied().reduce(f64::max),
    }
}

/// Scores every group with at least three distinct configurations.
pub fn groups(candidates: &[&Candidate]) -> Vec<GroupRanking> {
    let mut by_group: BTreeMap<&str, Vec<&Candidate>> = BTreeMap::new();
    for candidate in candidates {
        if candidate.measured > 0.0 && candidate.predicted.is_finite() {
            by_group.entry(&candidate.group).or_default().push(candidate);
        }
    }
    let mut results = Vec::new();
    for (group, members) in by_group {
        let mut distinct: Vec<&str> = members.iter().map(|c| c.configuration.as_str()).collect();
        distinct.sort_unstable();
        distinct.dedup();
        if distinct.len() < 3 {
            continue;
        }
        results.push(GroupRanking {
            group: group.to_owned(),
            configurations: distinct.len(),
            tau: tau(&members),
            regret: regret(&members),
        });
    }
    results
}

fn tau(members: &[&Candidate]) -> Option<f64> {
    let (mut score, mut pairs) = (0.0, 0.0);
    for (index, a) in members.iter().enumerate() {
        for b in &members[index + 1..] {
            let smaller = a.measured.min(b.measured);
            if a.configuration == b.configuration || (a.measured - b.measured).abs() <= NOISE * smaller {
                continue;
            }
            pairs += 1.0;
            let order = (a.measured - b.measured).signum() * (a.predicted - b.predicted);
            score += if order > 0.0 {
                1.0
            } else if order < 0.0 {
                -1.0
            } else {
                0.0
            };
        }
    }
    (pairs > 0.0).then_some(score / pairs)
}

/// Percent lost by taking the configuration predicted best. A tie costs its worst member.
fn regret(members: &[&Candidate]) -> f64 {
    let best_predicted = members.iter().map(|c| c.predicted).fold(f64::INFINITY, f64::min);
    let best_measured = members.iter().map(|c| c.measured).fold(f64::INFINITY, f64::min);
    // Repeats of the configuration predicted best: their middle value stands for it.
    let mut chosen: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    for member in members.iter().filter(|c| c.predicted <= best_predicted * (1.0 + 1e-12)) {
        chosen.entry(&member.configuration).or_default().push(member.measured);
    }
    let taken = chosen
        .values()
        .filter_map(|values| super::percentile::percentile(values, 0.5))
        .fold(f64::NEG_INFINITY, f64::max);
    100.0 * (taken / best_measured - 1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(configuration: &str, measured: f64, predicted: f64) -> Candidate {
        Candidate { group: "g".to_owned(), configuration: configuration.to_owned(), measured, predicted }
    }

    #[test]
    fn order_and_regret() {
        let members = [
            candidate("a", 10.0, 9.0),
            candidate("b", 12.0, 8.0),
            candidate("c", 20.0, 21.0),
            candidate("c", 20.2, 21.0),
        ];
        let ranking = rank(&members.iter().collect::<Vec<_>>());
        assert_eq!(ranking.groups, 1);
        // Pairs: ab wrong, ac ac' bc bc' right, cc' equal configuration.
        assert!((ranking.kendall_tau.unwrap() - 3.0 / 5.0).abs() < 1e-12);
        assert!((ranking.mean_regret.unwrap() - 20.0).abs() < 1e-9);
    }

    #[test]
    fn noise_and_small_groups_are_left_out() {
        let near = [candidate("a", 10.0, 9.0), candidate("b", 10.2, 8.0), candidate("c", 10.25, 7.0)];
        let ranking = rank(&near.iter().collect::<Vec<_>>());
        assert_eq!((ranking.groups, ranking.kendall_tau), (1, None));
        assert_eq!(rank(&near[..2].iter().collect::<Vec<_>>()).groups, 0);
    }
}
