//! Attention and feed-forward layers of a replica on accelerators of their own.

use super::ServingRequest;
use super::detail::{DetailError, ServingDetail};
use super::energy::{Activity, Energy, joules};
use psim_cost_models::serving::{AttentionFfn, Lane, StepCost};
use psim_models::Model;
use psim_models::serving::Deployment;
use psim_sim::serving::placement::{Placement, Role, place};
use psim_sim::serving::transfer::crossing;
use serde::Serialize;

/// Where the feed-forward layers of a replica are (MegaScale-Infer, Zhu et al. 2025; Step-3, 2025).
///
/// The replica's own layout is that of its attention: `attention_dp` copies of `tp` ranks with all caches. Routed experts,
/// or in a model without any all feed-forward matrices, lie on `instances` of `tp` ranks. A step cuts every copy's batch
/// into micro-batches that go to and fro over the links between the two sides. Prompts do the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct FeedForwardApart {
    /// Instances of one replica; experts are spread over them.
    pub instances: u32,
    /// Ranks of an instance.
    pub tp: u32,
    /// Micro-batches in flight.
    pub micro_batches: u32,
    /// Group of the cluster's nodes on which they lie, from 0.
    pub group: usize,
}

/// How the two sides meet in a decoding step of the fullest batch, contexts of the workload's mean.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct ApartFigures {
    /// Sequences of an attention copy in that step.
    pub batch: u32,
    /// Microseconds of a micro-batch in a layer: attention, crossing one way, feed-forward.
    pub attention_us: f64,
    /// One way.
    pub crossing_us: f64,
    /// Feed-forward.
    pub feed_forward_us: f64,
    /// Milliseconds of the step's layers.
    pub layers_ms: f64,
    /// Share of that for which the attention works.
    pub attention_busy: f64,
    /// The same of the feed-forward instances.
    pub feed_forward_busy: f64,
    /// Micro-batches that would hide the way and the less busy side.
    pub enough: u32,
    /// GiB of weights on an accelerator of the feed-forward instances.
    pub weights_gib: f64,
}

impl FeedForwardApart {
    /// Accelerators of the feed-forward instances of one replica.
    pub fn accelerators(&self) -> u32 {
        self.instances.saturating_mul(self.tp)
    }

    /// Why a deployment cannot have them, if so; `beside` is set where something else changes its steps.
    pub fn fault(&self, model: &Model, deployment: &Deployment, beside: bool) -> Option<String> {
        let experts = model.moe().map_or(0, |m| m.experts);
        if deployment.pp > 1 || deployment.ep > 1 {
            return Some(
                "attention and feed-forward apart is built for attention without pipeline stages (pp) and without experts \
                 of its own (ep)"
                    .to_owned(),
            );
        }
        if beside {
            return Some(
                "attention and feed-forward apart together with speculation, redundant or offloaded experts, an overlap of \
                 kernels or a partition is not built"
                    .to_owned(),
            );
        }
        (experts > 0 && u64::from(self.instances) > experts).then(|| {
            format!("{} instances are more than the {experts} experts of {}", self.instances, model.name)
        })
    }

    /// Prices of the steps of such replicas.
    ///
    /// # Errors
    /// A side that does not fit the model or its memory; a cluster that has no room for the replicas.
    pub fn cost(
        &self,
        request: &ServingRequest<'_>,
        deployment: &Deployment,
        group: usize,
    ) -> Result<StepCost, DetailError> {
        let role = |size, group| Role { instances: deployment.replicas, size, group };
        let sizes = (deployment.accelerators_per_replica(), self.accelerators());
        let sites =
            place(request.cluster, Placement::Paired, role(sizes.0, group), role(sizes.1, self.group));
        let Some((attention, behind)) = sites else {
            let what = format!(
                "{} replicas of {} accelerators for attention and {} for feed-forward layers do not fit {}",
                deployment.replicas, sizes.0, sizes.1, request.cluster.name
            );
            return Err(DetailError::Together { key: "attention_ffn", what });
        };
        // Replicas are alike to the router: all are priced with the longest way.
        let ways = attention.iter().zip(&behind);
        let ways = ways.map(|(a, f)| crossing(request.cluster, (*a, sizes.0), (*f, sizes.1)));
        let slower = |x: &psim_cost_models::serving::Crossing, y: &psim_cost_models::serving::Crossing| {
            (x.attention_rate.min(x.feed_forward_rate)).total_cmp(&y.attention_rate.min(y.feed_forward_rate))
        };
        let Some(way) = ways.min_by(slower) else {
            let what = "there are no replicas".to_owned();
            return Err(DetailError::Together { key: "replicas", what });
        };
        let nodes = [request.node(group), request.node(self.group)];
        let instances = (self.instances, self.tp, self.micro_batches);
        let places = (request.cluster, nodes, way);
        Ok(StepCost::apart(request.model, deployment, instances, places, request.engine, request.library)?)
    }

    /// The fullest decoding step of such prices.
    pub fn figures(&self, request: &ServingRequest<'_>, cost: &StepCost) -> Option<ApartFigures> {
        let (input, output) = request.workload.mean_lengths();
        let whole = cost.shape().sequence_bytes((input + output).max(1.0) as u64).max(1.0);
        let batch = (cost.cache_bytes() / whole).min(f64::from(request.engine.max_sequences)).max(1.0) as u32;
        let context = cost.reads(batch, (input + output / 2.0) as u64);
        let lanes = vec![Lane { decoding: batch, context, chunks: &[] }; cost.lanes().max(1) as usize];
        let step: AttentionFfn = cost.to_and_fro(&lanes)?;
        let seconds = step.step_seconds();
        let rounds = f64::from(step.layers) * f64::from(step.micro_batches);
        Some(ApartFigures {
            batch,
            attention_us: step.attention * 1e6,
            crossing_us: step.crossing * 1e6,
            feed_forward_us: step.feed_forward * 1e6,
            layers_ms: seconds * 1e3,
            attention_busy: rounds * step.attention / seconds,
            feed_forward_busy: rounds * step.feed_forward / seconds,
            enough: step.enough(),
            weights_gib: cost.feed_forward().map_or(0.0, |f| f.shape().weight_bytes) / 1024f64.powi(3),
        })
    }

    /// Adds price and energy of the feed-forward instances to those of the attention. Both sides work for as long as the
    /// engine does; the arithmetic of prompts is shared by their accelerators.
    pub(super) fn add(
        &self,
        request: &ServingRequest<'_>,
        (deployment, group): (&Deployment, usize),
        found: &mut ServingDetail,
    ) {
        let node = request.node(self.group);
        let (own, behind) =
            (f64::from(deployment.accelerators_per_replica()), f64::from(self.accelerators()));
        let replicas = found.run.replica_seconds / found.run.end.seconds().0.max(f64::MIN_POSITIVE);
        let activity = |share: f64| Activity {
            instance_seconds: replicas * found.report.seconds,
            busy: found.run.busy,
            prompt_tokens: found.run.computed_prompt_tokens as f64 * share,
        };
        let all = own + behind;
        let other = Deployment { tp: self.tp, pp: 1, attention_dp: self.instances, ..*deployment };
        // One energy for the attention with its share of the arithmetic, one for the other side.
        let spent =
            joules(request.model, request.cluster, request.node(group), deployment, &activity(own / all))
                + joules(request.model, request.cluster, node, &other, &activity(behind / all));
        found.energy = Energy::of(spent, found.report.seconds, found.run.generated_tokens as f64);
        found.usd_per_hour += replicas * behind * node.price_per_gpu_hour;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serving::fixture::Asked;
    use crate::serving::{Served, detail, steps_apart};
    use psim_cost_models::serving::{EngineParameters, EngineProfile, PromptChunk, StepCostError};
    use psim_hardware::Cluster;
    use psim_hardware::catalogue::{HomogeneousOptions, homogeneous};
    use psim_models::presets;
    use psim_models::serving::{Arrival, NumberFormat, Quantization, ServingWorkload};
    use psim_sim::serving::FleetOptions;

    fn cluster(accelerators: u32) -> Cluster {
        homogeneous("H100-SXM-80GB", accelerators, &HomogeneousOptions::default()).unwrap()
    }

    fn on<R>(
        model: &Model,
        cluster: &Cluster,
        arrival: Arrival,
        ask: impl Fn(&ServingRequest<'_>) -> R,
    ) -> R {
        let workload = ServingWorkload::fixed("w", arrival, 64, 512, 64);
        let asked = Asked { seed: 3, ..Asked::new("llama3-8b", 8, workload).on(cluster.clone()) };
        ask(&ServingRequest { model, ..asked.request() })
    }

    const EIGHT: FeedForwardApart = FeedForwardApart { instances: 8, tp: 1, micro_batches: 3, group: 0 };

    fn copies(n: u32) -> Deployment {
        let q = Quantization::uniform(NumberFormat::Bf16);
        Deployment { attention_dp: n, ..Deployment::tensor_parallel(1, q) }
    }

    #[test]
    fn a_step_of_mixtral_by_hand() {
        let (model, cluster) = (presets::find("mixtral-8x22b").unwrap(), cluster(16));
        on(&model, &cluster, Arrival::Burst, |request| {
            let d = copies(8);
            // Every expert is chosen as often as the others, and its arithmetic hides behind its weights.
            let name = &cluster.first_node().accelerator.name;
            let parameters =
                EngineParameters { expert_imbalance: 1.0, moe_arithmetic: 0.0, ..request.engine.on(name).0 };
            let engine = EngineProfile { parameters, accelerator: Vec::new(), ..request.engine.clone() };
            let request = &ServingRequest { engine: &engine, ..*request };
            let cost = EIGHT.cost(request, &d, 0).unwrap();
            let context = cost.reads(48, 1000);
            let lanes = vec![Lane { decoding: 48, context, chunks: &[] }; 8];
            let step = cost.to_and_fro(&lanes).unwrap();
            let bandwidth = cluster.first_node().accelerator.memory_bandwidth.0;
            // One expert of 3 · 6,144 · 16,384 numbers of two bytes is read for every micro-batch; 8 copies of 16
            // sequences bring it 128 · 2 / 8 = 32 rows, far from arithmetic; kernels under the engine reach three fifths of the rate.
            let expert = 3.0 * 6144.0 * 16384.0 * 2.0 / bandwidth;
            assert!(step.feed_forward > expert && step.feed_forward < 1.7 * expert, "{step:?} {expert}");
            // Attention: query, key, value and output of 6,144 · (6,144 + 2 · 1,024 + 6,144), 16 caches of 1,000
            // tokens of 2 · 1,024 numbers.
            let attention =
                (6144.0 * (2.0 * 6144.0 + 2.0 * 1024.0) * 2.0 + 16.0 * 1000.0 * 2048.0 * 2.0) / bandwidth;
            assert!(step.attention > attention && step.attention < 2.0 * attention, "{step:?} {attention}");
            // The two nodes are joined by a card for each GPU: 16 tokens of 6,144 numbers of two bytes go to
            // 8 · (1 − (7/8)²) = 1.875 instances.
            let wire = 16.0 * 6144.0 * 2.0 * 1.875 / cluster.first_node().nics.rate.0;
            assert!((step.wire / wire - 1.0).abs() < 1e-9, "{} {wire}", step.wire);
            // Experts are the slower side: all 56 layers of 3 micro-batches one after another, then what is left of
            // the first and the last one, and the output layer and the host behind them.
            let whole = cost.seconds(&lanes);
            let busy = 56.0 * 3.0 * step.feed_forward;
            assert!(step.feed_forward > step.attention && step.enough() <= 3, "{step:?}");
            let ends = step.attention + 2.0 * step.crossing;
            assert!(
                (step.step_seconds() - busy - ends).abs() < 1e-9,
                "{} {busy} {ends}",
                step.step_seconds()
            );
            assert!(whole > busy && whole < busy + ends + 3e-3, "{whole} {busy}");
            // With one micro-batch each side waits for the other, though weights are read once only.
            let alone = FeedForwardApart { micro_batches: 1, ..EIGHT }.cost(request, &d, 0).unwrap();
            let one = alone.to_and_fro(&lanes).unwrap();
            let by_hand = 56.0 * (one.attention + one.feed_forward + 2.0 * one.crossing);
            assert!((one.step_seconds() / by_hand - 1.0).abs() < 1e-9);
        });
    }

    #[test]
    fn never_below_the_roofline_and_never_faster_with_more_work() {
        let cluster = cluster(16);
        for name in ["mixtral-8x22b", "llama3-8b", "qwen3-30b-a3b"] {
            let model = presets::find(name).unwrap();
            on(&model, &cluster, Arrival::Burst, |request| {
                let cost = EIGHT.cost(request, &copies(4), 0).unwrap();
                let mut before = 0.0;
                for decoding in [1, 2, 3, 4, 7, 30, 200, 900] {
                    let context = cost.reads(decoding, 700);
                    let chunks = [PromptChunk { tokens: decoding * 2, before: 0 }];
                    for chunks in [&[][..], &chunks[..]] {
                        let lanes = vec![Lane { decoding, context, chunks }; 4];
                        let seconds = cost.seconds(&lanes);
                        assert!(seconds >= cost.roofline(&lanes), "{name} {decoding}");
                        assert!(
                            seconds >= cost.to_and_fro(&lanes).unwrap().lower_bound(),
                            "{name} {decoding}"
                        );
                        if chunks.is_empty() {
                            assert!(seconds >= before, "{name} {decoding}: {seconds} {before}");
                            before = seconds;
                        }
                    }
                }
            });
        }
    }

    #[test]
    fn requests_are_served_coalesced_or_step_by_step() {
        let (model, cluster) = (presets::find("mixtral-8x7b").unwrap(), cluster(16));
        for arrival in [Arrival::Poisson { rate: 20.0 }, Arrival::ClosedLoop { concurrency: 9 }] {
            on(&model, &cluster, arrival, |request| {
                let served = |coalesce| {
                    let options = FleetOptions { coalesce, ..FleetOptions::default() };
                    let served = Served { apart: Some(EIGHT), ..Served::replicas(copies(4), options) };
                    assert_eq!(served.accelerators(), 12);
                    detail(request, &served).unwrap()
                };
                let (all, single) = (served(true), served(false));
                let books = |d: &ServingDetail| (d.run.gaps.clone(), d.run.steps, d.run.busy);
                assert!(all.run.outcomes == single.run.outcomes && books(&all) == books(&single));
                assert_eq!((all.report.requests, all.run.generated_tokens), (64, 64 * 64));
                assert_eq!(all.run.computed_prompt_tokens, 64 * 512);
                assert_eq!((all.run.extra.unfinished, all.run.extra.leaked_bytes), (0, 0));
                let figures = all.apart.unwrap();
                assert!(figures.attention_busy <= 1.0 && figures.feed_forward_busy <= 1.0, "{figures:?}");
                // Twelve GPUs are paid and heated, not four.
                let price = cluster.first_node().price_per_gpu_hour;
                assert!((all.usd_per_hour / (12.0 * price) - 1.0).abs() < 1e-6, "{}", all.usd_per_hour);
                let steps = steps_apart(request, 0, &copies(4), &EIGHT).unwrap();
                assert!(steps.decode.iter().all(|p| p.step_ms >= p.roofline_ms) && steps.apart.is_some());
            });
        }
    }

    #[test]
    fn what_does_not_fit_is_said() {
        let (model, small) = (presets::find("mixtral-8x22b").unwrap(), cluster(16));
        on(&model, &small, Arrival::Burst, |request| {
            // Two instances would hold four experts each: 135 GB.
            let two = FeedForwardApart { instances: 2, ..EIGHT };
            let error = two.cost(request, &copies(4), 0).unwrap_err();
            assert!(matches!(&error, DetailError::Cost(StepCostError::FeedForward(_))), "{error}");
            assert!(error.to_string().starts_with("feed-forward instances: weights need 126"), "{error}");
            // Attention on nine GPUs of one node and eight of the other is one too many.
            assert!(EIGHT.cost(request, &copies(9), 0).is_err());
            assert!(FeedForwardApart { instances: 9, ..EIGHT }.fault(&model, &copies(1), false).is_some());
            assert!(EIGHT.fault(&model, &Deployment { pp: 2, ..copies(1) }, false).is_some());
            assert!(EIGHT.fault(&model, &copies(1), true).is_some());
        });
    }
}
