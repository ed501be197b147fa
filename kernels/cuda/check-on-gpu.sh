#!/bin/bash
# Runs on a machine with an NVIDIA GPU, from the repository root. First argument: a folder for the outputs.
# Needs test binaries of the kernels crate and the psim binary (built elsewhere is fine, no CUDA is needed to build):
#   CONFORMANCE=path RATES=path COMPILE=path PSIM=path kernels/cuda/check-on-gpu.sh OUT
# where CONFORMANCE and RATES are the test binaries `conformance` and `gpu_rates`, and COMPILE is the crate's unit tests.
#
# 1. NVRTC compiles every kernel for three architectures.
# 2. Every operator is compared with float64.
# 3. Rates of large products, copies and attention, and those of PyTorch in the same session.
# 4. A calibration of at most 8 minutes writes profile and raw samples.
# 5. A training step of a small model is executed and compared with its prediction.
set -u
out=${1:?an output folder}
mkdir -p "$out"
nvidia-smi --query-gpu=name,driver_version,clocks.sm,clocks.mem,power.draw,clocks_throttle_reasons.active --format=csv | tee "$out/gpu.csv"
for folder in $(python3 -c 'import site,glob,os
for s in site.getsitepackages():
    print(*[d for d in glob.glob(os.path.join(s,"nvidia","*","lib"))])' 2>/dev/null) /usr/local/cuda/lib64; do
    LD_LIBRARY_PATH="$folder:${LD_LIBRARY_PATH:-}"
done
export LD_LIBRARY_PATH
status=0
if [ -n "${COMPILE:-}" ]; then
    "$COMPILE" --nocapture every_module_compiles 2>&1 | tee "$out/compile.log" | tail -3
    [ "${PIPESTATUS[0]}" = 0 ] || status=1
    grep -q SKIP "$out/compile.log" && { echo "FAILED: NVRTC was not found"; status=1; }
fi
"${CONFORMANCE:?path of the conformance test binary}" --nocapture --test-threads=1 cuda > "$out/conformance.log" 2>&1 || status=1
grep -q SKIP "$out/conformance.log" && { echo "FAILED: the suite skipped, see $out/conformance.log"; status=1; }
tail -20 "$out/conformance.log"
if [ -n "${RATES:-}" ]; then
    "$RATES" --nocapture 2>&1 | tee "$out/rates.jsonl" || status=1
fi
if [ -n "${PSIM:-}" ]; then
    "$PSIM" calibrate --device cuda:0 --minutes 8 --out "$out/profile.toml" 2>&1 | tee "$out/calibrate.log" | tail -5
    [ "${PIPESTATUS[0]}" = 0 ] || status=1
fi
python3 - <<'PY' | tee "$out/pytorch.json" || true
import json, torch
def median(f, n=30):
    for _ in range(3): f()
    times = []
    for _ in range(n):
        a, b = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        a.record(); f(); b.record(); torch.cuda.synchronize(); times.append(a.elapsed_time(b) * 1e-3)
    return sorted(times)[n // 2]
x, y = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
s = torch.randn(1 << 30, device="cuda"); t = torch.empty_like(s)
print(json.dumps({"gemm_tflops": 2 * 8192**3 / median(lambda: x @ y) / 1e12, "copy_tb_s": 8 * (1 << 30) / median(lambda: t.copy_(s)) / 1e12}))
PY
nvidia-smi --query-gpu=clocks.sm,power.draw,clocks_throttle_reasons.active --format=csv,noheader >> "$out/gpu.csv"
exit $status
