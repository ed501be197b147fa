#!/bin/bash
# Everything that can only be checked on an NVIDIA GPU, in one script. Run it in the repository root:
#
#   PSIM=… KERNELS=… CONFORMANCE=… RATES=… NUMERICS=… kernels/cuda/check-on-gpu.sh OUT [SECTION…]
#
# PSIM is the program (release build); KERNELS (unit tests of psim-kernels), CONFORMANCE, RATES (its `conformance` and
# `gpu_rates`) and NUMERICS (psim-executor's `numerics`) are test binaries. `kernels/cuda/gather-binaries.sh` builds all of
# them, no CUDA is needed for it. Sections, all of them by default, in this order:
#
#   machine      what the card and its driver say of themselves
#   compile      NVRTC compiles every kernel
#   conformance  every operator against float64
#   numerics     whole steps against float64: NCCL in a world of one, rank threads on one card
#   rates        large products, copies, attention; the same from PyTorch in the same session
#   calibrate    a calibration of MINUTES (default 8): profile and raw samples
#   train        training steps of 1B, 3B and 8B-slice models, dense and MoE, against their prediction from that profile
#   shard        ranks of Llama-3-70B under TP8 PP8, alone
#   nccl         a training step with its ranks over NCCL, world size 1
#   loop         plan, run the best plans, rank again
#   check        a random part of the calibration again
#   verdict      every figure that is asked for beside the one that was reached, from the outputs of all sections in OUT
#
# Where one command may take ten minutes only, three calls with the same OUT do, the last one with the verdict over all:
#
#   check-on-gpu.sh OUT machine compile conformance numerics rates
#   check-on-gpu.sh OUT calibrate
#   check-on-gpu.sh OUT train shard nccl loop check verdict
#
# OUT.tgz holds everything in one file. Outputs lie under OUT: logs, JSON reports, profile.toml with its raw samples, summary.txt. PROFILE names a profile from an
# earlier call where `calibrate` is not among the sections; a copy is also kept in target/gpu/.
# DEVICE=cpu runs all that can run without a GPU with tiny models: a rehearsal of the script itself.
set -u
out=${1:?an output folder}
shift
sections=${*:-machine compile conformance numerics rates calibrate train shard nccl loop check verdict}
device=${DEVICE:-cuda:0}
steps=${STEPS:-5}
mkdir -p "$out" target/gpu
out=$(cd "$out" && pwd)
status=0
failed() { echo "FAILED: $*" | tee -a "$out/summary.txt"; status=1; }
note() { echo "$*" | tee -a "$out/summary.txt"; }

# NVIDIA's libraries as pip installs them, and where CUDA's installer puts them.
for folder in $(python3 -c 'import glob, site, sys
for s in site.getsitepackages() + sys.path:
    print(*glob.glob(s + "/nvidia/*/lib"))' 2>/dev/null) /usr/local/cuda/lib64; do
    [ -d "$folder" ] && LD_LIBRARY_PATH="$folder:${LD_LIBRARY_PATH:-}"
done
export LD_LIBRARY_PATH=${LD_LIBRARY_PATH:-}

case $device in
    cpu) cluster=target/gpu/profile.cluster.toml; default_minutes=0.1; precision=fp32 ;;
    *)
        default_minutes=8
        precision=bf16
        name=$(nvidia-smi --query-gpu=name --format=csv,noheader 2>/dev/null | head -1)
        case $name in *H200*) part=h200 ;; *A100*) part=a100 ;; *B200*) part=b200 ;; *) part=h100 ;; esac
        cluster=${part}x1
        ;;
esac
minutes=${MINUTES:-$default_minutes}
profile=${PROFILE:-target/gpu/profile.toml}

# A test binary; a test that skips on a GPU machine has failed.
tests() { # name, binary, arguments
    local name=$1 binary=$2
    shift 2
    [ -n "$binary" ] || { note "$name: no binary given, left out"; return; }
    "$binary" --nocapture --test-threads=1 "$@" > "$out/$name.log" 2>&1 || failed "$name, see $name.log"
    [ "$device" = cpu ] || ! grep -q SKIP "$out/$name.log" || failed "$name skipped: $(grep -m1 -B1 SKIP "$out/$name.log")"
    grep -E "^test result|panicked|equal the reference" "$out/$name.log" | tail -5
}

# A llama-like config.json: name, hidden, layers, heads, key-value heads, inner width, vocabulary, tied.
config() {
    cat > "$out/$1.json" <<JSON
{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": $2, "num_hidden_layers": $3,
 "num_attention_heads": $4, "num_key_value_heads": $5, "intermediate_size": $6, "vocab_size": $7,
 "tie_word_embeddings": $8, "rope_theta": 500000.0, "max_position_embeddings": 131072}
JSON
}
moe() { # name, hidden, layers, heads, key-value heads, inner width, experts
    cat > "$out/$1.json" <<JSON
{"architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "hidden_size": $2, "num_hidden_layers": $3,
 "num_attention_heads": $4, "num_key_value_heads": $5, "intermediate_size": $6, "vocab_size": 32000,
 "num_local_experts": $7, "num_experts_per_tok": 2, "tie_word_embeddings": false, "max_position_embeddings": 32768}
JSON
}
plan() { # file, lines
    local file=$1
    shift
    { echo "schema = 1"; echo "precision = \"$precision\""; printf '%s\n' "$@"; } > "$out/$file"
}
profiles() { [ -f "$profile" ] && echo "--profile $profile"; }

# One line of a report: error of the step, of the memory.
cat > "$out/summary.py" <<'PY'
import json, sys
name, path = sys.argv[1:3]
try:
    d = json.load(open(path))
except Exception as e:
    sys.exit(f'{name}: no report ({e})')
ms = lambda s: f'{s * 1e3:.2f} ms'
off = lambda p, m: f'{(p / m - 1) * 100:+.1f} %' if m else '?'
gib = lambda b: f'{b / 2**30:.3f} GiB'
if 'shard' in d:
    r = d['shard']
    rows = [(p['phase'], p['compute'], p['predicted']) for p in r['phases']]
    m, p = sum(x[1] for x in rows), sum(x[2] for x in rows)
    waits = sum(x['inserted'] for x in r['phases'])
    print(f"{name}: computes {ms(m)}, predicted {ms(p)} ({off(p, m)}), waits {ms(waits)}", end='; ')
    print(f"states {gib(r['states'])}, ledger {gib(r['predicted_states'])} ({off(r['predicted_states'], r['states'])})", end='; ')
else:
    r = d['report']
    rows = [(p['phase'], p['measured'], p['predicted']) for p in r['phases'] if p['phase'] != 'wait']
    print(f"{name}: step {ms(r['measured'])}, predicted {ms(r['predicted'])} ({off(r['predicted'], r['measured'])})", end='; ')
    print(f"losses {[round(x, 4) for x in r['losses'][:4]]}", end='; ')
    if r.get('device_memory'):
        print(f"taken on the device {gib(r['device_memory'])}", end='; ')
print(f"spread {r['spread'] * 100:.1f} %", end='; ')
print(f"memory {gib(r['memory'])}, predicted {gib(r['predicted_memory'])} ({off(r['predicted_memory'], r['memory'])})")
for phase, m, p in rows:
    print(f'    {phase}: {ms(m)}, predicted {ms(p)} ({off(p, m)})')
for text in d['notes']:
    print(f'    note: {text}')
PY
# Asked against reached; what no section has written yet is "not run".
cat > "$out/verdict.py" <<'PY'
import json, os, sys
out = sys.argv[1]
def read(name):
    try:
        return open(os.path.join(out, name)).read()
    except OSError:
        return ''
def lines(name):
    found = []
    for line in read(name).splitlines():
        try:
            found.append(json.loads(line))
        except ValueError:
            pass
    return [d for d in found if isinstance(d, dict)]
def say(what, asked, reached, good):
    mark = 'not run' if reached is None else 'reached' if good else 'missed'
    print(f"{mark:8} {what:52} asked {asked:28} reached {'-' if reached is None else reached}")
rates, torch = lines('rates.jsonl'), {d['pytorch']: d for d in lines('pytorch.jsonl') if 'pytorch' in d}
def rate(key, value, field):
    return next((d[field] for d in rates if d.get(key) == value and field in d), None)
def against(what, ours, theirs, unit):
    if not ours or not theirs:
        return say(what, 'within 3 % of PyTorch', None, False)
    say(what, 'within 3 % of PyTorch', f'{ours:.1f} against {theirs:.1f} {unit} ({(ours / theirs - 1) * 100:+.1f} %)', ours >= 0.97 * theirs)
gemm = rate('gemm', 'bf16', 'tflops')
against('GEMM 8192^3 bf16, random data', gemm, torch.get('gemm 8192 bf16', {}).get('tflops'), 'Tflop/s')
copy = next((d['copy_tb_s'] for d in rates if 'copy_tb_s' in d), None)
against('copy', copy, torch.get('copy 4 GiB', {}).get('tb_per_s'), 'TB/s')
attention = rate('attention_forward', 128, 'tflops')
both = attention and gemm
say('attention forward, head 128, 8K causal', 'at least 40 % of the GEMM (60)',
    f'{attention:.0f} Tflop/s, {attention / gemm * 100:.0f} %' if both else None, both and attention >= 0.4 * gemm)
for name, what in [('compile', 'kernels built by NVRTC'), ('conformance', 'no kernel wrong'), ('numerics', 'plans equal float64, NCCL in a world of 1')]:
    log = read(f'{name}.log')
    bad = 'panicked' in log or 'FAILED' in log or 'SKIP' in log
    say(what, 'all', None if not log else 'failures or skips in ' + name + '.log' if bad else 'all', log and not bad)
def off(p, m):
    return (p / m - 1) * 100 if m else float('inf')
def report(name):
    try:
        return json.loads(read(f'{name}.report.json'))
    except ValueError:
        return None
for name in ['train-1b', 'train-3b', 'train-8b-slice']:
    d = report(name)
    r = d and d['report']
    for what, limit, key in [('step', 5, 'measured'), ('memory', 3, 'memory')]:
        p = r and r['predicted' if key == 'measured' else 'predicted_memory']
        e = off(p, r[key]) if r else None
        say(f'{name}: {what}', f'within {limit} %', e is not None and f'{e:+.1f} %' or None, e is not None and abs(e) <= limit)
for rank in [0, 24, 63]:
    d = report(f'shard-{rank}')
    r = d and d['shard']
    e = r and off(sum(p['predicted'] for p in r['phases']), sum(p['compute'] for p in r['phases']))
    f = r and off(r['predicted_memory'], r['memory'])
    say(f'Llama-3-70B TP8 PP8 rank {rank}: compute, memory', 'within 5 %', f'{e:+.1f} %, {f:+.1f} %' if r else None, r and abs(e) <= 5 and abs(f) <= 5)
seconds = read('calibrate.seconds').strip()
say('a full calibration', 'under 10 minutes', seconds and f'{int(seconds) / 60:.1f} minutes' or None, seconds and int(seconds) < 600)
PY
execute() { # name, model, sequence length, plan, further arguments
    local name=$1 model=$2 length=$3 file=$4
    shift 4
    # shellcheck disable=SC2046
    "$PSIM" execute --model "$model" --cluster "${here:-$cluster}" --seq-len "$length" --plan "$out/$file" \
        --device "$device" --steps "$steps" $(profiles) --json "$@" > "$out/$name.report.json" 2> "$out/$name.err" \
        || failed "$name: $(tail -2 "$out/$name.err" | tr '\n' ' ')"
    python3 "$out/summary.py" "$name" "$out/$name.report.json" 2>&1 | tee -a "$out/summary.txt"
}

for section in $sections; do
    note "== $section $(date -u +%T)"
    case $section in
        machine)
            { nvidia-smi; nvidia-smi -q -d CLOCK,POWER,TEMPERATURE,PERFORMANCE; uname -a; nproc; } > "$out/machine.txt" 2>&1
            head -12 "$out/machine.txt"
            "${PSIM:?the program}" --version | tee -a "$out/summary.txt"
            ;;
        compile) tests compile "${KERNELS:-}" every_module_compiles ;;
        conformance) tests conformance "${CONFORMANCE:-}" "$([ "$device" = cpu ] && echo cpu || echo cuda)" ;;
        numerics) tests numerics "${NUMERICS:-}" cuda::nccl_alone_on_a_gpu ;;
        rates)
            [ -z "${RATES:-}" ] || "$RATES" --nocapture > "$out/rates.jsonl" 2>&1 || failed "rates, see rates.jsonl"
            grep '^{' "$out/rates.jsonl" 2>/dev/null
            [ "$device" = cpu ] || python3 - > "$out/pytorch.jsonl" 2> "$out/pytorch.err" <<'PY' || failed "PyTorch: $(tail -1 "$out/pytorch.err")"
import json, torch
def median(f, n=30):
    for _ in range(3): f()
    times = []
    for _ in range(n):
        a, b = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        a.record(); f(); b.record(); torch.cuda.synchronize(); times.append(a.elapsed_time(b) * 1e-3)
    return sorted(times)[n // 2]
x, y = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
print(json.dumps({"pytorch": "gemm 8192 bf16", "tflops": 2 * 8192**3 / median(lambda: x @ y) / 1e12}))
del x, y
s = torch.randn(1 << 30, device="cuda"); t = torch.empty_like(s)
print(json.dumps({"pytorch": "copy 4 GiB", "tb_per_s": 8 * (1 << 30) / median(lambda: t.copy_(s)) / 1e12}))
del s, t
q, k, v = (torch.randn(1, 32, 8192, 128, device="cuda", dtype=torch.bfloat16, requires_grad=True) for _ in range(3))
f = torch.nn.functional.scaled_dot_product_attention
flops = 2 * 2 * 32 * 128 * 8192 * 8192 / 2
print(json.dumps({"pytorch": "attention forward 8192 causal", "tflops": flops / median(lambda: f(q, k, v, is_causal=True)) / 1e12}))
PY
            cat "$out/pytorch.jsonl" 2>/dev/null
            ;;
        calibrate)
            # On the CPU a cluster of one rank thread is written beside it.
            one=$([ "$device" != cpu ] || echo "--ranks 1")
            began=$(date +%s)
            # shellcheck disable=SC2086
            "${PSIM:?}" calibrate --device "$device" --minutes "$minutes" $one --out "$out/profile.toml" > "$out/calibrate.log" 2>&1 \
                || failed "calibrate: $(tail -2 "$out/calibrate.log" | tr '\n' ' ')"
            echo $(($(date +%s) - began)) > "$out/calibrate.seconds"
            tail -12 "$out/calibrate.log"
            cp "$out"/profile* target/gpu/ 2>/dev/null
            profile=$out/profile.toml
            [ "$device" != cpu ] || cluster=$out/profile.cluster.toml
            ;;
        train)
            if [ "$device" = cpu ]; then
                config 1b 64 2 4 2 128 256 true; config 3b 96 2 4 2 192 256 true; config 8b-slice 128 2 4 2 256 256 false
                moe moe 64 2 4 2 96 4
                lengths="64 64 64 64"
            else
                config 1b 2048 16 32 8 8192 128256 true; config 3b 3072 28 24 8 8192 128256 true
                config 8b-slice 4096 8 32 8 14336 128256 false; moe moe 2048 4 16 4 5632 8
                lengths="4096 4096 8192 4096"
            fi
            read -r one three eight mixture <<< "$lengths"
            plan train-1b.toml "tp = 1" "pp = 1" "dp = 1" "micro_batch = 2" "global_batch = 8"
            plan train-3b.toml "tp = 1" "pp = 1" "dp = 1" "micro_batch = 1" "global_batch = 4" 'recompute = "full"'
            plan train-8b.toml "tp = 1" "pp = 1" "dp = 1" "micro_batch = 1" "global_batch = 4" 'recompute = "selective"'
            plan train-moe.toml "tp = 1" "pp = 1" "dp = 1" "micro_batch = 1" "global_batch = 4"
            execute train-1b "$out/1b.json" "$one" train-1b.toml
            execute train-3b "$out/3b.json" "$three" train-3b.toml
            execute train-8b-slice "$out/8b-slice.json" "$eight" train-8b.toml
            execute train-moe "$out/moe.json" "$mixture" train-moe.toml
            ;;
        shard)
            if [ "$device" = cpu ]; then
                plan shard.toml "tp = 2" "pp = 2" "dp = 1" "micro_batch = 1" "global_batch = 8"
                config shard 64 4 4 2 128 256 false
                "$PSIM" calibrate --device cpu --minutes 0.05 --ranks 4 --out "$out/wide.toml" > /dev/null 2>&1
                here=$out/wide.cluster.toml
                for rank in 0 3; do execute "shard-$rank" "$out/shard.json" 64 shard.toml --shard "$rank"; done
            else
                plan shard.toml "tp = 8" "pp = 8" "dp = 1" "micro_batch = 1" "global_batch = 16" 'recompute = "selective"'
                here=${part}x64
                # First stage, a middle one, the last with the output layer.
                for rank in 0 24 63; do execute "shard-$rank" llama3-70b 8192 shard.toml --shard "$rank"; done
            fi
            unset here
            ;;
        nccl)
            [ "$device" = cpu ] || { execute nccl "$out/1b.json" 4096 train-1b.toml --ranks nccl; }
            ;;
        loop)
            length=4096 batch=8
            [ "$device" != cpu ] || { length=64; batch=4; }
            # shellcheck disable=SC2046
            "$PSIM" plan --model "$out/1b.json" --cluster "$cluster" --seq-len "$length" --global-batch "$batch" \
                --execute-top 3 --device "$device" --steps 3 --residuals "$out/residuals.toml" $(profiles) \
                > "$out/loop.log" 2>&1 || failed "loop: $(tail -2 "$out/loop.log" | tr '\n' ' ')"
            tail -30 "$out/loop.log"
            ;;
        check)
            "$PSIM" calibrate --check "$profile" --device "$device" --points 24 > "$out/check.log" 2>&1 || failed "check: $(tail -1 "$out/check.log")"
            tail -4 "$out/check.log"
            ;;
        verdict)
            python3 "$out/verdict.py" "$out" 2>&1 | tee "$out/verdict.txt"
            # What the processor of a rehearsal reaches says nothing of a card.
            [ "$device" = cpu ] || ! grep -q '^missed' "$out/verdict.txt" || failed "verdict: $(grep -c '^missed' "$out/verdict.txt") figures are missed"
            ;;
        *) failed "no section $section" ;;
    esac
done
[ "$device" = cpu ] || nvidia-smi --query-gpu=name,driver_version,clocks.sm,clocks.mem,power.draw,temperature.gpu,clocks_throttle_reasons.active --format=csv >> "$out/machine.txt" 2>&1
echo
cat "$out/summary.txt"
tar -C "$(dirname "$out")" -czf "$out.tgz" "$(basename "$out")" 2>/dev/null
exit $status
