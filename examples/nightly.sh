#!/usr/bin/env bash
#
# The job that a team schedules: train on the newest ratings, import, sync behind gates, clean up.
#
#     VENV=/srv/venv NIGHTLY_HOME=/srv/nightly examples/nightly.sh
#
# Kill it at any moment and start it again: what is live stays live, and the next run does the whole work.
# A step that outlives the script holds the lock until it ends. Cron line and systemd timer: README.md here.
#
# Settings, all by environment (those of embedstore, EMBEDSTORE_API_KEY_FILE and others, work as ever):
#   NIGHTLY_HOME       folder of the job: its lock, tonight's model, the list of its runs [./nightly]
#   VENV               virtual environment with embedstore, put in front of PATH, which is short in cron [none]
#   DATA               folder or file of ratings [$EMBEDSTORE_DATA/ml-100k]
#   FETCH_COMMAND      brings or refreshes DATA; `true` if others do [embedstore data fetch ml-100k]
#   TRAIN_COMMAND      trains on $DATA and leaves in $MODEL what `embedstore runs import` takes: V.npy, movies.csv
#                      and, if there is one, the tower: E.npy, tower.onnx, tower.keras or the SavedModel tower,
#                      with input.json if it needs one. Or seals a run itself, as `embedstore train` does
#                      [python two_tower.py --data "$DATA" --out "$MODEL" --files-only]
#   GATES              what must hold before the alias moves, see docs/gates.md
#                      [ndcg@100>=popularity overlap@10>=0.3]
#   KEEP               how many collections gc keeps [3]
#   EMBEDSTORE_RUNS    folder of runs [$NIGHTLY_HOME/runs]
#   EMBEDSTORE_STORE   folder or URL of the store [$NIGHTLY_HOME/store]
#
# Exit codes:
#   0   done: tonight's run is live
#   4   held back, by a gate or by the checks of the import; what was live is live
#   75  another night is still at work; nothing was done
#   1, 2, 3, 5, 130 and others: as of embedstore, see its README; what was live is live
#   10  FETCH_COMMAND or TRAIN_COMMAND failed

set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
export PATH=${VENV:+$VENV/bin:}${PATH:-/usr/local/bin:/usr/bin:/bin}
home=${NIGHTLY_HOME:-$PWD/nightly}
mkdir -p "$home"
home=$(cd "$home" && pwd)
export EMBEDSTORE_DATA=${EMBEDSTORE_DATA:-$home/data}
export EMBEDSTORE_RUNS=${EMBEDSTORE_RUNS:-$home/runs}
export EMBEDSTORE_STORE=${EMBEDSTORE_STORE:-$home/store}
export DATA=${DATA:-$EMBEDSTORE_DATA/ml-100k} MODEL=$home/model HERE=$here
fetch=${FETCH_COMMAND:-embedstore data fetch ml-100k}
# shellcheck disable=SC2016  # expanded by the shell that runs it
train=${TRAIN_COMMAND:-'python "$HERE/two_tower.py" --data "$DATA" --out "$MODEL" --files-only'}
ledger=$home/runs.txt # the runs that this job made: no other is ever removed

trap 'log "failed with $?: $BASH_COMMAND"' ERR

log() { printf '%(%Y-%m-%dT%H:%M:%S%z)T %s\n' -1 "$*" >&2; }

fail() { # CODE WORDS
  log "$2"
  exit "$1"
}

pick() { # EXPRESSION: print the items of a list made from the JSON d on standard input, one a line
  python -c 'import json, sys; d = json.load(sys.stdin); print(*eval(sys.argv[1]), sep="\n")' "$1"
}

newest() { # print the id of the newest sealed run, or nothing
  embedstore runs list --json | pick '[run["run_id"] for run in d if run["state"] == "sealed"][-1:]'
}

command -v embedstore >/dev/null || fail 2 "no embedstore in PATH ($PATH); set VENV to its virtual environment"
exec 9>"$home/lock" # inherited by every command below
flock --nonblock 9 || fail 75 "another night is still at work in $home"

log "fetching"
bash -c "$fetch" || fail 10 "fetching failed with $?: $fetch"

log "training on $DATA"
rm -rf "$MODEL"
mkdir "$MODEL"
before=$(newest)
bash -c "$train" || fail 10 "training failed with $?: $train"

if [[ -e $MODEL/V.npy ]]; then
  log "importing"
  options=(--vectors "$MODEL/V.npy" --movies "$MODEL/movies.csv" --ratings "$DATA")
  for tower in E.npy tower.onnx tower.keras tower; do
    [[ ! -e $MODEL/$tower ]] || options+=(--tower "$MODEL/$tower")
  done
  [[ ! -e $MODEL/input.json ]] || options+=(--input "$MODEL/input.json")
  embedstore runs import "${options[@]}" --json >"$MODEL/import.json"
  pick '[finding["text"] for finding in d["findings"]]' <"$MODEL/import.json"
  run=$(pick '[d["run_id"]]' <"$MODEL/import.json")
else
  run=$(newest)
  [[ $run != "$before" ]] || fail 10 "training left neither $MODEL/V.npy nor a new run in $EMBEDSTORE_RUNS"
fi
printf '%s\n' "$run" >>"$ledger"

log "run $run: syncing"
read -ra wanted <<<"${GATES-ndcg@100>=popularity overlap@10>=0.3}"
held=0
embedstore sync "$run" "${wanted[@]/#/--gate=}" --why nightly || held=$?
[[ $held == 0 || $held == 4 ]] || fail "$held" "sync failed; what was live is live"

log "cleaning up"
# Nights that were held back stand between what is live and what `rollback` returns to: keep as far as that.
flips=$(embedstore history -n 2 --json) || [[ $? == 3 ]] # 3: nothing was ever live
back=$(pick '[flip["collection"] for flip in d[1:]]' <<<"${flips:-[]}")
keep=$(embedstore gc --dry-run --json | pick "[max([${KEEP:-3}] + [
  place for place, verdict in enumerate(d['verdicts'], 1) if verdict['collection'] == '$back'])]")
embedstore gc --keep "$keep" --unfinished
# Our runs without a collection serve nobody and no rollback. Live and pinned ones have theirs.
there=$(embedstore status --json |
  pick '[c["collection"].rpartition("__")[2].partition("_")[0] for c in d["collections"]]')
while read -r old; do
  if grep -qxF "$old" <<<"$there"; then
    printf '%s\n' "$old"
  elif [[ -d $EMBEDSTORE_RUNS/$old ]]; then
    embedstore runs rm "$old" >&2
  fi
done < <(sort -u "$ledger") >"$ledger.new"
mv "$ledger.new" "$ledger"
rm -rf "$MODEL"

[[ $held == 0 ]] || fail 4 "run $run is held back; what was live is live"
log "run $run is live"
