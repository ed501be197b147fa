//! What executed plans say beside their predictions, and how that carries over to plans that did not run.
//!
//! An observation keeps the ratio of measured to predicted per phase. The factor of a plan's phase is the exponential of
//! a weighted mean of the logarithms: observations of similar plans weigh more (Nadaraya 1964, Watson 1964, with the
//! distance counted in doublings of the plan's dimensions), and a prior of no error holds the mean back where nothing
//! similar ran.

use psim_models::Plan;
use serde::{Deserialize, Serialize};

/// Newest schema of residual files.
pub const RESIDUAL_SCHEMA: u32 = 1;

/// Weight of the belief that the prediction is right, in observations of the very same plan.
const PRIOR: f64 = 0.1;
/// Most that a phase may be off: beyond it, something else was measured.
const LARGEST: f64 = 8.0;

/// Measured over predicted, per phase.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PhaseFactors {
    /// Forward passes.
    pub forward: f64,
    /// Backward passes.
    pub backward: f64,
    /// Reduction, optimizer, gathering after the last pass.
    pub after: f64,
}

impl Default for PhaseFactors {
    fn default() -> Self {
        Self { forward: 1.0, backward: 1.0, after: 1.0 }
    }
}

impl PhaseFactors {
    fn each(&self) -> [f64; 3] {
        [self.forward, self.backward, self.after]
    }

    /// Finite and positive.
    pub fn sound(&self) -> bool {
        self.each().iter().all(|f| f.is_finite() && *f > 0.0)
    }
}

/// One executed plan.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Observation {
    /// Names the run: an observation of the same name replaces the older one.
    pub id: String,
    /// Model that ran.
    pub model: String,
    /// Tokens per sequence.
    pub seq_len: u64,
    /// Measured over predicted without residuals.
    pub factors: PhaseFactors,
    /// Measured step, seconds.
    pub measured: f64,
    /// Predicted step without residuals, seconds.
    pub predicted: f64,
    /// Plan.
    pub plan: Plan,
}

/// Observations of one machine.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Residuals {
    /// Schema version of the file ([`RESIDUAL_SCHEMA`]).
    pub schema: u32,
    /// Machine that it belongs to.
    pub machine: String,
    /// Observations, by name.
    #[serde(default)]
    pub observations: Vec<Observation>,
    /// The same of serving plans.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub serving: Vec<ServingObservation>,
}

/// A serving plan that runs here: an engine's layout and its limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServingLayout {
    /// Tensor-parallel ranks of a replica.
    pub tp: u32,
    /// Replicas.
    pub replicas: u32,
    /// Sequences at once in a replica, at most.
    pub sequences: u32,
    /// Tokens of a step, at most.
    pub tokens: u32,
}

/// Measured over predicted of a serving engine's steps.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServingFactors {
    /// Of a step with one token: reading the weights, calling the kernels.
    pub step: f64,
    /// Of what every further token adds, of sequences that decode or of prompts.
    pub token: f64,
}

impl Default for ServingFactors {
    fn default() -> Self {
        Self { step: 1.0, token: 1.0 }
    }
}

impl ServingFactors {
    /// Finite and positive.
    pub fn sound(&self) -> bool {
        [self.step, self.token].iter().all(|f| f.is_finite() && *f > 0.0)
    }
}

/// One executed serving plan.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServingObservation {
    /// Names the run: an observation of the same name replaces the older one.
    pub id: String,
    /// Model that ran.
    pub model: String,
    /// Measured over predicted without residuals.
    pub factors: ServingFactors,
    /// Measured seconds of the engine's steps.
    pub measured: f64,
    /// The same steps as priced without residuals.
    pub predicted: f64,
    /// Layout.
    pub layout: ServingLayout,
}

/// Squared distance of two layouts, in doublings.
fn layout_distance(a: &ServingLayout, b: &ServingLayout) -> f64 {
    [(a.tp, b.tp), (a.replicas, b.replicas), (a.sequences, b.sequences), (a.tokens, b.tokens)]
        .iter()
        .map(|(x, y)| (f64::from((*x).max(1)).log2() - f64::from((*y).max(1)).log2()).powi(2))
        .sum()
}

/// Coordinates of a plan, in doublings.
fn coordinates(plan: &Plan, seq_len: u64) -> [f64; 8] {
    let log = |x: u64| (x.max(1) as f64).log2();
    [
        log(u64::from(plan.tp)),
        log(u64::from(plan.pp)),
        log(u64::from(plan.dp)),
        log(u64::from(plan.cp)),
        log(u64::from(plan.ep)),
        log(u64::from(plan.vpp)),
        log(u64::from(plan.micro_batch)),
        log(seq_len),
    ]
}

/// Squared distance of two plans; choices without an order count one doubling each.
fn distance(a: (&Plan, u64), b: (&Plan, u64)) -> f64 {
    let (x, y) = (coordinates(a.0, a.1), coordinates(b.0, b.1));
    let sizes: f64 = x.iter().zip(y).map(|(x, y)| (x - y).powi(2)).sum();
    let other = [
        a.0.recompute != b.0.recompute,
        a.0.sharding != b.0.sharding,
        a.0.schedule != b.0.schedule,
        a.0.sequence_parallel != b.0.sequence_parallel,
    ];
    sizes + other.iter().filter(|d| **d).count() as f64
}

impl Residuals {
    /// Nothing observed yet.
    pub fn new(machine: &str) -> Self {
        Self { schema: RESIDUAL_SCHEMA, machine: machine.to_owned(), ..Self::default() }
    }

    /// Takes an observation; one of the same name is replaced, an unsound one (no time, infinite) is left out.
    pub fn add(&mut self, observation: Observation) {
        let sound = observation.factors.sound() && observation.measured > 0.0 && observation.predicted > 0.0;
        if !sound {
            return;
        }
        self.observations.retain(|o| o.id != observation.id);
        self.observations.push(observation);
        self.observations.sort_by(|a, b| a.id.cmp(&b.id));
    }

    /// Takes an observation of a serving plan, as [`Residuals::add`] does.
    pub fn add_serving(&mut self, observation: ServingObservation) {
        let sound = observation.factors.sound() && observation.measured > 0.0 && observation.predicted > 0.0;
        if !sound {
            return;
        }
        self.serving.retain(|o| o.id != observation.id);
        self.serving.push(observation);
        self.serving.sort_by(|a, b| a.id.cmp(&b.id));
    }

    /// Every factor is a positive number.
    pub fn sound(&self) -> bool {
        self.observations.iter().all(|o| o.factors.sound()) && self.serving.iter().all(|o| o.factors.sound())
    }

    /// Factors for a serving plan of a model: from what ran of the same model, else of any.
    pub fn serving_factors(&self, model: &str, layout: &ServingLayout) -> ServingFactors {
        let same = self.serving.iter().any(|o| o.model == model);
        let (mut sums, mut weights) = ([0.0; 2], PRIOR);
        for o in self.serving.iter().filter(|o| !same || o.model == model) {
            let weight = 1.0 / (1.0 + layout_distance(&o.layout, layout)).powi(2);
            weights += weight;
            for (sum, factor) in sums.iter_mut().zip([o.factors.step, o.factors.token]) {
                *sum += weight * factor.clamp(1.0 / LARGEST, LARGEST).ln();
            }
        }
        let [step, token] = sums.map(|s| (s / weights).exp());
        ServingFactors { step, token }
    }

    /// Factors for a plan of a model: from what ran of the same model, else of any.
    pub fn factors(&self, model: &str, plan: &Plan, seq_len: u64) -> PhaseFactors {
        let same = self.observations.iter().any(|o| o.model == model);
        let mut sums = [0.0; 3];
        let mut weights = PRIOR;
        for o in self.observations.iter().filter(|o| !same || o.model == model) {
            let weight = 1.0 / (1.0 + distance((&o.plan, o.seq_len), (plan, seq_len))).powi(2);
            weights += weight;
            for (sum, factor) in sums.iter_mut().zip(o.factors.each()) {
                *sum += weight * factor.clamp(1.0 / LARGEST, LARGEST).ln();
            }
        }
        let [forward, backward, after] = sums.map(|s| (s / weights).exp());
        PhaseFactors { forward, backward, after }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(tp: u32, dp: u32) -> Plan {
        toml_plan(&format!("tp = {tp}\npp = 1\ndp = {dp}\nmicro_batch = 1\nglobal_batch = 8\n"))
    }

    fn toml_plan(text: &str) -> Plan {
        // The defaults of a plan are those of its file format.
        let pairs = text.lines().filter_map(|l| l.split_once(" = "));
        let numbers: serde_json::Map<_, _> =
            pairs.map(|(k, v)| (k.to_owned(), v.parse::<u32>().unwrap().into())).collect();
        serde_json::from_value(numbers.into()).unwrap()
    }

    fn observation(id: &str, plan: Plan, factor: f64) -> Observation {
        let factors = PhaseFactors { forward: factor, backward: factor, after: factor };
        Observation {
            id: id.to_owned(),
            model: "m".to_owned(),
            seq_len: 128,
            factors,
            measured: factor,
            predicted: 1.0,
            plan,
        }
    }

    #[test]
    fn nothing_observed_changes_nothing() {
        assert_eq!(Residuals::new("x").factors("m", &plan(1, 1), 128), PhaseFactors::default());
    }

    #[test]
    fn the_same_plan_learns_most_and_others_less() {
        let mut residuals = Residuals::new("x");
        residuals.add(observation("a", plan(4, 1), 2.0));
        let own = residuals.factors("m", &plan(4, 1), 128).forward;
        let other = residuals.factors("m", &plan(1, 4), 128).forward;
        assert!(own > 1.8 && own < 2.0, "{own}");
        assert!(other > 1.0 && other < own, "{other}");
    }

    #[test]
    fn serving_plans_learn_from_like_ones() {
        let layout = |tp, replicas| ServingLayout { tp, replicas, sequences: 16, tokens: 64 };
        let mut residuals = Residuals::new("x");
        assert_eq!(residuals.serving_factors("m", &layout(1, 2)), ServingFactors::default());
        let observation = |id: &str, layout, step, token| ServingObservation {
            id: id.to_owned(),
            model: "m".to_owned(),
            factors: ServingFactors { step, token },
            measured: step,
            predicted: 1.0,
            layout,
        };
        residuals.add_serving(observation("a", layout(1, 2), 1.5, 0.8));
        let (own, other) =
            (residuals.serving_factors("m", &layout(1, 2)), residuals.serving_factors("m", &layout(4, 1)));
        assert!(own.step > 1.4 && own.step < 1.5 && own.token > 0.8 && own.token < 0.85, "{own:?}");
        assert!(other.step > 1.0 && other.step < own.step, "{other:?}");
        residuals.add_serving(observation("b", layout(2, 1), f64::INFINITY, 1.0));
        assert!(residuals.serving.len() == 1 && residuals.sound());
        // Files of older programs have no serving plans, newer ones without them are as before.
        let text = serde_json::to_string(&Residuals::new("x")).unwrap();
        assert!(!text.contains("serving"));
        let text = serde_json::to_string(&residuals).unwrap();
        assert_eq!(serde_json::from_str::<Residuals>(&text).unwrap(), residuals);
    }

    #[test]
    fn observing_again_replaces_and_order_does_not_matter() {
        let (mut one, mut two) = (Residuals::new("x"), Residuals::new("x"));
        one.add(observation("a", plan(1, 1), 3.0));
        one.add(observation("b", plan(2, 1), 0.5));
        one.add(observation("a", plan(1, 1), 1.5));
        two.add(observation("b", plan(2, 1), 0.5));
        two.add(observation("a", plan(1, 1), 1.5));
        assert_eq!(one, two);
        one.add(observation("c", plan(2, 1), f64::NAN));
        assert_eq!(one, two);
    }
}
