//! Which point to measure next: a coarse base of every table first, then wherever the law is least sure.
//!
//! A candidate's uncertainty is its distance (in doublings) to the nearest measured points times how much their rates
//! disagree: where rates are flat, interpolation is good and no time is spent. Tables share the time by weight.

use super::calm::{AGAIN, DISTURBED, SHARE};
use super::point::{Point, Record, Role};
use psim_hardware::DType;
use psim_kernels::Device;

/// Tables of a sweep, with their share of the time.
const TABLES: [(&str, f64); 7] = [
    ("gemm", 0.27),
    ("gemm-roles", 0.1),
    ("attention", 0.2),
    ("decode", 0.08),
    ("memory", 0.15),
    ("collective", 0.15),
    ("machine", 0.05),
];

/// What the device can be asked for.
#[derive(Debug, Clone)]
pub struct Limits {
    /// GEMM grid lines.
    pub gemm: [Vec<u64>; 3],
    /// Sequence lengths and head widths of attention.
    pub attention: [Vec<u64>; 2],
    /// Rows and widths of memory-bound operators.
    pub memory: [Vec<u64>; 2],
    /// Cache lengths and sequences of decoding.
    pub decode: [Vec<u64>; 2],
    /// Sizes of collectives; empty without ranks.
    pub collective: Vec<u64>,
    /// (layers, sequences, vocabulary) of serving steps; empty without an engine.
    pub engine: Vec<[u32; 3]>,
    /// Working sets of the pointer chase.
    pub chase: Vec<u64>,
    /// Working sets of weights that are read in turn; empty where the tables are measured beyond the caches.
    pub stream: Vec<u64>,
    /// Numbers of threads that compute at once.
    pub together: Vec<u32>,
    /// Milliseconds of uninterrupted work; 0: none.
    pub sustained: u64,
    /// Sizes of copies between host and device; empty where they are one. Launches and shared memory come with them.
    pub host_copy: Vec<u64>,
    /// Most floating-point operations of one call.
    pub flops: f64,
}

impl Limits {
    /// For a device and a budget in seconds: a fiftieth of it must pay for the largest call, several times over.
    pub fn new<D: Device>(device: &D, budget: f64, runners: bool) -> Self {
        let gpu = device.formats().contains(&DType::Bf16);
        let powers =
            |from: u32, to: u32, step: usize| (from..=to).step_by(step).map(|p| 1_u64 << p).collect();
        if gpu {
            let head_dims = device.head_dims().iter().map(|&d| d as u64).collect();
            return Self {
                gemm: [powers(4, 14, 1), powers(9, 15, 1), powers(9, 14, 1)],
                attention: [powers(9, 14, 1), head_dims],
                memory: [powers(8, 14, 2), powers(10, 14, 2)],
                decode: [powers(9, 14, 1), vec![1, 8, 64]],
                collective: Vec::new(),
                engine: Vec::new(),
                chase: powers(14, 29, 1),
                stream: Vec::new(),
                together: Vec::new(),
                sustained: 0,
                host_copy: powers(12, 28, 4),
                flops: (1e13 * budget).min(1e13),
            };
        }
        Self {
            // Serving runs few rows at a time; the middle of the list is where training begins.
            gemm: [vec![1, 2, 4, 8, 16, 32, 64, 96, 128, 256, 512, 1024], powers(5, 11, 2), powers(5, 11, 2)],
            attention: [powers(5, 10, 1), powers(4, 7, 1)],
            decode: [powers(2, 12, 2), vec![1, 16, 256]],
            // Narrower rows than a head or two do not occur.
            memory: [powers(3, 11, 1), powers(7, 11, 1)],
            engine: if runners {
                vec![[1, 1, 64], [4, 1, 64], [1, 8, 64], [4, 8, 64], [1, 1, 2048], [1, 8, 2048]]
            } else {
                Vec::new()
            },
            collective: if runners {
                vec![1 << 10, 16 << 10, 256 << 10, 1 << 20, 4 << 20]
            } else {
                Vec::new()
            },
            chase: (13..=27).map(|p| 1_u64 << p).filter(|&b| budget >= 10.0 || b <= 16 << 20).collect(),
            stream: super::stream::working_sets(&super::host::caches(), budget),
            together: threads(super::machine::cores()),
            // Power management reacts within seconds; a short budget sees at most its first reaction.
            sustained: (budget * 1e3 * 0.03).clamp(20.0, 20_000.0) as u64,
            host_copy: Vec::new(),
            flops: (5e9 * budget / 50.0).clamp(2e8, 5e9),
        }
    }
}

/// One, two, four … threads up to the cores, at most 64.
fn threads(cores: u32) -> Vec<u32> {
    let most = cores.clamp(1, 64);
    let mut list: Vec<u32> = (0..).map(|p| 1 << p).take_while(|&n| n < most).collect();
    list.push(most);
    list
}

/// A sweep in progress.
#[derive(Debug, Clone, Default)]
pub struct Sweep {
    /// Candidates per table, base first; measured ones are removed.
    waiting: Vec<Vec<Point>>,
    /// How many of each table's first candidates are base.
    base: Vec<usize>,
    spent: Vec<f64>,
    records: Vec<Record>,
    /// How often each record's point was measured again, and the seconds of all of that.
    repeats: Vec<usize>,
    repeated: f64,
}

/// Coordinates for distances: doublings.
fn coordinates(point: &Point) -> [f64; 3] {
    let log = |x: u64| (x.max(1) as f64).log2();
    match point {
        Point::Gemm { m, n, k, role } => [log(*m) + 100.0 * f64::from(*role as u8), log(*n), log(*k)],
        Point::Attention { seq, head_dim, backward, .. } => {
            [log(*seq), log(*head_dim), f64::from(u8::from(*backward)) * 100.0]
        }
        Point::Decode { batch, length, head_dim, .. } => [log(*batch), log(*length), log(*head_dim)],
        Point::Memory { rows, width, class } => [log(*rows), log(*width), 100.0 * class_number(class)],
        Point::Collective { operation, ranks, bytes } => {
            [log(*bytes), 50.0 * f64::from(*ranks), 1000.0 * class_number(operation)]
        }
        Point::Chase { bytes } => [log(*bytes), 0.0, 0.0],
        Point::Stream { bytes } => [log(*bytes), 700.0, 0.0],
        Point::Shared => [0.0, 300.0, 0.0],
        Point::Launch { graph } => [f64::from(u8::from(*graph)), 400.0, 0.0],
        Point::HostCopy { bytes, to_device } => [log(*bytes), 500.0, 100.0 * f64::from(u8::from(*to_device))],
        Point::EngineStep { layers, sequences, vocab } => {
            [600.0 + log(u64::from(*layers)), log(u64::from(*sequences)), log(u64::from(*vocab))]
        }
        Point::Together { threads } => [f64::from(*threads), 100.0, 0.0],
        Point::Sustained { milliseconds } => [log(*milliseconds), 200.0, 0.0],
    }
}

/// Classes are far apart, so that they do not stand in for one another.
fn class_number(name: &str) -> f64 {
    CLASSES.iter().chain(&OPERATIONS).position(|c| *c == name).map_or(0.0, |p| p as f64)
}

/// Memory-bound classes that are measured.
pub const CLASSES: [&str; 10] = [
    "norm",
    "activation",
    "gelu",
    "elementwise",
    "rope",
    "cross-entropy",
    "embedding",
    "optimizer",
    "permute",
    "default",
];

/// Collectives that are measured.
pub const OPERATIONS: [&str; 5] = ["all-reduce", "all-gather", "reduce-scatter", "all-to-all", "send-recv"];

/// Work of a point in arbitrary units within its table: rates are time per unit.
fn work(point: &Point) -> f64 {
    match point {
        Point::Gemm { m, n, k, .. } => 2.0 * (m * n) as f64 * *k as f64,
        Point::Attention { batch, seq, heads, head_dim, backward } => {
            let forward = 2.0 * (batch * heads * head_dim) as f64 * (*seq as f64) * (*seq as f64);
            if *backward { 2.5 * forward } else { forward }
        }
        Point::Decode { batch, length, heads, head_dim } => {
            (batch * length * heads) as f64 * *head_dim as f64
        }
        Point::Memory { rows, width, .. } => (rows * width) as f64,
        Point::Collective { bytes, .. } => *bytes as f64 + 1e4,
        Point::HostCopy { bytes, .. } => *bytes as f64 + 1e5,
        _ => 1.0,
    }
}

fn table(point: &Point) -> usize {
    match point {
        Point::Gemm { role: Role::Forward, .. } => 0,
        Point::Gemm { .. } => 1,
        Point::Attention { .. } => 2,
        Point::Decode { .. } => 3,
        Point::Memory { .. } => 4,
        Point::Collective { .. } => 5,
        _ => 6,
    }
}

/// First, middle and last of a list.
fn coarse(lines: &[u64]) -> Vec<u64> {
    match lines {
        [] => Vec::new(),
        [one] => vec![*one],
        [first, .., last] if lines.len() > 3 => vec![*first, lines[lines.len() / 2], *last],
        [first, .., last] => vec![*first, *last],
    }
}

/// Rows up to which a product counts as one of few rows.
pub(super) const FEW_ROWS: u64 = 16;

/// Heads of measured decoding: the kernel's work is sequences times heads.
const DECODE_HEADS: u64 = 1;

/// Columns and reduction of the product that is also measured with a transposed matrix.
fn transposed_shape(ns: &[u64], ks: &[u64]) -> [u64; 2] {
    [ns.last().copied().unwrap_or(64), ks.get(ks.len() / 2).copied().unwrap_or(64)]
}

fn candidates(limits: &Limits) -> (Vec<Vec<Point>>, Vec<usize>) {
    let mut lists: Vec<(Vec<Point>, Vec<Point>)> = vec![Default::default(); TABLES.len()];
    let [ms, ns, ks] = &limits.gemm;
    let [cm, cn, ck] = [coarse(ms), coarse(ns), coarse(ks)];
    for &m in ms {
        for &n in ns {
            for &k in ks {
                let base = cm.contains(&m) && cn.contains(&n) && ck.contains(&k);
                // Of the coarse grid's 27 points, corners, faces' opposites and the centre.
                let parity = [
                    cm.iter().position(|&x| x == m),
                    cn.iter().position(|&x| x == n),
                    ck.iter().position(|&x| x == k),
                ]
                .iter()
                .flatten()
                .sum::<usize>();
                let point = Point::Gemm { m, n, k, role: Role::Forward };
                // Few rows against the wide matrix of an output layer, beside the same with the matrix transposed.
                let few = ms.first().is_some_and(|&m| m == 1)
                    && m <= FEW_ROWS
                    && transposed_shape(ns, ks) == [n, k];
                if few || (base && parity % 2 == 0) { lists[0].0.push(point) } else { lists[0].1.push(point) }
            }
        }
    }
    for role in [Role::InputGradient, Role::WeightGradient] {
        // What a layout costs beside the other depends on the rows most: two numbers of them against small shapes.
        let at = |l: &[u64], i: usize| l.get(i.min(l.len().saturating_sub(1))).copied().unwrap_or(64);
        let middle = |l: &[u64]| at(l, l.len() / 2);
        let low = |l: &[u64]| at(l, (l.len() / 2).saturating_sub(1));
        let last = |l: &[u64]| at(l, usize::MAX);
        let mut base = vec![[last(ms), middle(ns), middle(ks)], [middle(ms), last(ns), last(ks)]];
        for m in [middle(ms), at(ms, ms.len() / 2 + 1)] {
            base.extend([[m, low(ns), low(ks)], [m, low(ns), middle(ks)], [m, middle(ns), low(ks)]]);
        }
        base.sort_unstable();
        base.dedup();
        for &m in ms.iter().filter(|&&m| m > FEW_ROWS) {
            for &n in ns {
                for &k in ks {
                    let point = Point::Gemm { m, n, k, role };
                    if base.contains(&[m, n, k]) { lists[1].0.push(point) } else { lists[1].1.push(point) }
                }
            }
        }
    }
    for &m in ms.iter().filter(|&&m| ms.first() == Some(&1) && m <= FEW_ROWS) {
        let [n, k] = transposed_shape(ns, ks);
        lists[1].0.push(Point::Gemm { m, n, k, role: Role::InputGradient });
    }
    let [seqs, dims] = &limits.attention;
    for &seq in seqs {
        for &head_dim in dims {
            let base = coarse(seqs).contains(&seq) && coarse(dims).contains(&head_dim);
            for backward in [false, true] {
                let point = Point::Attention { batch: 1, seq, heads: 4, head_dim, backward };
                if base { lists[2].0.push(point) } else { lists[2].1.push(point) }
            }
        }
    }
    let [lengths, batches] = &limits.decode;
    for &length in lengths {
        for &head_dim in dims {
            let base = coarse(lengths).contains(&length) && coarse(dims).contains(&head_dim);
            for &batch in batches {
                let point = Point::Decode { batch, length, heads: DECODE_HEADS, head_dim };
                let middle = batch == batches[batches.len() / 2];
                if base && middle { lists[3].0.push(point) } else { lists[3].1.push(point) }
            }
        }
    }
    let [rows_lines, width_lines] = &limits.memory;
    for class in CLASSES {
        for (row, &rows) in rows_lines.iter().enumerate() {
            for &width in width_lines {
                let point = Point::Memory { class: class.to_owned(), rows, width };
                // Every second one of a long list.
                let middle =
                    width == width_lines[width_lines.len() / 2] && (rows_lines.len() < 6 || row % 2 == 0);
                if middle { lists[4].0.push(point) } else { lists[4].1.push(point) }
            }
        }
    }
    for operation in OPERATIONS {
        for ranks in [2, 4] {
            if operation == "send-recv" && ranks > 2 {
                continue;
            }
            for &bytes in &limits.collective {
                let point = Point::Collective { operation: operation.to_owned(), ranks, bytes };
                let base = Some(&bytes) == limits.collective.first() || bytes == 256 << 10;
                if base { lists[5].0.push(point) } else { lists[5].1.push(point) }
            }
        }
    }
    let known = coarse(&limits.chase);
    for &threads in &limits.together {
        lists[6].0.push(Point::Together { threads });
    }
    for &[layers, sequences, vocab] in &limits.engine {
        lists[6].0.push(Point::EngineStep { layers, sequences, vocab });
    }
    for &bytes in &limits.stream {
        lists[6].0.push(Point::Stream { bytes });
    }
    for &bytes in &limits.chase {
        let point = Point::Chase { bytes };
        if known.contains(&bytes) { lists[6].0.push(point) } else { lists[6].1.push(point) }
    }
    if !limits.host_copy.is_empty() {
        lists[6].0.extend([Point::Shared, Point::Launch { graph: false }, Point::Launch { graph: true }]);
    }
    for &bytes in &limits.host_copy {
        lists[6].0.extend([true, false].map(|to_device| Point::HostCopy { bytes, to_device }));
    }
    if limits.sustained > 0 {
        lists[6].0.push(Point::Sustained { milliseconds: limits.sustained });
    }
    let mut waiting = Vec::new();
    let mut bases = Vec::new();
    for (mut base, mut rest) in lists {
        let affordable = |p: &Point| table(p) > 2 || work(p) <= limits.flops;
        base.retain(affordable);
        rest.retain(affordable);
        bases.push(base.len());
        base.append(&mut rest);
        waiting.push(base);
    }
    (waiting, bases)
}

impl Sweep {
    /// Continues from what has been measured.
    pub fn new(limits: &Limits, records: Vec<Record>) -> Self {
        let (waiting, base) = candidates(limits);
        let spent = vec![0.0; TABLES.len()];
        let mut sweep =
            Self { waiting, base, spent, records: Vec::new(), repeats: Vec::new(), repeated: 0.0 };
        for record in records {
            sweep.add(record);
        }
        sweep
    }

    /// Takes a measured point; of a point measured again, the record of the calmer processor is kept.
    pub fn add(&mut self, record: Record) {
        if let Some(at) = self.records.iter().position(|r| r.point == record.point) {
            self.repeats[at] += 1;
            self.repeated += record.spent;
            let (old, new) = (self.records[at].reference, record.reference);
            if old.zip(new).is_none_or(|(old, new)| new < old) {
                self.records[at] = record;
            }
            return;
        }
        let which = table(&record.point);
        self.spent[which] += record.spent;
        if let Some(at) = self.waiting[which].iter().position(|p| *p == record.point) {
            self.waiting[which].remove(at);
            if at < self.base[which] {
                self.base[which] -= 1;
            }
        }
        self.records.push(record);
        self.repeats.push(0);
    }

    /// A point to measure again because the processor was slower than at its best around it, the most disturbed one
    /// first, while that has taken less than its share of `budget` seconds. Base points come before that.
    pub fn again(&self, budget: f64) -> Option<Point> {
        if self.repeated > SHARE * budget || self.base.iter().any(|b| *b > 0) {
            return None;
        }
        let best = self.records.iter().filter_map(|r| r.reference).fold(f64::INFINITY, f64::min);
        self.records
            .iter()
            .zip(&self.repeats)
            .filter(|(r, repeats)| **repeats < AGAIN && !matches!(r.point, Point::Sustained { .. }))
            .filter_map(|(r, _)| Some((r.reference? / best, &r.point)))
            .filter(|(slowdown, _)| *slowdown > DISTURBED)
            .max_by(|a, b| a.0.total_cmp(&b.0))
            .map(|(_, point)| point.clone())
    }

    /// Seconds that one point may take.
    pub fn allowance(&self, left: f64) -> f64 {
        let base: usize = self.base.iter().sum();
        // Many points with few repeats: between points more is unknown than at them.
        let share = if base > 0 { left / (2 * base) as f64 } else { left / 100.0 };
        share.clamp(0.002, 0.25)
    }

    /// About how long measuring a point takes, from what its table took so far per unit of work; zero where nothing
    /// is known.
    fn estimate(&self, point: &Point) -> f64 {
        let which = table(point);
        let own = || self.records.iter().filter(|r| table(&r.point) == which);
        if which == 6 {
            return match point {
                Point::Sustained { milliseconds } => *milliseconds as f64 * 1.2e-3,
                _ => 0.0,
            };
        }
        // A call is made at least four times; small calls have overheads that large ones have not.
        let rates: Vec<f64> = own().map(|r| r.median() / work(&r.point)).collect();
        if rates.is_empty() { 0.0 } else { 4.0 * super::point::median(&rates) * work(point) }
    }

    /// The next point that takes at most `left` seconds; `None` when there is none.
    pub fn next(&self, left: f64) -> Option<Point> {
        let hungriest = |filter: &dyn Fn(usize) -> bool| {
            (0..TABLES.len())
                .filter(|&t| filter(t))
                .min_by(|&a, &b| (self.spent[a] / TABLES[a].1).total_cmp(&(self.spent[b] / TABLES[b].1)))
        };
        let fits = |p: &&Point| self.estimate(p) <= left;
        let base = |t: usize| self.waiting[t].iter().take(self.base[t]);
        if let Some(which) = hungriest(&|t| base(t).any(|p| fits(&p))) {
            return base(which).find(fits).cloned();
        }
        let which = hungriest(&|t| self.waiting[t].iter().any(|p| fits(&p)))?;
        self.waiting[which]
            .iter()
            .filter(fits)
            .map(|p| (self.uncertainty(p), p))
            .max_by(|a, b| a.0.total_cmp(&b.0))
            .map(|(_, p)| p.clone())
    }

    /// Distance to what is known, times how much the nearest rates disagree.
    fn uncertainty(&self, candidate: &Point) -> f64 {
        let at = coordinates(candidate);
        let mut near: Vec<(f64, f64)> = self
            .records
            .iter()
            .filter(|r| table(&r.point) == table(candidate))
            .map(|r| {
                let c = coordinates(&r.point);
                let distance = at.iter().zip(c).map(|(a, b)| (a - b).powi(2)).sum::<f64>().sqrt();
                (distance, (r.median() / work(&r.point)).ln())
            })
            .collect();
        near.sort_by(|a, b| a.0.total_cmp(&b.0));
        near.truncate(4);
        let Some(&(nearest, first)) = near.first() else { return f64::INFINITY };
        let spread = near.iter().map(|n| (n.1 - first).abs()).fold(0.0, f64::max);
        nearest * (0.05 + spread)
    }

    /// Everything measured.
    pub fn into_records(self) -> Vec<Record> {
        self.records
    }
}

/// One record a point: that of the calmer processor where it was measured again.
pub fn merged(records: Vec<Record>) -> Vec<Record> {
    let tables = TABLES.len();
    let (waiting, base, spent) = (vec![Vec::new(); tables], vec![0; tables], vec![0.0; tables]);
    let mut sweep = Sweep { waiting, base, spent, ..Sweep::default() };
    records.into_iter().for_each(|record| sweep.add(record));
    sweep.into_records()
}

/// `count` different numbers below `len`, spread by a seed, ascending.
pub fn choose(len: usize, count: usize, seed: u64) -> Vec<usize> {
    let mut order: Vec<(u64, usize)> = (0..len)
        .map(|i| {
            let mixed =
                (seed ^ (i as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            (mixed ^ (mixed >> 31), i)
        })
        .collect();
    order.sort_unstable();
    let mut chosen: Vec<usize> = order.into_iter().take(count).map(|o| o.1).collect();
    chosen.sort_unstable();
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;
    use psim_kernels::cpu::CpuDevice;

    fn fake(point: Point, rate: f64) -> Record {
        let seconds = work(&point) * rate;
        Record { point, seconds: vec![seconds], spent: 0.01, load: None, state: None, reference: None }
    }

    #[test]
    fn the_base_comes_first_and_everything_is_reached_once() {
        let mut sweep = Sweep::new(&Limits::new(&CpuDevice::new(), 600.0, true), Vec::new());
        let base: usize = sweep.base.iter().sum();
        let all: usize = sweep.waiting.iter().map(Vec::len).sum();
        let mut seen = std::collections::BTreeSet::new();
        while let Some(point) = sweep.next(1e9) {
            assert!(seen.insert(point.clone()), "{point} twice");
            sweep.add(fake(point, 1e-10));
            if seen.len() == base {
                assert_eq!(sweep.base.iter().sum::<usize>(), 0);
            }
        }
        assert_eq!(seen.len(), all);
    }

    #[test]
    fn points_go_where_rates_change() {
        let mut sweep = Sweep::new(&Limits::new(&CpuDevice::new(), 600.0, false), Vec::new());
        // The rate halves below m = 64 and is flat elsewhere.
        let slow = |p: &Point| matches!(p, Point::Gemm { m, .. } if *m < 64);
        let mut refined = Vec::new();
        for _ in 0..240 {
            let Some(point) = sweep.next(1e9) else { break };
            if sweep.base.iter().all(|&b| b == 0) && table(&point) == 0 {
                refined.push(point.clone());
            }
            let rate = if slow(&point) { 8e-10 } else { 1e-10 };
            sweep.add(fake(point, rate));
        }
        let near = refined
            .iter()
            .take(20)
            .filter(|p| matches!(p, Point::Gemm { m, .. } if (8..=128).contains(m)))
            .count();
        // Half of the candidates lie around the change; three quarters of the first twenty refinements must.
        assert!(near >= 15, "{refined:?}");
    }

    #[test]
    fn disturbed_points_are_measured_again_and_the_calm_record_stays() {
        let limits = Limits::new(&CpuDevice::new(), 60.0, false);
        let mut sweep = Sweep::new(&limits, Vec::new());
        let mut disturbed = None;
        while sweep.base.iter().any(|b| *b > 0) {
            let point = sweep.next(1e9).unwrap();
            assert!(sweep.again(60.0).is_none());
            let slow = disturbed.is_none() && matches!(point, Point::Gemm { .. });
            let record = Record { reference: Some(if slow { 1.3e-5 } else { 1e-5 }), ..fake(point, 1e-10) };
            if slow {
                disturbed = Some(record.point.clone());
            }
            sweep.add(record);
        }
        let (point, count) = (disturbed.unwrap(), sweep.records.len());
        assert_eq!(sweep.again(60.0), Some(point.clone()));
        let mut worse = sweep.clone();
        sweep.add(Record { reference: Some(1e-5), seconds: vec![0.5], ..fake(point.clone(), 1e-10) });
        let kept = sweep.records.iter().find(|r| r.point == point).unwrap();
        assert!(kept.seconds == [0.5] && sweep.records.len() == count && sweep.again(60.0).is_none());
        // A machine that stays slow is measured as it is.
        for _ in 0..AGAIN {
            assert!(worse.again(60.0).is_some());
            worse.add(Record { reference: Some(1.4e-5), seconds: vec![0.7], ..fake(point.clone(), 1e-10) });
        }
        assert!(worse.again(60.0).is_none() && worse.records.iter().all(|r| r.seconds != [0.7]));
    }

    #[test]
    fn a_resumed_sweep_does_not_repeat() {
        let limits = Limits::new(&CpuDevice::new(), 60.0, false);
        let mut sweep = Sweep::new(&limits, Vec::new());
        for _ in 0..10 {
            let point = sweep.next(1e9).unwrap();
            sweep.add(fake(point, 1e-10));
        }
        let next = sweep.next(1e9);
        let resumed = Sweep::new(&limits, sweep.into_records());
        assert_eq!(resumed.next(1e9), next);
    }
}
