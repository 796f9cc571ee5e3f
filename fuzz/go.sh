#!/usr/bin/env bash
# usage: go.sh SECONDS JOBS [TARGET...]
#
# Runs the fuzz targets (all, unless some are named) as JOBS processes at a time, each for SECONDS, every target on a fresh copy of its
# corpus. If there are more jobs than targets, the first ones get several processes. Prints executions, coverage and findings per target, and
# leaves the inputs that fail in $OUT (`out` beside this script unless set). Exits with 1 if there are any.
#
# Expects `TARGET` (built by `build.sh`) and `corpus/TARGET` in the directory of this script, or in $BIN and $CORPUS.
set -euo pipefail
(($# >= 2)) || { sed -n '2,8s/^# \{0,1\}//p' "$0"; exit 2; }
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
seconds=$1 jobs=$2
shift 2
export BIN=${BIN:-$here} CORPUS=${CORPUS:-$here/corpus} OUT=${OUT:-$here/out}
mkdir -p "$OUT"
OUT=$(cd "$OUT" && pwd)
# The slower ones first: they get the cores that are left over.
targets=("$@")
((${#targets[@]})) || targets=(torch_file hdf5 directory archive pickle map bundle condition index manifest header names)
# The files of `directory` and `archive` are written for every input.
WORK=$(mktemp -d "$([[ -w /dev/shm ]] && echo /dev/shm || echo "${TMPDIR:-/tmp}")/fuzz.XXXXXX")
export WORK SECONDS_EACH=$seconds
trap 'rm -rf "$WORK"' EXIT

longest() { # The longest input: a few times the seeds.
    case $1 in
        hdf5) echo 65536 ;;
        torch_file | archive | bundle) echo 16384 ;;
        condition) echo 4200 ;;
        *) echo 8192 ;;
    esac
}

# Runs one process of a target until the time is over; after a finding it goes on.
one() {
    local target=${1%.*} number=${1#*.} end=$((SECONDS + SECONDS_EACH)) begin left
    mkdir -p "$WORK/$target" "$WORK/tmp.$1"
    cp -n "$CORPUS/$target"/* "$WORK/$target/"
    # Memory that is asked for and not used does not count as used: an address space shows that, too.
    [[ -n ${ASAN:-} ]] || ulimit -v 4000000
    while left=$((end - SECONDS)) && ((left > 0)); do
        begin=$SECONDS
        TMPDIR="$WORK/tmp.$1" "$BIN/$target" "$WORK/$target" -max_total_time="$left" -rss_limit_mb="${RSS:-512}" -timeout=10 -reload=5 \
            -max_len="$(longest "$target")" -artifact_prefix="$OUT/$target-" -print_final_stats=1 \
            >>"$WORK/log.$1" 2>&1 && break
        # What ends at once would fill the directory.
        ((SECONDS > begin)) || sleep 1
    done
}
export -f one longest

# The jobs are dealt out to the targets in turn.
processes=$((jobs > ${#targets[@]} ? jobs : ${#targets[@]}))
for ((n = 0; n < processes; n++)); do
    echo "${targets[n % ${#targets[@]}]}.$((n / ${#targets[@]}))"
done | xargs -P "$jobs" -I{} bash -c 'one {}'

printf '%-12s %14s %10s %9s %9s %9s\n' TARGET EXECUTIONS PER_SECOND EDGES CORPUS FINDINGS
sum=0 failed=0
for target in "${targets[@]}"; do
    executions=$(cat "$WORK"/log."$target".* | awk '/stat::number_of_executed_units/ {sum += $2} END {print sum + 0}')
    rate=$(cat "$WORK"/log."$target".* | awk '/stat::average_exec_per_sec/ {if ($2 > most) most = $2} END {print most + 0}')
    edges=$(cat "$WORK"/log."$target".* | grep -o 'cov: [0-9]*' | awk '{if ($2 > most) most = $2} END {print most + 0}')
    found=$(find "$OUT" -maxdepth 1 \( -name "$target-crash-*" -o -name "$target-oom-*" -o -name "$target-timeout-*" \) | wc -l)
    printf '%-12s %14d %10d %9d %9d %9d\n' "$target" "$executions" "$rate" "$edges" "$(find "$WORK/$target" -type f | wc -l)" "$found"
    sum=$((sum + executions)) failed=$((failed + found))
    cat "$WORK"/log."$target".* >"$OUT/$target.log"
    rm -rf "${OUT:?}/corpus-$target"
    cp -r "$WORK/$target" "$OUT/corpus-$target"
done
printf '%-12s %14d %40d\n' all "$sum" "$failed"
((failed == 0))
