#!/usr/bin/env bash
# wandb 0.31.0: offline, `wandb.init(id=..., resume="must")` neither resumes nor fails. For an id that
# was never seen it returns a new run, and for one whose folder is there it makes a second folder:
# `run.resumed` is False and `run.step` 0 both times, without a word. So a run that is continued has
# its steps in two folders, those between the last checkpoint and the kill in both.
# Online "must" raises for an unknown id, as its documentation says.
# Seen on 2026-11-28. Whoever resumes offline looks for the older folder himself.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q wandb==0.31.0
cd "$folder"
cat > steps.py <<'PY'
import sys
import wandb

settings = wandb.Settings(console="off", silent=True)
run = wandb.init(project="p", id=sys.argv[1], resume="must", dir=".", settings=settings)
print(sys.argv[1], "resumed", run.resumed, "step", run.step)
for step in range(int(sys.argv[2]), int(sys.argv[3])):
    run.log({"loss": 1 / (1 + step)}, step=step)
run.finish()
PY
export HOME="$folder" WANDB_MODE=offline WANDB_ERROR_REPORTING=false
for steps in "0 10" "7 14"; do
  # shellcheck disable=SC2086
  "$folder/venv/bin/python" steps.py never-seen $steps | tee -a said.txt
  sleep 1.1 # the folder's name has the second
done
ls -d wandb/offline-run-*-never-seen
test "$(grep -c "resumed False step 0" said.txt)" = 2
test "$(find wandb -maxdepth 1 -name 'offline-run-*-never-seen' | wc -l)" = 2
