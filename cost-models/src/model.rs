//! [`CostModel`]: one accelerator of a cluster under one software stack.

use crate::attention::{AttentionModel, AttentionShape};
use crate::collective::CollectiveModel;
use crate::collective::across::Across;
use crate::collective::local::Local;
use crate::gemm::{GemmModel, Rates};
use crate::grouped::{GroupedGemmModel, GroupedShape};
use crate::memory::{CLASS_NAMES, CLASSES, MemoryLaw};
use crate::power::PowerModel;
use crate::{Bound, Cost, ProfileLibrary, defaults};
use psim_hardware::profile::accelerator::{AcceleratorProfile, AttentionPass, AttentionTable};
use psim_hardware::profile::machine::MachineFacts;
use psim_hardware::profile::stack::{AttentionKernel, Efficiency};
use psim_hardware::profile::sustained::Sustained;
use psim_hardware::profile::{Provenance, StackProfile};
use psim_hardware::{Accelerator, Cluster, DType, GroupShape, Node, Scaling, Seconds, Watts};
use psim_models::OperatorKind;
use psim_models::operator::{CollectiveKind, GemmRole, MemoryClass};

const FORMATS: usize = DType::ALL.len();
const SCALINGS: usize = 4;
const KERNELS: usize = 5;
const PASSES: usize = 3;

/// Prices operators of one accelerator under one stack. Cheap to build; pricing allocates nothing.
#[derive(Debug, Clone)]
pub struct CostModel {
    peaks: [f64; FORMATS],
    bandwidth: f64,
    units: f64,
    gemm: Vec<GemmModel>,
    gemm_of: [[u8; SCALINGS]; FORMATS],
    grouped: Vec<GroupedGemmModel>,
    grouped_of: [[u8; SCALINGS]; FORMATS],
    attention: Vec<AttentionModel>,
    attention_of: [[u8; PASSES]; 2],
    memory: [MemoryLaw; CLASSES],
    collectives: CollectiveModel,
    power: PowerModel,
    efficiency: Efficiency,
    /// Experts run as products of their own.
    apart: bool,
    sustained: [f64; FORMATS],
    sustained_attention: f64,
    /// Seconds that a byte of weights takes longer than in the tables of products (a processor's memory behind its caches).
    weight_seconds: f64,
    provenance: Provenance,
}

/// Rows up to which reading the weights is most of a product's time on a processor.
const FEW_ROWS: u64 = 64;

/// Units of a machine whose datasheet names none.
const UNKNOWN_UNITS: f64 = 128.0;

impl CostModel {
    /// Binds the accelerator of `node`, the cluster's fabric and a stack to the profiles of a library.
    pub fn new(cluster: &Cluster, node: &Node, stack: &StackProfile, library: &ProfileLibrary) -> Self {
        let accelerator = &node.accelerator;
        let found = library.accelerator(accelerator);
        let fallback = defaults::accelerator(&accelerator.name);
        let profile = &*found.profile;
        let shares = library.sustained(accelerator);
        let transferred = found.provenance != Provenance::Measured;
        let measured_link = profile.link_bandwidth.map_or(node.scale_up.bandwidth.0, |b| b.0);
        let (gemm, gemm_of) = gemm_tables(profile, &fallback, stack.era);
        let (grouped, grouped_of) = grouped_tables(profile, &fallback);
        let (attention, attention_of) = attention_tables(profile, &fallback, stack.attention);
        let collectives = CollectiveModel {
            local: Local::new(&node.scale_up, &profile.collectives, measured_link, transferred),
            across: Across::new(cluster, node, &library.fabric(&cluster.fabric.kind)),
        };
        Self {
            peaks: peaks(accelerator),
            bandwidth: accelerator.memory_bandwidth.0.max(1.0),
            units: accelerator.sm_count.or(profile.units).map_or(UNKNOWN_UNITS, f64::from),
            gemm,
            gemm_of,
            grouped,
            grouped_of,
            attention,
            attention_of,
            memory: memory_laws(profile, &fallback),
            collectives,
            power: PowerModel::new(accelerator, profile.power),
            efficiency: stack.efficiency.clone(),
            apart: stack.host.expert_launches > 0.0,
            sustained: sustained_rates(&shares),
            sustained_attention: shares.attention,
            weight_seconds: profile.machine.as_ref().map_or(0.0, |m| m.weight_seconds(None)),
            provenance: found.provenance,
        }
    }

    /// Prices for a step that reads `bytes` of weights in turn: on a processor they may fit in a cache. Without this they
    /// come from the memory.
    pub fn with_weights(mut self, machine: &MachineFacts, bytes: f64) -> Self {
        self.weight_seconds = machine.weight_seconds(Some(bytes));
        self
    }

    /// What weights that no cache holds add to `batch` products.
    fn far_weights(&self, m: u64, n: u64, k: u64, batch: u64, dtype: DType, role: GemmRole) -> f64 {
        if self.weight_seconds == 0.0 || m > FEW_ROWS || role == GemmRole::WeightGradient {
            return 0.0;
        }
        self.weight_seconds * dtype.size() * n as f64 * k as f64 * batch as f64
    }

    /// Price of any operator, collectives included.
    pub fn price(&self, op: &OperatorKind) -> Cost {
        match *op {
            OperatorKind::Gemm { m, n, k, batch, dtype, scaling, out_bytes, role } => {
                self.gemm(m, n, k, batch, dtype, scaling, out_bytes, role)
            }
            OperatorKind::GroupedGemm { groups, rows, n, k, dtype, scaling, role } => {
                self.grouped_gemm(groups, rows, n, k, dtype, scaling, role)
            }
            OperatorKind::Attention { .. } => self.attention(op),
            OperatorKind::Memory { class, bytes, kernels, flops, width } => {
                self.memory_rows(class, bytes, kernels, flops, width)
            }
            OperatorKind::Collective { kind, bytes, group, .. } => self.collective(kind, bytes, &group),
        }
    }

    /// A dense matrix product; see [`OperatorKind::Gemm`] for the arguments.
    pub fn gemm(
        &self,
        m: u64,
        n: u64,
        k: u64,
        batch: u64,
        dtype: DType,
        scaling: Scaling,
        out_bytes: f64,
        role: GemmRole,
    ) -> Cost {
        let op = OperatorKind::Gemm { m, n, k, batch, dtype, scaling, out_bytes, role };
        let rates = self.rates(dtype);
        let bytes = op.bytes();
        let table = &self.gemm[usize::from(self.gemm_of[dtype as usize][scaling as usize])];
        let (seconds, inside) =
            table.sustained_seconds(rates, [m as f64, n as f64, k as f64], batch as f64, bytes, role);
        let efficiency = self.efficiency.gemm * self.sustained[dtype as usize];
        let seconds = seconds * crate::gemm::misalignment(dtype, n, k, batch)
            + self.far_weights(m, n, k, batch, dtype, role);
        self.finish(seconds / efficiency, op.flops() / rates.peak, bytes, inside, table.sigma)
    }

    /// Share of the burst rate that products of a format keep under sustained load.
    pub fn sustained_share(&self, dtype: DType) -> f64 {
        self.sustained[dtype as usize]
    }

    /// Products of several experts; see [`OperatorKind::GroupedGemm`] for the arguments.
    pub fn grouped_gemm(
        &self,
        groups: u64,
        rows: u64,
        n: u64,
        k: u64,
        dtype: DType,
        scaling: Scaling,
        role: GemmRole,
    ) -> Cost {
        let op = OperatorKind::GroupedGemm { groups, rows, n, k, dtype, scaling, role };
        let rates = self.rates(dtype);
        let bytes = op.bytes();
        let table = &self.grouped[usize::from(self.grouped_of[dtype as usize][scaling as usize])];
        let shape =
            GroupedShape { groups: groups as f64, rows: rows as f64, n: n as f64, k: k as f64, bytes, role };
        let (seconds, inside) = table.seconds(rates, &shape);
        // A stack that runs one product per expert pays the floor of a product for each, whatever fused kernels reached.
        let dense = &self.gemm[usize::from(self.gemm_of[dtype as usize][scaling as usize])];
        let each = if self.apart && table.is_fused() { dense.launch() } else { 0.0 };
        let seconds = seconds
            + each * groups as f64
            + self.far_weights(rows.div_ceil(groups.max(1)), n, k, groups, dtype, role);
        let efficiency = self.efficiency.gemm * self.efficiency.grouped_gemm * self.sustained[dtype as usize];
        self.finish(seconds / efficiency, op.flops() / rates.peak, bytes, inside, table.sigma)
    }

    /// A fused attention core; an operator of another kind costs nothing.
    pub fn attention(&self, op: &OperatorKind) -> Cost {
        let OperatorKind::Attention {
            batch,
            q_heads,
            kv_heads,
            head_dim,
            head_dim_v,
            seq_q,
            seq_kv,
            density,
            backward,
            dtype,
        } = *op
        else {
            return self.finish(0.0, 0.0, 0.0, false, 0.0);
        };
        let rates = self.rates(dtype);
        let pass = match (backward, seq_q) {
            (true, _) => AttentionPass::Backward,
            (false, 0..16) => AttentionPass::Decode,
            (false, _) => AttentionPass::Forward,
        };
        let low = usize::from(dtype.bits() <= 8);
        let table = &self.attention[usize::from(self.attention_of[low][pass as usize])];
        let shape = AttentionShape {
            heads: (batch * q_heads) as f64,
            groups: (batch * kv_heads.max(1)) as f64,
            seq_q: seq_q as f64,
            seq_kv: seq_kv as f64,
            density,
            width: (head_dim + head_dim_v) as f64 / 2.0,
            flops_per: if backward { 10.0 } else { 4.0 },
            bytes: op.bytes(),
        };
        let (seconds, inside) = table.seconds(rates, &shape);
        self.finish(
            seconds / (self.efficiency.attention * self.sustained_attention),
            op.flops() / rates.peak,
            shape.bytes,
            inside,
            table.sigma,
        )
    }

    /// A memory-bound operator of `bytes` through device memory in `kernels` kernels with `flops` of arithmetic.
    pub fn memory(&self, class: MemoryClass, bytes: u64, kernels: u32, flops: f64) -> Cost {
        self.memory_rows(class, bytes, kernels, flops, 0)
    }

    /// The same of kernels that go row by row, on rows of `width` numbers (0: rows do not matter).
    pub fn memory_rows(&self, class: MemoryClass, bytes: u64, kernels: u32, flops: f64, width: u64) -> Cost {
        let law = &self.memory[class as usize];
        let seconds = law.seconds_of_rows(self.bandwidth, bytes as f64, f64::from(kernels), width as f64);
        let moved = matches!(class, MemoryClass::Permute | MemoryClass::Quantize);
        let efficiency = self.efficiency.memory * if moved { self.efficiency.permute } else { 1.0 };
        // Scans and their like run on the plain units, taken at a tenth of the 16-bit matrix peak.
        let arithmetic = flops / (0.1 * self.peaks[DType::Bf16 as usize]);
        self.finish(
            (seconds / efficiency).max(arithmetic),
            flops / self.peaks[DType::Bf16 as usize],
            bytes as f64,
            true,
            law.sigma,
        )
    }

    /// A collective of `bytes` (nccl-tests size) among `group`.
    pub fn collective(&self, kind: CollectiveKind, bytes: u64, group: &GroupShape) -> Cost {
        let time = self.collectives.time(kind, bytes as f64, group);
        Cost {
            time: Seconds((time.seconds / self.efficiency.network).max(time.roofline)),
            roofline: Seconds(time.roofline),
            bound: if time.latency_bound { Bound::Latency } else { Bound::Network },
            provenance: time.provenance,
            sigma: time.sigma,
        }
    }

    /// Mean board power while an operator limited by `bound` runs.
    pub fn power(&self, bound: Bound) -> Watts {
        self.power.busy(bound)
    }

    /// Board power while nothing runs.
    pub fn idle_power(&self) -> Watts {
        self.power.idle()
    }

    /// Where the kernel tables come from: this machine, a relative, or documented defaults.
    pub fn provenance(&self) -> Provenance {
        self.provenance
    }

    fn rates(&self, dtype: DType) -> Rates {
        Rates { peak: self.peaks[dtype as usize], bandwidth: self.bandwidth, units: self.units }
    }

    fn finish(&self, seconds: f64, arithmetic: f64, bytes: f64, inside: bool, sigma: f64) -> Cost {
        let traffic = bytes / self.bandwidth;
        let roofline = arithmetic.max(traffic);
        let time = seconds.max(roofline);
        let bound = if roofline < 0.2 * time {
            Bound::Latency
        } else if arithmetic >= traffic {
            Bound::Compute
        } else {
            Bound::Memory
        };
        let provenance = match (self.provenance, inside) {
            (Provenance::Measured, true) => Provenance::Interpolated,
            (Provenance::Measured, false) => Provenance::Extrapolated,
            (other, _) => other,
        };
        let sigma = match provenance {
            Provenance::Extrapolated => sigma * 1.5,
            Provenance::Transferred => sigma + 0.1,
            _ => sigma,
        };
        Cost { time: Seconds(time), roofline: Seconds(roofline), bound, provenance, sigma }
    }
}

/// Sustained share per format.
fn sustained_rates(shares: &Sustained) -> [f64; FORMATS] {
    DType::ALL.map(|dtype| match dtype.bits() {
        4 => shares.fp4,
        8 => shares.fp8,
        16 => shares.bf16,
        _ => 1.0,
    })
}

/// Peak rate per format; a format without units of its own runs at the next wider one that the part has.
fn peaks(accelerator: &Accelerator) -> [f64; FORMATS] {
    let own = |d: DType| accelerator.peak(d).map(|f| f.0).filter(|&f| f > 0.0);
    let half = own(DType::Bf16).or(own(DType::Fp16)).or(own(DType::Fp32)).unwrap_or(1e12);
    let mut peaks = [half; FORMATS];
    for dtype in DType::ALL {
        peaks[dtype as usize] = own(dtype).unwrap_or_else(|| match dtype {
            DType::Fp32 => own(DType::Fp32).unwrap_or(half / 16.0),
            DType::Tf32 => own(DType::Fp32).unwrap_or(half / 16.0),
            DType::Fp16 | DType::Bf16 | DType::Fp8 | DType::Int4 => half,
            DType::Int8 => own(DType::Fp8).unwrap_or(half),
            DType::Fp4 => own(DType::Fp8).unwrap_or(half),
        });
    }
    peaks
}

/// Formats whose table stands in for a missing one, nearest first.
fn stand_ins(dtype: DType) -> &'static [DType] {
    match dtype {
        DType::Fp4 => &[DType::Fp4, DType::Fp8, DType::Bf16],
        DType::Fp8 | DType::Int8 => &[DType::Fp8, DType::Int8, DType::Bf16],
        DType::Fp16 | DType::Bf16 => &[DType::Bf16, DType::Fp16],
        DType::Fp32 | DType::Tf32 | DType::Int4 => &[DType::Tf32, DType::Bf16, DType::Fp16],
    }
}

/// Index of the best table for a format and scale layout.
fn choose(keys: &[(DType, Scaling)], dtype: DType, scaling: Scaling) -> u8 {
    let exact = keys.iter().position(|&key| key == (dtype, scaling));
    let nearest = || stand_ins(dtype).iter().find_map(|&d| keys.iter().position(|&(f, _)| f == d));
    exact.or_else(nearest).unwrap_or(0) as u8
}

fn index(keys: &[(DType, Scaling)]) -> [[u8; SCALINGS]; FORMATS] {
    let mut table = [[0; SCALINGS]; FORMATS];
    for dtype in DType::ALL {
        for scaling in [Scaling::None, Scaling::Tensor, Scaling::MicroBlock, Scaling::Block128] {
            table[dtype as usize][scaling as usize] = choose(keys, dtype, scaling);
        }
    }
    table
}

/// Libraries of 2023 (cuBLAS 12) began to spread the last wave's tiles over idle units (stream-k); before, every wave is
/// whole.
const STREAM_K_ERA: f64 = 2022.9;

fn gemm_tables(
    profile: &AcceleratorProfile,
    fallback: &AcceleratorProfile,
    era: f64,
) -> (Vec<GemmModel>, [[u8; SCALINGS]; FORMATS]) {
    let tables = if profile.gemm.is_empty() { &fallback.gemm } else { &profile.gemm };
    let keys: Vec<_> = tables.iter().map(|t| (t.dtype, t.scaling)).collect();
    let models = tables.iter().map(|table| {
        let model = GemmModel::new(table);
        if era < STREAM_K_ERA { model.with_whole_waves() } else { model }
    });
    (models.collect(), index(&keys))
}

fn grouped_tables(
    profile: &AcceleratorProfile,
    fallback: &AcceleratorProfile,
) -> (Vec<GroupedGemmModel>, [[u8; SCALINGS]; FORMATS]) {
    let tables = if profile.grouped_gemm.is_empty() { &fallback.grouped_gemm } else { &profile.grouped_gemm };
    let keys: Vec<_> = tables.iter().map(|t| (t.dtype, t.scaling)).collect();
    (tables.iter().map(GroupedGemmModel::new).collect(), index(&keys))
}

/// Kernel generations whose table stands in for a missing one, nearest first.
fn kernel_stand_ins(kernel: AttentionKernel) -> [AttentionKernel; KERNELS] {
    use AttentionKernel::{Cudnn, Flash1, Flash2, Flash3, Unfused};
    match kernel {
        Cudnn => [Cudnn, Flash3, Flash2, Flash1, Unfused],
        Flash3 => [Flash3, Cudnn, Flash2, Flash1, Unfused],
        Flash2 => [Flash2, Flash3, Cudnn, Flash1, Unfused],
        Flash1 | Unfused => [Flash1, Flash2, Flash3, Cudnn, Unfused],
    }
}

/// FlashAttention 1 without a table of its own: FlashAttention 2 is 1.3 to 2.5 times as fast as the Triton form of it
/// and about twice as fast as the CUDA one, forward and backward together (Dao 2023, section 4.1, figure 4).
const FLASH1_OVER_FLASH2: f64 = 0.62;

/// A table used in place of that of another kernel generation.
fn stand_in(mut table: AttentionTable, wanted: AttentionKernel) -> AttentionTable {
    if wanted == AttentionKernel::Flash1 && table.kernel != AttentionKernel::Flash1 {
        table.law.compute *= FLASH1_OVER_FLASH2;
    }
    table
}

fn attention_tables(
    profile: &AcceleratorProfile,
    fallback: &AcceleratorProfile,
    kernel: AttentionKernel,
) -> (Vec<AttentionModel>, [[u8; PASSES]; 2]) {
    let mut chosen = Vec::new();
    let mut index = [[0; PASSES]; 2];
    for (low, row) in index.iter_mut().enumerate() {
        for pass in [AttentionPass::Forward, AttentionPass::Backward, AttentionPass::Decode] {
            let of = |p: &AcceleratorProfile, low: usize| {
                kernel_stand_ins(kernel).into_iter().find_map(|k| {
                    p.attention
                        .iter()
                        .find(|t| t.kernel == k && t.pass == pass && usize::from(t.dtype.bits() <= 8) == low)
                        .cloned()
                        .map(|t| stand_in(t, kernel))
                })
            };
            let table = of(profile, low).or_else(|| of(profile, 0)).or_else(|| of(fallback, 0));
            if let Some(table) = table {
                row[pass as usize] = chosen.len() as u8;
                chosen.push(AttentionModel::new(&table));
            }
        }
    }
    (chosen, index)
}

fn memory_laws(profile: &AcceleratorProfile, fallback: &AcceleratorProfile) -> [MemoryLaw; CLASSES] {
    let of = |p: &AcceleratorProfile, name: &str| {
        let own = |name: &str| p.memory.iter().find(|t| t.class == name).map(MemoryLaw::new);
        own(name).or_else(|| if name == "gelu" { own("activation") } else { None })
    };
    CLASS_NAMES.map(|(_, name)| {
        of(profile, name)
            .or_else(|| if profile.memory.is_empty() { of(fallback, name) } else { None })
            .or_else(|| of(profile, "default"))
            .or_else(|| of(fallback, "default"))
            .unwrap_or_else(|| MemoryLaw::new(&fallback.memory[0]))
    })
}
