#!/usr/bin/env bash
# gigatoken 0.10.0 and tiktoken 0.14.0, GPT-2's vocabulary (r50k_base): gigatoken knows the letters and
# numbers of Unicode 17, tiktoken those of 16, so they cut a text otherwise beside a letter that is new in
# 17, and give it other ids: "U+088F 's" is [156, 95, 237, 338] in gigatoken, where the apostrophe and s
# stand behind a letter, and [156, 95, 237, 6, 82] in tiktoken, where they stand behind punctuation. Both
# give the text back, and each such character alone has the same ids, so a comparison of every code point
# finds no difference. Seen on 2026-11-28.
# Whoever takes a faster encoder for the same one should compare new letters beside "'s".
# tiktoken takes GPT-2's vocabulary from the network, or from TIKTOKEN_CACHE_DIR.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q gigatoken==0.10.0 tiktoken==0.14.0 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" - <<'PY'
import base64
from pathlib import Path

import tiktoken
from gigatoken import Tokenizer

reference = tiktoken.get_encoding("r50k_base")
ranks = b"".join(
    b"%s %d\n" % (base64.b64encode(token), rank)
    for token, rank in reference._mergeable_ranks.items()
)
Path("ranks.tiktoken").write_bytes(ranks)
fast = Tokenizer.from_tiktoken(Path("ranks.tiktoken"), "gpt2", {}).backend


def ids(text):
    return list(map(int, fast.encode(text.encode()))), reference.encode_ordinary(text)


new, old = "\u088f", "\u0628"  # Arabic letters of Unicode 17 and of 1.1
for text in (new, old, f"{new}'s", f"{old}'s"):
    found, expected = ids(text)
    print([f"U+{ord(c):04X}" for c in text], "gigatoken", found, "tiktoken", expected)
assert ids(new)[0] == ids(new)[1]
assert ids(f"{old}'s")[0] == ids(f"{old}'s")[1]
assert ids(f"{new}'s") == ([156, 95, 237, 338], [156, 95, 237, 6, 82])
PY
