//! Shapes and settings of the operators.

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

/// A block of pseudo-random numbers cut out of a larger tensor that has one number per position.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Uniform {
    /// Names the tensor.
    pub key: u64,
    /// Position of the block's first element in the tensor.
    pub first: usize,
    /// Positions from one row to the next.
    pub pitch: usize,
    /// Rows of the block.
    pub rows: usize,
    /// Columns of the block.
    pub width: usize,
    /// Where the block lies in the buffer.
    pub to: Strided,
    /// Largest magnitude.
    pub scale: f32,
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
