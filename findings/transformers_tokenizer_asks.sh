#!/usr/bin/env bash
# transformers 5.24.0: `AutoTokenizer.from_pretrained(FOLDER)` of a model whose config.json names a class
# of its own (`auto_map` with AutoConfig) asks on the terminal whether to run the folder's code, although
# the tokenizer, an ordinary tokenizer.json with tokenizer_class PreTrainedTokenizerFast, needs none of
# it: the config is read first. Whatever the answer, and with no terminal at all, the same tokenizer is
# loaded; trust_remote_code=False asks nothing. Seen on 2026-11-28.
# Whoever writes remote code beside weights tells readers to pass trust_remote_code to both loaders.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q transformers==5.24.0
cd "$folder"
"$folder/venv/bin/python" - <<'PY'
import json
import subprocess
import sys
from pathlib import Path

from tokenizers import Tokenizer, models

folder = Path("model")
folder.mkdir()
Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a")).save(str(folder / "tokenizer.json"))
named = {"tokenizer_class": "PreTrainedTokenizerFast"}
(folder / "tokenizer_config.json").write_text(json.dumps(named))
own = {"model_type": "own", "auto_map": {"AutoConfig": "own.OwnConfig"}}
(folder / "config.json").write_text(json.dumps(own))
(folder / "own.py").write_text("raise SystemExit('the code of the folder was run')\n")
QUESTION = "Do you wish to run the custom code?"
PROGRAM = """
from transformers import AutoTokenizer
print("id of b:", AutoTokenizer.from_pretrained("model"{}).convert_tokens_to_ids("b"))
"""


def load(options):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(options)],
        input="n\n", capture_output=True, text=True, timeout=300,
    )
    assert done.returncode == 0, done.stderr
    asked, loaded = QUESTION in done.stdout + done.stderr, "id of b: 1" in done.stdout
    print(f"from_pretrained(FOLDER{options}): asks {asked}, loads {loaded}")
    return asked, loaded


assert load("") == (True, True)
assert load(", trust_remote_code=False") == (False, True)
PY
