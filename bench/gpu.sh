#!/usr/bin/env bash
# All that a GPU is asked at once, in less than ten minutes: bench/gpu.sh FOLDER
# What ran and how it ended is in FOLDER/steps.tsv, what was measured in FOLDER/*.json; the tables of
# it come last. With SHAPE, BACKENDS and TESTS set it measures other things, on a CPU too:
#   SHAPE=stories260k BACKENDS="torch numpy" TESTS=tests/test_structure.py bench/gpu.sh FOLDER
set -uo pipefail

[[ $# == 1 ]] || { echo "usage: bench/gpu.sh FOLDER" >&2; exit 2; }
mkdir -p "$1" || exit 1
out=$(cd "$1" && pwd)
cd "$(dirname "$0")/.." || exit 1
export PYTHONPATH=$PWD LLAMA2GPU_NO_CHOSEN=1
python=${PYTHON:-python3}
shape=${SHAPE:-llama2-7b}
if [[ -z ${BACKENDS:-} ]]; then
    "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' || {
        echo "bench/gpu.sh: PyTorch sees no GPU here: set BACKENDS to measure without one" >&2
        exit 1
    }
fi
read -ra backends <<<"${BACKENDS:-triton cupy torch}"
read -ra tests <<<"${TESTS:-tests/kernels/test_on_gpu.py tests/ops tests/kernels}"

# step NAME SECONDS COMMAND...: stdout to NAME.json, stderr to NAME.log, at most so many seconds
step() {
    local name=$1 limit=$2 began=$SECONDS status
    shift 2
    timeout --kill-after=5 "$limit" "$python" -m "$@" >"$out/$name.json" 2>"$out/$name.log"
    status=$?
    [[ -s $out/$name.json ]] || rm -f "$out/$name.json"
    case $status in
        0) status=passed ;;
        124 | 137) status="stopped after $limit s" ;;
        *) status="failed ($status)" ;;
    esac
    printf '%s\t%s\t%s s\n' "$name" "$status" "$((SECONDS - began))" | tee -a "$out/steps.tsv"
}

rm -f "$out"/gpu-*.json  # of a run before, whose figures would stand in the tables
: >"$out/steps.tsv"
step doctor 30 llama2gpu doctor --json
step tests 160 pytest -q "${tests[@]}"
mv -f "$out/tests.json" "$out/tests.txt" 2>/dev/null
if [[ " ${backends[*]} " == *" triton "* ]]; then
    step tune 60 llama2gpu kernels tune --quick --shape "$shape" --weight int4 --tokens 1 --json
fi
names=$(IFS=,; echo "${backends[*]}")
step gpu-kernels 80 llama2gpu bench kernels --shape "$shape" --backend "$names" --tokens 1,16 \
    --op qkv,attention,project_add,gate_up,logits,rms_norm,silu_mul --json
decode=(llama2gpu bench decode --shape "$shape" --depth 128 --tokens 64 --repeats 3)
for backend in "${backends[@]}"; do
    quants=(--quant int4)
    [[ $backend == "${backends[0]}" ]] && quants=(--quant none --quant int8 --quant int4)
    step "decode-$backend" 50 "${decode[@]}" --backend "$backend" "${quants[@]}" \
        --output "$out/gpu-decode-$backend.json"
    rm -f "$out/decode-$backend.json"
done
step gpu-peers 80 bench.peers --shape "$shape" --backend "${backends[0]}" --quant int4 --json
echo
"$python" -m bench.report --show "$out"
