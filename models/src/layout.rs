//! Which layers run on which pipeline stage.

use crate::arch::{Block, Model};
use crate::plan::{Plan, Schedule};

/// A layer of the model as the pipeline sees it: encoder layers first, then decoder layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum LayerKind {
    /// Encoder layer.
    Encoder,
    /// Decoder layer of this kind (index into [`Model::kinds`]).
    Decoder(u16),
}

/// Layers of one model chunk.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Chunk {
    /// Distinct kinds with their counts, in order of first appearance.
    pub layers: Vec<(LayerKind, u32)>,
    /// Holds the embedding.
    pub embedding: bool,
    /// Holds the final norm, output layer and loss (and multi-token-prediction layers).
    pub head: bool,
}

impl Chunk {
    /// Number of layers.
    pub fn count(&self) -> u32 {
        self.layers.iter().map(|l| l.1).sum()
    }
}

/// The assignment of layers to chunks and of chunks to stages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// Model chunks in model order.
    pub chunks: Vec<Chunk>,
    /// Stages.
    pub stages: u32,
    /// Chunks run down and up again (ZB-V) instead of round and round.
    pub v_shape: bool,
}

/// Why a layout is impossible.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    /// More chunks than layers.
    #[error(
        "{chunks} model chunks (pp {pp} × vpp {vpp}) need at least as many layers; the model has {layers}"
    )]
    TooFewLayers {
        /// pp · vpp.
        chunks: u32,
        /// Stages.
        pp: u32,
        /// Chunks per stage.
        vpp: u32,
        /// Layers.
        layers: u32,
    },
    /// `stage_layers` does not describe this model.
    #[error(
        "`stage_layers` has {entries} entries with {sum} layers in all; pp × vpp = {chunks} entries with {layers} layers are needed"
    )]
    StageLayers {
        /// Entries given.
        entries: usize,
        /// Layers given.
        sum: u64,
        /// Entries needed.
        chunks: u32,
        /// Layers needed.
        layers: u32,
    },
}

impl Layout {
    /// Splits the layers of `model` as `plan` says; without `stage_layers` evenly, the first chunks taking one more
    /// layer each where it does not divide (the last stage carries the output layer).
    ///
    /// # Errors
    /// When there are fewer layers than chunks, or `stage_layers` does not sum to the model.
    pub fn new(model: &Model, plan: &Plan) -> Result<Self, LayoutError> {
        let chunks = plan.chunks().max(1);
        let kinds: Vec<LayerKind> = model
            .encoder
            .iter()
            .flat_map(|e| std::iter::repeat_n(LayerKind::Encoder, e.layers as usize))
            .chain(model.pattern.iter().map(|&k| LayerKind::Decoder(k)))
            .collect();
        let layers = kinds.len() as u32;
        let counts: Vec<u32> = if plan.stage_layers.is_empty() {
            if layers < chunks {
                return Err(LayoutError::TooFewLayers { chunks, pp: plan.pp, vpp: plan.vpp, layers });
            }
            let (each, extra) = (layers / chunks, layers % chunks);
            (0..chunks).map(|c| each + u32::from(c < extra)).collect()
        } else {
            let sum: u64 = plan.stage_layers.iter().map(|&l| u64::from(l)).sum();
            if plan.stage_layers.len() != chunks as usize || sum != u64::from(layers) {
                let entries = plan.stage_layers.len();
                return Err(LayoutError::StageLayers { entries, sum, chunks, layers });
            }
            plan.stage_layers.clone()
        };
        let mut start = 0usize;
        let last = counts.len() - 1;
        let chunks = counts
            .iter()
            .enumerate()
            .map(|(c, &count)| {
                let mut layers: Vec<(LayerKind, u32)> = Vec::new();
                for &kind in &kinds[start..start + count as usize] {
                    match layers.iter_mut().find(|(k, _)| *k == kind) {
                        Some((_, n)) => *n += 1,
                        None => layers.push((kind, 1)),
                    }
                }
                start += count as usize;
                Chunk { layers, embedding: c == 0, head: c == last }
            })
            .collect();
        Ok(Self { chunks, stages: plan.pp.max(1), v_shape: plan.schedule == Schedule::ZbV })
    }

    /// The stage that runs chunk `chunk`.
    pub fn stage_of(&self, chunk: usize) -> usize {
        let stages = self.stages as usize;
        if self.v_shape && chunk >= stages { (2 * stages - 1).saturating_sub(chunk) } else { chunk % stages }
    }

    /// The chunks of `stage`, in model order.
    pub fn chunks_of(&self, stage: usize) -> impl Iterator<Item = (usize, &Chunk)> {
        self.chunks.iter().enumerate().filter(move |(c, _)| self.stage_of(*c) == stage)
    }
}

/// The block behind a layer kind; `None` for an encoder layer of a decoder-only model.
pub fn block_of(model: &Model, kind: LayerKind) -> Option<&Block> {
    match kind {
        LayerKind::Encoder => model.encoder.as_ref().map(|e| &e.block),
        LayerKind::Decoder(k) => model.kinds.get(usize::from(k)),
    }
}
