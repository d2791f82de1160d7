#!/usr/bin/env bash
# llama.cpp (libllama 0.5.0, of llama-cpp-python 0.3.36): a GGUF file with GPT-2's kind of vocabulary
# loads without the keys that say how it is used, and is then used otherwise:
#   without tokenizer.ggml.pre text is cut in another way before merging ("isn't" is is|n|'|t, and
#   "a 12345" begins a, a blank, 12), so that of Python's modules from a to c none has the same ids;
#   without bos_token_id and eos_token_id both are 11, which in GPT-2's order of tokens is the
#   comma: a text begins with one, and generation ends at every one. That the vocabulary has
#   <|endoftext|> does not help: it ends a text too, and begins none;
#   without add_bos_token a text begins with nothing.
# With all keys a vocabulary trained on GPT-2's cut has the ids that Hugging Face's tokenizers give.
# Seen on 2026-11-28 with gguf 0.19.0 and tokenizers 0.23.3. The first is in llama.cpp's log, the second
# as a remark on eos alone, and llama-cpp-python shows no log with verbose=False.
# Whoever writes a GGUF file writes all of them. The build takes some minutes of two cores; OUT=FOLDER
# keeps it, FOLDER/build/bin and FOLDER/llama_cpp_python-0.3.36, and goes on with one that was stopped.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
out=${OUT:-$folder}
mkdir -p "$out"
out=$(cd "$out" && pwd)
sdist=$out/llama_cpp_python-0.3.36
python3 -m venv "$out/venv"
pip=$out/venv/bin/pip
"$pip" install -q gguf==0.19.0 numpy==2.4.6 tokenizers==0.23.3 diskcache==5.6.3 jinja2==3.1.6 \
  cmake==4.4.5 ninja==1.13.2
export PATH=$out/venv/bin:$PATH
if [ ! -e "$out/build/bin/libllama.so" ]; then
  "$pip" download -q --no-deps --no-binary llama-cpp-python -d "$folder" llama-cpp-python==0.3.36
  tar -xzf "$folder"/llama_cpp_python-0.3.36.tar.gz -C "$out"
  cmake -S "$sdist/vendor/llama.cpp" -B "$out/build" -G Ninja -DCMAKE_BUILD_TYPE=Release \
    -DLLAMA_BUILD_COMMON=OFF -DLLAMA_BUILD_TOOLS=OFF -DLLAMA_BUILD_EXAMPLES=OFF \
    -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_SERVER=OFF >"$folder/cmake.log"
  cmake --build "$out/build" --target llama >>"$folder/cmake.log" || {
    tail -30 "$folder/cmake.log"
    exit 1
  }
fi
cd "$folder"
export PYTHONPATH=$sdist LLAMA_CPP_LIB_PATH=$out/build/bin
"$out/venv/bin/python" - <<'PY'
import json
import sysconfig
from pathlib import Path

import gguf
import llama_cpp
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

END, PREFIX = "<|endoftext|>", "tokenizer.ggml."
modules = sorted(Path(sysconfig.get_path("stdlib")).glob("[a-c]*.py"))
texts = [path.read_text(errors="replace") for path in modules]
bpe = Tokenizer(models.BPE())
bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # GPT-2's cut of text
alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
trainer = trainers.BpeTrainer(vocab_size=2047, initial_alphabet=alphabet, show_progress=False)
bpe.train_from_iterator(texts, trainer)
tokens = [*sorted(bpe.get_vocab(), key=bpe.get_vocab().get), END]  # the bytes first, as in GPT-2
expected = [bpe.encode(text).ids for text in texts]
assert tokens[11] == ","
end = len(tokens) - 1
KEYS = {
    "model": "gpt2",
    "pre": "gpt-2",
    "tokens": tokens,
    "token_type": [1] * end + [3],
    "merges": [" ".join(merge) for merge in json.loads(bpe.to_str())["model"]["merges"]],
    "bos_token_id": end,
    "eos_token_id": end,
    "add_bos_token": True,
}
log = []


@llama_cpp.llama_log_callback
def keep(level, text, _):
    log.append(text.decode())


def load(*absent):
    writer = gguf.GGUFWriter("vocabulary.gguf", "gpt2")
    for key, value in KEYS.items():
        if key not in absent:
            kind = gguf.GGUFValueType.get_type(value)
            unsigned = type(value) is int
            writer.add_key_value(PREFIX + key, value, gguf.GGUFValueType.UINT32 if unsigned else kind)
    writer.add_context_length(512)
    writer.add_embedding_length(8)
    writer.add_feed_forward_length(32)
    writer.add_block_count(1)
    writer.add_head_count(1)
    writer.add_layer_norm_eps(1e-5)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    log.clear()
    llama_cpp.llama_log_set(keep, None)
    model = llama_cpp.Llama("vocabulary.gguf", vocab_only=True, verbose=False)
    vocab = llama_cpp.llama_model_get_vocab(model.model)

    def ids(text):
        return model.tokenize(text.encode(), add_bos=False, special=False)

    words = "a 12345, isn't"
    return {
        "modules with the same ids": sum(map(lambda text, own: ids(text) == own, texts, expected)),
        f"{words} is cut": "|".join(tokens[index] for index in ids(words)),
        "a text begins with": [tokens[i] for i in model.tokenize(b"", add_bos=True)],
        "a text ends at": [t for i, t in enumerate(tokens) if llama_cpp.llama_vocab_is_eog(vocab, i)],
        "said of pre": any("missing pre-tokenizer" in line for line in log),
        "said of eos": any("special_eos_id" in line for line in log),
    }


cases = [(), ("pre",), ("bos_token_id", "eos_token_id"), ("add_bos_token",)]
whole, cut, comma, none = found = [load(*absent) for absent in cases]
print("llama-cpp-python", llama_cpp.__version__, "modules", len(texts))
for absent, facts in zip(cases, found):
    print("without", " and ".join(absent) or "nothing")
    for what, came in facts.items():
        print(f"    {what}: {came}")
whole_words, cut_words = (case["a 12345, isn't is cut"] for case in (whole, cut))
assert whole["modules with the same ids"] == len(texts) > 20
assert whole["a text begins with"] == whole["a text ends at"] == [END]
assert cut["modules with the same ids"] == 0 and cut["said of pre"], cut
assert whole_words.endswith("is|n|'t") and cut_words.endswith("is|n|'|t"), (whole_words, cut_words)
assert cut_words.startswith("a|Ġ|12|"), cut_words
assert comma["a text begins with"] == [","] and comma["a text ends at"] == [",", END], comma
assert comma["modules with the same ids"] == len(texts) and not comma["said of pre"]
assert none["a text begins with"] == [] and none["a text ends at"] == [END], none
PY
