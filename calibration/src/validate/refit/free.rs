//! Which numbers are free, their bounds, spreads and documented defaults.

use super::{FitRow, State};
use psim_hardware::profile::stack::{AttentionKernel, Parameter};
use psim_hardware::profile::sustained::{FabricShare, Sustained};
use std::collections::BTreeSet;

/// Where a free number lives.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// A stack's number, shared by its family.
    Stack {
        /// Stack name; the first of a family.
        stack: String,
        /// Dotted key.
        key: &'static str,
    },
    /// A delta of a release.
    Release {
        /// Stack name.
        stack: String,
        /// Index of the release.
        release: usize,
        /// Dotted key.
        key: String,
    },
    /// Sustained share of a kind of fabric.
    Fabric {
        /// Kind.
        kind: String,
    },
    /// A sustained share of an accelerator.
    Accelerator {
        /// Canonical name.
        name: String,
        /// Format or `attention`.
        key: &'static str,
    },
}

/// A free number.
#[derive(Debug, Clone, PartialEq)]
pub struct Slot {
    /// Where it lives.
    pub place: Place,
    /// Documented default: taken when no row speaks about it, and what the fit is pulled towards.
    pub default: f64,
    /// Typical spread, in logarithms (`log`) or in the number's own unit.
    pub spread: f64,
    /// Moves in logarithms.
    pub log: bool,
}

/// Stacks that run the same kernels: they share every adjusted number and differ in their switches only.
pub const FAMILIES: &[&[&str]] = &[
    &["megatron-2021", "megatron-2020", "megatron-2022"],
    &["zero-bubble", "vocabulary-parallelism"],
    &["nemo-24.07", "megatron-core-2024"],
];

/// The stacks that share `stack`'s numbers, itself included.
pub fn family(stack: &str) -> Vec<&str> {
    FAMILIES.iter().find(|f| f.contains(&stack)).map_or_else(|| vec![stack], |f| f.to_vec())
}

/// Free keys of every stack, with the default of an unknown stack and the spread of ln(value).
///
/// The defaults are round numbers for a mainstream fused stack; an era that differs says so in [`ERA_DEFAULTS`].
const STACK_KEYS: &[(&str, f64, f64)] =
    &[("efficiency.attention", 1.0, 0.2), ("efficiency.memory", 0.85, 0.3), ("efficiency.network", 0.9, 0.3)];

/// Defaults that differ by era: before this year, this key, this value.
const ERA_DEFAULTS: &[(f64, &str, f64)] =
    &[(2022.9, "efficiency.memory", 0.75), (2022.9, "efficiency.network", 0.85)];

/// Further free numbers of stacks whose rows hold mixtures of experts: stack, key, default, spread, logarithmic.
const EXTRA: &[(&str, &str, f64, f64, bool)] = &[
    ("megatron-bridge-2025", "efficiency.grouped_gemm", 1.0, 0.2, true),
    ("megatron-bridge-2025", "efficiency.permute", 1.0, 0.3, true),
    ("megatron-deepspeed", "host.gap", 60e-6, 0.6, true),
    ("zero-bubble", "efficiency.contention", 0.1, 0.5, true),
    ("megatron-core-2025", "efficiency.grouped_gemm", 1.0, 0.2, true),
    // A kernel's launch and as much Python a slice.
    ("deepspeed-zero", "host.per_slice", 10e-6, 0.6, true),
];

/// Defaults of one stack: the first ZeRO-3 gathered every parameter by itself, far below the link rate. Only its own
/// rows show how far, so the value counts as fitted.
const STACK_DEFAULTS: &[(&str, &str, f64)] = &[("deepspeed-zero", "efficiency.network", 0.2)];

/// Fabrics taken at their tabled rate: few rows of theirs wait for the network.
const NOMINAL_FABRICS: &[&str] = &["roce"];

/// Parts that share one chip and board power: one set of shares.
const TWINS: &[&[&str]] = &[&["A100-SXM-80GB", "A100-SXM-40GB"], &["GB300", "B300-SXM"]];

/// The accelerators that share `name`'s numbers, itself included.
fn twins(name: &str) -> Vec<&str> {
    TWINS.iter().find(|t| t.contains(&name)).map_or_else(|| vec![name], |t| t.to_vec())
}

/// Numbers of stacks that no row runs: they take the defaults of their era, see [`pooled`].
pub fn idle(state: &State, rows: &[FitRow]) -> Vec<Slot> {
    let used: BTreeSet<&str> = rows.iter().map(|r| r.stack.as_str()).collect();
    let mut slots = Vec::new();
    for name in state.stacks.keys().filter(|n| !family(n).iter().any(|m| used.contains(m))) {
        for (key, default, spread) in STACK_KEYS {
            let place = Place::Stack { stack: name.clone(), key };
            slots.push(Slot { place, default: *default, spread: *spread, log: true });
        }
    }
    slots
}

/// The default of a slot that no row speaks about, from the slots that rows do speak about: the geometric mean of the
/// same number over the stacks of its era (before and from 2022.9) or over all accelerators or fabrics, and of the
/// documented default; a release's is that of its stack. `None` when there is nothing to take the mean of.
pub fn pooled(slot: &Slot, spoken: &[&Slot], state: &State) -> Option<f64> {
    let early = |stack: &str| state.stacks.get(stack).is_some_and(|s| s.era < 2022.9);
    let alike = |other: &Slot| match (&slot.place, &other.place) {
        (Place::Stack { stack: a, key: ka }, Place::Stack { stack: b, key: kb }) => {
            ka == kb && early(a) == early(b) && !OUTLIERS.contains(&b.as_str())
        }
        (Place::Accelerator { key: a, .. }, Place::Accelerator { key: b, .. }) => a == b,
        (Place::Fabric { .. }, Place::Fabric { .. }) => true,
        _ => false,
    };
    if let Place::Release { stack, key, .. } = &slot.place {
        return state.stacks.get(stack).and_then(|s| s.number(key));
    }
    let logs: Vec<f64> = spoken.iter().filter(|s| alike(s)).map(|s| s.value(state).max(1e-9).ln()).collect();
    // One stack says little about another: the documented default counts as one more.
    let default = slot.default.max(1e-9).ln();
    (!logs.is_empty()).then(|| ((logs.iter().sum::<f64>() + default) / (logs.len() + 1) as f64).exp())
}

/// Stacks that say nothing about others of their era: see [`STACK_DEFAULTS`].
const OUTLIERS: &[&str] = &["deepspeed-zero"];

/// Every free number that at least one row touches.
pub fn slots(state: &State, rows: &[FitRow]) -> Vec<Slot> {
    let mut slots = Vec::new();
    let used: BTreeSet<&str> = rows.iter().map(|r| r.stack.as_str()).collect();
    for (name, profile) in &state.stacks {
        let members = family(name);
        if members[0] != name || !members.iter().any(|m| used.contains(m)) {
            continue;
        }
        for (key, default, spread) in STACK_KEYS {
            let fused =
                |m: &&str| state.stacks.get(*m).is_some_and(|s| s.attention != AttentionKernel::Unfused);
            if *key == "efficiency.attention" && !members.iter().any(fused) {
                continue;
            }
            let default = ERA_DEFAULTS
                .iter()
                .find(|(before, k, _)| k == key && profile.era < *before)
                .map_or(*default, |d| d.2);
            let default =
                STACK_DEFAULTS.iter().find(|(n, k, _)| n == name && k == key).map_or(default, |d| d.2);
            let place = Place::Stack { stack: name.clone(), key };
            slots.push(Slot { place, default, spread: *spread, log: true });
        }
        for (stack, key, default, spread, log) in EXTRA {
            if stack == name {
                let place = Place::Stack { stack: name.clone(), key };
                slots.push(Slot { place, default: *default, spread: *spread, log: *log });
            }
        }
        for (release, delta) in profile.releases.iter().enumerate() {
            // Switches and formats are not adjusted.
            let fixed = |k: &&String| k.starts_with("fusion.") || k.starts_with("states.");
            for key in delta.deltas.keys().filter(|k| !fixed(k)) {
                // A release's default is its stack's own number.
                let log = true;
                let default = profile.number(key).unwrap_or(1.0);
                let place = Place::Release { stack: name.clone(), release, key: key.clone() };
                slots.push(Slot {
                    place,
                    default,
                    spread: if key.starts_with("host.expert_launches") { 3.0 } else { 0.3 },
                    log,
                });
            }
        }
    }
    let parts: BTreeSet<&str> =
        rows.iter().map(|r| r.mapped.cluster.slowest_node().accelerator.name.as_str()).collect();
    for name in parts.into_iter().filter(|n| twins(n)[0] == *n) {
        for key in Sustained::KEYS {
            // Fused attention of Blackwell parts is limited by exponentials, not by power.
            if key == "attention" && (name.starts_with('B') || name.starts_with("GB")) {
                continue;
            }
            let place = Place::Accelerator { name: name.to_owned(), key };
            slots.push(Slot { place, default: 1.0, spread: 0.12, log: true });
        }
    }
    let fabrics: BTreeSet<&str> = rows.iter().map(|r| r.mapped.cluster.fabric.kind.as_str()).collect();
    for kind in fabrics.into_iter().filter(|k| !NOMINAL_FABRICS.contains(k)) {
        let place = Place::Fabric { kind: kind.to_owned() };
        slots.push(Slot { place, default: 1.0, spread: 0.2, log: true });
    }
    slots.retain(|slot| rows.iter().any(|row| slot.touches(row)));
    slots
}

impl Slot {
    /// `stack nemo-25 efficiency.gemm`.
    pub fn name(&self) -> String {
        match &self.place {
            Place::Stack { stack, key } => format!("{stack}: {key}"),
            Place::Release { stack, release, key } => format!("{stack} release {release}: {key}"),
            Place::Accelerator { name, key } => format!("{name}: sustained {key}"),
            Place::Fabric { kind } => format!("{kind}: sustained rate"),
        }
    }

    /// A delta of a release (counted apart).
    pub fn is_release(&self) -> bool {
        matches!(self.place, Place::Release { .. })
    }

    /// Whether a row's prediction depends on it.
    pub fn touches(&self, row: &FitRow) -> bool {
        let format = row.mapped.plan.precision.gemm();
        match &self.place {
            Place::Stack { stack, .. } => family(stack).contains(&row.stack.as_str()),
            Place::Release { stack, release, .. } => *stack == row.stack && Some(*release) == row.release,
            Place::Fabric { kind } => {
                *kind == row.mapped.cluster.fabric.kind && row.mapped.cluster.nodes() > 1
            }
            Place::Accelerator { name, key } => {
                twins(name).contains(&row.mapped.cluster.slowest_node().accelerator.name.as_str())
                    && match *key {
                        "fp8" => format.bits() == 8,
                        "fp4" => format.bits() == 4,
                        _ => true,
                    }
            }
        }
    }

    /// The value now.
    pub fn value(&self, state: &State) -> f64 {
        let found = match &self.place {
            Place::Stack { stack, key } => state.stacks.get(stack).and_then(|s| s.number(key)),
            Place::Release { stack, release, key } => state
                .stacks
                .get(stack)
                .and_then(|s| s.releases.get(*release))
                .and_then(|r| r.deltas.get(key).copied()),
            Place::Accelerator { name, key } => state.sustained.get(name).and_then(|s| s.share(key)),
            Place::Fabric { kind } => state.fabrics.get(kind).copied(),
        };
        found.unwrap_or(self.default)
    }

    /// Sets the value; `false` if it is out of bounds.
    pub fn set(&self, state: &mut State, value: f64) -> bool {
        match &self.place {
            Place::Stack { stack, key } => family(stack)
                .into_iter()
                .all(|member| state.stacks.get_mut(member).is_none_or(|s| s.set_number(key, value).is_ok())),
            Place::Release { stack, release, key } => {
                let inside = Parameter::find(key).is_some_and(|p| value >= p.low && value <= p.high);
                let found = state.stacks.get_mut(stack).and_then(|s| s.releases.get_mut(*release));
                found.filter(|_| inside).map(|r| r.deltas.insert(key.clone(), value)).is_some()
            }
            Place::Fabric { kind } => {
                let (low, high) = FabricShare::BOUNDS;
                let inside = value >= low && value <= high;
                if inside {
                    state.fabrics.insert(kind.clone(), value);
                }
                inside
            }
            Place::Accelerator { name, key } => twins(name)
                .into_iter()
                .all(|twin| state.sustained.get_mut(twin).is_none_or(|s| s.set_share(key, value))),
        }
    }

    /// Moves the value by `step` spreads' unit (logarithm or own unit); `false` if that leaves the bounds.
    pub fn shift(&self, state: &mut State, step: f64) -> bool {
        let value = self.value(state);
        let moved = if self.log { value.max(1e-9) * step.exp() } else { value + step };
        self.set(state, moved)
    }

    /// Signed distance from the default in the slot's own scale.
    pub fn distance(&self, state: &State) -> f64 {
        let value = self.value(state);
        if self.log { (value.max(1e-9) / self.default.max(1e-9)).ln() } else { value - self.default }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use psim_cost_models::ProfileLibrary;

    fn slot(stack: &str, key: &'static str) -> Slot {
        let place = Place::Stack { stack: stack.to_owned(), key };
        Slot { place, default: 1.0, spread: 0.3, log: true }
    }

    #[test]
    fn silent_stacks_take_the_mean_of_their_era() {
        let mut state = State::of(&ProfileLibrary::built_in());
        let (a, b) = (slot("llm-foundry-2023", "efficiency.memory"), slot("maxtext", "efficiency.memory"));
        let old = slot("megatron-deepspeed", "efficiency.memory");
        assert!(a.set(&mut state, 0.5) && b.set(&mut state, 0.8) && old.set(&mut state, 0.2));
        let spoken = [&a, &b, &old];
        let new = pooled(&slot("torchtitan", "efficiency.memory"), &spoken, &state).unwrap();
        assert!((new - 0.4f64.cbrt()).abs() < 1e-12);
        let early = pooled(&slot("megatron-2021", "efficiency.memory"), &spoken, &state).unwrap();
        assert!((early - 0.2f64.sqrt()).abs() < 1e-12);
        assert_eq!(pooled(&slot("torchtitan", "efficiency.network"), &spoken, &state), None);
    }

    #[test]
    fn a_family_moves_together() {
        let mut state = State::of(&ProfileLibrary::built_in());
        assert!(slot("zero-bubble", "efficiency.memory").set(&mut state, 0.7));
        assert!((state.stacks["vocabulary-parallelism"].efficiency.memory - 0.7).abs() < 1e-12);
    }
}
