//! Operators of one pass list-scheduled on the compute and communication streams of a rank.
//!
//! Compute operators run in order on the compute stream. A collective starts once the compute before it is done and
//! the communication stream is free; its [`Sync`] says what waits for it. While both streams are busy, compute is
//! slowed by the stack's contention factor (SMs and memory bandwidth taken by the collective). The host issues kernels
//! at its own pace: the pass is never shorter than the host's time to launch it.

use super::Parts;
use psim_cost_models::{Bound, CostModel};
use psim_hardware::profile::stack::Host;
use psim_hardware::profile::{Provenance, StackProfile};
use psim_models::operator::{CollectiveKind, Dimension, MemoryClass, Operator, OperatorKind, Phase, Sync};

/// Outcome of a pass.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Pass {
    /// Duration in seconds; equals `parts.total()`.
    pub time: f64,
    /// By cause.
    pub parts: Parts,
    /// Seconds that no deeper simulation of the pass can beat: its compute and the collectives that compute waits for.
    pub floor: f64,
    /// Floating-point operations.
    pub flops: f64,
    /// Sum over operators of time² · sigma², for the interval.
    pub variance: f64,
    /// Time of operators by family (dense products, attention, experts and casts, memory-bound), for the interval.
    pub families: [f64; 4],
    /// Time of operators that limit by arithmetic, memory and network, for energy.
    pub busy: [f64; 3],
    /// Time spent in operators without a measured table.
    pub unmeasured: f64,
}

impl Pass {
    /// `self + other · factor`.
    #[must_use]
    pub fn plus(self, other: &Self, factor: f64) -> Self {
        let parts = self.parts.plus(&other.parts, factor);
        Self {
            time: self.time + other.time * factor,
            parts,
            floor: self.floor + other.floor * factor,
            flops: self.flops + other.flops * factor,
            variance: self.variance + other.variance * factor * factor,
            families: std::array::from_fn(|i| self.families[i] + other.families[i] * factor),
            busy: std::array::from_fn(|i| self.busy[i] + other.busy[i] * factor),
            unmeasured: self.unmeasured + other.unmeasured * factor,
        }
    }

    /// The same pass run again for recomputation.
    #[must_use]
    pub fn as_recompute(&self) -> Self {
        Self { parts: self.parts.as_recompute(), ..*self }
    }
}

/// Kernels that the host launches for an operator; those launched expert by expert run on streams of their own and leave
/// no gaps.
pub(super) fn launches(kind: &OperatorKind, host: &Host) -> f64 {
    let experts = match kind {
        OperatorKind::GroupedGemm { groups, .. } => *groups as f64 * host.expert_launches,
        _ => 0.0,
    };
    kernels(kind) + experts
}

/// Kernels that an operator runs one after the other.
pub(super) fn kernels(kind: &OperatorKind) -> f64 {
    match kind {
        OperatorKind::Gemm { .. } => 1.0,
        OperatorKind::GroupedGemm { .. } => 2.0,
        OperatorKind::Attention { backward, .. } => {
            if *backward {
                3.0
            } else {
                1.0
            }
        }
        OperatorKind::Memory { kernels, .. } => f64::from(*kernels),
        OperatorKind::Collective { .. } => 1.0,
    }
}

/// Kernels that a stack gets right or wrong together: dense products, attention cores (fused or not), what only mixtures
/// of experts run and low-precision casts, other memory-bound operators. Collectives are none of them.
fn family(kind: &OperatorKind) -> Option<usize> {
    Some(match kind {
        // Unfused attention is a batch of products around a softmax.
        OperatorKind::Attention { .. } => 1,
        OperatorKind::Gemm { batch, .. } if *batch > 1 => 1,
        OperatorKind::Memory { class: MemoryClass::Softmax, .. } => 1,
        OperatorKind::Gemm { .. } => 0,
        OperatorKind::GroupedGemm { .. } => 2,
        OperatorKind::Memory { class: MemoryClass::Permute | MemoryClass::Quantize, .. } => 2,
        OperatorKind::Memory { .. } => 3,
        OperatorKind::Collective { .. } => return None,
    })
}

pub(super) fn is_matrix(kind: &OperatorKind) -> bool {
    matches!(
        kind,
        OperatorKind::Gemm { .. } | OperatorKind::GroupedGemm { .. } | OperatorKind::Attention { .. }
    )
}

/// The time of an operator, unless its mechanism is taken out of the stack.
pub(super) fn counted(kind: &OperatorKind, time: f64, stack: &StackProfile, peak: f64) -> f64 {
    match kind {
        OperatorKind::Memory { .. } if stack.without.memory => 0.0,
        kind if stack.without.inefficiency && is_matrix(kind) => f64::min(kind.flops() / peak, time),
        _ => time,
    }
}

/// Seconds that compute loses to communication beside it: while that runs, compute takes `1 + contention` times as
/// long, so that of `communication` seconds side by side `contention / (1 + contention)` are lost.
pub(super) fn slowed(contention: f64, compute: f64, communication: f64) -> f64 {
    contention * f64::min(compute, communication / (1.0 + contention))
}

/// Runs the operators that `keep` admits and returns the duration of the pass.
pub fn run_pass(
    operators: &[Operator],
    cost: &CostModel,
    stack: &StackProfile,
    peak: f64,
    keep: impl Fn(&Operator) -> bool,
) -> Pass {
    let mut out = Pass::default();
    let parts = &mut out.parts;
    let floor = &mut out.floor;
    let gap = stack.host.gap.0;
    let contention = stack.efficiency.contention;
    let (mut compute_end, mut comm_end) = (0.0f64, 0.0f64);
    // Slow-down beside what is running, and the compute before the first overlapped token exchange.
    let mut beside = contention;
    let mut before_dispatch = None;
    let mut host = 0.0;
    // A collective to be pipelined with the next GEMM: its duration, dimension and number of chunks.
    let mut pending: Option<(f64, Dimension, f64)> = None;
    let mut last_matrix = 0.0;
    let mut tail_dimension = Dimension::Tp;
    // Ends of exchanges left running that the next weight gradient, or the next operator of another phase, waits for.
    let mut needed = [0.0f64; 2];
    for op in operators.iter().filter(|o| keep(o)) {
        let price = cost.price(&op.kind);
        let time = counted(&op.kind, price.time.0, stack, peak);
        host += launches(&op.kind, &stack.host) * stack.host.launch.0;
        out.variance += time * time * price.sigma * price.sigma;
        if let Some(family) = family(&op.kind) {
            out.families[family] += time;
        }
        if price.provenance <= Provenance::Transferred {
            out.unmeasured += time;
        }
        match price.bound {
            Bound::Compute => out.busy[0] += time,
            Bound::Memory | Bound::Latency => out.busy[1] += time,
            Bound::Network => out.busy[2] += time,
        }
        if let OperatorKind::Collective { kind, group, dimension, .. } = op.kind {
            let start = f64::max(compute_end, comm_end);
            match op.sync {
                Sync::Serial => {
                    parts.expose(dimension, start - compute_end + time);
                    *floor += time;
                    compute_end = start + time;
                    comm_end = compute_end;
                }
                Sync::Async => {
                    if dimension == Dimension::Ep {
                        // One exchange hides behind the operators of another micro-batch up to that one's next exchange.
                        if before_dispatch.is_none() {
                            before_dispatch = Some(compute_end);
                        } else if comm_end > compute_end {
                            parts.expose(dimension, comm_end - compute_end);
                            compute_end = comm_end;
                        }
                        beside = stack.efficiency.dispatch_contention;
                    } else {
                        beside = contention;
                    }
                    let start = f64::max(compute_end, comm_end);
                    comm_end = start + time;
                    tail_dimension = dimension;
                    if dimension == Dimension::Tp {
                        // A gather feeds the weight gradient behind it, a sum goes on to the layer before.
                        needed[usize::from(kind != CollectiveKind::AllGather)] = comm_end;
                    }
                }
                Sync::WithNext => {
                    let (before, _, _) = pending.unwrap_or((0.0, dimension, 1.0));
                    pending = Some((before + time, dimension, f64::from(group.ranks.max(1))));
                }
                Sync::WithPrevious => {
                    // The scatter of a chunk follows the GEMM of that chunk; the last chunk's scatter is exposed.
                    let chunks = f64::from(group.ranks.max(1));
                    let total = f64::max(last_matrix, time) + f64::min(last_matrix, time) / chunks;
                    let exposed = (total - last_matrix).max(0.0);
                    parts.expose(dimension, exposed);
                    let slowed = slowed(contention, last_matrix, time);
                    parts.contention += slowed;
                    compute_end += exposed + slowed;
                    comm_end = compute_end;
                }
            }
            continue;
        }
        let needs = std::mem::take(&mut needed[usize::from(op.phase != Phase::WeightGradient)]);
        if needs > compute_end {
            parts.expose(Dimension::Tp, needs - compute_end);
            compute_end = needs;
        }
        let flops = op.kind.flops();
        out.flops += flops;
        let matrix = is_matrix(&op.kind);
        if matrix {
            let ideal = f64::min(flops / peak, time);
            parts.ideal += ideal;
            parts.inefficiency += time - ideal;
        } else {
            parts.memory += time;
        }
        let gaps = gap * kernels(&op.kind);
        parts.launch += gaps;
        let mut duration = time;
        *floor += time + gaps;
        if matrix && let Some((transfer, dimension, chunks)) = pending.take() {
            let total = f64::max(time, transfer) + f64::min(time, transfer) / chunks;
            let slowed = slowed(contention, time, transfer);
            parts.expose(dimension, total - time);
            parts.contention += slowed;
            duration = total + slowed;
        } else if comm_end > compute_end {
            let slowed = slowed(beside, time, comm_end - compute_end);
            parts.contention += slowed;
            duration += slowed;
        }
        compute_end += duration + gaps;
        if matrix {
            last_matrix = time;
        }
        let permutes = matches!(op.kind, OperatorKind::Memory { class: MemoryClass::Permute, .. });
        if permutes && op.name == "permute" {
            // Token counts are read back by the host before the all-to-all can be sized.
            parts.launch += stack.host.moe_sync.0;
            compute_end += stack.host.moe_sync.0;
            *floor += stack.host.moe_sync.0;
        }
    }
    if let Some((transfer, dimension, _)) = pending {
        parts.expose(dimension, transfer);
        compute_end += transfer;
    }
    // The last exchange goes on behind the next layer's operators before its first one.
    if tail_dimension == Dimension::Ep
        && let Some(before) = before_dispatch
        && comm_end > compute_end
    {
        let hidden = f64::min(comm_end - compute_end, before);
        let slowed = slowed(beside, before, hidden);
        parts.contention += slowed;
        compute_end += slowed;
        comm_end += slowed - hidden;
    }
    if comm_end > compute_end {
        parts.expose(tail_dimension, comm_end - compute_end);
        compute_end = comm_end;
    }
    if !stack.host.cuda_graphs && host > compute_end {
        parts.launch += host - compute_end;
        compute_end = host;
    }
    out.time = compute_end;
    out
}
