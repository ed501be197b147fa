// Decode attention over a paged key/value cache (Kwon et al. 2023, section 4.1) with the context split over blocks
// (Flash-Decoding, Dao et al. 2023): one query token per sequence meets the memory bandwidth of the whole device.
// A group of DIM / 8 lanes reads one token's key and value in 16- or 32-byte pieces and serves up to HEADS_AT_ONCE query
// heads that share them. Appended to operators.cu; DIM is 32, 64 or 128.
#define LANES (DIM / 8)
#define TOKENS_AT_ONCE (32 / LANES)
#define HEADS_AT_ONCE 8
#define DECODE_WARPS 4

struct Eight { float x[8]; };
__device__ __forceinline__ Eight load_eight(const elem* p, i64 at) {
    Eight r;
    #pragma unroll
    for (int i = 0; i < 8; ++i) r.x[i] = 0.0f;
    const uint4* from = (const uint4*)(p + at);
    #pragma unroll
    for (int part = 0; part < (int)sizeof(elem) / 2; ++part) {
        uint4 raw = from[part];
        u32 words[4] = {raw.x, raw.y, raw.z, raw.w};
        #pragma unroll
        for (int w = 0; w < 4; ++w) {
            if (sizeof(elem) == 4) r.x[part * 4 + w] = __uint_as_float(words[w]);
            else {
                elem halves[2] = {(elem)(words[w] & 0xffff), (elem)(words[w] >> 16)};
                r.x[2 * w] = ld(halves, 0);
                r.x[2 * w + 1] = ld(halves, 1);
            }
        }
    }
    return r;
}

// Grid (splits, kv_heads · ceil(group / 8), batch), 128 threads. Partial results per split: `partial[…][DIM]` unscaled
// sums, `bounds[…][2]` maximum (in powers of two) and total, laid out [sequence][head][split].
extern "C" __global__ void __launch_bounds__(DECODE_WARPS * 32) paged_attention_split(const elem* q, const elem* k_cache, const elem* v_cache, const u32* table, const u32* lengths,
    float* partial, float* bounds, i64 heads, i64 kv_heads, i64 page, i64 max_pages, float scale) {
    __shared__ float tops[DECODE_WARPS][HEADS_AT_ONCE], totals[DECODE_WARPS][HEADS_AT_ONCE], sums[DECODE_WARPS][HEADS_AT_ONCE][DIM];
    int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, member = lane / LANES, slot = (lane % LANES) * 8;
    i64 group = heads / kv_heads, passes = (group + HEADS_AT_ONCE - 1) / HEADS_AT_ONCE;
    i64 kv_head = blockIdx.y / passes, head0 = kv_head * group + blockIdx.y % passes * HEADS_AT_ONCE, sequence = blockIdx.z;
    int active = (int)(kv_head * group + group - head0 < HEADS_AT_ONCE ? kv_head * group + group - head0 : HEADS_AT_ONCE);
    i64 length = lengths[sequence], share = (length + gridDim.x - 1) / gridDim.x, begin = blockIdx.x * share;
    i64 end = begin + share < length ? begin + share : length;
    float query[HEADS_AT_ONCE][8], acc[HEADS_AT_ONCE][8], top[HEADS_AT_ONCE], total[HEADS_AT_ONCE];
    #pragma unroll
    for (int h = 0; h < HEADS_AT_ONCE; ++h) {
        top[h] = -INFINITY;
        total[h] = 0.0f;
        #pragma unroll
        for (int i = 0; i < 8; ++i) {
            acc[h][i] = 0.0f;
            query[h][i] = h < active ? ld(q, (sequence * heads + head0 + h) * DIM + slot + i) * scale * 1.4426950408889634f : 0.0f;
        }
    }
    // Every lane runs the same number of rounds, so that shuffles meet all of them.
    for (i64 round = begin + warp * TOKENS_AT_ONCE; round < end; round += DECODE_WARPS * TOKENS_AT_ONCE) {
        i64 token = round + member;
        bool there = token < end;
        i64 safe = there ? token : begin;
        i64 at = (((i64)table[sequence * max_pages + safe / page] * page + safe % page) * kv_heads + kv_head) * DIM + slot;
        Eight key = load_eight(k_cache, at), value = load_eight(v_cache, at);
        #pragma unroll
        for (int h = 0; h < HEADS_AT_ONCE; ++h) {
            if (h >= active) break;
            float s = 0.0f;
            #pragma unroll
            for (int i = 0; i < 8; ++i) s += query[h][i] * key.x[i];
            #pragma unroll
            for (int o = LANES / 2; o > 0; o >>= 1) s += __shfl_xor_sync(0xffffffffu, s, o);
            if (!there) continue;
            float best = fmaxf(top[h], s), shrink = power_of_two(top[h] - best), p = power_of_two(s - best);
            top[h] = best;
            total[h] = total[h] * shrink + p;
            #pragma unroll
            for (int i = 0; i < 8; ++i) acc[h][i] = acc[h][i] * shrink + p * value.x[i];
        }
    }
    // Lane groups of a warp, then warps of the block, are merged by their maxima.
    #pragma unroll
    for (int h = 0; h < HEADS_AT_ONCE; ++h) {
        float best = top[h];
        #pragma unroll
        for (int o = 16; o >= LANES; o >>= 1) best = fmaxf(best, __shfl_xor_sync(0xffffffffu, best, o));
        float shrink = top[h] == -INFINITY ? 0.0f : power_of_two(top[h] - best), sum = total[h] * shrink;
        #pragma unroll
        for (int o = 16; o >= LANES; o >>= 1) sum += __shfl_xor_sync(0xffffffffu, sum, o);
        #pragma unroll
        for (int i = 0; i < 8; ++i) {
            float x = acc[h][i] * shrink;
            #pragma unroll
            for (int o = 16; o >= LANES; o >>= 1) x += __shfl_xor_sync(0xffffffffu, x, o);
            if (member == 0) sums[warp][h][slot + i] = x;
        }
        if (lane == 0) { tops[warp][h] = best; totals[warp][h] = sum; }
    }
    __syncthreads();
    for (int i = threadIdx.x; i < active * DIM; i += blockDim.x) {
        int h = i / DIM, d = i % DIM;
        float best = tops[0][h], all = 0.0f, sum = 0.0f;
        for (int w = 1; w < DECODE_WARPS; ++w) best = fmaxf(best, tops[w][h]);
        for (int w = 0; w < DECODE_WARPS; ++w) {
            float weight = tops[w][h] == -INFINITY ? 0.0f : power_of_two(tops[w][h] - best);
            all += totals[w][h] * weight;
            sum += sums[w][h][d] * weight;
        }
        i64 row = (sequence * heads + head0 + h) * gridDim.x + blockIdx.x;
        partial[row * DIM + d] = sum;
        if (d == 0) { bounds[2 * row] = best; bounds[2 * row + 1] = all; }
    }
}

// Grid (batch · heads), DIM threads.
extern "C" __global__ void paged_attention_combine(const float* partial, const float* bounds, elem* out, i64 splits) {
    i64 row = blockIdx.x;
    float best = -INFINITY, all = 0.0f, sum = 0.0f;
    for (i64 s = 0; s < splits; ++s) best = fmaxf(best, bounds[2 * (row * splits + s)]);
    for (i64 s = 0; s < splits; ++s) {
        i64 at = row * splits + s;
        float weight = bounds[2 * at] == -INFINITY ? 0.0f : power_of_two(bounds[2 * at] - best);
        all += bounds[2 * at + 1] * weight;
        sum += partial[at * DIM + threadIdx.x] * weight;
    }
    st(out, row * DIM + threadIdx.x, all > 0.0f ? sum / all : 0.0f);
}
