# For the scripts beside it: `step NAME COMMAND..` runs and counts, `finish` says how it went.
#
# `begin NAME COMMAND..` starts a step beside what follows, `end NAME` waits for it and prints what it said.
#
# A step that reports counts of its own (cargo's `test result:`, or `N passed, N failed`) counts as so many; any other
# as one. Scripts that one of them starts add to the same counts, and only the first prints them. A step that fails ends
# nothing: the rest is worth knowing.

repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
shared=${ORLOP_SHARED:-$(dirname "$repo")/shared}
stock=${ORLOP_STOCK:-$HOME/.cache/orlop-stock}
tools=${ORLOP_TOOLS:-$HOME/.cache/orlop-tools}
target=${CARGO_TARGET_DIR:-$repo/target}
# One profile for all that CI builds and starts: see Cargo.toml.
profile=ci
# Flags of a member as production has it: several serving cores, raft and apply on a thread each. CPUs are shared: order
# and ownership are tested.
several_cores="--server-cores 4 --server-raft-apply two-threads"

# How much of what a failed step said is said once more at the end of all, where it is not far above the rest.
failed_lines=40

# How long a step may take, from its start: one that hangs fails, and those behind it still run.
step_seconds_max=2700

if [[ -z ${ORLOP_STEPS:-} ]]; then
    ORLOP_STEPS=$(mktemp -d)
    export ORLOP_STEPS
    : >"$ORLOP_STEPS/counts"
    : >"$ORLOP_STEPS/failed"
    : >"$ORLOP_STEPS/failed_ends"
    steps_are_mine=yes
else
    steps_are_mine=
fi

# need PROGRAM WHY: names what is missing, and that it cannot be done without.
need() {
    command -v "$1" >/dev/null && return
    echo "missing: $1 ($2)" >&2
    return 1
}

# judge NAME LOG STATUS STARTED: counts what a step printed into LOG, and says how it went.
judge() {
    local name=$1 log=$2 status=$3 started=$4 passed failed
    read -r passed failed < <(awk '
        /^test result: / {
            for (i = 2; i <= NF; i++) { if ($i ~ /^passed/) p += $(i-1); if ($i ~ /^failed/) f += $(i-1) }
        }
        /^[0-9]+ passed, [0-9]+ failed$/ { p += $1; f += $3 }
        END { print p + 0, f + 0 }' "$log")
    if [[ $status -eq 0 && $((passed + failed)) -eq 0 ]]; then
        passed=1
    elif [[ $status -ne 0 && $failed -eq 0 ]]; then
        failed=1
    fi
    echo "$passed $failed" >>"$ORLOP_STEPS/counts"
    if [[ $status -eq 0 && $failed -eq 0 ]]; then
        echo "== ok: $name ($((SECONDS - started)) s)"
    else
        echo "== FAILED: $name ($((SECONDS - started)) s, status $status)"
        echo "$name" >>"$ORLOP_STEPS/failed"
        {
            echo "== $name, which failed, said at its end:"
            tail -n "$failed_lines" "$log"
        } >>"$ORLOP_STEPS/failed_ends"
    fi
}

declare -A began_pid began_at

# Ends a step that is over its time, with all that it started.
too_long() {
    echo "== $1 did not end within $step_seconds_max s"
    kill -TERM -- "-${began_pid[$1]}" 2>/dev/null || true
    sleep 5
    kill -KILL -- "-${began_pid[$1]}" 2>/dev/null || true
}

step() {
    local name=$1 log=$ORLOP_STEPS/log.$$ started=$SECONDS status=0
    shift
    echo
    echo "== $name"
    : >"$log" # there before tail looks for it
    set -m # a process group of its own, for stop_began
    ("$@") >"$log" 2>&1 </dev/null &
    local pid=$!
    set +m
    began_pid[$name]=$pid
    timeout "$step_seconds_max" tail -n +1 -f --pid="$pid" "$log" || too_long "$name"
    wait "$pid" || status=$?
    unset "began_pid[$name]"
    judge "$name" "$log" "$status" "$started"
    rm -f "$log"
}

# begin NAME COMMAND..: starts a step beside what follows; `end NAME` waits for it, and prints what it said.
begin() {
    local name=$1
    shift
    began_at[$name]=$SECONDS
    set -m # a process group of its own, for stop_began
    ("$@") >"$ORLOP_STEPS/beside.$name" 2>&1 </dev/null &
    began_pid[$name]=$!
    set +m
}
end() {
    local name=$1 status=0 log=$ORLOP_STEPS/beside.$1 pid=${began_pid[$1]} left
    left=$((began_at[$name] + step_seconds_max - SECONDS))
    echo
    echo "== $name (beside others)"
    timeout "$((left > 1 ? left : 1))" tail -f --pid="$pid" /dev/null || too_long "$name"
    wait "$pid" || status=$?
    unset "began_pid[$name]"
    cat "$log"
    judge "$name" "$log" "$status" "${began_at[$name]}"
    rm -f "$log"
}

# Stops what was begun and not ended, with all that it started: a script that is interrupted leaves nothing behind.
stop_began() {
    local pid
    for pid in "${began_pid[@]}"; do
        kill -TERM -- "-$pid" 2>/dev/null || true
    done
}
trap stop_began EXIT

# The counts of all steps; the status is 1 if any failed. A script that another one started leaves the printing to that
# one.
finish() {
    local status=0 passed failed
    [[ -s $ORLOP_STEPS/failed ]] && status=1
    if [[ -n $steps_are_mine ]]; then
        echo
        cat "$ORLOP_STEPS/failed_ends"
        sed 's/^/FAILED: /' "$ORLOP_STEPS/failed"
        read -r passed failed < <(awk '{ p += $1; f += $2 } END { print p + 0, f + 0 }' "$ORLOP_STEPS/counts")
        rm -rf "$ORLOP_STEPS"
        echo "$SECONDS s in all"
        echo "$passed passed, $failed failed"
    fi
    exit "$status"
}
