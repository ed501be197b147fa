// Attention on the tensor cores for 16-bit formats (FlashAttention-2, Dao 2023, sections 3.1 and 3.2): tiles of rows in
// shared memory, an online softmax in registers, fp32 accumulation. DIM (head width) is 32, 64 or 128. Rows lie in shared
// memory in chunks of 16 bytes, exclusive-ored with the row so that eight rows of one column meet eight banks.
// Appended to attention.cu. Backward runs twice over the scores, once per query tile and once per key tile, without
// atomics: seven products where one pass needs five, and the same bits every time.
#define CHUNKS (DIM / 8)
#define ROW_BYTES (DIM * 2)
#define LOG2_E 1.4426950408889634f
#define FLASH_THREADS 128

#ifdef FP16
#define MULTIPLY multiply_fp16
#define PACK pack_fp16
#else
#define MULTIPLY multiply_bf16
#define PACK pack_bf16
#endif

__device__ __forceinline__ int chunk_offset(int row, int chunk) {
    int key = DIM == 32 ? (row >> 1) & 3 : row & 7;
    return (row * CHUNKS + (chunk ^ key)) * 16;
}

// ROWS rows of one head into shared memory; rows from `there` on become zero.
template <int ROWS>
__device__ __forceinline__ void load_rows(shared_pointer to, const elem* p, i64 first_token, i64 heads, i64 head, i64 there) {
    #pragma unroll
    for (int i = threadIdx.x; i < ROWS * CHUNKS; i += FLASH_THREADS) {
        int row = i / CHUNKS, chunk = i % CHUNKS;
        bool valid = row < there;
        copy_async(to + chunk_offset(row, chunk), p + ((first_token + (valid ? row : 0)) * heads + head) * DIM + chunk * 8, valid);
    }
}

// A operand (16 rows × 16 columns) of rows from `row`, columns from chunk `chunk`.
__device__ __forceinline__ void load_a(u32 (&a)[4], shared_pointer tile, int row, int chunk) {
    int lane = threadIdx.x & 31;
    load_matrices(a, tile + chunk_offset(row + (lane & 15), chunk + (lane >> 4)));
}
// B operands of two products: columns n of the result are 16 rows of the tile, the reduction runs along a row.
__device__ __forceinline__ void load_b_rows(u32 (&b)[4], shared_pointer tile, int row, int chunk) {
    int lane = threadIdx.x & 31;
    load_matrices(b, tile + chunk_offset(row + (lane & 7) + ((lane >> 4) << 3), chunk + ((lane >> 3) & 1)));
}
// B operands of two products: columns n of the result are columns of the tile, the reduction runs over 16 rows.
__device__ __forceinline__ void load_b_columns(u32 (&b)[4], shared_pointer tile, int row, int chunk) {
    int lane = threadIdx.x & 31;
    load_matrices_transposed(b, tile + chunk_offset(row + (lane & 15), chunk + (lane >> 4)));
}

// Two numbers side by side in memory.
__device__ __forceinline__ void store_pair(elem* p, i64 at, float low, float high) { *(u32*)(p + at) = PACK(low, high); }
__device__ __forceinline__ void add_pair(elem* p, i64 at, float low, float high) {
    store_pair(p, at, ld(p, at) + low, ld(p, at + 1) + high);
}

#define Q_ROWS 128
#define KV_ROWS 64
#define FORWARD_SHARED ((Q_ROWS + 4 * KV_ROWS) * ROW_BYTES)

// Grid (ceil(seq_q / 128), heads, batch), 128 threads; each warp owns 32 query rows.
extern "C" __global__ void __launch_bounds__(FLASH_THREADS) flash_forward(const elem* q, const elem* k, const elem* v, elem* out, float* lse,
    i64 heads, i64 kv_heads, i64 seq_q, i64 seq_kv, i64 q_first, i64 q_pitch, i64 kv_first, i64 kv_pitch, i64 causal, i64 shift, i64 merge, float scale) {
    shared_pointer q_tile = shared_address(dynamic_shared), k_tiles = q_tile + Q_ROWS * ROW_BYTES, v_tiles = k_tiles + 2 * KV_ROWS * ROW_BYTES;
    int lane = threadIdx.x & 31, warp_row = (threadIdx.x >> 5) * 32;
    // The tiles with the longest rows first, so that short ones fill the end.
    i64 row0 = (i64)(gridDim.x - 1 - blockIdx.x) * Q_ROWS, head = blockIdx.y, sequence = blockIdx.z;
    i64 kv_head = head / (heads / kv_heads), q_token = q_first + sequence * q_pitch + row0, kv_token = kv_first + sequence * kv_pitch;
    i64 last = row0 + Q_ROWS < seq_q ? row0 + Q_ROWS - 1 : seq_q - 1;
    i64 longest = visible(last, seq_kv, causal, shift);
    int tiles = (int)((longest + KV_ROWS - 1) / KV_ROWS);

    load_rows<Q_ROWS>(q_tile, q, q_token, heads, head, seq_q - row0);
    if (tiles > 0) {
        load_rows<KV_ROWS>(k_tiles, k, kv_token, kv_heads, kv_head, longest);
        load_rows<KV_ROWS>(v_tiles, v, kv_token, kv_heads, kv_head, longest);
    }
    copy_async_commit();

    float acc[2][DIM / 8][4], top[2][2], total[2][2];
    int limit[2][2];
    #pragma unroll
    for (int m = 0; m < 2; ++m) {
        #pragma unroll
        for (int d = 0; d < DIM / 8; ++d) acc[m][d][0] = acc[m][d][1] = acc[m][d][2] = acc[m][d][3] = 0.0f;
        #pragma unroll
        for (int h = 0; h < 2; ++h) {
            top[m][h] = -INFINITY;
            total[m][h] = 0.0f;
            limit[m][h] = (int)visible(row0 + warp_row + 16 * m + 8 * h + (lane >> 2), seq_kv, causal, shift);
        }
    }
    int least = (int)visible(row0 + warp_row, seq_kv, causal, shift);
    float factor = scale * LOG2_E;

    for (int t = 0; t < tiles; ++t) {
        shared_pointer k_tile = k_tiles + (t & 1) * KV_ROWS * ROW_BYTES, v_tile = v_tiles + (t & 1) * KV_ROWS * ROW_BYTES;
        if (t + 1 < tiles) {
            i64 start = (i64)(t + 1) * KV_ROWS;
            int stage = ((t + 1) & 1) * KV_ROWS * ROW_BYTES;
            load_rows<KV_ROWS>(k_tiles + stage, k, kv_token + start, kv_heads, kv_head, longest - start);
            load_rows<KV_ROWS>(v_tiles + stage, v, kv_token + start, kv_heads, kv_head, longest - start);
            copy_async_commit();
            copy_async_wait<1>();
        } else {
            copy_async_wait<0>();
        }
        __syncthreads();

        float s[2][KV_ROWS / 8][4];
        #pragma unroll
        for (int m = 0; m < 2; ++m)
            #pragma unroll
            for (int n = 0; n < KV_ROWS / 8; ++n) s[m][n][0] = s[m][n][1] = s[m][n][2] = s[m][n][3] = 0.0f;
        #pragma unroll
        for (int c = 0; c < DIM / 16; ++c) {
            u32 a[2][4];
            load_a(a[0], q_tile, warp_row, 2 * c);
            load_a(a[1], q_tile, warp_row + 16, 2 * c);
            #pragma unroll
            for (int n = 0; n < KV_ROWS / 16; ++n) {
                u32 b[4];
                load_b_rows(b, k_tile, 16 * n, 2 * c);
                #pragma unroll
                for (int m = 0; m < 2; ++m) {
                    MULTIPLY(s[m][2 * n], a[m], b[0], b[1]);
                    MULTIPLY(s[m][2 * n + 1], a[m], b[2], b[3]);
                }
            }
        }
        int start = t * KV_ROWS;
        if (start + KV_ROWS > least) {
            #pragma unroll
            for (int m = 0; m < 2; ++m)
                #pragma unroll
                for (int n = 0; n < KV_ROWS / 8; ++n)
                    #pragma unroll
                    for (int e = 0; e < 4; ++e)
                        if (start + 8 * n + (lane & 3) * 2 + (e & 1) >= limit[m][e >> 1]) s[m][n][e] = -INFINITY;
        }
        u32 p[2][KV_ROWS / 8][2];
        #pragma unroll
        for (int m = 0; m < 2; ++m)
            #pragma unroll
            for (int h = 0; h < 2; ++h) {
                float best = top[m][h];
                #pragma unroll
                for (int n = 0; n < KV_ROWS / 8; ++n) best = fmaxf(best, fmaxf(s[m][n][2 * h], s[m][n][2 * h + 1]));
                best = fmaxf(best, __shfl_xor_sync(0xffffffffu, best, 1));
                best = fmaxf(best, __shfl_xor_sync(0xffffffffu, best, 2));
                // A row that has seen nothing yet has no maximum; zero keeps its exponentials at zero.
                float base = best == -INFINITY ? 0.0f : best * factor;
                float shrink = power_of_two(top[m][h] * factor - base);
                top[m][h] = best;
                float sum = 0.0f;
                #pragma unroll
                for (int n = 0; n < KV_ROWS / 8; ++n) {
                    float low = power_of_two(s[m][n][2 * h] * factor - base), high = power_of_two(s[m][n][2 * h + 1] * factor - base);
                    sum += low + high;
                    p[m][n][h] = PACK(low, high);
                }
                total[m][h] = total[m][h] * shrink + sum;
                #pragma unroll
                for (int d = 0; d < DIM / 8; ++d) {
                    acc[m][d][2 * h] *= shrink;
                    acc[m][d][2 * h + 1] *= shrink;
                }
            }
        #pragma unroll
        for (int n = 0; n < KV_ROWS / 16; ++n) {
            u32 a[2][4];
            #pragma unroll
            for (int m = 0; m < 2; ++m) {
                a[m][0] = p[m][2 * n][0];
                a[m][1] = p[m][2 * n][1];
                a[m][2] = p[m][2 * n + 1][0];
                a[m][3] = p[m][2 * n + 1][1];
            }
            #pragma unroll
            for (int d = 0; d < DIM / 16; ++d) {
                u32 b[4];
                load_b_columns(b, v_tile, 16 * n, 2 * d);
                #pragma unroll
                for (int m = 0; m < 2; ++m) {
                    MULTIPLY(acc[m][2 * d], a[m], b[0], b[1]);
                    MULTIPLY(acc[m][2 * d + 1], a[m], b[2], b[3]);
                }
            }
        }
        __syncthreads();
    }
    copy_async_wait<0>();

    #pragma unroll
    for (int m = 0; m < 2; ++m)
        #pragma unroll
        for (int h = 0; h < 2; ++h) {
            float sum = total[m][h];
            sum += __shfl_xor_sync(0xffffffffu, sum, 1);
            sum += __shfl_xor_sync(0xffffffffu, sum, 2);
            i64 row = warp_row + 16 * m + 8 * h + (lane >> 2);
            bool live = row0 + row < seq_q;
            i64 at = (q_token + row) * heads + head;
            float fresh = sum > 0.0f ? top[m][h] * scale + logf(sum) : -INFINITY;
            float old = merge && live ? lse[at] : -INFINITY;
            // All four threads of a row have read before one of them writes.
            __syncwarp();
            float both = log_add(old, fresh);
            float keep = old == -INFINITY ? 0.0f : expf(old - both), take = fresh == -INFINITY ? 0.0f : expf(fresh - both) / sum;
            if (!live) continue;
            if ((lane & 3) == 0) lse[at] = both;
            #pragma unroll
            for (int d = 0; d < DIM / 8; ++d) {
                i64 to = at * DIM + 8 * d + (lane & 3) * 2;
                float low = acc[m][d][2 * h] * take, high = acc[m][d][2 * h + 1] * take;
                if (keep != 0.0f) {
                    low += ld(out, to) * keep;
                    high += ld(out, to + 1) * keep;
                }
                store_pair(out, to, low, high);
            }
        }
}

#define TILE_ROWS 64
#define TILE_BYTES (TILE_ROWS * ROW_BYTES)
#define BACKWARD_SHARED (6 * TILE_BYTES + 4 * TILE_ROWS * 4)

struct BackwardShape {
    i64 heads, kv_heads, seq_q, seq_kv, q_first, q_pitch, kv_first, kv_pitch, causal, shift;
    float scale;
};

// Shared by both directions. The block owns 64 rows of one side and walks over tiles of the other. With KEYS the own rows
// are keys, the scores are transposed, and two gradients (dk, dv) accumulate; else the own rows are queries (dq).
template <bool KEYS>
__device__ __forceinline__ void flash_backward(const elem* q, const elem* k, const elem* v, const float* lse, const float* delta, const elem* dout,
    elem* first_gradient, elem* second_gradient, const BackwardShape& shape) {
    shared_pointer own = shared_address(dynamic_shared), other = own + 2 * TILE_BYTES;
    float* statistics = (float*)(dynamic_shared + 6 * TILE_BYTES);  // per stage: 64 log-sums, 64 deltas
    int lane = threadIdx.x & 31, warp_row = (threadIdx.x >> 5) * 16;
    i64 sequence = blockIdx.z, group = shape.heads / shape.kv_heads;
    i64 tile = KEYS ? blockIdx.x : gridDim.x - 1 - blockIdx.x, row0 = tile * TILE_ROWS;
    i64 own_head = blockIdx.y, own_heads = KEYS ? shape.kv_heads : shape.heads, other_heads = KEYS ? shape.heads : shape.kv_heads;
    i64 own_rows = KEYS ? shape.seq_kv : shape.seq_q;
    i64 own_token = (KEYS ? shape.kv_first + sequence * shape.kv_pitch : shape.q_first + sequence * shape.q_pitch) + row0;
    i64 other_token = KEYS ? shape.q_first + sequence * shape.q_pitch : shape.kv_first + sequence * shape.kv_pitch;
    const elem *own_one = KEYS ? k : q, *own_two = KEYS ? v : dout, *other_one = KEYS ? q : k, *other_two = KEYS ? dout : v;

    // Tiles of the other side: from the first that sees this one to the last; queries once per head of the group.
    i64 begin = 0, end;
    if (KEYS) {
        begin = shape.causal ? row0 - shape.shift : 0;
        begin = begin < 0 ? 0 : begin / TILE_ROWS * TILE_ROWS;
        end = shape.seq_q;
    } else {
        i64 last = row0 + TILE_ROWS < shape.seq_q ? row0 + TILE_ROWS - 1 : shape.seq_q - 1;
        end = visible(last, shape.seq_kv, shape.causal, shape.shift);
    }
    int per_head = end > begin ? (int)((end - begin + TILE_ROWS - 1) / TILE_ROWS) : 0;
    int steps = KEYS ? per_head * (int)group : per_head;

    auto fetch = [&](int step) {
        i64 start = begin + (i64)(step % per_head) * TILE_ROWS, head = KEYS ? own_head * group + step / per_head : own_head / group;
        shared_pointer stage = other + (step & 1) * 2 * TILE_BYTES;
        load_rows<TILE_ROWS>(stage, other_one, other_token + start, other_heads, head, end - start);
        load_rows<TILE_ROWS>(stage + TILE_BYTES, other_two, other_token + start, other_heads, head, end - start);
        if (KEYS && threadIdx.x < TILE_ROWS) {
            i64 row = start + threadIdx.x;
            bool there = row < shape.seq_q;
            float* s = statistics + (step & 1) * 2 * TILE_ROWS;
            s[threadIdx.x] = there ? lse[(other_token + row) * shape.heads + head] * LOG2_E : 0.0f;
            s[TILE_ROWS + threadIdx.x] = there ? delta[(sequence * shape.heads + head) * shape.seq_q + row] : 0.0f;
        }
        copy_async_commit();
    };
    load_rows<TILE_ROWS>(own, own_one, own_token, own_heads, own_head, own_rows - row0);
    load_rows<TILE_ROWS>(own + TILE_BYTES, own_two, own_token, own_heads, own_head, own_rows - row0);
    copy_async_commit();
    if (steps > 0) fetch(0);

    float one[DIM / 8][4], two[KEYS ? DIM / 8 : 1][4];
    #pragma unroll
    for (int d = 0; d < DIM / 8; ++d) one[d][0] = one[d][1] = one[d][2] = one[d][3] = 0.0f;
    #pragma unroll
    for (int d = 0; d < (KEYS ? DIM / 8 : 1); ++d) two[d][0] = two[d][1] = two[d][2] = two[d][3] = 0.0f;
    float own_lse[2] = {0.0f, 0.0f}, own_delta[2] = {0.0f, 0.0f};
    i64 limit[2] = {0, 0};
    if (!KEYS)
        #pragma unroll
        for (int h = 0; h < 2; ++h) {
            i64 row = row0 + warp_row + 8 * h + (lane >> 2);
            if (row >= shape.seq_q) continue;
            own_lse[h] = lse[(own_token - row0 + row) * shape.heads + own_head] * LOG2_E;
            own_delta[h] = delta[(sequence * shape.heads + own_head) * shape.seq_q + row];
            limit[h] = visible(row, shape.seq_kv, shape.causal, shape.shift);
        }
    float factor = shape.scale * LOG2_E;

    for (int step = 0; step < steps; ++step) {
        shared_pointer stage = other + (step & 1) * 2 * TILE_BYTES;
        if (step + 1 < steps) {
            fetch(step + 1);
            copy_async_wait<1>();
        } else {
            copy_async_wait<0>();
        }
        __syncthreads();
        float s[TILE_ROWS / 8][4], g[TILE_ROWS / 8][4];
        #pragma unroll
        for (int n = 0; n < TILE_ROWS / 8; ++n)
            #pragma unroll
            for (int e = 0; e < 4; ++e) s[n][e] = g[n][e] = 0.0f;
        #pragma unroll
        for (int c = 0; c < DIM / 16; ++c) {
            u32 a[4], b[4];
            load_a(a, own, warp_row, 2 * c);
            #pragma unroll
            for (int n = 0; n < TILE_ROWS / 16; ++n) {
                load_b_rows(b, stage, 16 * n, 2 * c);
                MULTIPLY(s[2 * n], a, b[0], b[1]);
                MULTIPLY(s[2 * n + 1], a, b[2], b[3]);
            }
            load_a(a, own + TILE_BYTES, warp_row, 2 * c);
            #pragma unroll
            for (int n = 0; n < TILE_ROWS / 16; ++n) {
                load_b_rows(b, stage + TILE_BYTES, 16 * n, 2 * c);
                MULTIPLY(g[2 * n], a, b[0], b[1]);
                MULTIPLY(g[2 * n + 1], a, b[2], b[3]);
            }
        }
        // Scores become probabilities, and their gradients times the scale.
        i64 start = begin + (i64)(step % per_head) * TILE_ROWS;
        const float* statistic = statistics + (step & 1) * 2 * TILE_ROWS;
        u32 p[TILE_ROWS / 8][2], ds[TILE_ROWS / 8][2];
        #pragma unroll
        for (int n = 0; n < TILE_ROWS / 8; ++n)
            #pragma unroll
            for (int h = 0; h < 2; ++h) {
                float probability[2], gradient[2];
                #pragma unroll
                for (int e = 0; e < 2; ++e) {
                    int column = 8 * n + (lane & 3) * 2 + e;
                    float log_sum, d;
                    bool seen;
                    if (KEYS) {
                        i64 query = start + column, key = row0 + warp_row + 8 * h + (lane >> 2);
                        log_sum = statistic[column];
                        d = statistic[TILE_ROWS + column];
                        seen = query < shape.seq_q && key < visible(query, shape.seq_kv, shape.causal, shape.shift);
                    } else {
                        log_sum = own_lse[h];
                        d = own_delta[h];
                        seen = start + column < limit[h];
                    }
                    float x = seen ? power_of_two(s[n][2 * h + e] * factor - log_sum) : 0.0f;
                    probability[e] = x;
                    gradient[e] = seen ? x * (g[n][2 * h + e] - d) * shape.scale : 0.0f;
                }
                if (KEYS) p[n][h] = PACK(probability[0], probability[1]);
                ds[n][h] = PACK(gradient[0], gradient[1]);
            }
        #pragma unroll
        for (int n = 0; n < TILE_ROWS / 16; ++n) {
            u32 a[4] = {ds[2 * n][0], ds[2 * n][1], ds[2 * n + 1][0], ds[2 * n + 1][1]}, b[4];
            #pragma unroll
            for (int d = 0; d < DIM / 16; ++d) {
                load_b_columns(b, stage, 16 * n, 2 * d);
                MULTIPLY(one[2 * d], a, b[0], b[1]);
                MULTIPLY(one[2 * d + 1], a, b[2], b[3]);
            }
            if (KEYS) {
                u32 w[4] = {p[2 * n][0], p[2 * n][1], p[2 * n + 1][0], p[2 * n + 1][1]};
                #pragma unroll
                for (int d = 0; d < DIM / 16; ++d) {
                    load_b_columns(b, stage + TILE_BYTES, 16 * n, 2 * d);
                    MULTIPLY(two[2 * d], w, b[0], b[1]);
                    MULTIPLY(two[2 * d + 1], w, b[2], b[3]);
                }
            }
        }
        __syncthreads();
    }
    copy_async_wait<0>();

    #pragma unroll
    for (int h = 0; h < 2; ++h) {
        i64 row = warp_row + 8 * h + (lane >> 2);
        if (row0 + row >= own_rows) continue;
        #pragma unroll
        for (int d = 0; d < DIM / 8; ++d) {
            i64 at = ((own_token + row) * own_heads + own_head) * DIM + 8 * d + (lane & 3) * 2;
            add_pair(first_gradient, at, one[d][2 * h], one[d][2 * h + 1]);
            if (KEYS) add_pair(second_gradient, at, two[d][2 * h], two[d][2 * h + 1]);
        }
    }
}

// Grid (ceil(seq_q / 64), heads, batch), 128 threads.
extern "C" __global__ void __launch_bounds__(FLASH_THREADS) flash_backward_q(const elem* q, const elem* k, const elem* v, const float* lse, const float* delta, const elem* dout, elem* dq,
    i64 heads, i64 kv_heads, i64 seq_q, i64 seq_kv, i64 q_first, i64 q_pitch, i64 kv_first, i64 kv_pitch, i64 causal, i64 shift, float scale) {
    BackwardShape shape = {heads, kv_heads, seq_q, seq_kv, q_first, q_pitch, kv_first, kv_pitch, causal, shift, scale};
    flash_backward<false>(q, k, v, lse, delta, dout, dq, dq, shape);
}

// Grid (ceil(seq_kv / 64), kv_heads, batch), 128 threads.
extern "C" __global__ void __launch_bounds__(FLASH_THREADS) flash_backward_kv(const elem* q, const elem* k, const elem* v, const float* lse, const float* delta, const elem* dout, elem* dk, elem* dv,
    i64 heads, i64 kv_heads, i64 seq_q, i64 seq_kv, i64 q_first, i64 q_pitch, i64 kv_first, i64 kv_pitch, i64 causal, i64 shift, float scale) {
    BackwardShape shape = {heads, kv_heads, seq_q, seq_kv, q_first, q_pitch, kv_first, kv_pitch, causal, shift, scale};
    flash_backward<true>(q, k, v, lse, delta, dout, dk, dv, shape);
}
