//! Scenarios of speculation: what a round yields over ordinary decoding, by the source of its drafts.

use super::deployments::Keys;
use crate::serving::published::{in_16_bits, price};
use crate::serving::speculation::{Acceptance, Drafter, TreeChances, parse_drafter, speed_up};
use psim_cost_models::serving::StepCost;

/// Rows of numbers.
fn rows(table: &toml::Table, key: &str) -> Result<Vec<Vec<f64>>, String> {
    let value = table.get(key).cloned().ok_or_else(|| format!("`{key}` is missing"))?;
    value.try_into().map_err(|e| format!("{key}: {e}"))
}

/// Times ordinary decoding that a round is worth; with `figure = "drafting"` times that drafting alone is faster than
/// token by token.
pub(super) fn speculation(table: &toml::Table) -> Result<f64, String> {
    let keys = Keys(table);
    let gpu = keys.text("accelerator")?;
    let engine = keys.text("engine")?;
    let target = price(keys.text("target")?, gpu, in_16_bits(keys.count("tp")?), engine)?;
    let form = parse_drafter(keys.text("drafter")?)?;
    let (sequences, tokens) = (keys.count("sequences")?, keys.count("tokens")?);
    let context = target.reads(sequences, u64::from(keys.count("context")?));
    let draft: Option<StepCost> = match keys.text("draft") {
        Ok(name) => Some(price(name, gpu, in_16_bits(1), engine)?),
        Err(_) => None,
    };
    let model = || draft.as_ref().ok_or("`draft` names no model".to_owned());
    let drafter = match form {
        "draft-model" => Drafter::Model { cost: model()?, tokens, exchange: 0.0 },
        "easyspec" => Drafter::LayerParallel { cost: model()?, tokens, group: keys.count("group")? },
        "heads" => Drafter::Heads { tokens, layers: 1 },
        "copy" => Drafter::Copy { tokens },
        "tree" => {
            let chances = TreeChances { chances: rows(table, "chances")? };
            if let Some(fault) = chances.fault() {
                return Err(fault);
            }
            Drafter::Tree(chances.best_tree(tokens as usize))
        }
        other => return Err(format!("drafts of `{other}` have a scenario kind of their own")),
    };
    if keys.text("figure") == Ok("drafting") {
        let serial = Drafter::Model { cost: model()?, tokens, exchange: 0.0 };
        let mend = model()?.verify(sequences, tokens + 1, &context);
        let own = drafter.draft_seconds(&target, sequences, &context) - mend;
        return Ok(serial.draft_seconds(&target, sequences, &context) / own);
    }
    let acceptance = Acceptance::Rate(keys.number("acceptance").unwrap_or(0.0));
    Ok(speed_up(&target, &drafter, &acceptance, sequences, &context))
}
