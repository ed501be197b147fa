//! Writes fitted numbers back into the profile files, leaving comments and everything else as they are.

use super::State;
use super::free::{Place, Slot, family};
use crate::validate::Predictor;
use psim_cost_models::ProfileLibrary;
use psim_hardware::profile::sustained::{FabricShare, Sustained};
use std::collections::BTreeMap;
use std::path::Path;

/// New texts of the stack files (by stack name) for the fitted slots; `files` maps names to present texts.
pub fn stacks(files: &BTreeMap<String, String>, slots: &[Slot], state: &State) -> BTreeMap<String, String> {
    let mut texts = files.clone();
    for slot in slots {
        let value = slot.value(state);
        match &slot.place {
            Place::Stack { stack, key } => {
                for member in family(stack) {
                    if let Some(text) = texts.get_mut(member) {
                        *text = set(text, key, &printed(key, value));
                    }
                }
            }
            Place::Release { stack, release, key } => {
                if let Some(text) = texts.get_mut(stack) {
                    *text = set_delta(text, *release, key, value);
                }
            }
            Place::Accelerator { .. } | Place::Fabric { .. } => {}
        }
    }
    for (name, text) in &mut texts {
        if let Some(profile) = state.stacks.get(name) {
            *text = set(text, "residual_sigma", &short(profile.residual_sigma));
        }
    }
    texts
}

/// A library with the stacks and shares of files that [`stacks`] and [`sustained`] wrote.
///
/// # Errors
/// A file that does not parse, with its name.
pub fn read(stacks: &BTreeMap<String, String>, sustained: &str) -> Result<ProfileLibrary, String> {
    #[derive(serde::Deserialize)]
    struct Shares {
        #[serde(default)]
        accelerator: Vec<Sustained>,
        #[serde(default)]
        fabric: Vec<FabricShare>,
    }
    let mut library = ProfileLibrary::built_in();
    for (name, text) in stacks {
        library.add_stack(toml::from_str(text).map_err(|e| format!("{name}: {e}"))?);
    }
    let shares: Shares = toml::from_str(sustained).map_err(|e| format!("sustained.toml: {e}"))?;
    shares.accelerator.into_iter().for_each(|s| library.add_sustained(s));
    shares.fabric.into_iter().for_each(|s| library.add_fabric_share(s));
    Ok(library)
}

/// The profiles in the folder named by `--data` (laid out as `cost-models/data`), the built-in ones without it.
///
/// # Errors
/// A file that cannot be read or does not parse, with its name.
pub fn predictor(arguments: &[String]) -> Result<Predictor, String> {
    let Some(folder) = arguments.iter().position(|a| a == "--data").and_then(|at| arguments.get(at + 1))
    else {
        return Ok(Predictor::built_in());
    };
    let text = |path: &Path| std::fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()));
    let folder = Path::new(folder);
    let mut stacks = BTreeMap::new();
    let entries =
        std::fs::read_dir(folder.join("stacks")).map_err(|e| format!("{}: {e}", folder.display()))?;
    for path in entries.flatten().map(|e| e.path()).filter(|p| p.extension().is_some_and(|e| e == "toml")) {
        stacks.insert(path.display().to_string(), text(&path)?);
    }
    read(&stacks, &text(&folder.join("sustained.toml"))?).map(Predictor::new)
}

/// The text of `sustained.toml`.
pub fn sustained(state: &State) -> String {
    let mut text = String::from(
        "# Sustained over burst rate inside a training step, per accelerator: power limit and clocks.\n\
         # Adjusted on published end-to-end measurements by `fit-stacks`; see docs/accuracy.md.\nschema = 1\n",
    );
    for (name, s) in &state.sustained {
        text += &format!(
            "\n[[accelerator]]\naccelerator = \"{name}\"\nbf16 = {}\nfp8 = {}\nfp4 = {}\nattention = {}\n",
            short(s.bf16),
            short(s.fp8),
            short(s.fp4),
            short(s.attention)
        );
    }
    for (kind, share) in &state.fabrics {
        text += &format!("\n[[fabric]]\nkind = \"{kind}\"\nshare = {}\n", short(*share));
    }
    text
}

fn short(value: f64) -> String {
    let text = format!("{value:.3}");
    let text = text.trim_end_matches('0');
    if text.ends_with('.') { format!("{text}0") } else { text.to_owned() }
}

fn printed(key: &str, value: f64) -> String {
    if key == "host.expert_launches" {
        short(value)
    } else if key.starts_with("host.") {
        format!("\"{}us\"", short(value * 1e6))
    } else if key == "memory.context" || key == "memory.per_communicator" {
        format!("\"{}MiB\"", (value / 1_048_576.0).round())
    } else if value.abs() < 0.05 {
        format!("{value:.5}")
    } else {
        short(value)
    }
}

/// Replaces the value of `section.key`.
fn set(text: &str, dotted: &str, value: &str) -> String {
    let (section, key) = dotted.split_once('.').unwrap_or(("", dotted));
    let mut inside = section.is_empty();
    let mut out = String::new();
    for line in text.lines() {
        let trimmed = line.trim();
        if trimmed.starts_with('[') {
            inside = trimmed == format!("[{section}]");
        }
        let hit = inside && trimmed.split('=').next().is_some_and(|k| k.trim() == key);
        if hit {
            let comment = line.find('#').map_or("", |at| &line[at..]);
            let gap = if comment.is_empty() { "" } else { " " };
            out += &format!("{key} = {value}{gap}{comment}\n");
        } else {
            out += line;
            out.push('\n');
        }
    }
    out
}

/// Replaces one delta of the release block with that index.
fn set_delta(text: &str, release: usize, key: &str, value: f64) -> String {
    let mut block = None;
    let mut out = String::new();
    for line in text.lines() {
        if line.trim() == "[[releases]]" {
            block = Some(block.map_or(0, |b: usize| b + 1));
        }
        let quoted = format!("\"{key}\" = ");
        match (block == Some(release) && line.trim_start().starts_with("deltas"), line.find(&quoted)) {
            (true, Some(at)) => {
                let start = at + quoted.len();
                let end = line[start..].find([',', '}']).map_or(line.len(), |e| start + e);
                let gap = if line[..end].ends_with(' ') { " " } else { "" };
                out += &format!("{}{}{gap}{}\n", &line[..start], delta(key, value), &line[end..]);
            }
            _ => {
                out += line;
                out.push('\n');
            }
        }
    }
    out
}

fn delta(key: &str, value: f64) -> String {
    if key.starts_with("host.") { format!("{value:.7}") } else { short(value) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_replaced_in_place() {
        let text = "# x\n[host]\nlaunch = \"4us\" # seen\n[efficiency]\ngemm = 0.9\n[[releases]]\nmatches = [\"a\"]\ndeltas = { \"efficiency.gemm\" = 0.5, \"host.moe_sync\" = 0.1 }\n";
        let text = set(text, "efficiency.gemm", &printed("efficiency.gemm", 0.91239));
        let text = set(&text, "host.launch", &printed("host.launch", 5.5e-6));
        let text = set_delta(&text, 0, "efficiency.gemm", 0.7);
        assert_eq!(
            text,
            "# x\n[host]\nlaunch = \"5.5us\" # seen\n[efficiency]\ngemm = 0.912\n[[releases]]\nmatches = [\"a\"]\ndeltas = { \"efficiency.gemm\" = 0.7, \"host.moe_sync\" = 0.1 }\n"
        );
    }
}
