//! Tables of what a search found with speculation.

use crate::number::{grouped, three};
use crate::table::Align::{Left, Right};
use crate::table::Table;
use psim_planner::serving::{SpeculativePlan, SpeculativeSplit};
use psim_reports::serving_label;

/// A table of `names` and what speculation gives to each line.
fn table(names: &[&str], lines: impl Iterator<Item = (Vec<String>, [String; 6])>) -> String {
    let columns = ["drafted", "req/s", "without", "tokens a round", "tok/s/user", "GPUs"];
    let heads: Vec<_> =
        names.iter().map(|n| (*n, Left)).chain(columns.into_iter().map(|c| (c, Right))).collect();
    let mut table = Table::new(&heads);
    for (names, figures) in lines {
        table.row(names.into_iter().chain(figures));
    }
    table.render()
}

fn figures(tokens: u32, rates: [f64; 2], round: f64, user: f64, accelerators: u32) -> [String; 6] {
    let [rate, without] = rates.map(three);
    [tokens.to_string(), rate, without, three(round), three(user), grouped(u64::from(accelerators))]
}

/// Layouts with the number of drafted tokens that carries the most.
pub(crate) fn speculative_table(plans: &[SpeculativePlan]) -> String {
    if plans.is_empty() {
        return "no layout keeps the promises with it\n".to_owned();
    }
    let line = |p: &SpeculativePlan| {
        let rates = [p.rate, p.rate_without];
        let figures = figures(p.tokens, rates, p.tokens_per_round, p.tokens_per_s_per_user, p.accelerators);
        (vec![serving_label(&p.deployment)], figures)
    };
    table(&["layout"], plans.iter().map(line))
}

/// Splits into pools with the number of drafted tokens that carries the most.
pub(crate) fn speculative_split_table(plans: &[SpeculativeSplit]) -> String {
    if plans.is_empty() {
        return "no split keeps the promises with it\n".to_owned();
    }
    let line = |p: &SpeculativeSplit| {
        let rates = [p.rate, p.rate_without];
        let figures = figures(p.tokens, rates, p.tokens_per_round, p.tokens_per_s_per_user, p.accelerators);
        (vec![serving_label(&p.prefill), serving_label(&p.decode)], figures)
    };
    table(&["prefill", "decode"], plans.iter().map(line))
}
