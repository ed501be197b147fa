//! `[speculation]`: where drafts come from, how many, and how often they are right.

use crate::Host;
use crate::failure::Failure;
use crate::inputs::model;
use crate::serving::deployment::Deployed;
use crate::serving::deployment::file::{AcceptanceFile, SpeculationFile};
use psim_models::Model;
use psim_planner::serving::{Drafts, Layout, Speculation};
use psim_sim::serving::speculation::{Acceptance, parse_drafter};

const TABLE: &str = "speculation";
/// Most drafted tokens or candidates of a round.
const MOST: u32 = 512;

/// The speculation of the file, if any.
pub(super) fn read(
    deployed: &Deployed,
    layout: &Layout,
    host: &Host<'_>,
) -> Result<Option<Speculation>, Failure> {
    let found = searched(deployed, layout, host)?;
    match found {
        // One head, one token.
        Some(s @ Speculation { tokens: 0, drafts: Drafts::Heads { .. }, .. }) => {
            Ok(Some(Speculation { tokens: 1, ..s }))
        }
        Some(Speculation { tokens: 0, name, .. }) => {
            let message = format!("speculation `{name}` needs `tokens` of a round");
            let hint = "usual: 4 (draft model, pearl), 3 (prompt-lookup), 32 (tree); `psim plan --speculation` finds it";
            Err(deployed.inside(TABLE, "method", message, hint))
        }
        found => Ok(found),
    }
}

/// The same for a search: without `tokens` their number is 0, and the search finds it.
pub(super) fn searched(
    deployed: &Deployed,
    layout: &Layout,
    host: &Host<'_>,
) -> Result<Option<Speculation>, Failure> {
    let Some(file) = &deployed.file.speculation else { return Ok(None) };
    let at = |key: &str, message: String, hint: &str| deployed.inside(TABLE, key, message, hint);
    let form = parse_drafter(&file.method).map_err(|m| {
        at("method", m, "draft-model, mtp, eagle, medusa, ppd, pearl, easyspec or prompt-lookup")
    })?;
    if form == "dovetail" {
        let why = "speculation `dovetail` is not built for a deployment: a processor that verifies has no measured prices \
                   (`psim gallery` has its exchange)";
        return Err(at("method", why.to_owned(), "draft-model runs both on the accelerators"));
    }
    no_idle_keys(deployed, file, form)?;
    let tokens = match file.tokens {
        Some(n) if (1..=MOST).contains(&n) => n,
        Some(n) => {
            let message = format!("{n} drafted tokens of a round must lie between 1 and {MOST}");
            return Err(at("tokens", message, "usual: 1 (mtp), 3 to 8 (draft model), 16 to 64 (tree)"));
        }
        None => 0,
    };
    let acceptance = acceptance(deployed, file, form)?;
    let draft = |host: &Host<'_>| -> Result<Box<Model>, Failure> {
        let Some(name) = &file.draft_model else {
            let message = format!("speculation `{}` needs `draft_model`", file.method);
            return Err(at(
                "method",
                message,
                "a preset such as \"llama3.2-1b\", or the path of a config.json",
            ));
        };
        Ok(Box::new(model::load(host, name)?))
    };
    let drafts = match form {
        "draft-model" => Drafts::Model(draft(host)?),
        "pearl" => Drafts::Parallel { model: draft(host)?, tp: file.draft_tp.unwrap_or(1).max(1) },
        "easyspec" => Drafts::LayerParallel {
            model: draft(host)?,
            group: file.group.unwrap_or(layout.deployment().tp).max(1),
        },
        "heads" => Drafts::Heads { layers: file.layers.unwrap_or(1).max(1) },
        "tree" => {
            let Some(chances) = file.tree() else {
                let message = format!("speculation `{}` needs `chances` of its candidates", file.method);
                return Err(at("method", message, "by depth and rank: chances = [[0.6, 0.2], [0.5, 0.2]]"));
            };
            if let Some(fault) = chances.fault() {
                return Err(at("chances", fault, "each row sums to at most 1"));
            }
            Drafts::Tree(chances)
        }
        _ => Drafts::Copy,
    };
    Ok(Some(Speculation { name: file.method.clone(), drafts, tokens, acceptance }))
}

/// Refuses what the method would not use.
fn no_idle_keys(deployed: &Deployed, file: &SpeculationFile, form: &str) -> Result<(), Failure> {
    let models = ["draft-model", "pearl", "easyspec"];
    let keys: [(&str, bool, &[&str]); 6] = [
        ("draft_model", file.draft_model.is_some(), &models),
        ("draft_tp", file.draft_tp.is_some(), &["pearl"]),
        ("group", file.group.is_some(), &["easyspec"]),
        ("layers", file.layers.is_some(), &["heads"]),
        ("chances", file.chances.is_some(), &["tree"]),
        ("acceptance", file.acceptance.is_some(), &["draft-model", "pearl", "easyspec", "heads", "copy"]),
    ];
    match keys.iter().find(|(_, given, users)| *given && !users.contains(&form)) {
        Some((key, ..)) => Err(deployed.inside(
            TABLE,
            key,
            format!("`{key}` means nothing to speculation `{}`", file.method),
            "leave it out",
        )),
        None => Ok(()),
    }
}

fn acceptance(deployed: &Deployed, file: &SpeculationFile, form: &str) -> Result<Acceptance, Failure> {
    let acceptance = match &file.acceptance {
        Some(AcceptanceFile::Rate(rate)) => Acceptance::Rate(*rate),
        Some(AcceptanceFile::Depth(rates)) => Acceptance::Depth(rates.clone()),
        None if form == "tree" => Acceptance::Rate(0.0),
        None => {
            let message = format!("speculation `{}` needs `acceptance`", file.method);
            let hint = "the share of drafts that the target takes, measured on your requests: 0.8, or by depth [0.8, 0.6]";
            return Err(deployed.inside(TABLE, "method", message, hint));
        }
    };
    match acceptance.fault() {
        Some(fault) => Err(deployed.inside(TABLE, "acceptance", fault, "a chance lies between 0 and 1")),
        None => Ok(acceptance),
    }
}
