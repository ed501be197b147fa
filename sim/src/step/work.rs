//! Operators of one layer and pass, priced and laid on streams: what the operator-level simulation (L2) places.
//!
//! Compute operators between two exchanges are one piece: nothing can come between them. A collective that is chunked
//! with its GEMM splits that GEMM where the chunks begin and end to matter: of `n` chunks the first transfer leads,
//! the last product trails, and what lies between runs side by side.

use super::Parts;
use super::pass::{counted, is_matrix, kernels, launches};
use crate::stream::TaskClass;
use psim_cost_models::CostModel;
use psim_hardware::profile::StackProfile;
use psim_models::operator::{CollectiveKind, Dimension, MemoryClass, Operator, OperatorKind, Phase, Sync};

/// No dependency.
pub(super) const NONE: u16 = u16::MAX;
/// The last compute before this work.
pub(super) const BEFORE: u16 = u16::MAX - 1;

/// Where a piece runs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Lane {
    /// Compute stream, with its time by cause.
    Compute(Parts),
    /// Stream of the model-parallel collectives.
    Exchange(Dimension),
}

/// Work on one stream without a break.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Piece {
    pub(super) lane: Lane,
    pub(super) class: TaskClass,
    /// Seconds alone on the device, launch gaps included.
    pub(super) seconds: f64,
    /// Pieces of the same work that must have ended, besides the one before on the stream.
    pub(super) after: [u16; 2],
}

/// One pass of one layer.
#[derive(Debug, Clone, Default)]
pub(super) struct Work {
    pub(super) pieces: Vec<Piece>,
    /// Seconds the host needs to launch the kernels before and after the read-back.
    pub(super) host: [f64; 2],
    /// Piece after which the host reads back from the device, or [`NONE`].
    pub(super) read_back: u16,
    /// Exchange that whatever follows this work waits for, or [`NONE`].
    pub(super) gate: u16,
}

impl Work {
    /// Lays the operators that `keep` admits.
    pub(super) fn new(
        operators: &[Operator],
        cost: &CostModel,
        stack: &StackProfile,
        peak: f64,
        keep: impl Fn(&Operator) -> bool,
    ) -> Self {
        let list: Vec<&Operator> = operators.iter().filter(|o| keep(o)).collect();
        let mut laying = Laying::new();
        for (i, op) in list.iter().enumerate() {
            let time = counted(&op.kind, cost.price(&op.kind).time.0, stack, peak);
            let count = kernels(&op.kind);
            let work = &mut laying.work;
            work.host[usize::from(work.read_back != NONE)] +=
                launches(&op.kind, &stack.host) * stack.host.launch.0;
            if let OperatorKind::Collective { kind, group, dimension, .. } = op.kind {
                let class = match (dimension, op.sync) {
                    (Dimension::Ep, Sync::Async) => TaskClass::Dispatch,
                    _ if group.is_local() => TaskClass::Local,
                    _ => TaskClass::Communication,
                };
                laying.collective(time, dimension, class, op.sync, f64::from(group.ranks.max(1)));
                if op.sync == Sync::Async && dimension == Dimension::Tp {
                    laying.needed_by(kind);
                }
                continue;
            }
            laying.begin(op.phase);
            let gaps = stack.host.gap.0 * count;
            let matrix = is_matrix(&op.kind);
            let mut parts = Parts { launch: gaps, ..Parts::default() };
            if matrix {
                parts.ideal = f64::min(op.kind.flops() / peak, time);
                parts.inefficiency = time - parts.ideal;
                laying.matrix(time, parts, chunks_after(&list[i + 1..]));
            } else {
                parts.memory = time;
                laying.plain(parts);
            }
            if matches!(op.kind, OperatorKind::Memory { class: MemoryClass::Permute, .. })
                && op.name == "permute"
            {
                laying.read_back(stack.host.moe_sync.0);
            }
        }
        laying.finish(stack.host.cuda_graphs)
    }

    /// Compute by cause if nothing but compute decides how long the work takes: no exchange, and a host that is never
    /// behind.
    pub(super) fn quiet(&self) -> Option<Parts> {
        let mut sum = Parts::default();
        for piece in &self.pieces {
            let Lane::Compute(parts) = piece.lane else { return None };
            sum = sum.plus(&parts, 1.0);
        }
        let host = self.host[0] + self.host[1];
        (host <= 0.0 || (self.read_back == NONE && host <= sum.total())).then_some(sum)
    }
}

/// Chunks of the scatter that follows a matrix operator piece by piece; 1 if none does.
fn chunks_after(rest: &[&Operator]) -> f64 {
    for op in rest {
        if let OperatorKind::Collective { group, .. } = op.kind {
            return if op.sync == Sync::WithPrevious { f64::from(group.ranks.max(1)) } else { 1.0 };
        }
        if is_matrix(&op.kind) {
            break;
        }
    }
    1.0
}

/// The list being laid.
struct Laying {
    work: Work,
    /// Compute piece that the next compute operator may join.
    open: Option<usize>,
    /// Last compute piece.
    last: u16,
    /// Exchange that the next compute piece waits for.
    gate: u16,
    /// Gathers to be chunked with the next matrix operator.
    pending: Option<(f64, Dimension, TaskClass, f64)>,
    /// First and last piece of the last matrix operator.
    matrix: Option<(u16, u16)>,
    /// Exchanges left running that the next weight gradient, or the next operator of another phase, needs.
    running: [u16; 2],
    /// Last overlapped token exchange.
    dispatched: u16,
}

impl Laying {
    fn new() -> Self {
        let work = Work { read_back: NONE, gate: NONE, ..Work::default() };
        Self {
            work,
            open: None,
            last: BEFORE,
            gate: NONE,
            pending: None,
            matrix: None,
            running: [NONE; 2],
            dispatched: NONE,
        }
    }

    fn push(&mut self, piece: Piece) -> u16 {
        self.work.pieces.push(piece);
        // Far more pieces than a layer has operators; the two largest numbers are taken.
        (self.work.pieces.len() - 1).min(usize::from(BEFORE) - 1) as u16
    }

    fn compute(&mut self, class: TaskClass, parts: Parts, after: u16) -> u16 {
        let after = [std::mem::replace(&mut self.gate, NONE), after];
        self.last = self.push(Piece { lane: Lane::Compute(parts), class, seconds: parts.total(), after });
        self.last
    }

    fn exchange(&mut self, seconds: f64, dimension: Dimension, class: TaskClass, after: u16) -> u16 {
        self.open = None;
        self.push(Piece { lane: Lane::Exchange(dimension), class, seconds, after: [after, NONE] })
    }

    /// Notes who needs the tensor-parallel exchange just left running: a gather feeds the weight gradient behind it, a
    /// sum goes on to the layer before.
    fn needed_by(&mut self, kind: CollectiveKind) {
        let at = (self.work.pieces.len() - 1).min(usize::from(BEFORE) - 1) as u16;
        self.running[usize::from(kind != CollectiveKind::AllGather)] = at;
    }

    /// Before a compute operator of `phase`: it waits for the running exchange that it needs.
    fn begin(&mut self, phase: Phase) {
        let running = &mut self.running[usize::from(phase != Phase::WeightGradient)];
        if *running != NONE {
            let needed = std::mem::replace(running, NONE);
            // Exchanges run in order: the later one covers the earlier.
            self.gate = if self.gate == NONE { needed } else { self.gate.max(needed) };
            self.open = None;
        }
    }

    /// A compute operator that nothing is chunked with.
    fn plain(&mut self, parts: Parts) {
        match self.open {
            Some(open) if self.gate == NONE => {
                let piece = &mut self.work.pieces[open];
                if let Lane::Compute(sum) = &mut piece.lane {
                    *sum = sum.plus(&parts, 1.0);
                    piece.seconds += parts.total();
                }
            }
            _ => self.open = Some(usize::from(self.compute(TaskClass::Compute, parts, NONE))),
        }
    }

    /// A matrix operator, behind pending gathers and before a scatter in `chunks_after` chunks.
    fn matrix(&mut self, time: f64, parts: Parts, chunks_after: f64) {
        let pending = self.pending.take();
        if pending.is_none() && chunks_after <= 1.0 {
            self.plain(parts);
            self.matrix = None;
            return;
        }
        let part = |share: f64| {
            let rest = Parts { launch: 0.0, ..parts };
            Parts::default().plus(&rest, share)
        };
        self.open = None;
        let head = if chunks_after > 1.0 { 1.0 / chunks_after } else { 0.0 };
        let mut gates = (NONE, NONE);
        let mut tail = 0.0;
        if let Some((transfer, dimension, class, chunks)) = pending {
            let lead = self.exchange(transfer / chunks, dimension, class, self.last);
            let rest = self.exchange(transfer - transfer / chunks, dimension, class, lead);
            gates = (lead, rest);
            tail = f64::min(1.0 / chunks, 1.0 - head);
        }
        let middle = 1.0 - head - tail;
        let mut after = gates.0;
        let mut first = NONE;
        for (share, gate) in [(head, NONE), (middle, NONE), (tail, gates.1)] {
            if share * time <= 0.0 {
                continue;
            }
            if gate != NONE {
                after = gate;
            }
            let piece = self.compute(TaskClass::Compute, part(share), std::mem::replace(&mut after, NONE));
            if first == NONE {
                first = piece;
            }
        }
        // The gaps come behind the kernel.
        self.matrix = Some((first, self.last));
        if parts.launch > 0.0 {
            self.open = Some(usize::from(self.compute(
                TaskClass::Compute,
                Parts { launch: parts.launch, ..Parts::default() },
                NONE,
            )));
        }
    }

    fn collective(&mut self, time: f64, dimension: Dimension, class: TaskClass, sync: Sync, chunks: f64) {
        match sync {
            Sync::Serial => self.gate = self.exchange(time, dimension, class, self.last),
            Sync::Async => {
                let exchange = self.exchange(time, dimension, class, self.last);
                if dimension == Dimension::Ep {
                    // Behind the operators of another micro-batch up to its next exchange, which needs this one.
                    if self.dispatched != NONE {
                        self.gate =
                            if self.gate == NONE { self.dispatched } else { self.gate.max(self.dispatched) };
                    }
                    self.dispatched = exchange;
                }
            }
            Sync::WithNext => {
                let before = self.pending.map_or(0.0, |p| p.0);
                self.pending = Some((before + time, dimension, class, chunks));
            }
            Sync::WithPrevious => match self.matrix.take() {
                Some((first, last)) if first != NONE => {
                    self.exchange(time - time / chunks, dimension, class, first);
                    self.gate = self.exchange(time / chunks, dimension, class, last);
                }
                _ => self.gate = self.exchange(time, dimension, class, self.last),
            },
        }
    }

    /// The host waits for the device and then goes on launching.
    fn read_back(&mut self, seconds: f64) {
        if self.work.read_back != NONE {
            return;
        }
        self.open = None;
        let parts = Parts { launch: seconds, ..Parts::default() };
        self.work.read_back = self.compute(TaskClass::Compute, parts, NONE);
    }

    fn finish(mut self, cuda_graphs: bool) -> Work {
        if let Some((transfer, dimension, class, _)) = self.pending.take() {
            self.gate = self.exchange(transfer, dimension, class, self.last);
        }
        // What the next layer's work needs goes on with it.
        let [gather, sum] = self.running;
        self.work.gate = [self.gate, gather, sum].into_iter().filter(|&g| g != NONE).max().unwrap_or(NONE);
        if cuda_graphs {
            self.work.host = [0.0; 2];
        }
        self.work
    }
}
