#!/bin/sh
# Checks, sanitizes, measures and profiles the decode kernels on this machine's GPU and writes one JSON.
#   bench/gpu/run.sh OUT.json [quick|full] [LAB]     from the repository root; LAB is the program that README.md says how
#                                                    to build. quick: under 4 minutes, full (as given without): under 9
# Exit code 1 if an answer is wrong or a check does not finish; the rest is measured all the same. Where
# compute-sanitizer or ncu is not found, its part is left out.
set -e
command="$0 $*"
out=$1 size=${2:-full} lab=${3:-build/gpu_lab} here=$(dirname "$0") work=$(mktemp -d)
seed=$(date +%s)
case $size in
  quick) draws=200 sets="main plain_launch chain formats" ;;
  full) draws=1000 sets="main group64 bf16 plain_launch chain formats tokens others steps rows readers mixed" ;;
  *) echo "expected quick or full, found $size" >&2; exit 2 ;;
esac
step() { echo "$(date +%T) $*" >&2; }

status=0
# check NAME SECONDS ARGUMENT...: `lab ARGUMENT...`
check() {
  name=$1 seconds=$2
  shift 2
  step "$name: lab $*"
  timeout "$seconds" "$lab" "$@" > "$work/$name.json" 2> "$work/$name.err" || { echo "exit code $?" >> "$work/$name.err"; status=1; }
  cat "$work/$name.json" "$work/$name.err" >&2
}
check check 120 check "$draws" "$seed"
if [ "$size" = full ]; then
  check check_shapes 90 shapes
  check check_a6000_plans 60 check 100 "$seed" card=A6000
  # The kernels for cards before Hopper, which the driver compiles first.
  export CUDA_FORCE_PTX_JIT=1
  check check_target_80 120 check 100 "$seed"
  unset CUDA_FORCE_PTX_JIT
fi

# All tools at once: what they cost is the host's time. A tool that takes longer is reported as not finished.
if command -v compute-sanitizer > /dev/null; then
  step "sanitizers: every kernel"
  for tool in memcheck racecheck initcheck synccheck; do
    for part in 1/2 2/2; do
      file=$work/sanitizer_${tool}_${part%/*}.txt
      { timeout 100 compute-sanitizer --tool "$tool" "$lab" instances "$part" > "$file" 2>&1 || echo "exit code $?" >> "$file"; } &
    done
  done
  wait
  for file in "$work"/sanitizer_*; do
    grep -q 'SUMMARY: 0 ' "$file" || status=1
  done
fi

step "times: $sets"
# shellcheck disable=SC2086
python3 "$here/cases.py" $sets > "$work/cases"
"$lab" mma > "$work/mma.json"
"$lab" time "$work/cases" > "$work/time.json"

if command -v ncu > /dev/null; then
  step "profiles"
  i=0
  for case in "m=1 n=28672 k=4096 bits=4" "m=16 n=28672 k=4096 bits=4" "m=64 n=28672 k=4096 bits=4" "m=1 n=57344 k=8192 bits=2 group=64"; do
    i=$((i + 1))
    # shellcheck disable=SC2086
    timeout 60 ncu --clock-control none -k regex:decode -s 1 -c 1 --set full --page raw "$lab" once $case > "$work/profile_$i.txt" 2>&1 || true
    echo "case $case" >> "$work/profile_$i.txt"
  done
fi
python3 "$here/collect.py" "$work" "$out" "$command"
step "done: $out"
exit $status
