#!/usr/bin/env bash
# Everything that wants a GPU, in one go and without a network: the build, the whole test suite with
# the GPU's tests, compute-sanitizer over the kernels' tests, the benchmarks. Each part has its own
# time limit and does not stop those after it; all of them together take at most ten minutes.
#
#     bench/gpu_check.sh              every part
#     bench/gpu_check.sh build tests  these
#
# PYTHON (python3) must have NumPy, SciPy, pybind11, scikit-build-core, CMake, pytest and
# pytest-benchmark; what else the tests use is skipped where it is missing. OUT (bench/results/gpu)
# gets check.log, summary.json, and the records of pytest: tests.xml, benchmarks.json.
# SECONDS_IN_ALL (580) limits the whole.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 2

python=${PYTHON:-python3}
out=${OUT:-bench/results/gpu}
seconds_in_all=${SECONDS_IN_ALL:-580}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$out"
out=$(cd "$out" && pwd)
log=$out/check.log
: >"$log"
export PYTHONPATH="$work/site${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 OPENBLAS_NUM_THREADS=1
export XDG_CACHE_HOME=$work/cache
export PATH=$PATH:/usr/local/cuda/bin # nvcc and compute-sanitizer, where CUDA's installer puts them

has_gpu() { command -v nvidia-smi >/dev/null && nvidia-smi -L 2>/dev/null | grep -q '^GPU'; }

# -- parts: what each runs, in a shell of its own --------------------------------------------------

part_machine() {
  uname -srm
  if has_gpu; then nvidia-smi; else echo 'no CUDA device'; fi
  if command -v nvcc; then nvcc --version; else echo 'no nvcc'; fi
  "$python" --version
  "$python" -m pip list --disable-pip-version-check 2>/dev/null |
    grep -iE '^(numpy|scipy|torch|cupy|onnxruntime|tokenizers|pybind11|scikit|pytest|cmake|ninja)'
}

# For this GPU alone; every other architecture is .ci/run's to compile, and warnings, which another
# compiler may have more of, are its to refuse.
part_build() {
  local cuda=OFF architecture=90
  if command -v nvcc >/dev/null; then cuda=ON; else echo 'no nvcc: without CUDA'; fi
  if has_gpu; then
    architecture=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | head -n 1 | tr -d .)
  fi
  "$python" -m pip install --quiet --no-index --no-deps --no-build-isolation --no-compile \
    --disable-pip-version-check --target "$work/site" -C "build-dir=$work/build" \
    -C "cmake.define.CEXNN_CUDA=$cuda" \
    -C "cmake.define.CEXNN_CUDA_ARCHITECTURES=$architecture" . &&
    "$python" -c "from cexnn import _core; print('CUDA device:', _core.cuda_available())" &&
    { ! has_gpu || "$python" -c 'from cexnn import _core; exit(not _core.cuda_available())'; }
}

with_pytest() { "$python" -m pytest -p no:cacheprovider -q "$@"; }

part_tests() {
  local workers=()
  if "$python" -c 'import xdist' 2>/dev/null; then workers=(-n 8); fi
  with_pytest "${workers[@]}" --junitxml="$out/tests.xml"
}

# The kernels' own tests, under one of compute-sanitizer's tools.
sanitize() {
  compute-sanitizer --tool "$1" --error-exitcode 99 --target-processes all --print-limit 20 \
    "${@:2}" "$python" -m pytest -p no:cacheprovider -q -k cuda \
    tests/test_core.py tests/test_ridge.py tests/test_als.py tests/test_pack.py \
    tests/test_cuda_rounds.py tests/test_conjugate_gradients.py \
    tests/test_device_array.py tests/test_device_session.py tests/test_cross_encoder_device.py
}
part_memcheck() { sanitize memcheck; }
part_racecheck() { sanitize racecheck; }
part_synccheck() { sanitize synccheck; }
part_initcheck() { sanitize initcheck; }

part_benchmarks() {
  with_pytest bench -k cuda --benchmark-only --benchmark-quiet \
    --benchmark-json="$out/benchmarks.json"
}

# -- the run --------------------------------------------------------------------------------------

# part, its limit in seconds, what it cannot do without
parts='machine 20 -
build 150 -
tests 150 -
memcheck 60 compute-sanitizer
racecheck 60 compute-sanitizer
synccheck 40 compute-sanitizer
initcheck 40 compute-sanitizer
benchmarks 150 gpu'

why_not() { # PART NEED: prints why the part cannot run; nothing if it can
  case $2 in
  -) ;;
  *)
    if ! has_gpu; then
      echo 'no CUDA device'
    elif [ "$2" != gpu ] && ! command -v "$2" >/dev/null; then
      echo "no $2"
    fi
    ;;
  esac
  if [ "$1" != machine ] && [ "$1" != build ] && [ ! -d "$work/site/cexnn" ]; then
    echo 'not built'
  fi
}

status_of() { # EXIT STATUS
  case $1 in
  0) echo passed ;;
  5) echo 'nothing to run' ;; # pytest: no test was selected
  124 | 137) echo 'timed out' ;;
  *) echo "failed ($1)" ;;
  esac
}

export -f has_gpu with_pytest sanitize part_machine part_build part_tests part_memcheck \
  part_racecheck part_synccheck part_initcheck part_benchmarks
export python out work

names=() statuses=() seconds=()
n_bad=0
while read -r part limit need; do
  if [ $# -gt 0 ] && [[ " $* build " != *" $part "* ]]; then continue; fi # the rest needs a build
  printf '\n=== %s\n' "$part" | tee -a "$log"
  began=$SECONDS
  left=$((seconds_in_all - SECONDS))
  status=$(why_not "$part" "$need" | head -n 1)
  if [ -z "$status" ] && [ "$left" -le 5 ]; then status='no time left'; fi
  if [ -z "$status" ]; then
    size=$(wc -c <"$log")
    timeout --kill-after=5 "$((limit < left ? limit : left))" bash -c "part_$part" \
      >>"$log" 2>&1 </dev/null
    status=$(status_of $?)
    tail -c "+$((size + 1))" "$log" | tail -n "$([ "$status" = passed ] && echo 15 || echo 40)"
  fi
  echo "$status" | tee -a "$log"
  case $status in failed* | 'timed out' | 'no time left' | 'not built') n_bad=$((n_bad + 1)) ;; esac
  names+=("$part") statuses+=("$status") seconds+=("$((SECONDS - began))")
done <<<"$parts"

gpu=$(has_gpu && nvidia-smi --query-gpu=name,driver_version --format=csv,noheader | head -n 1)
commit=$(git rev-parse HEAD 2>/dev/null || echo unknown)
{
  printf '{\n  "commit": "%s",\n  "gpu": "%s",\n  "parts": [' "$commit" "${gpu:-none}"
  for i in "${!names[@]}"; do
    printf '%s\n    {"part": "%s", "status": "%s", "seconds": %d}' \
      "$([ "$i" -gt 0 ] && echo ,)" "${names[i]}" "${statuses[i]}" "${seconds[i]}"
  done
  printf '\n  ]\n}\n'
} >"$out/summary.json"

printf '\n%-12s %-18s %8s\n' part status seconds
for i in "${!names[@]}"; do
  printf '%-12s %-18s %8d\n' "${names[i]}" "${statuses[i]}" "${seconds[i]}"
done
[ "$n_bad" -eq 0 ]
