// Tiled attention with an online softmax, fp32 arithmetic on the plain units (no tensor cores): for fp32 operands, and the
// oracle of the tensor-core kernels in flash.cu. Four threads own a row: thread `part` of four holds elements
// part, part + 4, … of it; dot products are finished by two shuffles. Tiles of 32 rows of the other side lie in shared
// memory as fp32. DIM (head width, a multiple of 4, at most 128) is given on compilation; appended to operators.cu.
#define SLICE (DIM / 4)
#define TILE 32

__device__ __forceinline__ float quad_sum(float v) {
    v += __shfl_xor_sync(0xffffffffu, v, 1);
    return v + __shfl_xor_sync(0xffffffffu, v, 2);
}
__device__ __forceinline__ i64 visible(i64 row, i64 seq_kv, i64 causal, i64 shift) {
    if (!causal) return seq_kv;
    i64 n = row + shift + 1;
    return n < 0 ? 0 : (n > seq_kv ? seq_kv : n);
}
__device__ __forceinline__ float log_add(float a, float b) {
    if (a == -INFINITY) return b;
    if (b == -INFINITY) return a;
    float top = fmaxf(a, b);
    return top + logf(expf(a - top) + expf(b - top));
}

struct Where { i64 sequence, head, kv_head; };

// Loads up to TILE rows into shared memory; missing rows become zero.
__device__ void load_tile(float (*tile)[DIM + 1], const elem* p, i64 first_token, i64 heads, i64 head, i64 rows) {
    for (int i = threadIdx.x; i < TILE * DIM; i += blockDim.x) {
        int r = i / DIM, d = i % DIM;
        tile[r][d] = r < rows ? ld(p, ((first_token + r) * heads + head) * DIM + d) : 0.0f;
    }
}

// Grid (ceil(seq_q / 32), heads, batch), 128 threads.
extern "C" __global__ void attention_forward(const elem* q, const elem* k, const elem* v, elem* out, float* lse,
    i64 heads, i64 kv_heads, i64 seq_q, i64 seq_kv, i64 q_first, i64 q_pitch, i64 kv_first, i64 kv_pitch, i64 causal, i64 shift, i64 merge, float scale) {
    __shared__ float ks[TILE][DIM + 1], vs[TILE][DIM + 1];
    int part = threadIdx.x & 3;
    i64 row = (i64)blockIdx.x * TILE + (threadIdx.x >> 2), head = blockIdx.y, sequence = blockIdx.z;
    i64 kv_head = head / (heads / kv_heads);
    bool live = row < seq_q;
    i64 token = q_first + sequence * q_pitch + (live ? row : 0);
    i64 at = (token * heads + head) * DIM;
    float qr[SLICE], acc[SLICE], top = -INFINITY, total = 0.0f;
    for (int i = 0; i < SLICE; ++i) { qr[i] = live ? ld(q, at + 4 * i + part) * scale : 0.0f; acc[i] = 0.0f; }
    i64 mine = live ? visible(row, seq_kv, causal, shift) : 0;
    i64 last = (i64)blockIdx.x * TILE + TILE - 1;
    i64 longest = visible(last < seq_q ? last : seq_q - 1, seq_kv, causal, shift);
    for (i64 start = 0; start < longest; start += TILE) {
        i64 count = longest - start < TILE ? longest - start : TILE;
        i64 kv_token = kv_first + sequence * kv_pitch + start;
        __syncthreads();
        load_tile(ks, k, kv_token, kv_heads, kv_head, count);
        load_tile(vs, v, kv_token, kv_heads, kv_head, count);
        __syncthreads();
        for (int j = 0; j < count; ++j) {
            float s = 0.0f;
            for (int i = 0; i < SLICE; ++i) s += qr[i] * ks[j][4 * i + part];
            s = quad_sum(s);
            if (start + j >= mine) continue;  // the same for all four threads of a row, after the shuffle
            if (s > top) {
                float shrink = expf(top - s);
                top = s;
                total *= shrink;
                for (int i = 0; i < SLICE; ++i) acc[i] *= shrink;
            }
            float p = expf(s - top);
            total += p;
            for (int i = 0; i < SLICE; ++i) acc[i] += p * vs[j][4 * i + part];
        }
    }
    if (!live) return;
    i64 lse_at = token * heads + head;
    float fresh = total > 0.0f ? top + logf(total) : -INFINITY;
    float old = merge ? lse[lse_at] : -INFINITY;
    float both = log_add(old, fresh);
    float keep = old == -INFINITY ? 0.0f : expf(old - both);
    float take = fresh == -INFINITY ? 0.0f : expf(fresh - both) / total;
    for (int i = 0; i < SLICE; ++i) {
        float before = keep == 0.0f ? 0.0f : ld(out, at + 4 * i + part) * keep;
        st(out, at + 4 * i + part, before + acc[i] * take);
    }
    __syncwarp(__activemask());
    if (part == 0) lse[lse_at] = both;
}

// delta[(sequence·heads + head)·seq_q + row] = out · dout; a warp per row.
extern "C" __global__ void attention_delta(const elem* out, const elem* dout, float* delta, i64 batch, i64 heads, i64 seq_q, i64 q_first, i64 q_pitch) {
    i64 warps = (i64)gridDim.x * (blockDim.x / 32);
    for (i64 i = (i64)blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32; i < batch * heads * seq_q; i += warps) {
        i64 head = i % heads, row = i / heads % seq_q, sequence = i / heads / seq_q;
        i64 at = ((q_first + sequence * q_pitch + row) * heads + head) * DIM;
        float sum = 0.0f;
        for (int d = threadIdx.x & 31; d < DIM; d += 32) sum += ld(out, at + d) * ld(dout, at + d);
        sum = warp_sum(sum);
        if ((threadIdx.x & 31) == 0) delta[(sequence * heads + head) * seq_q + row] = sum;
    }
}

extern "C" __global__ void attention_backward_q(const elem* q, const elem* k, const elem* v, const float* lse, const float* delta, const elem* dout, elem* dq,
    i64 heads, i64 kv_heads, i64 seq_q, i64 seq_kv, i64 q_first, i64 q_pitch, i64 kv_first, i64 kv_pitch, i64 causal, i64 shift, float scale) {
    __shared__ float ks[TILE][DIM + 1], vs[TILE][DIM + 1];
    int part = threadIdx.x & 3;
    i64 row = (i64)blockIdx.x * TILE + (threadIdx.x >> 2), head = blockIdx.y, sequence = blockIdx.z;
    i64 kv_head = head / (heads / kv_heads);
    bool live = row < seq_q;
    i64 token = q_first + sequence * q_pitch + (live ? row : 0);
    i64 at = (token * heads + head) * DIM;
    float qr[SLICE], dr[SLICE], acc[SLICE];
    for (int i = 0; i < SLICE; ++i) {
        qr[i] = live ? ld(q, at + 4 * i + part) : 0.0f;
        dr[i] = live ? ld(dout, at + 4 * i + part) : 0.0f;
        acc[i] = 0.0f;
    }
    float log_sum = live ? lse[token * heads + head] : 0.0f;
    float dl = live ? delta[(sequence * heads + head) * seq_q + row] : 0.0f;
    i64 mine = live ? visible(row, seq_kv, causal, shift) : 0;
    i64 last = (i64)blockIdx.x * TILE + TILE - 1;
    i64 longest = visible(last < seq_q ? last : seq_q - 1, seq_kv, causal, shift);
    for (i64 start = 0; start < longest; start += TILE) {
        i64 count = longest - start < TILE ? longest - start : TILE;
        i64 kv_token = kv_first + sequence * kv_pitch + start;
        __syncthreads();
        load_tile(ks, k, kv_token, kv_heads, kv_head, count);
        load_tile(vs, v, kv_token, kv_heads, kv_head, count);
        __syncthreads();
        for (int j = 0; j < count; ++j) {
            float s = 0.0f, dp = 0.0f;
            for (int i = 0; i < SLICE; ++i) { s += qr[i] * ks[j][4 * i + part]; dp += dr[i] * vs[j][4 * i + part]; }
            s = quad_sum(s);
            dp = quad_sum(dp);
            if (start + j >= mine) continue;
            float ds = expf(s * scale - log_sum) * (dp - dl) * scale;
            for (int i = 0; i < SLICE; ++i) acc[i] += ds * ks[j][4 * i + part];
        }
    }
    if (live) for (int i = 0; i < SLICE; ++i) st(dq, at + 4 * i + part, ld(dq, at + 4 * i + part) + acc[i]);
}

// Grid (ceil(seq_kv / 32), kv_heads, batch): four threads own a key row and walk over all query rows of its heads.
extern "C" __global__ void attention_backward_kv(const elem* q, const elem* k, const elem* v, const float* lse, const float* delta, const elem* dout, elem* dk, elem* dv,
    i64 heads, i64 kv_heads, i64 seq_q, i64 seq_kv, i64 q_first, i64 q_pitch, i64 kv_first, i64 kv_pitch, i64 causal, i64 shift, float scale) {
    __shared__ float qs[TILE][DIM + 1], ds_[TILE][DIM + 1], logs[TILE], deltas[TILE];
    int part = threadIdx.x & 3;
    i64 col = (i64)blockIdx.x * TILE + (threadIdx.x >> 2), kv_head = blockIdx.y, sequence = blockIdx.z;
    i64 group = heads / kv_heads;
    bool live = col < seq_kv;
    i64 at = ((kv_first + sequence * kv_pitch + (live ? col : 0)) * kv_heads + kv_head) * DIM;
    float kr[SLICE], vr[SLICE], dka[SLICE], dva[SLICE];
    for (int i = 0; i < SLICE; ++i) {
        kr[i] = live ? ld(k, at + 4 * i + part) : 0.0f;
        vr[i] = live ? ld(v, at + 4 * i + part) : 0.0f;
        dka[i] = dva[i] = 0.0f;
    }
    // Query rows before `from` see none of this block's keys.
    i64 from = causal ? (i64)blockIdx.x * TILE - shift : 0;
    from = from < 0 ? 0 : from / TILE * TILE;
    for (i64 g = 0; g < group; ++g) {
        i64 head = kv_head * group + g;
        for (i64 start = from; start < seq_q; start += TILE) {
            i64 count = seq_q - start < TILE ? seq_q - start : TILE;
            i64 token = q_first + sequence * q_pitch + start;
            __syncthreads();
            load_tile(qs, q, token, heads, head, count);
            load_tile(ds_, dout, token, heads, head, count);
            if (threadIdx.x < count) {
                logs[threadIdx.x] = lse[(token + threadIdx.x) * heads + head];
                deltas[threadIdx.x] = delta[(sequence * heads + head) * seq_q + start + threadIdx.x];
            }
            __syncthreads();
            for (int j = 0; j < count; ++j) {
                float s = 0.0f, dp = 0.0f;
                for (int i = 0; i < SLICE; ++i) { s += kr[i] * qs[j][4 * i + part]; dp += vr[i] * ds_[j][4 * i + part]; }
                s = quad_sum(s);
                dp = quad_sum(dp);
                if (!live || col >= visible(start + j, seq_kv, causal, shift)) continue;
                float p = expf(s * scale - logs[j]), ds = p * (dp - deltas[j]) * scale;
                for (int i = 0; i < SLICE; ++i) { dka[i] += ds * qs[j][4 * i + part]; dva[i] += p * ds_[j][4 * i + part]; }
            }
        }
    }
    if (live) for (int i = 0; i < SLICE; ++i) {
        st(dk, at + 4 * i + part, ld(dk, at + 4 * i + part) + dka[i]);
        st(dv, at + 4 * i + part, ld(dv, at + 4 * i + part) + dva[i]);
    }
}
