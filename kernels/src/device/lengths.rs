//! How long the buffers of each operator must be: one place for all backends.

use super::{
    Activation, Attention, CrossEntropy, DeviceError, Gemm, Norm, PagedAttention, Result, Rope, Strided,
};

/// Checks that a buffer is long enough.
pub(crate) fn need(operator: &'static str, what: &'static str, needed: usize, got: usize) -> Result<()> {
    if got < needed { Err(DeviceError::Shape { operator, what, needed, got }) } else { Ok(()) }
}

/// A buffer's name, the elements that it needs, and its length.
type Need = (&'static str, usize, usize);

fn all(operator: &'static str, needs: &[Need]) -> Result<()> {
    needs.iter().try_for_each(|&(what, needed, got)| need(operator, what, needed, got))
}

/// An optional buffer: none is long enough.
fn given(what: &'static str, needed: usize, got: Option<usize>) -> Need {
    (what, needed, got.unwrap_or(needed))
}

pub(crate) fn copy(
    rows: usize,
    width: usize,
    [from, to]: [Strided; 2],
    [source, target]: [usize; 2],
) -> Result<()> {
    all("copy", &[("source", from.extent(rows, width), source), ("target", to.extent(rows, width), target)])
}

pub(crate) fn gemm(shape: &Gemm, [a, b, c]: [usize; 3]) -> Result<()> {
    let needed = shape.extents();
    all("gemm", &[("a", needed[0], a), ("b", needed[1], b), ("c", needed[2], c)])
}

pub(crate) fn bias(operator: &'static str, rows: usize, width: usize, [x, bias]: [usize; 2]) -> Result<()> {
    all(operator, &[("rows", rows * width, x), ("bias", width, bias)])
}

/// Lengths of x, weight, y, stats; of the bias.
pub(crate) fn norm(shape: &Norm, [x, weight, y, stats]: [usize; 4], bias: Option<usize>) -> Result<()> {
    let (total, width) = (shape.rows * shape.width, shape.width);
    let needs =
        [("x", total, x), ("weight", width, weight), ("y", total, y), ("stats", 2 * shape.rows, stats)];
    all("norm", &needs)?;
    all("norm", &[given("bias", width, bias)])
}

/// Lengths of x, weight, stats, dy, dx, dweight; of the bias gradient.
pub(crate) fn norm_backward(
    shape: &Norm,
    [x, weight, stats, dy, dx, dweight]: [usize; 6],
    dbias: Option<usize>,
) -> Result<()> {
    let (total, width) = (shape.rows * shape.width, shape.width);
    let needs = [
        ("x", total, x),
        ("weight", width, weight),
        ("stats", 2 * shape.rows, stats),
        ("dy", total, dy),
        ("dx", total, dx),
        ("dweight", width, dweight),
        given("dbias", width, dbias),
    ];
    all("norm backward", &needs)
}

/// Lengths of positions, source, target.
pub(crate) fn rope(
    shape: &Rope,
    [from, to]: [Strided; 2],
    [positions, source, target]: [usize; 3],
) -> Result<()> {
    let width = shape.heads * shape.head_dim;
    let needs = [
        ("positions", shape.tokens, positions),
        ("source", from.extent(shape.tokens, width), source),
        ("target", to.extent(shape.tokens, width), target),
    ];
    all("rope", &needs)
}

/// Lengths of x, y.
pub(crate) fn activation(kind: Activation, rows: usize, width: usize, [x, y]: [usize; 2]) -> Result<()> {
    all("activation", &[("x", rows * kind.input_width(width), x), ("y", rows * width, y)])
}

/// Lengths of x, dy, dx.
pub(crate) fn activation_backward(
    kind: Activation,
    rows: usize,
    width: usize,
    [x, dy, dx]: [usize; 3],
) -> Result<()> {
    let input = rows * kind.input_width(width);
    all("activation backward", &[("x", input, x), ("dy", rows * width, dy), ("dx", input, dx)])
}

/// Lengths of ids, table, rows.
pub(crate) fn embedding(
    operator: &'static str,
    [rows, width, rows_of_table]: [usize; 3],
    [ids, table, out]: [usize; 3],
) -> Result<()> {
    all(operator, &[("ids", rows, ids), ("table", rows_of_table * width, table), ("rows", rows * width, out)])
}

/// Lengths of logits, targets, stats.
pub(crate) fn cross_entropy(
    operator: &'static str,
    shape: &CrossEntropy,
    [logits, targets, stats]: [usize; 3],
) -> Result<()> {
    let rows = shape.rows;
    let needs =
        [("logits", rows * shape.vocab, logits), ("targets", rows, targets), ("stats", 3 * rows, stats)];
    all(operator, &needs)
}

fn attended(shape: &Attention) -> (usize, usize, usize) {
    let q = shape.q_tokens() * shape.heads;
    (q * shape.head_dim, shape.kv_tokens() * shape.kv_heads * shape.head_dim, q)
}

/// Lengths of q, k, v, out, lse.
pub(crate) fn attention(shape: &Attention, [q, k, v, out, lse]: [usize; 5]) -> Result<()> {
    let (queries, keys, heads) = attended(shape);
    let needs =
        [("q", queries, q), ("k", keys, k), ("v", keys, v), ("out", queries, out), ("lse", heads, lse)];
    all("attention", &needs)
}

/// Lengths of q, k, v, out, lse; of dout; of dq, dk, dv.
pub(crate) fn attention_backward(
    shape: &Attention,
    [q, k, v, out, lse]: [usize; 5],
    dout: usize,
    [dq, dk, dv]: [usize; 3],
) -> Result<()> {
    let (queries, keys, heads) = attended(shape);
    let needs = [
        ("q", queries, q),
        ("k", keys, k),
        ("v", keys, v),
        ("out", queries, out),
        ("lse", heads, lse),
        ("dout", queries, dout),
        ("dq", queries, dq),
        ("dk", keys, dk),
        ("dv", keys, dv),
    ];
    all("attention backward", &needs)
}

/// Lengths of q, both caches, out; contents of the block table and of the lengths.
pub(crate) fn paged_attention(
    shape: &PagedAttention,
    [q, k_cache, v_cache, out]: [usize; 4],
    block_table: &[u32],
    lengths: &[u32],
) -> Result<()> {
    let name = "paged attention";
    let total = shape.batch * shape.heads * shape.head_dim;
    need(name, "lengths", shape.batch, lengths.len())?;
    need(name, "block table", shape.batch * shape.max_pages, block_table.len())?;
    let mut pages = 0;
    for (sequence, &length) in lengths.iter().take(shape.batch).enumerate() {
        let used = (length as usize).div_ceil(shape.page.max(1));
        need(name, "block table row", used, shape.max_pages)?;
        let row = &block_table[sequence * shape.max_pages..][..used];
        pages = pages.max(row.iter().map(|&p| p as usize + 1).max().unwrap_or(0));
    }
    let cache = pages * shape.page * shape.kv_heads * shape.head_dim;
    let needs =
        [("q", total, q), ("k cache", cache, k_cache), ("v cache", cache, v_cache), ("out", total, out)];
    all(name, &needs)
}

/// Lengths of source and target, of which `large` is indexed by `rows` and the other holds `count` rows.
pub(crate) fn gather(count: usize, width: usize, rows: &[u32], [source, target]: [usize; 2]) -> Result<()> {
    let large = indexed("gather", rows, count)? * width;
    all("gather", &[("source", large, source), ("target", count * width, target)])
}

/// Lengths of source and target; of the weights.
pub(crate) fn scatter(
    count: usize,
    width: usize,
    rows: &[u32],
    [source, target]: [usize; 2],
    weights: Option<usize>,
) -> Result<()> {
    let large = indexed("scatter", rows, count)? * width;
    let needs =
        [("source", count * width, source), ("target", large, target), given("weights", count, weights)];
    all("scatter", &needs)
}

/// Lengths of weights, source, dtarget, dsource, dweights.
pub(crate) fn scatter_backward(
    count: usize,
    width: usize,
    rows: &[u32],
    [weights, source, dtarget, dsource, dweights]: [usize; 5],
) -> Result<()> {
    let name = "scatter backward";
    let needs = [
        ("dtarget", indexed(name, rows, count)? * width, dtarget),
        ("weights", count, weights),
        ("source", count * width, source),
        ("dsource", count * width, dsource),
        ("dweights", count, dweights),
    ];
    all(name, &needs)
}

/// Lengths of gradient, both moments, parameters.
pub(crate) fn adam(range: &std::ops::Range<usize>, [gradient, m, v, parameters]: [usize; 4]) -> Result<()> {
    let len = range.len();
    let needs = [
        ("gradient", len, gradient),
        ("first moment", len, m),
        ("second moment", len, v),
        ("parameters", range.end, parameters),
    ];
    all("adam", &needs)
}

/// Rows that the largest of the first `count` indices asks for.
fn indexed(operator: &'static str, rows: &[u32], count: usize) -> Result<usize> {
    need(operator, "rows", count, rows.len())?;
    Ok(rows[..count].iter().map(|&r| r as usize + 1).max().unwrap_or(0))
}
