#!/usr/bin/env bash
# Everything that a GPU may break, and how fast it is there: one table, in at most eight minutes.
#     bash benchmarks/gpu.sh CIFAR [WHEELS]        CIFAR-10 as JPEGs, train/<class>/* and test/<class>/*: a folder or a tar
#     bash benchmarks/gpu.sh --cpu                 the same parts on a CPU with the digits, in about two minutes
# Hardware: one CUDA GPU, with torch, torchvision, lightning, torchmetrics, tensorboard, timm and onnx. What else is
# missing (jsonargparse, typeshed-client, pytest, hypothesis...) is installed from the folder WHEELS, without a network.
# Each part has its own time limit, and one that fails does not end the others. The variable OUT may name a folder for
# the table and for what each part said.
# Without a GPU, --cpu is assumed. The exit code is the number of parts that failed.
set -u
[ -e "${1:-}" ] && set -- "$(realpath "$1")" "${@:2}"  # before the folder changes
[ -e "${2:-}" ] && set -- "$1" "$(realpath "$2")"
cd "$(dirname "$0")/.."
python=${PYTHON:-python3} work=$(mktemp -d) left=470 failed=0 small="" rows=""
export OUT=${OUT:-$work/out} PYTHONPATH="$work/site:$PWD" PYTHONUNBUFFERED=1 XDG_CACHE_HOME="$work/cache"
export CUBLAS_WORKSPACE_CONFIG=:4096:8  # products of matrices are then equal from run to run, which `resume` needs
mkdir -p "$OUT"
trap 'rm -rf "$work"' EXIT

part() {  # name, seconds, command...
    local name=$1 limit=$2 start=$SECONDS code said
    shift 2
    [ $limit -gt $((left - SECONDS)) ] && limit=$((left - SECONDS))
    if [ $limit -le 0 ]; then code=124; else timeout -k 5 $limit "$@" >"$OUT/$name.log" 2>&1; code=$?; fi
    said=$(grep -s '^result: ' "$OUT/$name.log" | tail -n 1 | cut -c 9-)
    case $code in
        0) state=ok ;;
        124 | 137) state="too slow" said=${said:-"stopped after $limit s"} ;;
        *) state=failed said=${said:-$(tail -n 1 "$OUT/$name.log")} ;;
    esac
    [ $code -eq 0 ] || failed=$((failed + 1))
    rows+="| $name | $state | $((SECONDS - start)) | $said |"$'\n'
    echo "$name: $state, $((SECONDS - start)) s: $said"
}

if [ -n "${2:-}" ]; then
    part wheels 60 "$python" -m pip install --quiet --no-index --no-deps --target "$work/site" "$2"/*.whl
fi
if [ "${1:---cpu}" = --cpu ] || ! "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    export CUDA_VISIBLE_DEVICES=""
    small=--small
fi
part machine 60 "$python" -c 'from benchmarks.measure import machine; print("result:", machine()["gflops"])'
images=()
[ -n "$small" ] || images=(--images "$1")
part images 60 "$python" -m benchmarks.gpu images "$work" $small "${images[@]}"
for each in recipe:200 tests:60 resume:75 precision:75 lr_find:40 batch_find:75 compiled:90 export:75; do
    part ${each%:*} ${each#*:} "$python" -m benchmarks.gpu ${each%:*} "$work" $small
done
printf '\n| part | | seconds | result |\n|---|---|---:|---|\n%s\n%d s in all\n' "$rows" "$SECONDS" | tee "$OUT/table.md"
exit $failed
