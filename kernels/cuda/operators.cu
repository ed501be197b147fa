// Operators of the Device contract in CUDA C++, compiled at run time by NVRTC without any header, after ptx.cu.
// Compiled once per format: with BF16 or FP16 defined `elem` is that format, else fp32. Arithmetic, statistics and
// parameter gradients are fp32. Integer arguments are 64 bits wide, so that the host has one way of passing them.
#ifndef INFINITY
#define INFINITY __int_as_float(0x7f800000)
#endif

#if defined(BF16) || defined(FP16)
typedef u16 elem;
#else
typedef float elem;
#endif

__device__ __forceinline__ float from_bf16(u16 x) { return __uint_as_float(((u32)x) << 16); }
#ifdef FP16
__device__ __forceinline__ float ld(const u16* p, i64 i) { return from_fp16(p[i]); }
__device__ __forceinline__ void st(u16* p, i64 i, float v) { p[i] = to_fp16(v); }
#else
__device__ __forceinline__ float ld(const u16* p, i64 i) { return from_bf16(p[i]); }
__device__ __forceinline__ void st(u16* p, i64 i, float v) { p[i] = to_bf16(v); }
#endif
__device__ __forceinline__ float ld(const float* p, i64 i) { return p[i]; }
__device__ __forceinline__ void st(float* p, i64 i, float v) { p[i] = v; }

// E4M3 (Micikevicius et al. 2022): 4 exponent bits with bias 7, largest 448, no infinities.
__device__ float from_e4m3(unsigned char x) {
    int exponent = (x >> 3) & 15, mantissa = x & 7;
    if ((x & 127) == 127) return __int_as_float(0x7fc00000);
    float v = exponent ? (1.0f + mantissa * 0.125f) * __int_as_float((exponent - 7 + 127) << 23) : mantissa * 0.001953125f;
    return x & 128 ? -v : v;
}
__device__ unsigned char to_e4m3(float v) {
    unsigned char sign = v < 0.0f ? 128 : 0;
    float a = fabsf(v);
    if (!(a <= 3.4e38f)) return sign | 127;
    if (a >= 448.0f) return sign | 126;
    int exponent = a > 0.0f ? (int)((u32)__float_as_int(a) >> 23) - 127 : -7;
    if (exponent < -6) exponent = -6;
    // Units of the last place, rounded to even; a carry moves on into the exponent by itself.
    int units = (int)rintf(a * __int_as_float((3 - exponent + 127) << 23));
    return sign | (unsigned char)(((exponent + 6) << 3) + units);
}
// Format known only at run time: 0 fp32, 1 bf16, 2 fp16, 3 e4m3.
__device__ __forceinline__ float ld_any(const void* p, i64 format, i64 i) {
    if (format == 0) return ((const float*)p)[i];
    if (format == 1) return from_bf16(((const u16*)p)[i]);
    if (format == 2) return from_fp16(((const u16*)p)[i]);
    return from_e4m3(((const unsigned char*)p)[i]);
}
__device__ __forceinline__ void st_any(void* p, i64 format, i64 i, float v) {
    if (format == 0) ((float*)p)[i] = v;
    else if (format == 1) ((u16*)p)[i] = to_bf16(v);
    else if (format == 2) ((u16*)p)[i] = to_fp16(v);
    else ((unsigned char*)p)[i] = to_e4m3(v);
}

#define GRID_STRIDE(i, n) for (i64 i = (i64)blockIdx.x * blockDim.x + threadIdx.x; i < (n); i += (i64)gridDim.x * blockDim.x)
// Rows by the grid's second dimension: no division per element.
#define ROWS_COLUMNS(r, c, rows, width) \
    for (i64 r = blockIdx.y; r < (rows); r += gridDim.y) \
        for (i64 c = (i64)blockIdx.x * blockDim.x + threadIdx.x; c < (width); c += (i64)gridDim.x * blockDim.x)

__device__ float warp_sum(float v) {
    for (int o = 16; o > 0; o >>= 1) v += __shfl_xor_sync(0xffffffffu, v, o);
    return v;
}
__device__ float warp_max(float v) {
    for (int o = 16; o > 0; o >>= 1) v = fmaxf(v, __shfl_xor_sync(0xffffffffu, v, o));
    return v;
}
// Over a block of at most 1024 threads; every thread gets the result.
__device__ float block_sum(float v) {
    __shared__ float parts[32];
    v = warp_sum(v);
    __syncthreads();
    if ((threadIdx.x & 31) == 0) parts[threadIdx.x >> 5] = v;
    __syncthreads();
    float total = 0.0f;
    for (int i = 0; i < (blockDim.x + 31) / 32; ++i) total += parts[i];
    return total;
}
__device__ float block_max(float v) {
    __shared__ float parts[32];
    v = warp_max(v);
    __syncthreads();
    if ((threadIdx.x & 31) == 0) parts[threadIdx.x >> 5] = v;
    __syncthreads();
    float top = parts[0];
    for (int i = 1; i < (blockDim.x + 31) / 32; ++i) top = fmaxf(top, parts[i]);
    return top;
}

extern "C" __global__ void fill(void* x, i64 format, i64 n, float value) { GRID_STRIDE(i, n) st_any(x, format, i, value); }

extern "C" __global__ void copy_block(const void* s, i64 s_format, i64 s0, i64 ss, void* t, i64 t_format, i64 t0, i64 ts, i64 rows, i64 width) {
    ROWS_COLUMNS(r, c, rows, width) st_any(t, t_format, t0 + r * ts + c, ld_any(s, s_format, s0 + r * ss + c));
}

extern "C" __global__ void add(const void* s, i64 s_format, void* t, i64 t_format, i64 n) {
    GRID_STRIDE(i, n) st_any(t, t_format, i, ld_any(t, t_format, i) + ld_any(s, s_format, i));
}

extern "C" __global__ void scale(void* x, i64 format, i64 n, float factor) {
    GRID_STRIDE(i, n) st_any(x, format, i, ld_any(x, format, i) * factor);
}

extern "C" __global__ void bias_forward(const elem* bias, elem* x, i64 rows, i64 width) {
    ROWS_COLUMNS(r, c, rows, width) st(x, r * width + c, ld(x, r * width + c) + ld(bias, c));
}

// Sum over rows of one column per thread column; block (32, 8).
extern "C" __global__ void bias_backward(const elem* dy, float* dbias, i64 rows, i64 width) {
    __shared__ float parts[8][33];
    i64 c = (i64)blockIdx.x * 32 + threadIdx.x;
    float sum = 0.0f;
    if (c < width) for (i64 r = threadIdx.y; r < rows; r += 8) sum += ld(dy, r * width + c);
    parts[threadIdx.y][threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.y == 0 && c < width) {
        for (int j = 1; j < 8; ++j) sum += parts[j][threadIdx.x];
        dbias[c] += sum;
    }
}

// One block per row.
extern "C" __global__ void norm_forward(const elem* x, const elem* weight, const elem* bias, elem* y, float* stats, i64 width, i64 rms, i64 has_bias, float epsilon) {
    i64 row = blockIdx.x;
    const elem* xr = x + row * width;
    float sum = 0.0f;
    if (!rms) for (i64 i = threadIdx.x; i < width; i += blockDim.x) sum += ld(xr, i);
    float mean = rms ? 0.0f : block_sum(sum) / (float)width;
    float square = 0.0f;
    for (i64 i = threadIdx.x; i < width; i += blockDim.x) { float d = ld(xr, i) - mean; square += d * d; }
    float r = rsqrtf(block_sum(square) / (float)width + epsilon);
    if (threadIdx.x == 0) { stats[2 * row] = mean; stats[2 * row + 1] = r; }
    for (i64 i = threadIdx.x; i < width; i += blockDim.x) {
        float v = (ld(xr, i) - mean) * r * ld(weight, i);
        st(y, row * width + i, has_bias ? v + ld(bias, i) : v);
    }
}

extern "C" __global__ void norm_backward_input(const elem* x, const elem* weight, const float* stats, const elem* dy, elem* dx, i64 width, i64 rms) {
    i64 row = blockIdx.x;
    float mean = stats[2 * row], r = stats[2 * row + 1], along = 0.0f, average = 0.0f;
    for (i64 i = threadIdx.x; i < width; i += blockDim.x) {
        float g = ld(dy, row * width + i) * ld(weight, i);
        along += g * (ld(x, row * width + i) - mean) * r;
        average += g;
    }
    along = block_sum(along) / (float)width;
    average = rms ? 0.0f : block_sum(average) / (float)width;
    for (i64 i = threadIdx.x; i < width; i += blockDim.x) {
        float normal = (ld(x, row * width + i) - mean) * r;
        st(dx, row * width + i, r * (ld(dy, row * width + i) * ld(weight, i) - average - normal * along));
    }
}

extern "C" __global__ void norm_backward_weight(const elem* x, const float* stats, const elem* dy, float* dweight, float* dbias, i64 rows, i64 width, i64 has_bias) {
    __shared__ float parts[2][8][33];
    i64 c = (i64)blockIdx.x * 32 + threadIdx.x;
    float w = 0.0f, b = 0.0f;
    if (c < width) for (i64 r = threadIdx.y; r < rows; r += 8) {
        float g = ld(dy, r * width + c);
        w += g * (ld(x, r * width + c) - stats[2 * r]) * stats[2 * r + 1];
        b += g;
    }
    parts[0][threadIdx.y][threadIdx.x] = w;
    parts[1][threadIdx.y][threadIdx.x] = b;
    __syncthreads();
    if (threadIdx.y == 0 && c < width) {
        for (int j = 1; j < 8; ++j) { w += parts[0][j][threadIdx.x]; b += parts[1][j][threadIdx.x]; }
        dweight[c] += w;
        if (has_bias) dbias[c] += b;
    }
}

// Angles in double: positions times frequencies lose too many bits in fp32 beyond a few thousand tokens.
extern "C" __global__ void rope(const u32* positions, const elem* s, i64 s0, i64 ss, elem* t, i64 t0, i64 ts, i64 tokens, i64 heads, i64 dim, float base, float direction) {
    i64 half = dim / 2;
    GRID_STRIDE(i, tokens * half) {
        i64 token = i / half, j = i % half;
        double angle = (double)positions[token] * pow((double)base, -2.0 * (double)j / (double)dim);
        double sine, cosine;
        sincos(angle, &sine, &cosine);
        float sn = direction * (float)sine, cs = (float)cosine;
        for (i64 h = 0; h < heads; ++h) {
            i64 a = s0 + token * ss + h * dim + j, b = t0 + token * ts + h * dim + j;
            float u = ld(s, a), v = ld(s, a + half);
            st(t, b, u * cs - v * sn);
            st(t, b + half, u * sn + v * cs);
        }
    }
}

__device__ __forceinline__ float gelu_inner(float x) { return tanhf(0.7978845608f * (x + 0.044715f * x * x * x)); }
__device__ __forceinline__ float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

extern "C" __global__ void gelu_forward(const elem* x, elem* y, i64 n) {
    GRID_STRIDE(i, n) { float v = ld(x, i); st(y, i, 0.5f * v * (1.0f + gelu_inner(v))); }
}
extern "C" __global__ void gelu_backward(const elem* x, const elem* dy, elem* dx, i64 n) {
    GRID_STRIDE(i, n) {
        float v = ld(x, i), t = gelu_inner(v), slope = 0.7978845608f * (1.0f + 3.0f * 0.044715f * v * v);
        st(dx, i, ld(dy, i) * (0.5f * (1.0f + t) + 0.5f * v * (1.0f - t * t) * slope));
    }
}
extern "C" __global__ void swiglu_forward(const elem* x, elem* y, i64 rows, i64 width) {
    ROWS_COLUMNS(r, c, rows, width) {
        i64 i = r * width + c, at = r * 2 * width + c;
        float g = ld(x, at);
        st(y, i, g * sigmoid(g) * ld(x, at + width));
    }
}
extern "C" __global__ void swiglu_backward(const elem* x, const elem* dy, elem* dx, i64 rows, i64 width) {
    ROWS_COLUMNS(r, c, rows, width) {
        i64 i = r * width + c, at = r * 2 * width + c;
        float g = ld(x, at), u = ld(x, at + width), d = ld(dy, i), s = sigmoid(g), silu = g * s;
        st(dx, at, d * u * (s + silu * (1.0f - s)));
        st(dx, at + width, d * silu);
    }
}

extern "C" __global__ void embedding_forward(const u32* ids, const elem* table, elem* out, i64 rows, i64 width, i64 first, i64 entries) {
    ROWS_COLUMNS(r, c, rows, width) {
        i64 e = (i64)ids[r] - first;
        st(out, r * width + c, e >= 0 && e < entries ? ld(table, e * width + c) : 0.0f);
    }
}
extern "C" __global__ void embedding_backward(const u32* ids, const elem* dy, float* dtable, i64 rows, i64 width, i64 first, i64 entries) {
    ROWS_COLUMNS(r, c, rows, width) {
        i64 e = (i64)ids[r] - first;
        if (e >= 0 && e < entries) atomicAdd(dtable + e * width + c, ld(dy, r * width + c));
    }
}

// One block per row.
extern "C" __global__ void cross_entropy_stats(const elem* logits, const u32* targets, float* stats, i64 vocab, i64 first) {
    i64 row = blockIdx.x;
    const elem* x = logits + row * vocab;
    float top = -3.4e38f;
    for (i64 i = threadIdx.x; i < vocab; i += blockDim.x) top = fmaxf(top, ld(x, i));
    top = block_max(top);
    float sum = 0.0f;
    for (i64 i = threadIdx.x; i < vocab; i += blockDim.x) sum += expf(ld(x, i) - top);
    sum = block_sum(sum);
    if (threadIdx.x == 0) {
        i64 t = (i64)targets[row] - first;
        stats[3 * row] = top;
        stats[3 * row + 1] = sum;
        stats[3 * row + 2] = t >= 0 && t < vocab ? ld(x, t) : 0.0f;
    }
}
extern "C" __global__ void cross_entropy_backward(const u32* targets, const float* stats, elem* logits, i64 rows, i64 vocab, i64 first, float factor) {
    ROWS_COLUMNS(row, c, rows, vocab) {
        i64 i = row * vocab + c;
        float p = expf(ld(logits, i) - stats[3 * row]) / stats[3 * row + 1];
        st(logits, i, factor * (p - ((i64)targets[row] == first + c ? 1.0f : 0.0f)));
    }
}

extern "C" __global__ void gather_rows(const u32* rows, const elem* s, elem* t, i64 count, i64 width) {
    ROWS_COLUMNS(r, c, count, width) t[r * width + c] = s[(i64)rows[r] * width + c];
}
extern "C" __global__ void scatter_add_rows(const u32* rows, const float* weights, i64 weighted, const elem* s, float* t, i64 count, i64 width) {
    ROWS_COLUMNS(r, c, count, width) {
        float w = weighted ? weights[r] : 1.0f;
        atomicAdd(t + (i64)rows[r] * width + c, w * ld(s, r * width + c));
    }
}
// One block per row.
extern "C" __global__ void scatter_add_rows_backward(const u32* rows, const float* weights, const elem* s, const elem* dt, elem* ds, float* dweights, i64 width) {
    i64 row = blockIdx.x, target = rows[row];
    float sum = 0.0f, w = weights[row];
    for (i64 i = threadIdx.x; i < width; i += blockDim.x) {
        float d = ld(dt, target * width + i);
        sum += ld(s, row * width + i) * d;
        st(ds, row * width + i, w * d);
    }
    sum = block_sum(sum);
    if (threadIdx.x == 0) dweights[row] = sum;
}

extern "C" __global__ void adam(const float* g, float* m, float* v, float* p, i64 start, i64 n, float rate, float beta1, float beta2, float epsilon, float decay, float first, float second) {
    GRID_STRIDE(i, n) {
        float mi = beta1 * m[i] + (1.0f - beta1) * g[i];
        float vi = beta2 * v[i] + (1.0f - beta2) * g[i] * g[i];
        m[i] = mi;
        v[i] = vi;
        float x = p[start + i];
        p[start + i] = x - rate * ((mi * first) / (sqrtf(vi * second) + epsilon) + decay * x);
    }
}

// SplitMix64 (Steele et al. 2014) of key and position, as crate::random has it: the same bits as on the host.
__device__ __forceinline__ unsigned long long mix(unsigned long long z) {
    z += 0x9e3779b97f4a7c15ull;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
}
extern "C" __global__ void uniform_block(void* t, i64 format, i64 t0, i64 ts, i64 rows, i64 width, i64 key, i64 first, i64 pitch, float scale) {
    ROWS_COLUMNS(r, c, rows, width) {
        u32 bits = (u32)(mix((unsigned long long)key ^ mix((unsigned long long)(first + r * pitch + c))) >> 40);
        st_any(t, format, t0 + r * ts + c, scale * ((float)bits * 1.1920929e-7f - 1.0f));
    }
}
