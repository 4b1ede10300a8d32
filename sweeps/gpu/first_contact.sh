#!/usr/bin/env bash
# The first minutes on a GPU, unattended. Four steps, in this order:
#
#   memory   the memory that a training step of each block needs: predicted, and measured
#   check    each block on this device against its reference
#   bench    speeds, as ratios
#   sweep    first_contact.yaml: does memory separate on Memory Maze?
#
#     sweeps/gpu/first_contact.sh OUT [DEVICE [OPTION OF THE SWEEP...]]
#
# OUT is a folder, DEVICE is cuda (default) or cpu, and an option of the sweep is such as `--set run.training.steps=100`.
# A step's output goes to OUT/STEP.txt, its figures to folders beside it. A step that fails, or that takes longer than
# LIMIT, does not stop those after it. The last lines are a table; the exit status is 1 if a step has failed.
#
# Environment: STEPS="memory check" runs only these; LIMIT, of a step (20m); RAD_BENCH, the command where `rad-bench` is
# not on the PATH ("python3 -m rad_bench").
set -u
out=${1:?"usage: $0 OUT [DEVICE [OPTION OF THE SWEEP...]]"} device=${2:-cuda}
shift $(($# > 1 ? 2 : 1))
sweep=$(dirname "$0")/first_contact.yaml
read -ra program <<<"${RAD_BENCH:-rad-bench}"
mkdir -p "$out" || exit
failed=0 table=$(printf '%-8s %6s %8s  %s' step status seconds output)

step() { # NAME ARGUMENT...: run the program with these arguments, and add a row to the table
    local name=$1 began=$SECONDS status
    shift
    [[ " ${STEPS:-memory check bench sweep} " == *" $name "* ]] || return
    echo "$name: ${program[*]} $*"
    timeout "${LIMIT:-20m}" "${program[@]}" "$@" >"$out/$name.txt" 2>&1
    status=$?
    ((status == 0)) || failed=1
    table+=$(printf '\n%-8s %6d %8d  %s' "$name" "$status" $((SECONDS - began)) "$out/$name.txt")
}

step memory bench memory --device "$device" --out "$out/bench"
step check check --device "$device" --out "$out/check"
step bench bench --device "$device" --out "$out/bench"
step sweep sweep "$sweep" --out "$out" --set "launch.device=$device" "$@"
echo "$table"
exit $failed
