#!/usr/bin/env bash
# huggingface_hub 2.4.0: `snapshot_download(repo, local_dir=D)` returns D as if it were the snapshot
# where the hub cannot be reached and D holds anything at all: a note on standard error, no exception.
# The file that was asked for is not there, and the caller cannot tell a whole snapshot from a stale
# or half one. With an empty D it raises, as one would guess, and so does `hf_hub_download`.
# Seen on 2026-11-27. Whoever needs the files to be those of the hub checks them afterwards.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q huggingface_hub==2.4.0
cd "$folder"
env HF_HOME="$folder/home" HF_ENDPOINT=http://127.0.0.1:9 "$folder/venv/bin/python" - <<'PY'
from pathlib import Path
import huggingface_hub
from huggingface_hub import hf_hub_download, snapshot_download

def outcome(call, **options):
    try:
        return f"returned {Path(call('org/data', repo_type='dataset', **options)).name}"
    except Exception as error:
        return f"raised {type(error).__name__}"

empty, stale = Path("empty"), Path("stale")
empty.mkdir()
stale.mkdir()
(stale / "notes.txt").write_text("of another time")
found = {
    "snapshot into an empty folder": outcome(snapshot_download, local_dir=empty),
    "snapshot into a folder with another file": outcome(
        snapshot_download, local_dir=stale, allow_patterns=["train_000001.bin"]
    ),
    "one file into that folder": outcome(hf_hub_download, filename="train_000001.bin", local_dir=stale),
}
print("huggingface_hub", huggingface_hub.__version__)
for what, came in found.items():
    print(f"{what}: {came}")
assert list(found.values()) == [
    "raised LocalEntryNotFoundError",
    "returned stale",
    "raised LocalEntryNotFoundError",
], found
assert not (stale / "train_000001.bin").exists()
PY
