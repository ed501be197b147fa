//! Which numbers are free, their bounds, spreads and documented defaults.

use super::{FitRow, State};
use psim_hardware::profile::stack::{AttentionKernel, Parameter};
use psim_hardware::profile::sustained::{FabricShare, Sustained};
use std::collections::BTreeSet;

/// Where a free number lives.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// A stack's number.
    Stack {
        /// Stack name.
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
    ("megatron-bridge-2025", "host.launch", 5e-6, 0.4, true),
    ("vocabulary-parallelism", "efficiency.contention", 0.1, 0.5, true),
    ("nemo-25", "efficiency.grouped_gemm", 1.0, 0.2, true),
    ("megatron-core-2024", "efficiency.grouped_gemm", 1.0, 0.2, true),
];

/// Defaults of one stack: the first ZeRO-3 gathered every parameter by itself, far below the link rate. Only its own
/// rows show how far, so the value counts as fitted.
const STACK_DEFAULTS: &[(&str, &str, f64)] = &[("deepspeed-zero", "efficiency.network", 0.2)];

/// Every free number that at least one row touches.
pub fn slots(state: &State, rows: &[FitRow]) -> Vec<Slot> {
    let mut slots = Vec::new();
    let used: BTreeSet<&str> = rows.iter().map(|r| r.stack.as_str()).collect();
    for (name, profile) in &state.stacks {
        if !used.contains(name.as_str()) {
            continue;
        }
        for (key, default, spread) in STACK_KEYS {
            if *key == "efficiency.attention" && profile.attention == AttentionKernel::Unfused {
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
            for key in delta.deltas.keys() {
                // A release's default is its stack's own number.
                let log = !key.starts_with("host.expert_launches");
                let default = profile.number(key).unwrap_or(1.0);
                let place = Place::Release { stack: name.clone(), release, key: key.clone() };
                slots.push(Slot { place, default, spread: if log { 0.3 } else { 3.0 }, log });
            }
        }
    }
    let parts: BTreeSet<&str> =
        rows.iter().map(|r| r.mapped.cluster.slowest_node().accelerator.name.as_str()).collect();
    for name in parts {
        for key in Sustained::KEYS {
            let place = Place::Accelerator { name: name.to_owned(), key };
            slots.push(Slot { place, default: 1.0, spread: 0.12, log: true });
        }
    }
    let fabrics: BTreeSet<&str> = rows.iter().map(|r| r.mapped.cluster.fabric.kind.as_str()).collect();
    for kind in fabrics {
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
            Place::Stack { stack, .. } => *stack == row.stack,
            Place::Release { stack, release, .. } => *stack == row.stack && Some(*release) == row.release,
            Place::Fabric { kind } => {
                *kind == row.mapped.cluster.fabric.kind && row.mapped.cluster.nodes() > 1
            }
            Place::Accelerator { name, key } => {
                *name == row.mapped.cluster.slowest_node().accelerator.name
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
            Place::Stack { stack, key } => {
                state.stacks.get_mut(stack).is_some_and(|s| s.set_number(key, value).is_ok())
            }
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
            Place::Accelerator { name, key } => {
                state.sustained.get_mut(name).is_some_and(|s| s.set_share(key, value))
            }
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
