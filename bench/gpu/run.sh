#!/bin/sh
# Checks, measures and profiles the decode kernels on this machine's GPU and writes one JSON.
#   bench/gpu/run.sh OUT.json [LAB]        from the repository root; LAB is the program that README.md says how to build
set -e
out=$1 lab=${2:-build/gpu_lab} here=$(dirname "$0") work=$(mktemp -d)
"$lab" check "${CHECKS:-200}" "$(date +%s)" | tee "$work/check.json"
"$lab" mma > "$work/mma.json"
# shellcheck disable=SC2086
python3 "$here/cases.py" ${SETS:-main plain_launch readers mixed rows formats others} > "$work/cases"
"$lab" time "$work/cases" > "$work/time.json"
if command -v ncu > /dev/null; then
  i=0
  for case in "m=1 n=28672 k=4096 bits=4" "m=16 n=28672 k=4096 bits=4" "m=1 n=57344 k=8192 bits=2 group=64"; do
    i=$((i + 1))
    # shellcheck disable=SC2086
    ncu --clock-control none -k regex:decode_kernel -s 1 -c 1 --set full --page raw "$lab" once $case > "$work/profile_$i.txt" 2>&1 || true
    echo "case $case" >> "$work/profile_$i.txt"
  done
fi
python3 "$here/collect.py" "$work" "$out" "$0 $*"
