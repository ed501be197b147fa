//! Where drafts come from, and what a round costs.

use super::acceptance::{Acceptance, Tree};
use psim_cost_models::serving::{KINDS, Lane, StepCost};
use psim_models::serving::ServingShape;

/// A source of drafts.
#[derive(Debug, Clone)]
pub enum Drafter<'a> {
    /// No drafts: ordinary decoding.
    None,
    /// A small model drafts one token after another, then the target verifies all at once (Leviathan et al. 2023).
    /// With its prices taken on another device this is Dovetail: draft on a small GPU, verification on a CPU; then
    /// `exchange` is the time in which token ids and features cross the host link.
    Model {
        /// Steps of the draft model.
        cost: &'a StepCost,
        /// Drafted tokens of a round.
        tokens: u32,
        /// Seconds of moving drafts and verdicts between two devices, once a round.
        exchange: f64,
    },
    /// The draft model runs while the target verifies, on accelerators of its own (PEARL, Liu et al. 2025): the first
    /// draft is verified while the others are drafted, and drafting goes on during verification.
    Parallel {
        /// Steps of the draft model.
        cost: &'a StepCost,
        /// Drafted tokens of a round.
        tokens: u32,
    },
    /// The draft model's attention layers run in groups at the same time on as many accelerators; the first and the
    /// last layer run alone, and one ordinary pass over the round's tokens mends its cache (EasySpec, Wu et al. 2025).
    LayerParallel {
        /// Steps of the draft model on one accelerator.
        cost: &'a StepCost,
        /// Drafted tokens of a round.
        tokens: u32,
        /// Layers of a group.
        group: u32,
    },
    /// Prediction heads of the target: each draft costs one more layer and an output layer (multi-token prediction of
    /// DeepSeek-V3, EAGLE).
    Heads {
        /// Drafted tokens of a round.
        tokens: u32,
        /// Layers of each head.
        layers: u32,
    },
    /// Candidates at no cost but their verification, as a tree (Medusa heads, prompt tokens of PPD).
    Tree(Tree),
    /// Tokens copied from the prompt (prompt lookup, aggressive decoding): no draft cost.
    Copy {
        /// Drafted tokens of a round.
        tokens: u32,
    },
}

/// Names of the field: (name, built as).
const NAMES: [(&str, &str); 10] = [
    ("draft-model", "draft-model"),
    ("mtp", "heads"),
    ("eagle", "heads"),
    ("medusa", "tree"),
    ("ppd", "tree"),
    ("pearl", "pearl"),
    ("easyspec", "easyspec"),
    ("dovetail", "dovetail"),
    ("prompt-lookup", "copy"),
    ("aggressive", "copy"),
];

/// Names of the field that are not built, with the reason.
const NOT_BUILT: [(&str, &str); 4] = [
    ("lookahead", "the n-gram pool's hit process has no published table"),
    ("rest", "retrieval from a datastore has no cost table"),
    ("hogwild", "workers that share one cache need a quality model"),
    ("m2r2", "early residuals need an acceptance by layer, which is not published"),
];

/// The built form of a technique's name: `draft-model`, `heads`, `tree`, `pearl`, `easyspec`, `dovetail` or `copy`.
///
/// # Errors
/// A sentence: unknown, or known and not built with the reason.
pub fn parse_drafter(name: &str) -> Result<&'static str, String> {
    if let Some((_, form)) = NAMES.iter().find(|(known, form)| *known == name || *form == name) {
        return Ok(form);
    }
    match NOT_BUILT.iter().find(|(known, _)| *known == name) {
        Some((name, why)) => Err(format!("speculation `{name}` is not built: {why}")),
        None => {
            let known: Vec<&str> = NAMES.iter().map(|(name, _)| *name).collect();
            Err(format!("`{name}` is not a way to speculate; known: {}", known.join(", ")))
        }
    }
}

impl Drafter<'_> {
    /// Drafted tokens (tree: candidates) of a round.
    pub fn tokens(&self) -> u32 {
        match self {
            Self::None => 0,
            Self::Model { tokens, .. }
            | Self::Parallel { tokens, .. }
            | Self::LayerParallel { tokens, .. }
            | Self::Heads { tokens, .. }
            | Self::Copy { tokens } => *tokens,
            Self::Tree(tree) => tree.len(),
        }
    }

    /// Mean tokens of a round in which drafting and verification follow each other.
    pub fn mean_tokens(&self, acceptance: &Acceptance) -> f64 {
        match self {
            Self::Tree(tree) => tree.mean_tokens(),
            other => acceptance.mean_tokens(other.tokens()),
        }
    }

    /// Seconds of drafting in a round for `sequences` with this much context.
    pub fn draft_seconds(&self, target: &StepCost, sequences: u32, context: &[u64; KINDS]) -> f64 {
        match self {
            Self::None | Self::Tree(_) | Self::Copy { .. } => 0.0,
            Self::Model { cost, tokens, exchange } => {
                f64::from(*tokens) * draft_step(cost, sequences, context) + exchange
            }
            Self::Parallel { cost, tokens } => f64::from(*tokens) * draft_step(cost, sequences, context),
            Self::LayerParallel { cost, tokens, group } => {
                let step = layer_parallel_step(cost, sequences, context, *group);
                let mend = cost.verify(sequences, tokens + 1, context);
                f64::from(*tokens) * step + mend
            }
            Self::Heads { tokens, layers } => {
                let whole = target.decode_run(sequences).seconds(context);
                f64::from(*tokens) * head_seconds(target, sequences, whole, *layers)
            }
        }
    }

    /// Seconds of drafting in a step whose lanes draft side by side.
    pub(in crate::serving) fn lanes_seconds(&self, target: &StepCost, lanes: &[Lane<'_>]) -> f64 {
        match (self, lanes) {
            (Self::Heads { tokens, layers }, [_, _, ..]) => {
                let decoding: Vec<Lane<'_>> = lanes.iter().map(|l| Lane { chunks: &[], ..*l }).collect();
                let most = lanes.iter().map(|l| l.decoding).max().unwrap_or(0);
                f64::from(*tokens) * head_seconds(target, most, target.seconds(&decoding), *layers)
            }
            _ => {
                let decoding = lanes.iter().filter(|l| l.decoding > 0);
                decoding.map(|l| self.draft_seconds(target, l.decoding, &l.context)).fold(0.0, f64::max)
            }
        }
    }

    /// Seconds in which a draft model reads the prompts of a step, for its own cache.
    pub(in crate::serving) fn prompt_seconds(&self, lanes: &[Lane<'_>]) -> f64 {
        let cost = match self {
            Self::Model { cost, .. } | Self::LayerParallel { cost, .. } | Self::Parallel { cost, .. } => cost,
            Self::None | Self::Heads { .. } | Self::Tree(_) | Self::Copy { .. } => return 0.0,
        };
        let prompts = lanes.iter().filter(|l| !l.chunks.is_empty());
        prompts.map(|l| cost.seconds(&[Lane { chunks: l.chunks, ..Lane::default() }])).fold(0.0, f64::max)
    }

    /// Seconds of a round. Drafting and verification follow each other, but for [`Drafter::Parallel`].
    pub fn round_seconds(&self, target: &StepCost, sequences: u32, context: &[u64; KINDS]) -> f64 {
        let draft = self.draft_seconds(target, sequences, context);
        let verify = target.verify(sequences, self.tokens() + 1, context);
        match self {
            Self::Parallel { tokens, .. } => draft.max(target.verify(sequences, *tokens, context)),
            _ => draft + verify,
        }
    }

    /// Bytes of weights that drafts need on the target's accelerators: a draft model, or layers like the target's.
    pub fn weight_bytes(&self, target: &ServingShape) -> f64 {
        match self {
            Self::Model { cost, exchange, .. } if *exchange == 0.0 => cost.shape().weight_bytes,
            Self::LayerParallel { cost, .. } => cost.shape().weight_bytes,
            Self::Heads { layers, .. } => {
                target.weight_bytes * f64::from(*layers) / f64::from(target.layers.max(1))
            }
            _ => 0.0,
        }
    }

    /// The target's shape with what drafts keep in the same cache: keys and values of a draft model, or of layers like the
    /// target's.
    pub fn cached(&self, target: &ServingShape) -> ServingShape {
        let mut out = target.clone();
        match self {
            Self::Model { cost, exchange: 0.0, .. } | Self::LayerParallel { cost, .. } => {
                let draft = cost.shape();
                out.kv_bytes_per_token += draft.kv_bytes_per_token;
                out.kv_windowed.extend_from_slice(&draft.kv_windowed);
                out.state_bytes_per_sequence += draft.state_bytes_per_sequence;
            }
            Self::Heads { layers, .. } => {
                let more = 1.0 + f64::from(*layers) / f64::from(target.layers.max(1));
                out.kv_bytes_per_token *= more;
                out.kv_windowed.iter_mut().for_each(|(_, bytes)| *bytes *= more);
            }
            _ => {}
        }
        out
    }
}

/// Seconds of one draft of prediction heads: `layers` like the target's, of whose step `whole` is the time, and the output
/// layer.
fn head_seconds(target: &StepCost, sequences: u32, whole: f64, layers: u32) -> f64 {
    let head = target.output_layer(sequences);
    let p = target.parameters();
    let host = (p.step_us + p.sequence_us * f64::from(sequences)) * 1e-6;
    let layer = (whole - head - host).max(0.0) / f64::from(target.shape().layers.max(1));
    f64::from(layers) * layer + head
}

/// One step of the draft model; sliding windows and kinds of its own are taken at the whole context.
fn draft_step(cost: &StepCost, sequences: u32, context: &[u64; KINDS]) -> f64 {
    cost.decode_run(sequences).seconds(&reads(cost, sequences, context))
}

/// What the draft model's own kinds of attention read.
fn reads(cost: &StepCost, sequences: u32, context: &[u64; KINDS]) -> [u64; KINDS] {
    let longest = context.iter().copied().max().unwrap_or(0);
    let mut reads = [0; KINDS];
    for (slot, most) in reads.iter_mut().zip(cost.reads_at_most()) {
        *slot = most.map_or(longest, |w| longest.min(w * u64::from(sequences)));
    }
    reads
}

/// A draft step whose attention blocks run `group` at a time: t = Σ groups (t_attention + exchange) + L · t_mlp.
/// The matrices of attention and feed-forward share their time as their weights share the bytes, which is right while
/// both wait for memory (a draft at small batch); the attention kernel and half of the launches belong to attention.
fn layer_parallel_step(cost: &StepCost, sequences: u32, context: &[u64; KINDS], group: u32) -> f64 {
    let shape = cost.shape();
    let bytes = |feed_forward: bool| -> f64 {
        let names = ["up", "down"];
        let of =
            shape.linears.iter().filter(|l| !l.last_token_only && names.contains(&l.name) == feed_forward);
        of.map(|l| l.layers * (l.n * l.k) as f64).sum()
    };
    let (mlp, attention) = (bytes(true), bytes(false));
    let layers = f64::from(shape.layers.max(3));
    let p = cost.parameters();
    let host = (p.step_us + p.sequence_us * f64::from(sequences)) * 1e-6;
    let head = cost.output_layer(sequences);
    let whole = draft_step(cost, sequences, context);
    let inside = (whole - host - head).max(0.0);
    let launches = (layers * p.layer_us * 1e-6).min(inside);
    let core = cost.decode_attention(sequences, &reads(cost, sequences, context)).min(inside - launches);
    let matrices = inside - launches - core;
    let attention_seconds = core + 0.5 * launches + matrices * attention / (attention + mlp).max(1.0);
    let groups = ((layers - 2.0) / f64::from(group.max(1))).ceil() + 2.0;
    let (latency, rate) = cost.scale_up_link();
    let exchange = latency + 2.0 * f64::from(sequences) * shape.hidden as f64 / rate;
    host + head + (inside - attention_seconds) + attention_seconds * groups / layers + groups * exchange
}
