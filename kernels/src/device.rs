//! The contract between psim and a machine: buffers, a timer, operators.
//!
//! Matrices are row-major. Lengths and offsets count elements unless a name says tokens or rows. Operators run in
//! order on the device's own stream; [`Device::synchronize`] waits for them. An operator that is called
//! `…_backward` adds to parameter gradients (they accumulate over micro-batches) and overwrites input gradients,
//! except attention, whose three gradients all accumulate because a ring adds to them block by block.

use psim_hardware::DType;

/// Result of a device call.
pub type Result<T> = std::result::Result<T, DeviceError>;

/// Why a device call failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DeviceError {
    /// A buffer is shorter than the operator needs.
    #[error("{operator}: {what} needs {needed} elements, the buffer has {got}")]
    Shape {
        /// Operator.
        operator: &'static str,
        /// Which buffer.
        what: &'static str,
        /// Elements needed.
        needed: usize,
        /// Elements there.
        got: usize,
    },
    /// The backend cannot do this (format, head width …).
    #[error("{device} does not support {what}")]
    Unsupported {
        /// Device name.
        device: String,
        /// What was asked.
        what: String,
    },
    /// A library or device that the backend needs is not there.
    #[error("{0}")]
    Unavailable(String),
    /// A driver or library call failed.
    #[error("{call} failed: {message}")]
    Driver {
        /// Call.
        call: &'static str,
        /// What the driver said.
        message: String,
    },
}

/// C = op(A)·op(B), or C += op(A)·op(B).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gemm {
    /// Rows of C.
    pub m: usize,
    /// Columns of C.
    pub n: usize,
    /// Reduction length.
    pub k: usize,
    /// A is stored as k × m.
    pub transpose_a: bool,
    /// B is stored as n × k.
    pub transpose_b: bool,
    /// Add to C instead of overwriting it.
    pub accumulate: bool,
    /// First element of A, B and C in their buffers.
    pub offset: [usize; 3],
    /// Elements from one stored row to the next, of A, B and C.
    pub stride: [usize; 3],
}

impl Gemm {
    /// C = A·B with C m × n, A m × k and B k × n, densely stored.
    pub fn new(m: usize, n: usize, k: usize) -> Self {
        Self {
            m,
            n,
            k,
            transpose_a: false,
            transpose_b: false,
            accumulate: false,
            offset: [0; 3],
            stride: [k, n, n],
        }
    }
    /// A is stored transposed, densely (k × m).
    #[must_use]
    pub fn transposed_a(mut self) -> Self {
        self.transpose_a = true;
        self.stride[0] = self.m;
        self
    }
    /// B is stored transposed, densely (n × k).
    #[must_use]
    pub fn transposed_b(mut self) -> Self {
        self.transpose_b = true;
        self.stride[1] = self.k;
        self
    }
    /// Adds to C.
    #[must_use]
    pub fn accumulating(mut self) -> Self {
        self.accumulate = true;
        self
    }
    /// Starts at these elements of A, B and C.
    #[must_use]
    pub fn at(mut self, a: usize, b: usize, c: usize) -> Self {
        self.offset = [a, b, c];
        self
    }
    /// Elements of A, B and C that must exist.
    pub fn extents(&self) -> [usize; 3] {
        let span = |rows: usize, columns: usize, which: usize| {
            if rows == 0 || columns == 0 {
                0
            } else {
                self.offset[which] + (rows - 1) * self.stride[which] + columns
            }
        };
        let (a_rows, a_columns) = if self.transpose_a { (self.k, self.m) } else { (self.m, self.k) };
        let (b_rows, b_columns) = if self.transpose_b { (self.n, self.k) } else { (self.k, self.n) };
        [span(a_rows, a_columns, 0), span(b_rows, b_columns, 1), span(self.m, self.n, 2)]
    }
    /// Floating-point operations.
    pub fn flops(&self) -> f64 {
        2.0 * self.m as f64 * self.n as f64 * self.k as f64
    }
}

/// A rows × width block inside a buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Strided {
    /// First element.
    pub offset: usize,
    /// Elements from one row to the next.
    pub stride: usize,
}

impl Strided {
    /// A block that starts at `offset` with rows `stride` apart.
    pub fn new(offset: usize, stride: usize) -> Self {
        Self { offset, stride }
    }
    /// Elements that must exist for `rows` rows of `width`.
    pub fn extent(&self, rows: usize, width: usize) -> usize {
        if rows == 0 { 0 } else { self.offset + (rows - 1) * self.stride + width }
    }
}

/// Normalisation of rows.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Norm {
    /// Rows (tokens).
    pub rows: usize,
    /// Width of a row.
    pub width: usize,
    /// RMS normalisation (Zhang and Sennrich 2019), else layer normalisation (Ba et al. 2016).
    pub rms: bool,
    /// Added to the variance.
    pub epsilon: f32,
}

/// Rotary position embedding (Su et al. 2021), halves rotated against one another (the GPT-NeoX and Llama layout).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rope {
    /// Tokens.
    pub tokens: usize,
    /// Heads of one token, densely stored.
    pub heads: usize,
    /// Width of a head; even.
    pub head_dim: usize,
    /// Base of the angles (10000, 500000 …).
    pub base: f32,
    /// Rotate backwards: the gradient of the forward rotation.
    pub inverse: bool,
}

/// Activation function of a feed-forward network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// GeLU, tanh approximation (Hendrycks and Gimpel 2016, section 2): rows of `width` to rows of `width`.
    Gelu,
    /// SwiGLU (Shazeer 2020): rows `[gate | up]` of `2·width` to `silu(gate)·up` of `width`.
    SwiGlu,
}

impl Activation {
    /// Input width for an output of `width`.
    pub fn input_width(self, width: usize) -> usize {
        match self {
            Self::Gelu => width,
            Self::SwiGlu => 2 * width,
        }
    }
}

/// Softmax cross-entropy over a slice of the vocabulary (all of it on one rank, a shard under tensor parallelism).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CrossEntropy {
    /// Rows (tokens).
    pub rows: usize,
    /// Vocabulary entries of this slice.
    pub vocab: usize,
    /// First vocabulary entry of this slice.
    pub first: usize,
}

/// Attention over blocks of queries and keys; tokens are stored `[sequence][token][head][head_dim]`.
///
/// Query row `i` of a block sees key row `j` iff `causal` is `None` or `j <= i + shift`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Attention {
    /// Sequences.
    pub batch: usize,
    /// Query heads; a multiple of `kv_heads`.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Query tokens of the block, per sequence.
    pub seq_q: usize,
    /// Key tokens of the block, per sequence.
    pub seq_kv: usize,
    /// First query token of the block.
    pub q_first: usize,
    /// Tokens from one sequence's queries to the next one's.
    pub q_pitch: usize,
    /// First key token of the block.
    pub kv_first: usize,
    /// Tokens from one sequence's keys to the next one's.
    pub kv_pitch: usize,
    /// Causal mask: how far the queries lie behind the keys; `None` sees everything.
    pub causal: Option<isize>,
    /// Factor on the scores, usually `1/sqrt(head_dim)`.
    pub scale: f32,
    /// Forward only: combine with the output and log-sum-exp of the blocks done before.
    pub merge: bool,
}

impl Attention {
    /// Whole sequences with a causal mask, keys as long as queries.
    pub fn causal(batch: usize, seq: usize, heads: usize, kv_heads: usize, head_dim: usize) -> Self {
        Self {
            batch,
            heads,
            kv_heads,
            head_dim,
            seq_q: seq,
            seq_kv: seq,
            q_first: 0,
            q_pitch: seq,
            kv_first: 0,
            kv_pitch: seq,
            causal: Some(0),
            scale: 1.0 / (head_dim as f32).sqrt(),
            merge: false,
        }
    }
    /// Key rows that query row `row` sees.
    pub fn visible(&self, row: usize) -> usize {
        match self.causal {
            None => self.seq_kv,
            Some(shift) => (row as isize + shift + 1).clamp(0, self.seq_kv as isize) as usize,
        }
    }
    /// Query tokens that must exist.
    pub fn q_tokens(&self) -> usize {
        if self.batch == 0 { 0 } else { self.q_first + (self.batch - 1) * self.q_pitch + self.seq_q }
    }
    /// Key tokens that must exist.
    pub fn kv_tokens(&self) -> usize {
        if self.batch == 0 { 0 } else { self.kv_first + (self.batch - 1) * self.kv_pitch + self.seq_kv }
    }
    /// Floating-point operations of the forward pass, masked pairs not counted.
    pub fn flops(&self) -> f64 {
        let pairs: f64 = (0..self.seq_q).map(|i| self.visible(i) as f64).sum();
        4.0 * pairs * (self.batch * self.heads * self.head_dim) as f64
    }
}

/// Decode attention: one query token per sequence over a paged key/value cache (Kwon et al. 2023, section 4.1).
///
/// Caches are `[page][token in page][kv head][head_dim]`; the block table holds `max_pages` page numbers per sequence.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PagedAttention {
    /// Sequences.
    pub batch: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Tokens of one page.
    pub page: usize,
    /// Columns of the block table.
    pub max_pages: usize,
    /// Factor on the scores.
    pub scale: f32,
}

/// Adam with decoupled weight decay (Loshchilov and Hutter 2019).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Adam {
    /// Learning rate.
    pub rate: f32,
    /// Decay of the first moment.
    pub beta1: f32,
    /// Decay of the second moment.
    pub beta2: f32,
    /// Added to the root of the second moment.
    pub epsilon: f32,
    /// Decoupled weight decay.
    pub weight_decay: f32,
    /// Step number, from 1.
    pub step: u32,
}

/// Bytes that a device's buffers hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MemoryUse {
    /// Now.
    pub live: u64,
    /// At most since the last reset.
    pub peak: u64,
}

/// A machine that can run a transformer training step.
pub trait Device {
    /// Numbers on the device.
    type Buffer: Send + Sync;
    /// Whole numbers on the device (token ids, positions, permutations).
    type Index: Send + Sync;

    /// What it is (`cpu: AMD EPYC …`, `cuda:0 NVIDIA H200`).
    fn name(&self) -> String;
    /// Formats that matrix products take.
    fn formats(&self) -> &'static [DType];
    /// Head widths the attention kernels take; empty means any.
    fn head_dims(&self) -> &'static [usize];
    /// Bytes held by buffers of this device.
    fn memory(&self) -> MemoryUse;
    /// Starts a new peak.
    fn reset_peak(&self);

    /// A buffer of `len` elements. Contents are undefined.
    fn alloc(&self, dtype: DType, len: usize) -> Result<Self::Buffer>;
    /// An fp32 buffer with these contents.
    fn upload(&self, values: &[f32]) -> Result<Self::Buffer>;
    /// Indices with these contents.
    fn upload_index(&self, values: &[u32]) -> Result<Self::Index>;
    /// The contents as fp32, whatever the format; waits for the device.
    fn download(&self, buffer: &Self::Buffer) -> Result<Vec<f32>> {
        let mut out = vec![0.0; self.len(buffer)];
        self.read(buffer, 0, &mut out)?;
        Ok(out)
    }
    /// Copies `out.len()` elements from `offset` to the host; waits for the device.
    fn read(&self, buffer: &Self::Buffer, offset: usize, out: &mut [f32]) -> Result<()>;
    /// Copies host values into the buffer at `offset`, rounding to its format.
    fn write(&self, buffer: &mut Self::Buffer, offset: usize, values: &[f32]) -> Result<()>;
    /// Elements of a buffer.
    fn len(&self, buffer: &Self::Buffer) -> usize;
    /// Format of a buffer.
    fn dtype(&self, buffer: &Self::Buffer) -> DType;
    /// Waits until all work issued is done.
    fn synchronize(&self) -> Result<()>;
    /// Seconds that the work issued by `work` takes on the device (events; processor time of the calling thread on the
    /// CPU).
    fn time(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<f64>;

    /// Every element becomes `value`.
    fn fill(&self, buffer: &mut Self::Buffer, value: f32) -> Result<()>;
    /// Copies a rows × width block, converting formats.
    fn copy(
        &self,
        rows: usize,
        width: usize,
        source: &Self::Buffer,
        from: Strided,
        target: &mut Self::Buffer,
        to: Strided,
    ) -> Result<()>;
    /// `target += source`, over the shorter length.
    fn add(&self, source: &Self::Buffer, target: &mut Self::Buffer) -> Result<()>;
    /// `buffer *= factor`.
    fn scale(&self, factor: f32, buffer: &mut Self::Buffer) -> Result<()>;
    /// Matrix product; fp32 accumulation whatever the format.
    fn gemm(&self, shape: &Gemm, a: &Self::Buffer, b: &Self::Buffer, c: &mut Self::Buffer) -> Result<()>;
    /// Adds `bias[width]` to every row.
    fn bias_forward(
        &self,
        rows: usize,
        width: usize,
        bias: &Self::Buffer,
        x: &mut Self::Buffer,
    ) -> Result<()>;
    /// `dbias[width] += sum of rows of dy`.
    fn bias_backward(
        &self,
        rows: usize,
        width: usize,
        dy: &Self::Buffer,
        dbias: &mut Self::Buffer,
    ) -> Result<()>;
    /// `y = norm(x)·weight (+ bias)`; `stats` gets mean and reciprocal deviation of every row (2·rows).
    fn norm_forward(
        &self,
        shape: &Norm,
        x: &Self::Buffer,
        weight: &Self::Buffer,
        bias: Option<&Self::Buffer>,
        y: &mut Self::Buffer,
        stats: &mut Self::Buffer,
    ) -> Result<()>;
    /// Gradient of [`Device::norm_forward`]; adds to `dweight` and `dbias`.
    fn norm_backward(
        &self,
        shape: &Norm,
        x: &Self::Buffer,
        weight: &Self::Buffer,
        stats: &Self::Buffer,
        dy: &Self::Buffer,
        dx: &mut Self::Buffer,
        dweight: &mut Self::Buffer,
        dbias: Option<&mut Self::Buffer>,
    ) -> Result<()>;
    /// Rotates heads by their token's position from one block into another.
    fn rope(
        &self,
        shape: &Rope,
        positions: &Self::Index,
        source: &Self::Buffer,
        from: Strided,
        target: &mut Self::Buffer,
        to: Strided,
    ) -> Result<()>;
    /// Activation of `rows` rows with output width `width`.
    fn activation_forward(
        &self,
        kind: Activation,
        rows: usize,
        width: usize,
        x: &Self::Buffer,
        y: &mut Self::Buffer,
    ) -> Result<()>;
    /// Gradient of [`Device::activation_forward`].
    fn activation_backward(
        &self,
        kind: Activation,
        rows: usize,
        width: usize,
        x: &Self::Buffer,
        dy: &Self::Buffer,
        dx: &mut Self::Buffer,
    ) -> Result<()>;
    /// `out[row] = table[ids[row] - first]`, zeros where the id lies outside the table's `rows_of_table` rows.
    fn embedding_forward(
        &self,
        rows: usize,
        width: usize,
        first: usize,
        rows_of_table: usize,
        ids: &Self::Index,
        table: &Self::Buffer,
        out: &mut Self::Buffer,
    ) -> Result<()>;
    /// `dtable[ids[row] - first] += dy[row]` where the id lies in the table.
    fn embedding_backward(
        &self,
        rows: usize,
        width: usize,
        first: usize,
        rows_of_table: usize,
        ids: &Self::Index,
        dy: &Self::Buffer,
        dtable: &mut Self::Buffer,
    ) -> Result<()>;
    /// Per row of logits: maximum, sum of `exp(logit - maximum)`, and the target's logit (0 when it lies outside this
    /// slice): `stats[3·rows]`.
    fn cross_entropy_stats(
        &self,
        shape: &CrossEntropy,
        logits: &Self::Buffer,
        targets: &Self::Index,
        stats: &mut Self::Buffer,
    ) -> Result<()>;
    /// Logits become `(softmax - onehot)·factor`, from the statistics of the whole vocabulary.
    fn cross_entropy_backward(
        &self,
        shape: &CrossEntropy,
        factor: f32,
        targets: &Self::Index,
        stats: &Self::Buffer,
        logits: &mut Self::Buffer,
    ) -> Result<()>;
    /// Attention forward; `lse[token·heads + head]` gets the log of the sum of exponentiated scores.
    fn attention_forward(
        &self,
        shape: &Attention,
        q: &Self::Buffer,
        k: &Self::Buffer,
        v: &Self::Buffer,
        out: &mut Self::Buffer,
        lse: &mut Self::Buffer,
    ) -> Result<()>;
    /// Attention backward; adds to `dq`, `dk` and `dv`.
    fn attention_backward(
        &self,
        shape: &Attention,
        inputs: [&Self::Buffer; 5],
        dout: &Self::Buffer,
        dq: &mut Self::Buffer,
        dk: &mut Self::Buffer,
        dv: &mut Self::Buffer,
    ) -> Result<()>;
    /// Decode attention over a paged cache; `lengths[sequence]` tokens each.
    fn paged_attention(
        &self,
        shape: &PagedAttention,
        q: &Self::Buffer,
        k_cache: &Self::Buffer,
        v_cache: &Self::Buffer,
        block_table: &Self::Index,
        lengths: &Self::Index,
        out: &mut Self::Buffer,
    ) -> Result<()>;
    /// `target[i] = source[rows[i]]` for `count` rows of `width`.
    fn gather_rows(
        &self,
        count: usize,
        width: usize,
        rows: &Self::Index,
        source: &Self::Buffer,
        target: &mut Self::Buffer,
    ) -> Result<()>;
    /// `target[rows[i]] += weight[i]·source[i]`; without weights the factor is 1.
    fn scatter_add_rows(
        &self,
        count: usize,
        width: usize,
        rows: &Self::Index,
        weights: Option<&Self::Buffer>,
        source: &Self::Buffer,
        target: &mut Self::Buffer,
    ) -> Result<()>;
    /// Gradient of a weighted scatter: `dsource[i] = weight[i]·dtarget[rows[i]]`, `dweight[i] = source[i]·dtarget[rows[i]]`.
    fn scatter_add_rows_backward(
        &self,
        count: usize,
        width: usize,
        rows: &Self::Index,
        weights: &Self::Buffer,
        source: &Self::Buffer,
        dtarget: &Self::Buffer,
        dsource: &mut Self::Buffer,
        dweights: &mut Self::Buffer,
    ) -> Result<()>;
    /// One Adam update of elements `range` of `parameters`; gradient and moments have the range's length and are fp32.
    fn adam(
        &self,
        settings: &Adam,
        range: std::ops::Range<usize>,
        gradient: &Self::Buffer,
        moments: [&mut Self::Buffer; 2],
        parameters: &mut Self::Buffer,
    ) -> Result<()>;
}

/// Checks that a buffer is long enough.
pub(crate) fn need(operator: &'static str, what: &'static str, needed: usize, got: usize) -> Result<()> {
    if got < needed { Err(DeviceError::Shape { operator, what, needed, got }) } else { Ok(()) }
}
