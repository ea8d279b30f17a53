#!/usr/bin/env bash
# Everything that wants a GPU, in one go and without a network: the build, the CUDA tests, the
# kernels' under compute-sanitizer, the benchmarks, and the other tests. Each part has its own time
# limit and does not stop those after it, and so has each file of tests or benchmarks: a kernel that
# hangs costs that file alone. All of them together take at most ten minutes; what matters most
# comes first.
#
#     bench/gpu_check.sh              every part
#     bench/gpu_check.sh build cuda   these
#
# PYTHON (python3) must have NumPy, SciPy, pybind11, scikit-build-core, CMake, pytest and
# pytest-benchmark; what else the tests use is skipped where it is missing. OUT (bench/results/gpu)
# gets check.log, summary.json, and the records of pytest: tests.xml, benchmarks.json.
# SECONDS_IN_ALL (580) limits the whole. What is built stays in build/gpu_check, for the next run.
# CEXNN_CUDA says how the kernels are built: ON where there is nvcc.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 2

python=${PYTHON:-python3}
out=${OUT:-bench/results/gpu}
seconds_in_all=${SECONDS_IN_ALL:-580}
built=$PWD/build/gpu_check
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$out" "$built"
out=$(cd "$out" && pwd)
log=$out/check.log
: >"$log"
export PYTHONPATH="$built/site${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 OPENBLAS_NUM_THREADS=1
export XDG_CACHE_HOME=$work/cache
export PATH=$PATH:/usr/local/cuda/bin:/usr/local/cuda/compute-sanitizer # CUDA's installer's places

has_gpu() { command -v nvidia-smi >/dev/null && nvidia-smi -L 2>/dev/null | grep -q '^GPU'; }

# -- files, each with its own limit -----------------------------------------------------------------

# FOLDER SECONDS FILE COMMAND...: what the command says of the file, and its exit status, as files of
# the folder. Never longer than the part has.
one_file() {
  local at=$1/$(basename "$3" .py) limit=$2 file=$3 left=$((part_ends - $(date +%s)))
  shift 3
  if [ "$left" -le 3 ]; then
    echo "$file: no time left" >"$at.log"
    echo 124 >"$at.status"
    return
  fi
  RECORD=$at timeout --kill-after=5 "$((limit < left ? limit : left))" \
    bash -c '"$@"' _ "$@" "$file" >"$at.log" 2>&1 </dev/null
  echo $? >"$at.status"
}

# SECONDS AT_ONCE NAME COMMAND...: the command on each file of the standard input, so many at once;
# then what was said: the ends of what passed, and all of what did not.
each_file() {
  local limit=$1 at_once=$2 folder=$work/$3 status file bad=0 passed=0
  shift 3
  mkdir -p "$folder"
  xargs -P "$at_once" -I{} bash -c 'one_file "$@"' _ "$folder" "$limit" {} "$@"
  for file in "$folder"/*.status; do
    status=$(<"$file")
    case $status in
    0 | 5) # 5: no test was selected
      [ "$status" -eq 5 ] || passed=$((passed + 1))
      printf -- '--- %s: %s\n' "$(basename "$file" .status)" "$(tail -n 1 "${file%.status}.log")"
      ;;
    esac
  done
  for file in "$folder"/*.status; do
    status=$(<"$file")
    case $status in 0 | 5) continue ;; esac
    bad=$((bad + 1))
    printf '\n--- %s: %s\n' "$(basename "$file" .status)" "$(status_of "$status")"
    head -n 300 "${file%.status}.log"
  done
  if [ "$bad" -gt 0 ]; then return 1; fi
  if [ "$passed" -eq 0 ]; then return 5; fi
}

# No plugin but those named, and no warning is an error: the packages here may be newer than ours.
with_pytest() {
  PYTEST_DISABLE_PLUGIN_AUTOLOAD=1 "$python" -m pytest -p no:cacheprovider -W default --tb=short \
    -o faulthandler_timeout=40 "$@"
}
pytest_file() { with_pytest -v --durations=3 --junitxml="$RECORD.xml" "$@"; }
bench_file() {
  with_pytest -q -p pytest_benchmark.plugin -k cuda --benchmark-only --benchmark-quiet \
    --benchmark-json="$RECORD.json" "$@"
}
sanitize_file() { # TOOL FILE: -v, so that each error stands below its test
  PYTEST_DISABLE_PLUGIN_AUTOLOAD=1 compute-sanitizer --tool "$1" --error-exitcode 99 \
    --target-processes all --print-limit 20 "$python" -m pytest -p no:cacheprovider -W default \
    --tb=short -v -k cuda "$2"
}

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
  "$python" -m pip install --quiet --no-index --no-deps --no-build-isolation --no-compile --upgrade \
    --disable-pip-version-check --target "$built/site" -C "build-dir=$built/cmake" \
    -C "cmake.define.CEXNN_CUDA=${CEXNN_CUDA:-$cuda}" \
    -C "cmake.define.CEXNN_CUDA_ARCHITECTURES=$architecture" . &&
    "$python" -c "from cexnn import _core; print('CUDA device:', _core.cuda_available())" &&
    { ! has_gpu || "$python" -c 'from cexnn import _core; exit(not _core.cuda_available())'; }
}

cuda_files() { grep -lwE 'cuda|device' tests/test_*.py; }
part_cuda() { cuda_files | each_file 100 8 cuda pytest_file -k cuda; }
part_rest() { printf '%s\n' tests/test_*.py | each_file 110 8 rest pytest_file -k 'not cuda'; }

# The kernels' own tests, under one of compute-sanitizer's tools.
sanitize() {
  printf 'tests/test_%s.py\n' core ridge als pack pair_order cuda_rounds conjugate_gradients \
    device_array cuda_embeddings device_session stopping cross_encoder_device |
    each_file 100 12 "$1" sanitize_file "$1"
}
part_memcheck() { sanitize memcheck; }
part_racecheck() { sanitize racecheck; }
part_synccheck() { sanitize synccheck; }
part_initcheck() { sanitize initcheck; }

part_benchmarks() { # one at a time
  printf 'bench/bench_%s.py\n' topk round als_cuda search_cuda cross_encoder sentence_transformers |
    each_file 80 1 benchmarks bench_file
}

# -- the run --------------------------------------------------------------------------------------

# part, its limit in seconds, what it cannot do without
parts='machine 20 -
build 150 -
cuda 100 gpu
benchmarks 170 gpu
memcheck 60 compute-sanitizer
racecheck 60 compute-sanitizer
synccheck 40 compute-sanitizer
initcheck 40 compute-sanitizer
rest 120 -'

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
  if [ "$1" != machine ] && [ "$1" != build ] && [ ! -f "$work/built" ]; then
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

while read -r name; do export -f "${name?}"; done < <(compgen -A function)
export python out built work

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
    limit=$((limit < left ? limit : left))
    part_ends=$(($(date +%s) + limit - 7)) timeout --kill-after=5 "$limit" \
      bash -c "part_$part" >>"$log" 2>&1 </dev/null
    code=$?
    status=$(status_of "$code")
    if [ "$part" = build ] && [ "$code" -eq 0 ]; then touch "$work/built"; fi
    tail -c "+$((size + 1))" "$log" | tail -n "$([ "$status" = passed ] && echo 15 || echo 60)"
  fi
  echo "$status" | tee -a "$log"
  case $status in failed* | 'timed out' | 'no time left' | 'not built') n_bad=$((n_bad + 1)) ;; esac
  names+=("$part") statuses+=("$status") seconds+=("$((SECONDS - began))")
done <<<"$parts"

# What the files' records hold, in one file of each kind.
"$python" - "$work" "$out" <<'END'
import json
import pathlib
import sys
import xml.etree.ElementTree as xml

work, out = map(pathlib.Path, sys.argv[1:])
suites = xml.Element("testsuites")
for file in sorted(work.glob("*/*.xml")):
    for suite in xml.parse(file).getroot():
        suite.set("name", f"{file.parent.name}/{file.stem}")
        suites.append(suite)
if len(suites):
    xml.ElementTree(suites).write(out / "tests.xml")
record = None
for file in sorted(work.glob("benchmarks/*.json")):
    if file.stat().st_size == 0:  # none was selected, or it was ended before
        continue
    found = json.loads(file.read_text())
    if record is None:
        record = found
    else:
        record["benchmarks"] += found["benchmarks"]
if record is not None:
    (out / "benchmarks.json").write_text(json.dumps(record, indent=1))
END

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
