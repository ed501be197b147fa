//! Serving for real: prefill and decode with a paged cache and continuous batching, tokens and all.
//!
//! Every step runs one token batch: one token of each sequence that decodes, and as much of the waiting prompts as the
//! token budget leaves (chunked prefill, Agrawal et al. 2024). Keys and values lie in pages (Kwon et al. 2023, section
//! 4); when no page is free, the sequence that came last gives its pages up and is computed again later. Ranks share the
//! heads and the widths of each layer (tensor parallelism); rank 0 decides what a step runs and tells the others.
//! Replicas take the requests in turn.

mod batch;
mod clock;
mod forward;
mod gate;
mod predict;
mod scheduler;

pub use batch::Batch;
pub use clock::Clock;
pub use predict::{ServeBasis, StepPrice, engine_profile, learn, predict, price_steps, step_cost};
pub use scheduler::{Scheduler, State};

use crate::comm::{Comm, Hub, Transport};
use crate::error::{ExecutorError, Result, unsupported};
use crate::mesh::Group;
use crate::network::Network;
use clock::Watch;
use forward::Engine;
use gate::Gate;
use psim_hardware::DType;
use psim_kernels::Device;
use psim_models::Model;
use psim_models::operator::Dimension;

/// A request.
#[derive(Debug, Clone, PartialEq)]
pub struct ServeRequest {
    /// Seconds after the start at which it arrives.
    pub arrival: f64,
    /// Prompt.
    pub prompt: Vec<u32>,
    /// Tokens to generate.
    pub output: usize,
}

/// How to serve.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ServeSettings {
    /// Tensor-parallel ranks of a replica.
    pub tp: usize,
    /// Replicas; requests go to them in turn, by arrival.
    pub replicas: usize,
    /// Tokens of a page.
    pub page: usize,
    /// Pages of the cache.
    pub pages: usize,
    /// Most tokens of a step.
    pub tokens: usize,
    /// Most sequences at once.
    pub sequences: usize,
    /// Seed of the parameters.
    pub seed: u64,
    /// Keep the scores of every generated token.
    pub scores: bool,
    /// What time is.
    pub clock: Clock,
    /// Serve the requests once before, unmeasured, so that memory and caches are as in an engine that has been running.
    pub warm_up: bool,
}

/// What became of a request; seconds after the start.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Served {
    /// Generated tokens, greedily chosen.
    pub tokens: Vec<u32>,
    /// When it arrived.
    pub arrival: f64,
    /// When a step first took it in.
    pub admitted: f64,
    /// When each token was ready.
    pub times: Vec<f64>,
    /// How often it lost its pages.
    pub preemptions: u32,
    /// Scores over the vocabulary behind every token, if asked for.
    pub scores: Vec<Vec<f32>>,
}

impl Served {
    /// Time to the first token, seconds.
    pub fn ttft(&self) -> f64 {
        self.times.first().map_or(f64::NAN, |t| t - self.arrival)
    }
    /// Mean time between tokens after the first, seconds (not a number for a single token).
    pub fn tpot(&self) -> f64 {
        match (self.times.first(), self.times.last()) {
            (Some(first), Some(last)) if self.times.len() > 1 => {
                (last - first) / (self.times.len() - 1) as f64
            }
            _ => f64::NAN,
        }
    }
}

/// One engine step.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct ServeStep {
    /// When it began, seconds after the start.
    pub start: f64,
    /// How long it took by the run's clock, seconds.
    pub seconds: f64,
    /// Prompt tokens computed.
    pub prompt: usize,
    /// Sequences that decoded.
    pub decode: usize,
    /// Sequences that got a token.
    pub ends: usize,
    /// Cached tokens that the batch attended to, summed over its tokens.
    pub context: usize,
}

/// A finished run.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ServeRun {
    /// Per request, in the order given.
    pub requests: Vec<Served>,
    /// Steps.
    pub steps: Vec<ServeStep>,
    /// Most pages in use at once in a replica.
    pub peak_pages: usize,
}

fn check(network: &Network, requests: &[ServeRequest], settings: &ServeSettings) -> Result<()> {
    let hint = "change the serving settings";
    if settings.tp == 0
        || settings.replicas == 0
        || settings.page == 0
        || settings.tokens == 0
        || settings.sequences == 0
    {
        return unsupported("serving with a size of 0", hint);
    }
    if network.layers.iter().any(|l| l.experts.is_some()) {
        return unsupported("serving of mixtures of experts", "dense models are served");
    }
    for layer in &network.layers {
        for (what, size) in [("heads", layer.heads), ("key-value heads", layer.kv_heads)] {
            if !size.is_multiple_of(settings.tp) {
                return unsupported(
                    format!("{size} {what} on tp {}", settings.tp),
                    "choose a tp that divides",
                );
            }
        }
        if layer.dense.is_some_and(|d| !d.hidden.is_multiple_of(settings.tp)) {
            return unsupported(format!("a width that tp {} does not divide", settings.tp), hint);
        }
    }
    for (index, request) in requests.iter().enumerate() {
        let length = request.prompt.len() + request.output;
        if request.prompt.is_empty() || request.output == 0 || !request.arrival.is_finite() {
            return unsupported(format!("request {index} without prompt, output or arrival"), hint);
        }
        if length.div_ceil(settings.page) > settings.pages {
            return unsupported(
                format!(
                    "request {index} of {length} tokens in {} pages of {}",
                    settings.pages, settings.page
                ),
                "give the cache more pages",
            );
        }
        if network.learned_positions.is_some_and(|rows| rows < length) {
            return unsupported(format!("request {index} of {length} tokens: too few positions"), hint);
        }
        if request.prompt.iter().any(|&t| t as usize >= network.vocab) {
            return unsupported(format!("request {index} with tokens beyond the vocabulary"), hint);
        }
    }
    Ok(())
}

/// Serves the requests in fp32 on `settings.tp · settings.replicas` rank threads; arrivals are waited for.
///
/// # Errors
/// When the model cannot be served, a request can never fit, or a rank fails.
pub fn serve<D: Device>(
    model: &Model,
    requests: &[ServeRequest],
    settings: &ServeSettings,
    device: impl Fn(usize) -> Result<D> + Sync,
) -> Result<ServeRun> {
    serve_in(DType::Fp32, model, requests, settings, device)
}

/// As [`serve`], with parameters, activations and cache in another format.
///
/// # Errors
/// As [`serve`].
pub fn serve_in<D: Device>(
    dtype: DType,
    model: &Model,
    requests: &[ServeRequest],
    settings: &ServeSettings,
    device: impl Fn(usize) -> Result<D> + Sync,
) -> Result<ServeRun> {
    let network = Network::new(model)?;
    check(&network, requests, settings)?;
    let shares = in_turn(requests, settings.replicas);
    let ranks = settings.tp * settings.replicas;
    let hubs: Vec<_> = shares.iter().map(|_| Hub::among(settings.tp, ranks)).collect();
    let gate = Gate::new(ranks);
    let outcomes: Vec<Result<ServeRun>> = std::thread::scope(|scope| {
        let handles: Vec<_> = (0..ranks)
            .map(|rank| {
                let (hub, own) = (&hubs[rank / settings.tp], &shares[rank / settings.tp]);
                let (network, device, pass) = (&network, &device, gate.pass());
                scope.spawn(move || {
                    let comm = Comm::new(hub.endpoint(rank % settings.tp));
                    let own: Vec<ServeRequest> = own.iter().map(|&i| requests[i].clone()).collect();
                    let stopped = |error: ExecutorError| {
                        hub.stop(&error.to_string());
                        error
                    };
                    let ready = device(rank)
                        .and_then(|d| Engine::new(d, comm, network, settings, dtype))
                        .and_then(|engine| {
                            if settings.warm_up {
                                let untimed = ServeSettings { clock: Clock::Processor, ..*settings };
                                run(&engine, &own, &untimed)?;
                            }
                            Ok(engine)
                        })
                        .map_err(stopped);
                    pass.through();
                    ready.and_then(|engine| run(&engine, &own, settings).map_err(stopped))
                })
            })
            .collect();
        handles
            .into_iter()
            .enumerate()
            .map(|(rank, h)| {
                h.join().unwrap_or_else(|_| {
                    Err(ExecutorError::Peer { rank, reason: "its thread panicked".to_owned() })
                })
            })
            .collect()
    });
    let mut all = ServeRun { requests: vec![Served::default(); requests.len()], ..ServeRun::default() };
    let mut stopped = None;
    for (rank, outcome) in outcomes.into_iter().enumerate() {
        match outcome {
            // The first rank of a replica speaks for it.
            Ok(run) if rank % settings.tp == 0 => {
                for (served, &at) in run.requests.into_iter().zip(&shares[rank / settings.tp]) {
                    all.requests[at] = served;
                }
                all.steps.extend(run.steps);
                all.peak_pages = all.peak_pages.max(run.peak_pages);
            }
            Ok(_) => {}
            Err(error @ ExecutorError::Peer { .. }) => stopped = stopped.or(Some(error)),
            Err(error) => return Err(error),
        }
    }
    all.steps.sort_by(|a, b| a.start.total_cmp(&b.start));
    stopped.map_or(Ok(all), Err)
}

/// Which requests each replica gets: one after another, by arrival.
fn in_turn(requests: &[ServeRequest], replicas: usize) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..requests.len()).collect();
    order.sort_by(|&a, &b| requests[a].arrival.total_cmp(&requests[b].arrival).then(a.cmp(&b)));
    let mut shares = vec![Vec::new(); replicas];
    for (turn, request) in order.into_iter().enumerate() {
        shares[turn % replicas].push(request);
    }
    shares
}

/// The loop of one rank: rank 0 schedules, every rank computes.
fn run<D: Device, T: Transport>(
    engine: &Engine<'_, D, T>,
    requests: &[ServeRequest],
    settings: &ServeSettings,
) -> Result<ServeRun> {
    let group = Group { ranks: (0..settings.tp).collect(), index: engine.comm.rank() };
    let mut watch = Watch::new(settings.clock);
    let mut scheduler = Scheduler::new(requests, settings);
    let mut out = ServeRun {
        requests: requests.iter().map(|r| Served { arrival: r.arrival, ..Served::default() }).collect(),
        ..ServeRun::default()
    };
    loop {
        if group.index == 0 && settings.clock == Clock::Wall {
            watch.wait(scheduler.idle_until());
        }
        let start = watch.now();
        let batch = if group.index == 0 {
            scheduler.arrive(start);
            scheduler.next_batch()
        } else {
            Batch::default()
        };
        let batch = share(engine, &group, batch, scheduler.finished())?;
        let Some(batch) = batch else { break };
        if batch.is_empty() {
            // Nothing to do before the next arrival.
            if settings.clock == Clock::Processor {
                watch.jump(scheduler.next_arrival());
            }
            continue;
        }
        let scores = engine.step(&batch, &group)?;
        if settings.clock == Clock::Processor {
            // The slowest rank sets the step.
            let own = watch.lap();
            let all = engine.comm.all_gather(Dimension::Tp, &group, vec![own as f32])?;
            let slowest = all.iter().flatten().fold(0.0_f32, |a, &b| a.max(b));
            watch.add(if group.size() == 1 { own } else { f64::from(slowest) });
        }
        if group.index > 0 {
            continue;
        }
        let end = watch.now();
        out.steps.push(ServeStep {
            start,
            seconds: end - start,
            prompt: batch.tokens.len() - batch.decode,
            decode: batch.decode,
            ends: batch.samples.len(),
            context: batch.lengths.iter().map(|&l| l as usize).sum(),
        });
        out.peak_pages = out.peak_pages.max(scheduler.pages_in_use());
        for (sequence, row) in batch.sampled().zip(scores) {
            let token = best(&row);
            let request = &mut out.requests[sequence];
            request.tokens.push(token);
            request.times.push(end);
            if settings.scores {
                request.scores.push(row);
            }
            scheduler.generated(sequence, token);
        }
    }
    for (index, served) in out.requests.iter_mut().enumerate() {
        (served.preemptions, served.admitted) = (scheduler.preemptions(index), scheduler.admitted(index));
    }
    Ok(out)
}

/// The batch of rank 0 on every rank; `None` when all is served.
fn share<D: Device, T: Transport>(
    engine: &Engine<'_, D, T>,
    group: &Group,
    batch: Batch,
    finished: bool,
) -> Result<Option<Batch>> {
    if group.size() == 1 {
        return Ok((!finished).then_some(batch));
    }
    let letter = if group.index > 0 {
        Vec::new()
    } else if finished {
        vec![f32::NAN]
    } else {
        batch.encode()
    };
    let letters = engine.comm.all_gather(Dimension::Tp, group, letter)?;
    let first = letters.into_iter().next().unwrap_or_default();
    Ok(if first.first().is_some_and(|f| f.is_nan()) { None } else { Some(Batch::decode(&first)) })
}

/// Index of the largest score, the lower one of equals.
fn best(scores: &[f32]) -> u32 {
    let mut best = 0;
    for (index, score) in scores.iter().enumerate() {
        if *score > scores[best] {
            best = index;
        }
    }
    best as u32
}
