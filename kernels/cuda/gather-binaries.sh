#!/bin/bash
# Builds what check-on-gpu.sh runs and puts it, stripped, into a folder that can be carried to a machine with a GPU.
# Prints the variables that the script wants. No CUDA is needed.
set -euo pipefail
to=${1:?a folder for the binaries}
mkdir -p "$to"
cargo=${CARGO:-cargo}
$cargo build -q --release -p psim --bin psim
folder=$($cargo metadata --format-version 1 --no-deps | python3 -c 'import json, sys; print(json.load(sys.stdin)["target_directory"])')
strip -o "$to/psim" "$folder/release/psim"
echo "PSIM=$to/psim"
# The program itself says where a test binary lies.
test_binary() { # variable, package, arguments of cargo test
    local variable=$1 package=$2
    shift 2
    local path
    path=$($cargo test -q -p "$package" "$@" --no-run --message-format=json 2>/dev/null |
        python3 -c 'import json, sys
for line in sys.stdin:
    d = json.loads(line)
    if d.get("profile", {}).get("test") and d.get("executable"): print(d["executable"])' | tail -1)
    strip -o "$to/$variable" "$path"
    echo "$variable=$to/$variable"
}
test_binary KERNELS psim-kernels --lib
test_binary CONFORMANCE psim-kernels --test conformance
test_binary RATES psim-kernels --test gpu_rates
test_binary NUMERICS psim-executor --test numerics
