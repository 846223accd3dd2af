#!/bin/sh
# Checks, measures, sanitizes and profiles the CUDA kernels on this machine's GPU and writes one JSON.
#   bench/gpu/run.sh OUT.json [quick|full|matrix|checks|experiments] [LAB]
# from the repository root; LAB is the program that README.md says how to build.
#   quick        a few checks, decode's main cases and prefill's: under 4 minutes
#   full         (as given without) checks, then all cases of both families: under 9
#   matrix       a few checks, then every shape, number of tokens and format in fp16 and bf16: under 9
#   checks       every check, every kernel under the sanitizers, profiles: no times
#   experiments  plans that the library does not make here, ways of reading memory
# Exit code 1 if an answer is wrong, or a check or the times do not finish; the rest is measured all the same. Where
# compute-sanitizer or ncu is not found, its part is left out.
set -e
command="$0 $*"
out=$1 size=${2:-full} lab=${3:-build/gpu_lab} here=$(dirname "$0") work=$(mktemp -d)
seed=$(date +%s)
case $size in
  quick) draws=200 sets="main plain_launch chain formats prefill" ;;
  full)
    draws=400
    sets="main prefill prefill_tokens families plain_launch chain prefill_bf16 prefill_formats formats bf16"
    sets="$sets prefill_others tokens group64 others"
    ;;
  matrix) draws=100 sets="matrix_fp16 matrix_bf16" ;;
  checks) draws=1000 sets="" ;;
  experiments) draws=100 sets="steps rows readers mixed prefill_mma" ;;
  *) echo "expected quick, full, matrix, checks or experiments, found $size" >&2; exit 2 ;;
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
if [ "$size" = checks ]; then
  check check_shapes 150 shapes
  check check_a6000_plans 60 check 100 "$seed" card=A6000
  # The kernels for cards before Hopper, which the driver compiles first.
  export CUDA_FORCE_PTX_JIT=1
  check check_target_80 120 check 100 "$seed"
  unset CUDA_FORCE_PTX_JIT
fi

# All tools at once: what they cost is the host's time. A tool that takes longer is reported as not finished.
if [ "$size" = checks ] && command -v compute-sanitizer > /dev/null; then
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

if [ -n "$sets" ]; then
  step "times: $sets"
  # shellcheck disable=SC2086
  python3 "$here/cases.py" $sets > "$work/cases"
  "$lab" mma > "$work/mma.json"
  # What was measured until then is kept.
  timeout 480 "$lab" time "$work/cases" > "$work/time.json" || { step "times: exit code $?"; status=1; }
fi

if [ "$size" = checks ] && command -v ncu > /dev/null; then
  step "profiles"
  i=0
  for case in "m=1 n=28672 k=4096 bits=4" "m=16 n=28672 k=4096 bits=4" "m=1 n=57344 k=8192 bits=2 group=64" \
    "m=64 n=28672 k=4096 bits=4" "m=256 n=28672 k=4096 bits=4" "m=1024 n=28672 k=4096 bits=4"; do
    i=$((i + 1))
    # shellcheck disable=SC2086
    timeout 60 ncu --clock-control none -k "regex:decode|prefill" -s 1 -c 1 --set full --page raw "$lab" once $case > "$work/profile_$i.txt" 2>&1 || true
    echo "case $case" >> "$work/profile_$i.txt"
  done
fi
python3 "$here/collect.py" "$work" "$out" "$command"
step "done: $out"
exit $status
