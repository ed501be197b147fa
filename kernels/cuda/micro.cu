// Micro-benchmarks below the operators. Appended to operators.cu.
// One thread walks a cycle past the first-level cache, which would only show itself.
extern "C" __global__ void chase(const u32* next, u32* out, i64 hops) {
    u32 at = 0;
    for (i64 i = 0; i < hops; ++i) at = load_past_l1(next + at);
    out[0] = at;
}
// The same in shared memory, over a cycle of 1,024 entries.
extern "C" __global__ void chase_shared(u32* out, i64 hops) {
    __shared__ u32 ring[1024];
    for (int i = threadIdx.x; i < 1024; i += blockDim.x) ring[i] = (i + 397) % 1024;
    __syncthreads();
    if (threadIdx.x != 0) return;
    u32 at = 0;
    for (i64 i = 0; i < hops; ++i) at = ring[at];
    out[0] = at;
}
extern "C" __global__ void nothing() {}
// Stands in for a peer that does not run.
extern "C" __global__ void wait_nanoseconds(i64 nanoseconds) {
    i64 start = device_nanoseconds();
    while (device_nanoseconds() - start < nanoseconds) doze();
}
