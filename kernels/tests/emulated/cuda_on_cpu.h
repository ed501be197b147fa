// Runs CUDA C++ on a CPU, slowly and in order: what the kernels of this crate need of it, no more.
//
// Every thread of a block is a fiber; blocks run one after another. Barriers, shuffles and the warp-wide instructions
// (ldmatrix, mma) are meeting points: a lane leaves its operands, waits for the living lanes of its warp, and reads what
// the others left. Between meeting points lanes run in any order, so a missing barrier shows as a wrong result.
// The layouts of the matrix fragments are those of the PTX ISA, sections "mma.m16n8k16" and "ldmatrix".
#include <cmath>
#include <csetjmp>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <ucontext.h>
#include <utility>
#include <vector>

#define __global__
#define __device__ static
#define __shared__ static
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))

typedef long long i64;
typedef unsigned int u32;
typedef unsigned short u16;
typedef unsigned char* shared_pointer;
struct uint4 { u32 x, y, z, w; };
struct Dimensions { u32 x, y, z; };
static Dimensions threadIdx, blockIdx, blockDim, gridDim;
__attribute__((aligned(128))) static unsigned char dynamic_shared[256 << 10];

namespace emulator {
struct Meeting { long generation = 0; int arrived = 0, alive = 0; };
struct Fiber { ucontext_t context; jmp_buf resume; bool started, done; std::vector<char> stack; };
static std::vector<Fiber> fibers;
static std::vector<Meeting> warps;
// Operands of a warp-wide instruction: two sets in turn, so that one meeting per instruction is enough.
struct Slot { alignas(16) unsigned char bytes[64]; };
static std::vector<Slot> slots[2];
static Meeting block;
static jmp_buf scheduler;
static int current;
static long progress;
static void (*entry)(void (*)(), void**);
static void (*kernel)();
static void** arguments;

static void step_aside() {
    if (!_setjmp(fibers[current].resume)) _longjmp(scheduler, 1);
}
static void release(Meeting& m) {
    if (m.arrived > 0 && m.arrived == m.alive) { m.arrived = 0; ++m.generation; ++progress; }
}
static void meet(Meeting& m) {
    long generation = m.generation;
    ++m.arrived;
    ++progress;
    release(m);
    while (m.generation == generation) step_aside();
}
// Leaves `mine` for the warp and returns the warp's slots once everybody has done so.
template <class T> static Slot* exchange(const T& mine) {
    static_assert(sizeof(T) <= sizeof(Slot), "operands fit a slot");
    Meeting& warp = warps[current / 32];
    std::vector<Slot>& set = slots[warp.generation & 1];
    memcpy(set[current].bytes, &mine, sizeof(T));
    meet(warp);
    return &set[current / 32 * 32];
}
template <class T> static T left_by(const Slot* warp, int lane) {
    T value;
    memcpy(&value, warp[lane].bytes, sizeof(T));
    return value;
}
static int lane() { return current % 32; }
static void run_thread() {
    entry(kernel, arguments);
    fibers[current].done = true;
    ++progress;
    Meeting& warp = warps[current / 32];
    --warp.alive;
    --block.alive;
    release(warp);
    release(block);
    _longjmp(scheduler, 1);
}
// Threads of the kernel at hand wait for nobody.
static bool alone;
static void place(int t) {
    current = t;
    threadIdx = {(u32)t % blockDim.x, (u32)t / blockDim.x % blockDim.y, (u32)t / blockDim.x / blockDim.y};
}
static int run_block(int threads) {
    if (alone) {
        for (int t = 0; t < threads; ++t) {
            place(t);
            entry(kernel, arguments);
        }
        return 0;
    }
    fibers.resize(threads);
    warps.assign((threads + 31) / 32, Meeting());
    for (auto& set : slots) set.assign((threads + 31) / 32 * 32, Slot());
    block = Meeting();
    block.alive = threads;
    for (int t = 0; t < threads; ++t) {
        Fiber& f = fibers[t];
        f.started = f.done = false;
        if (f.stack.empty()) f.stack.resize(128 << 10);
        ++warps[t / 32].alive;
    }
    // Volatile: they live across the jumps back into this frame.
    volatile int left = threads;
    while (left > 0) {
        volatile long before = progress;
        for (volatile int t = 0; t < threads; t = t + 1) {
            if (fibers[t].done) continue;
            place(t);
            if (!_setjmp(scheduler)) {
                Fiber& f = fibers[t];
                if (f.started) _longjmp(f.resume, 1);
                f.started = true;
                getcontext(&f.context);
                f.context.uc_stack.ss_sp = f.stack.data();
                f.context.uc_stack.ss_size = f.stack.size();
                f.context.uc_link = nullptr;
                makecontext(&f.context, run_thread, 0);
                setcontext(&f.context);
            }
            if (fibers[current].done) left = left - 1;
        }
        if (progress == before) { fprintf(stderr, "emulator: the threads of a block wait for one another\n"); return 1; }
    }
    return 0;
}
template <class... A, size_t... I> static void apply(void (*f)(A...), void** a, std::index_sequence<I...>) {
    f(*(A*)a[I]...);
}
template <class... A> static void call_with(void (*f)(A...), void** a) { apply(f, a, std::index_sequence_for<A...>()); }
}  // namespace emulator

static inline void __syncthreads() { emulator::meet(emulator::block); }
static inline void __syncwarp(u32 = 0xffffffffu) { emulator::meet(emulator::warps[emulator::current / 32]); }
static inline u32 __activemask() { return 0xffffffffu; }
template <class T> static inline T __shfl_xor_sync(u32, T value, int mask) {
    return emulator::left_by<T>(emulator::exchange(value), emulator::lane() ^ mask);
}
static inline float __uint_as_float(u32 x) { float r; memcpy(&r, &x, 4); return r; }
static inline float __int_as_float(int x) { float r; memcpy(&r, &x, 4); return r; }
static inline int __float_as_int(float x) { int r; memcpy(&r, &x, 4); return r; }
static inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
static inline float atomicAdd(float* p, float v) { float old = *p; *p += v; return old; }

static inline shared_pointer shared_address(const void* p) { return (shared_pointer)p; }
static inline u16 to_bf16(float x) {
    u32 bits = (u32)__float_as_int(x);
    if (x != x) return 0x7fff;
    return (u16)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}
static inline float bf16_value(u16 x) { return __uint_as_float((u32)x << 16); }
static inline u16 to_fp16(float x) { _Float16 h = (_Float16)x; u16 r; memcpy(&r, &h, 2); return r; }
static inline float from_fp16(u16 x) { _Float16 h; memcpy(&h, &x, 2); return (float)h; }
static inline u32 pack_bf16(float low, float high) { return to_bf16(low) | (u32)to_bf16(high) << 16; }
static inline u32 pack_fp16(float low, float high) { return to_fp16(low) | (u32)to_fp16(high) << 16; }
static inline u32 load_past_l1(const u32* p) { return *p; }
static inline i64 device_nanoseconds() {
    timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (i64)t.tv_sec * 1000000000 + t.tv_nsec;
}
static inline void doze() {}
static inline float power_of_two(float x) { return exp2f(x); }

// Row `lane / 4` of each matrix, columns `2·(lane % 4)` and the next; transposed: the other way round.
static inline void load_matrices_any(u32 (&r)[4], shared_pointer row, bool transposed) {
    emulator::Slot* warp = emulator::exchange(row);
    int lane = emulator::lane(), i = lane / 4, j = lane % 4 * 2;
    for (int m = 0; m < 4; ++m) {
        u16 pair[2];
        for (int e = 0; e < 2; ++e) {
            int from_row = transposed ? j + e : i, from_column = transposed ? i : j + e;
            shared_pointer p = emulator::left_by<shared_pointer>(warp, 8 * m + from_row);
            memcpy(&pair[e], p + 2 * from_column, 2);
        }
        r[m] = pair[0] | (u32)pair[1] << 16;
    }
}
static inline void load_matrices(u32 (&r)[4], shared_pointer row) { load_matrices_any(r, row, false); }
static inline void load_matrices_transposed(u32 (&r)[4], shared_pointer row) { load_matrices_any(r, row, true); }

// Operands as numbers: a[register][half], b[register][half].
struct Fragments { float a[4][2], b[2][2]; };
template <class Value> static inline void multiply_any(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1, Value value) {
    Fragments mine = {{{value(a[0]), value(a[0] >> 16)}, {value(a[1]), value(a[1] >> 16)}, {value(a[2]), value(a[2] >> 16)}, {value(a[3]), value(a[3] >> 16)}},
                      {{value(b0), value(b0 >> 16)}, {value(b1), value(b1 >> 16)}}};
    const emulator::Slot* warp = emulator::exchange(mine);
    int lane = emulator::lane();
    for (int e = 0; e < 4; ++e) {
        int row = lane / 4, upper = e >= 2, column = lane % 4 * 2 + e % 2;
        float sum = 0.0f;
        for (int k = 0; k < 16; ++k) {
            const Fragments& of_a = *(const Fragments*)warp[row * 4 + k % 8 / 2].bytes;
            const Fragments& of_b = *(const Fragments*)warp[column * 4 + k % 8 / 2].bytes;
            sum += of_a.a[upper + (k >= 8 ? 2 : 0)][k % 2] * of_b.b[k >= 8][k % 2];
        }
        c[e] += sum;
    }
}
static inline void multiply_bf16(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    multiply_any(c, a, b0, b1, [](u32 x) { return bf16_value((u16)(x & 0xffff)); });
}
static inline void multiply_fp16(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    multiply_any(c, a, b0, b1, [](u32 x) { return from_fp16((u16)(x & 0xffff)); });
}
static inline void copy_async(shared_pointer to, const void* from, bool valid) {
    if (valid) memcpy(to, from, 16); else memset(to, 0, 16);
}
static inline void copy_async_commit() {}
template <int PENDING> static inline void copy_async_wait() {}
