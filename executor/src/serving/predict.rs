//! The prediction for this engine on a machine that `psim calibrate` measured.
//!
//! The step costs of the serving simulator are made from what one step of this engine really runs ([`super::forward`]):
//! its matrix products, memory-bound operators, attention row by row over the paged cache, collectives among rank
//! threads, each from the machine's profile; and from what the loop around them costs, which is what measured steps of a
//! network of next to no arithmetic take beyond the prices of their operators.

use super::{Clock, ServeRequest, ServeSettings, ServeStep};
use crate::bench::{hand_over, narrow};
use crate::error::{ExecutorError, Result};
use crate::network::Network;
use psim_cost_models::serving::{EngineParameters, EngineProfile, PricedStep, StepCost, StepPieces};
use psim_cost_models::{CostModel, ProfileLibrary};
use psim_hardware::profile::StackProfile;
use psim_hardware::profile::machine::MachineFacts;
use psim_hardware::{Cluster, DType, GroupShape, Scaling, Seconds, Time};
use psim_models::operator::{CollectiveKind, GemmRole, MemoryClass};
use psim_models::serving::{Deployment, NumberFormat, Quantization, Request, SharedPrefixes, Traffic};
use psim_models::{Model, OperatorKind};
use psim_sim::residual::ServingFactors;
use psim_sim::serving::{FleetOptions, ServingInput, ServingRun, simulate};

/// What a prediction is made from.
#[derive(Debug, Clone, Copy)]
pub struct ServeBasis<'a> {
    /// Rank threads on the machine.
    pub cluster: &'a Cluster,
    /// The executor as a stack.
    pub stack: &'a StackProfile,
    /// With the machine's profile.
    pub library: &'a ProfileLibrary,
    /// The machine.
    pub facts: &'a MachineFacts,
    /// What earlier runs say beside the prices.
    pub factors: ServingFactors,
}

/// Bytes of an element.
const SIZE: f64 = 4.0;

/// What the loop costs around its operators, seconds.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
struct LoopCost {
    step: f64,
    layer: f64,
    /// A token in a layer.
    row: f64,
    /// A score of a token.
    score: f64,
}

/// Prices of one network's steps.
struct Prices<'a> {
    costs: &'a CostModel,
    network: &'a Network,
    tp: u64,
    group: GroupShape,
    /// Of the product with the output layer's matrix, which lies transposed.
    transposed: f64,
    /// Seconds of each hand-over between threads that the run's clock does not see.
    unseen: f64,
    around: LoopCost,
}

impl Prices<'_> {
    fn memory(&self, class: MemoryClass, elements: f64) -> f64 {
        self.costs.memory(class, (SIZE * elements) as u64, 1, 0.0).time.0
    }

    /// Of kernels that go row by row, as wide as the residual stream.
    fn rows(&self, class: MemoryClass, elements: f64) -> f64 {
        let width = self.network.hidden as u64;
        self.costs.memory_rows(class, (SIZE * elements) as u64, 1, 0.0, width).time.0
    }

    fn gemm(&self, rows: f64, n: u64, k: u64) -> f64 {
        let (m, role) = (rows.round().max(1.0) as u64, GemmRole::Forward);
        self.costs.gemm(m, n, k, 1, DType::Fp32, Scaling::None, SIZE, role).time.0
    }

    fn collective(&self, kind: CollectiveKind, elements: f64) -> f64 {
        if self.tp == 1 {
            return 0.0;
        }
        let trips = if kind == CollectiveKind::AllReduce { 2.0 } else { 1.0 };
        let time = self.costs.collective(kind, (SIZE * elements) as u64, &self.group).time.0;
        (time - trips * self.unseen).max(0.0)
    }

    /// One token of each row against so many cached tokens, in one layer.
    fn attention(&self, layer: &crate::network::Layer, rows: f64, each: f64) -> f64 {
        let heads = layer.heads as u64 / self.tp;
        // The kernel reads a key once for every query head.
        let op = OperatorKind::Attention {
            batch: rows.round().max(1.0) as u64,
            q_heads: heads,
            kv_heads: heads,
            head_dim: layer.head_dim as u64,
            head_dim_v: layer.head_dim as u64,
            seq_q: 1,
            seq_kv: each.round().max(1.0) as u64,
            density: 1.0,
            backward: false,
            dtype: DType::Fp32,
        };
        self.costs.attention(&op).time.0
    }

    /// Everything but attention for the tokens of a step.
    fn tokens(&self, rows: f64) -> f64 {
        let hidden = self.network.hidden as f64;
        let residual = rows * hidden;
        let norm = self.rows(MemoryClass::Norm, 2.0 * residual);
        let add = self.memory(MemoryClass::Elementwise, 3.0 * residual);
        let reduce = self.collective(CollectiveKind::AllReduce, residual);
        let bias = |yes: bool, width: f64| {
            if yes { self.memory(MemoryClass::Elementwise, 2.0 * rows * width) } else { 0.0 }
        };
        let copy = |width: f64| self.memory(MemoryClass::Elementwise, 2.0 * rows * width);
        let position = |width: f64| {
            let class = if self.network.rope { MemoryClass::Rope } else { MemoryClass::Elementwise };
            self.memory(class, 2.0 * rows * width)
        };
        let mut total = self.around.step + self.rows(MemoryClass::Embedding, 2.0 * residual) + reduce;
        if self.network.learned_positions.is_some() {
            total += self.rows(MemoryClass::Embedding, 2.0 * residual) + add;
        }
        for layer in &self.network.layers {
            let (q, kv) = (layer.heads as u64 / self.tp, layer.kv_heads as u64 / self.tp);
            let dim = layer.head_dim as u64;
            let packed = (q + 2 * kv) * dim;
            let (q_width, kv_width) = ((q * dim) as f64, (kv * dim) as f64);
            total += self.around.layer + self.around.row * rows;
            total += norm + self.gemm(rows, packed, self.network.hidden as u64);
            total += bias(layer.qkv_bias, packed as f64) + position(q_width) + position(kv_width);
            // Values out of the packed product, then keys and values into the cache.
            total += 3.0 * copy(kv_width);
            total += self.gemm(rows, self.network.hidden as u64, q * dim) + reduce;
            total += bias(layer.out_bias, hidden) + add;
            if let Some(dense) = layer.dense {
                let width = dense.hidden as u64 / self.tp;
                let up = if dense.gated { 2 * width } else { width };
                total += norm + self.gemm(rows, up, self.network.hidden as u64);
                total += bias(dense.bias, up as f64);
                total += self.memory(MemoryClass::Activation, rows * (up + width) as f64);
                total += self.gemm(rows, self.network.hidden as u64, width) + reduce;
                total += bias(dense.bias, hidden) + add;
            }
        }
        total
    }

    /// The output layer for the sequences that get a token.
    fn ends(&self, rows: f64) -> f64 {
        let (hidden, vocab) = (self.network.hidden as f64, self.network.vocab as f64);
        let norm =
            if self.network.final_norm { self.rows(MemoryClass::Norm, 2.0 * rows * hidden) } else { 0.0 };
        self.rows(MemoryClass::Embedding, 2.0 * rows * hidden)
            + norm
            + self.gemm(rows, self.network.vocab as u64 / self.tp, self.network.hidden as u64)
                * self.transposed
            + self.collective(CollectiveKind::AllGather, rows * vocab)
            + self.around.score * rows * vocab
    }
}

/// Times that are not negative with the least relative error: `Σ coefficients · terms ≈ time`.
fn least_squares<const N: usize>(samples: &[([f64; N], f64)], scale: &[f64]) -> [f64; N] {
    let mut used = [true; N];
    loop {
        let (mut matrix, mut right) = ([[0.0; N]; N], [0.0; N]);
        for ((terms, time), scale) in samples.iter().zip(scale) {
            for i in 0..N {
                for j in 0..N {
                    matrix[i][j] += terms[i] * terms[j] / (scale * scale);
                }
                right[i] += terms[i] * time / (scale * scale);
            }
        }
        for i in (0..N).filter(|&i| !used[i]) {
            (matrix[i], right[i]) = ([0.0; N], 0.0);
            matrix[i][i] = 1.0;
            (0..N).filter(|&j| j != i).for_each(|j| matrix[j][i] = 0.0);
        }
        let solved = solve(matrix, right);
        match (0..N).filter(|&i| used[i] && solved[i] < 0.0).min_by(|&a, &b| solved[a].total_cmp(&solved[b]))
        {
            Some(worst) => used[worst] = false,
            None => return solved,
        }
    }
}

/// Gaussian elimination; a singular direction gets zero.
fn solve<const N: usize>(mut matrix: [[f64; N]; N], mut right: [f64; N]) -> [f64; N] {
    let size = (0..N).map(|i| matrix[i][i].abs()).fold(f64::MIN_POSITIVE, f64::max);
    for column in 0..N {
        let pivot = (column..N).max_by(|&a, &b| matrix[a][column].abs().total_cmp(&matrix[b][column].abs()));
        matrix.swap(column, pivot.unwrap_or(column));
        right.swap(column, pivot.unwrap_or(column));
        if matrix[column][column].abs() < 1e-12 * size {
            continue;
        }
        for row in (0..N).filter(|&row| row != column) {
            let factor = matrix[row][column] / matrix[column][column];
            let above = matrix[column];
            matrix[row].iter_mut().zip(above).for_each(|(x, y)| *x -= factor * y);
            right[row] -= factor * right[column];
        }
    }
    std::array::from_fn(|i| if matrix[i][i].abs() < 1e-12 * size { 0.0 } else { right[i] / matrix[i][i] })
}

/// What measured steps of narrow networks take beyond the prices of their operators.
fn loop_cost(costs: &CostModel, group: GroupShape, facts: &MachineFacts) -> Result<LoopCost> {
    let (mut samples, mut scale) = (Vec::new(), Vec::new());
    for step in &facts.engine_steps {
        let model = narrow(step.layers, step.vocab).map_err(|e| ExecutorError::Prediction(e.to_string()))?;
        let network = Network::new(&model)?;
        let prices = Prices {
            costs,
            network: &network,
            tp: 1,
            group,
            transposed: transposed(facts),
            unseen: 0.0,
            around: LoopCost::default(),
        };
        let (layers, rows) = (f64::from(step.layers), f64::from(step.sequences));
        // Half way through the answers, about twenty tokens are cached.
        let attention: f64 = network.layers.iter().map(|l| prices.attention(l, rows, 20.0)).sum();
        let priced = prices.tokens(rows) + prices.ends(rows) + attention;
        let measured = step.time_us * 1e-6;
        samples.push(([1.0, layers, layers * rows, rows * f64::from(step.vocab)], measured - priced));
        scale.push(measured);
    }
    let [step, layer, row, score] = least_squares(&samples, &scale);
    Ok(LoopCost { step, layer, row, score })
}

fn transposed(facts: &MachineFacts) -> f64 {
    if facts.transposed > 0.0 { facts.transposed } else { 1.0 }
}

/// A step's price in seconds, in the two parts that residuals are learned for.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct StepPrice {
    /// With one token.
    pub first: f64,
    /// What further tokens add.
    pub more: f64,
}

impl StepPrice {
    /// Seconds of the step.
    pub fn total(&self) -> f64 {
        self.first + self.more
    }
}

/// Prices with the speed of ranks that compute at once and with residuals.
struct Priced<'a> {
    prices: Prices<'a>,
    speed: f64,
    factors: ServingFactors,
}

impl Priced<'_> {
    /// A cost that follows the tokens of a step.
    fn split(&self, rows: f64, cost: impl Fn(f64) -> f64) -> StepPrice {
        let first = cost(rows.min(1.0));
        let more = if rows > 1.0 { (cost(rows) - first).max(0.0) } else { 0.0 };
        StepPrice {
            first: first * self.factors.step / self.speed,
            more: more * self.factors.token / self.speed,
        }
    }

    fn tokens(&self, rows: f64) -> StepPrice {
        self.split(rows, |rows| self.prices.tokens(rows))
    }

    /// Of the sequences that get a token.
    fn ends(&self, rows: f64) -> StepPrice {
        self.split(rows, |rows| self.prices.ends(rows))
    }

    /// In all layers.
    fn attention(&self, rows: f64, each: f64) -> StepPrice {
        let layers = &self.prices.network.layers;
        self.split(rows, |rows| layers.iter().map(|l| self.prices.attention(l, rows, each)).sum())
    }
}

/// Bytes of weights that a step reads one after the other, over all ranks; of an embedding it reads a few rows.
fn weights_in_turn(model: &Model) -> f64 {
    let count = model.parameters();
    let looked_up = if model.tied_embeddings { 0 } else { count.embedding };
    SIZE * (count.total - looked_up) as f64
}

fn with_prices<R>(
    model: &Model,
    settings: &ServeSettings,
    basis: ServeBasis<'_>,
    work: impl FnOnce(&Priced<'_>) -> Result<R>,
) -> Result<R> {
    let network = Network::new(model)?;
    super::check(&network, &[], settings)?;
    let node = basis.cluster.first_node();
    let costs = CostModel::new(basis.cluster, node, basis.stack, basis.library);
    let loops = costs.clone().with_weights(basis.facts, 0.0);
    let costs = costs.with_weights(basis.facts, weights_in_turn(model) * settings.replicas as f64);
    let tp = settings.tp as u32;
    let group = GroupShape::place(basis.cluster, node, tp, 1);
    let prices = Prices {
        costs: &costs,
        network: &network,
        tp: u64::from(tp),
        group,
        transposed: transposed(basis.facts),
        unseen: if settings.clock == Clock::Processor && tp > 1 { hand_over() } else { 0.0 },
        around: loop_cost(&loops, group, basis.facts)?,
    };
    // Ranks that compute at once slow each other down, and take turns where cores are short.
    let ranks = tp * settings.replicas as u32;
    let speed = match settings.clock {
        Clock::Wall => basis.facts.sharing.speed(ranks),
        Clock::Processor => basis.facts.sharing.contention(ranks),
    }
    .max(1e-6);
    work(&Priced { prices, speed, factors: basis.factors })
}

/// The step costs of this engine with a model on a measured machine.
///
/// # Errors
/// When the engine does not serve the model so.
pub fn step_cost(model: &Model, settings: &ServeSettings, basis: ServeBasis<'_>) -> Result<StepCost> {
    with_prices(model, settings, basis, |priced| {
        let deployment =
            Deployment::tensor_parallel(settings.tp as u32, Quantization::uniform(NumberFormat::Bf16));
        let layers = priced.prices.network.layers.len() as f64;
        let step = PricedStep {
            tokens: &|rows| priced.tokens(rows).total(),
            ends: &|rows| priced.ends(rows).total(),
            // A mean over the layers: kinds of attention that this engine runs differ in widths at most.
            attention: &|_, rows, each| priced.attention(rows, each).total() / layers,
            kv_size: SIZE,
            cache_tokens: (settings.pages * settings.page) as f64,
            sigma: 0.1,
        };
        let accelerator = &basis.cluster.first_node().accelerator;
        let pieces = StepPieces::priced(model, &deployment, accelerator, &step)
            .map_err(|e| ExecutorError::Prediction(e.to_string()))?;
        Ok(StepCost::from_pieces(std::sync::Arc::new(pieces), engine_profile(settings).parameters))
    })
}

/// What steps that ran are priced at.
///
/// # Errors
/// As [`step_cost`].
pub fn price_steps(
    model: &Model,
    settings: &ServeSettings,
    basis: ServeBasis<'_>,
    steps: &[ServeStep],
) -> Result<Vec<StepPrice>> {
    with_prices(model, settings, basis, |priced| {
        let price = |step: &ServeStep| {
            let rows = (step.prompt + step.decode) as f64;
            let parts = [
                priced.tokens(rows),
                priced.attention(rows, step.context as f64 / rows),
                priced.ends(step.ends as f64),
            ];
            StepPrice { first: parts.iter().map(|p| p.first).sum(), more: parts.iter().map(|p| p.more).sum() }
        };
        Ok(steps.iter().map(price).collect())
    })
}

/// Factors under which prices explain measured steps: least squares of the ratios of measured to predicted, held near
/// their median where the steps do not tell both parts apart; steps far off the rest, which something else held up, are
/// left out.
pub fn learn(steps: &[(f64, StepPrice)]) -> ServingFactors {
    /// Weight of the belief that both parts are off alike, in steps.
    const ALIKE: f64 = 2.0;
    // (share of the first token, measured over predicted)
    let mut samples: Vec<(f64, f64)> = steps
        .iter()
        .map(|(seconds, price)| (price.first / price.total(), seconds / price.total()))
        .filter(|(share, ratio)| share.is_finite() && ratio.is_finite() && *ratio > 0.0)
        .collect();
    let middle = |mut values: Vec<f64>| {
        values.sort_by(f64::total_cmp);
        values.get(values.len() / 2).copied()
    };
    let Some(common) = middle(samples.iter().map(|s| s.1).collect()) else {
        return ServingFactors::default();
    };
    let mut found = [common; 2];
    for _ in 0..3 {
        let (mut matrix, mut right) = ([[ALIKE, 0.0], [0.0, ALIKE]], [ALIKE * common; 2]);
        for (share, ratio) in &samples {
            let terms = [*share, 1.0 - share];
            for i in 0..2 {
                (0..2).for_each(|j| matrix[i][j] += terms[i] * terms[j]);
                right[i] += terms[i] * ratio;
            }
        }
        found = solve(matrix, right).map(|f| f.max(0.05 * common));
        let off =
            |(share, ratio): &(f64, f64)| (ratio / (found[0] * share + found[1] * (1.0 - share))).ln().abs();
        let Some(usual) = middle(samples.iter().map(off).collect()) else { break };
        samples.retain(|s| off(s) <= 4.0 * usual.max(0.01));
    }
    ServingFactors { step: found[0], token: found[1] }
}

/// This engine as the serving simulator knows engines: chunked prefill, no time beyond its step costs.
pub fn engine_profile(settings: &ServeSettings) -> EngineProfile {
    let parameters = EngineParameters {
        step_us: 0.0,
        sequence_us: 0.0,
        prompt_us: 0.0,
        layer_us: 0.0,
        overlap_us: 0.0,
        loop_us: 0.0,
        loop_sequence_us: 0.0,
        eager_layer_us: 0.0,
        graph_tokens: 0,
        ttft_ms: 0.0,
        gemm: 1.0,
        decode: 1.0,
        prompt: 1.0,
        moe: 1.0,
        all_reduce: 1.0,
        ..EngineParameters::default()
    };
    EngineProfile {
        schema: 1,
        name: "psim-executor".to_owned(),
        era: "this program".to_owned(),
        library: "psim-executor".to_owned(),
        policy: psim_cost_models::serving::Policy::ChunkedPrefill,
        max_sequences: settings.sequences as u32,
        token_budget: settings.tokens as u32,
        memory_share: 1.0,
        reserve_gib: 0.0,
        block_tokens: settings.page as u32,
        prompt_wait_steps: None,
        prompt_batch_steps: None,
        lookahead: false,
        receive_steps: None,
        prompt_micro_batch: None,
        releases: None,
        version: None,
        parameters,
        accelerator: Vec::new(),
        release: Vec::new(),
    }
}

/// Simulates the requests as [`super::serve`] would serve them.
///
/// # Errors
/// When the engine does not serve the model so, or the simulator refuses.
pub fn predict(
    model: &Model,
    requests: &[ServeRequest],
    settings: &ServeSettings,
    basis: ServeBasis<'_>,
) -> Result<ServingRun> {
    let cost = step_cost(model, settings, basis)?;
    let engine = engine_profile(settings);
    let requests = requests
        .iter()
        .map(|r| Request {
            arrival: Time::from(Seconds(r.arrival)),
            input: r.prompt.len() as u32,
            output: r.output as u32,
            ..Request::default()
        })
        .collect();
    let traffic = Traffic { requests, clients: None, prefixes: SharedPrefixes::default() };
    let options = FleetOptions::default();
    let input = ServingInput {
        cost: &cost,
        engine: &engine,
        traffic: &traffic,
        replicas: settings.replicas as u32,
        options,
    };
    simulate(&input).map_err(|e| ExecutorError::Prediction(e.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn factors_are_learned_back() {
        let step = |first: f64, more: f64| (1.5 * first + 0.8 * more, StepPrice { first, more });
        let mut steps: Vec<_> = (1..100).map(|i| step(1.0, 0.1 * f64::from(i % 9))).collect();
        steps.extend((1..60).map(|i| step(1.0, f64::from(i % 7))));
        // Steps that were held up by something else.
        steps.extend([(40.0, StepPrice { first: 1.0, more: 0.0 }); 3]);
        let found = learn(&steps);
        assert!((found.step - 1.5).abs() < 0.05 && (found.token - 0.8).abs() < 0.06, "{found:?}");
        assert_eq!(learn(&[]), ServingFactors::default());
        // Steps that are all alike do not tell: both parts are off alike.
        let found = learn(&[(3.0, StepPrice { first: 1.0, more: 1.0 }); 20]);
        assert!((found.step - 1.5).abs() < 1e-9 && (found.token - 1.5).abs() < 1e-9, "{found:?}");
    }

    #[test]
    fn least_squares_finds_what_made_the_times_and_nothing_negative() {
        let terms = |l: f64, r: f64| [1.0, l, l * r];
        let make = |a: f64, b: f64, c: f64| -> Vec<([f64; 3], f64)> {
            [(1.0, 1.0), (4.0, 1.0), (1.0, 8.0), (4.0, 8.0)]
                .into_iter()
                .map(|(l, r)| (terms(l, r), a + b * l + c * l * r))
                .collect()
        };
        let scale = [1.0, 2.0, 1.5, 3.0];
        let found = least_squares(&make(2.0, 0.5, 0.1), &scale);
        assert!(found.iter().zip([2.0, 0.5, 0.1]).all(|(a, b)| (a - b).abs() < 1e-9), "{found:?}");
        let found = least_squares(&make(2.0, -0.5, 0.4), &scale);
        assert!(found.iter().all(|&c| c >= 0.0) && found[1] == 0.0, "{found:?}");
        // Times that two terms cannot be told apart from are given to one of them.
        let same: Vec<_> = (0..3).map(|_| (terms(1.0, 1.0), 3.0)).collect();
        let found = least_squares(&same, &[1.0; 3]);
        assert!((found.iter().sum::<f64>() - 3.0).abs() < 1e-9, "{found:?}");
    }
}
