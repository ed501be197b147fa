//! The contract between psim and a machine: buffers, a timer, operators.
//!
//! Matrices are row-major. Lengths and offsets count elements unless a name says tokens or rows. Operators run in
//! order on the device's own stream; [`Device::synchronize`] waits for them. An operator that is called
//! `…_backward` adds to parameter gradients (they accumulate over micro-batches) and overwrites input gradients,
//! except attention, whose three gradients all accumulate because a ring adds to them block by block.

pub(crate) mod lengths;
mod shapes;

pub use shapes::{
    Activation, Adam, Attention, CrossEntropy, Gemm, Norm, PagedAttention, Rope, Strided, Uniform,
};

pub(crate) use lengths::need;

use crate::random::uniform;
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
    /// A point on the device's clock.
    type Mark;

    /// What it is (`cpu: AMD EPYC …`, `cuda:0 NVIDIA H200`).
    fn name(&self) -> String;
    /// Formats that matrix products take.
    fn formats(&self) -> &'static [DType];
    /// Head widths the attention kernels take; empty means any.
    fn head_dims(&self) -> &'static [usize];
    /// Bytes held by buffers of this device.
    fn memory(&self) -> MemoryUse;
    /// Bytes of the device that are taken, by whomever, as its driver says; `None` where nobody says.
    fn taken(&self) -> Option<u64> {
        None
    }
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

    /// The moment at which the work issued so far is done.
    fn mark(&self) -> Result<Self::Mark>;
    /// Seconds from one mark to a later one; waits until both are reached.
    fn between(&self, from: &Self::Mark, to: &Self::Mark) -> Result<f64>;
    /// The mark is reached.
    fn reached(&self, mark: &Self::Mark) -> Result<bool>;
    /// Later work starts only when the mark is reached.
    fn join(&self, mark: &Self::Mark) -> Result<()>;
    /// Beside later work, a wait of `seconds` that begins when the work issued so far is done; the mark is its end.
    /// Waits on one lane follow each other.
    fn pause_beside(&self, lane: u32, seconds: f64) -> Result<Self::Mark>;

    /// Writes pseudo-random numbers into a block: element (row, column) becomes
    /// `scale · `[`uniform`]`(key, first + row·pitch + column)`.
    fn uniform(&self, shape: &Uniform, target: &mut Self::Buffer) -> Result<()> {
        let mut values = vec![0.0; shape.width];
        for row in 0..shape.rows {
            let first = shape.first + row * shape.pitch;
            for (column, value) in values.iter_mut().enumerate() {
                *value = shape.scale * uniform(shape.key, (first + column) as u64);
            }
            self.write(target, shape.to.offset + row * shape.to.stride, &values)?;
        }
        Ok(())
    }
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
