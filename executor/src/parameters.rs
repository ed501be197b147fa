//! A rank's share of the parameters, with gradients, and how each share lies in the whole tensor.
#![expect(clippy::single_range_in_vec_init, reason = "a shard is a list of ranges, often of one")]

use crate::error::Result;
use crate::network::{Dense, Layer, Network};
use psim_hardware::DType;
use psim_kernels::random::uniform;
use psim_kernels::{Device, Strided, Uniform};
use std::ops::Range;

/// Index of a parameter in its [`Store`].
pub type Id = usize;

/// How a local tensor lies in the whole one: the rows and columns it holds, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shard {
    /// Rows and columns of the whole tensor.
    pub whole: [usize; 2],
    /// Rows held.
    pub rows: Vec<Range<usize>>,
    /// Columns held.
    pub columns: Vec<Range<usize>>,
}

impl Shard {
    /// Everything.
    pub fn full(rows: usize, columns: usize) -> Self {
        Self { whole: [rows, columns], rows: vec![0..rows], columns: vec![0..columns] }
    }
    /// Some columns: the `index`-th of `parts` of every block, blocks given by their widths.
    pub fn columns(rows: usize, blocks: &[usize], index: usize, parts: usize) -> Self {
        let mut start = 0;
        let mut columns = Vec::with_capacity(blocks.len());
        for &width in blocks {
            let each = width / parts;
            columns.push(start + index * each..start + (index + 1) * each);
            start += width;
        }
        Self { whole: [rows, start], rows: vec![0..rows], columns }
    }
    /// Some rows.
    pub fn rows(whole: [usize; 2], rows: Range<usize>) -> Self {
        Self { whole, rows: vec![rows], columns: vec![0..whole[1]] }
    }
    /// Local rows and columns.
    pub fn shape(&self) -> [usize; 2] {
        [self.rows.iter().map(Range::len).sum(), self.columns.iter().map(Range::len).sum()]
    }
    /// Rectangles of the local tensor that are also rectangles of the whole one, with the position of their first element;
    /// key and scale are left to the caller.
    fn blocks(&self) -> Vec<(Uniform, usize)> {
        let [_, width] = self.shape();
        let mut blocks = Vec::new();
        let mut row = 0;
        for rows in &self.rows {
            let mut column = 0;
            for columns in &self.columns {
                let to = Strided::new(row * width + column, width);
                let shape = Uniform {
                    key: 0,
                    first: 0,
                    pitch: 0,
                    rows: rows.len(),
                    width: columns.len(),
                    to,
                    scale: 0.0,
                };
                blocks.push((shape, rows.start * self.whole[1] + columns.start));
                column += columns.len();
            }
            row += rows.len();
        }
        blocks
    }
    /// Position in the whole tensor of every local element, in local order.
    pub fn positions(&self) -> impl Iterator<Item = usize> + '_ {
        self.rows.iter().cloned().flatten().flat_map(move |row| {
            self.columns.iter().cloned().flatten().map(move |column| row * self.whole[1] + column)
        })
    }
}

/// Who holds copies of a parameter, and whether its gradient is complete on each tensor-parallel rank.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Held by all dp and cp ranks; the gradient is complete.
    Dense,
    /// Also held by all tp ranks, each with the gradient of its own tokens.
    Replicated,
    /// Held by the replicas of one expert.
    Expert,
    /// The embedding, which the first and the last stage share when it is tied.
    Embedding,
}

/// What is known of a parameter beside its numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Info {
    /// Name (`layer.3.qkv.weight`).
    pub name: String,
    /// Place in the whole tensor.
    pub shard: Shard,
    /// Who shares it.
    pub role: Role,
    /// Model chunk it belongs to.
    pub chunk: usize,
    /// Layer it belongs to; `None` at the ends of the model.
    pub layer: Option<usize>,
}

/// Parameters of one rank.
pub struct Store<D: Device> {
    /// Facts, by id.
    pub infos: Vec<Info>,
    /// Values in the compute format.
    pub values: Vec<D::Buffer>,
    /// Gradients, fp32, accumulated over micro-batches.
    pub gradients: Vec<D::Buffer>,
    /// The layer that parameters are being added to.
    layer: Option<usize>,
    /// Parameters have gradients.
    trained: bool,
    seed: u64,
    dtype: DType,
}

/// Start values: `centre + scale · uniform(key, position)`, variance `1 / fan-in` for matrices, from a counter-based
/// generator, so that every shard of a tensor can be made without the rest.
struct Start {
    centre: f32,
    scale: f32,
    key: u64,
}

impl Start {
    fn new(seed: u64, name: &str, fan_in: usize) -> Self {
        let (centre, scale) = if name.ends_with("norm.weight") {
            (1.0, 0.1)
        } else if name.ends_with("bias") {
            (0.0, 0.1)
        } else {
            (0.0, (3.0 / fan_in as f32).sqrt())
        };
        let key = name
            .bytes()
            .fold(seed ^ 0x9e37_79b9_7f4a_7c15, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3));
        Self { centre, scale, key }
    }

    fn at(&self, position: usize) -> f32 {
        self.centre + self.scale * uniform(self.key, position as u64)
    }
}

/// The whole start tensor of a parameter, as every rank's shard is cut from.
pub fn start_tensor(seed: u64, name: &str, whole: [usize; 2]) -> Vec<f32> {
    let start = Start::new(seed, name, fan_in(name, whole));
    (0..whole[0] * whole[1]).map(|p| start.at(p)).collect()
}

/// Inputs that one output adds up; the embedding's rows are read one at a time.
fn fan_in(name: &str, whole: [usize; 2]) -> usize {
    if name.starts_with("embedding") || name.starts_with("head") || name.starts_with("positions") {
        whole[1]
    } else {
        whole[0]
    }
}

impl<D: Device> Store<D> {
    /// An empty store.
    pub fn new(seed: u64, dtype: DType) -> Self {
        Self {
            infos: Vec::new(),
            values: Vec::new(),
            gradients: Vec::new(),
            layer: None,
            trained: true,
            seed,
            dtype,
        }
    }

    /// An empty store of parameters that are only read.
    pub fn without_gradients(seed: u64, dtype: DType) -> Self {
        Self { trained: false, ..Self::new(seed, dtype) }
    }

    /// Adds a parameter with start values and a zero gradient.
    ///
    /// # Errors
    /// When the device has no room.
    pub fn add(&mut self, device: &D, name: String, shard: Shard, role: Role, chunk: usize) -> Result<Id> {
        let start = Start::new(self.seed, &name, fan_in(&name, shard.whole));
        let [rows, columns] = shard.shape();
        let len = rows * columns;
        let mut value = device.alloc(self.dtype, len)?;
        if start.centre == 0.0 {
            // On the device: billions of numbers would take the host minutes.
            for (block, first) in shard.blocks() {
                let [_, pitch] = shard.whole;
                let shape = Uniform { key: start.key, first, pitch, scale: start.scale, ..block };
                device.uniform(&shape, &mut value)?;
            }
        } else {
            let values: Vec<f32> = shard.positions().map(|p| start.at(p)).collect();
            device.write(&mut value, 0, &values)?;
        }
        let mut gradient = device.alloc(DType::Fp32, if self.trained { len } else { 0 })?;
        device.fill(&mut gradient, 0.0)?;
        self.infos.push(Info { name, shard, role, chunk, layer: self.layer });
        self.values.push(value);
        self.gradients.push(gradient);
        Ok(self.infos.len() - 1)
    }
}

/// A normalisation's parameters.
#[derive(Debug, Clone, Copy)]
pub(crate) struct NormIds {
    pub(crate) weight: Id,
    pub(crate) bias: Option<Id>,
}

/// A dense feed-forward network's parameters.
#[derive(Debug, Clone, Copy)]
pub(crate) struct DenseIds {
    pub(crate) spec: Dense,
    pub(crate) up: Id,
    pub(crate) up_bias: Option<Id>,
    pub(crate) down: Id,
    pub(crate) down_bias: Option<Id>,
}

/// Experts of this rank: (up, down) each.
#[derive(Debug, Clone)]
pub(crate) struct ExpertIds {
    pub(crate) router: Id,
    pub(crate) experts: Vec<(Id, Id)>,
}

/// One layer's parameters.
#[derive(Debug, Clone)]
pub(crate) struct LayerIds {
    /// Layer of the model.
    pub(crate) index: usize,
    pub(crate) layer: Layer,
    pub(crate) attention_norm: NormIds,
    pub(crate) qkv: Id,
    pub(crate) qkv_bias: Option<Id>,
    pub(crate) out: Id,
    pub(crate) out_bias: Option<Id>,
    pub(crate) ffn_norm: NormIds,
    pub(crate) dense: Option<DenseIds>,
    pub(crate) experts: Option<ExpertIds>,
}

/// Where a rank stands in the groups that cut tensors.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cut {
    pub(crate) tp: (usize, usize),
    pub(crate) ep: (usize, usize),
    pub(crate) etp: (usize, usize),
}

/// Widths of the blocks of an up projection: gate and up, or up alone.
fn up_blocks(hidden: usize, gated: bool) -> Vec<usize> {
    if gated { vec![hidden, hidden] } else { vec![hidden] }
}

impl<D: Device> Store<D> {
    pub(crate) fn add_norm(
        &mut self,
        device: &D,
        network: &Network,
        name: &str,
        chunk: usize,
    ) -> Result<NormIds> {
        let whole = Shard::full(1, network.hidden);
        let weight = self.add(device, format!("{name}.weight"), whole.clone(), Role::Replicated, chunk)?;
        let bias = match network.norm_bias {
            true => Some(self.add(device, format!("{name}.bias"), whole, Role::Replicated, chunk)?),
            false => None,
        };
        Ok(NormIds { weight, bias })
    }

    fn add_bias(
        &mut self,
        device: &D,
        name: String,
        shard: Shard,
        role: Role,
        chunk: usize,
        wanted: bool,
    ) -> Result<Option<Id>> {
        if wanted { self.add(device, name, shard, role, chunk).map(Some) } else { Ok(None) }
    }

    pub(crate) fn add_layer(
        &mut self,
        device: &D,
        network: &Network,
        cut: Cut,
        index: usize,
        chunk: usize,
    ) -> Result<LayerIds> {
        let (layer, hidden) = (network.layers[index], network.hidden);
        let (tp, tps) = cut.tp;
        let prefix = format!("layer.{index}");
        self.layer = Some(index);
        let (q, kv) = (layer.heads * layer.head_dim, layer.kv_heads * layer.head_dim);
        let attention_norm = self.add_norm(device, network, &format!("{prefix}.attention_norm"), chunk)?;
        let shard = Shard::columns(hidden, &[q, kv, kv], tp, tps);
        let qkv = self.add(device, format!("{prefix}.qkv.weight"), shard, Role::Dense, chunk)?;
        let shard = Shard::columns(1, &[q, kv, kv], tp, tps);
        let qkv_bias =
            self.add_bias(device, format!("{prefix}.qkv.bias"), shard, Role::Dense, chunk, layer.qkv_bias)?;
        let shard = Shard::rows([q, hidden], tp * q / tps..(tp + 1) * q / tps);
        let out = self.add(device, format!("{prefix}.out.weight"), shard, Role::Dense, chunk)?;
        let name = format!("{prefix}.out.bias");
        let out_bias =
            self.add_bias(device, name, Shard::full(1, hidden), Role::Replicated, chunk, layer.out_bias)?;
        let ffn_norm = self.add_norm(device, network, &format!("{prefix}.ffn_norm"), chunk)?;
        let dense = match layer.dense {
            Some(spec) => Some(self.add_dense(device, hidden, spec, &prefix, cut, chunk)?),
            None => None,
        };
        let experts = match layer.experts {
            Some(spec) => {
                let name = format!("{prefix}.router.weight");
                let router =
                    self.add(device, name, Shard::full(hidden, spec.count), Role::Replicated, chunk)?;
                let each = spec.count / cut.ep.1;
                let mut experts = Vec::with_capacity(each);
                for expert in cut.ep.0 * each..(cut.ep.0 + 1) * each {
                    let shard =
                        Shard::columns(hidden, &up_blocks(spec.hidden, spec.gated), cut.etp.0, cut.etp.1);
                    let name = format!("{prefix}.expert.{expert}.up.weight");
                    let up = self.add(device, name, shard, Role::Expert, chunk)?;
                    let rows = cut.etp.0 * spec.hidden / cut.etp.1..(cut.etp.0 + 1) * spec.hidden / cut.etp.1;
                    let name = format!("{prefix}.expert.{expert}.down.weight");
                    let down = self.add(
                        device,
                        name,
                        Shard::rows([spec.hidden, hidden], rows),
                        Role::Expert,
                        chunk,
                    )?;
                    experts.push((up, down));
                }
                Some(ExpertIds { router, experts })
            }
            None => None,
        };
        self.layer = None;
        Ok(LayerIds { index, layer, attention_norm, qkv, qkv_bias, out, out_bias, ffn_norm, dense, experts })
    }

    fn add_dense(
        &mut self,
        device: &D,
        hidden: usize,
        spec: Dense,
        prefix: &str,
        cut: Cut,
        chunk: usize,
    ) -> Result<DenseIds> {
        let (tp, tps) = cut.tp;
        let blocks = up_blocks(spec.hidden, spec.gated);
        let up = self.add(
            device,
            format!("{prefix}.up.weight"),
            Shard::columns(hidden, &blocks, tp, tps),
            Role::Dense,
            chunk,
        )?;
        let shard = Shard::columns(1, &blocks, tp, tps);
        let up_bias =
            self.add_bias(device, format!("{prefix}.up.bias"), shard, Role::Dense, chunk, spec.bias)?;
        let shard = Shard::rows([spec.hidden, hidden], tp * spec.hidden / tps..(tp + 1) * spec.hidden / tps);
        let down = self.add(device, format!("{prefix}.down.weight"), shard, Role::Dense, chunk)?;
        let name = format!("{prefix}.down.bias");
        let down_bias =
            self.add_bias(device, name, Shard::full(1, hidden), Role::Replicated, chunk, spec.bias)?;
        Ok(DenseIds { spec, up, up_bias, down, down_bias })
    }
}
