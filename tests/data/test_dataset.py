import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quintic.data.bpe_tokenizer import train_bpe
from quintic.data.dataset import check_tokens, open_dataset
from quintic.data.load_tokenizer import load_tokenizer
from quintic.data.manifest import Manifest
from quintic.data.shards import HEADER_BYTES, TokenStream, write_shard
from quintic.errors import QuinticError
from tests.conftest import refusal, tiny_arguments

MakeForeign = Callable[[Sequence[int], Sequence[int]], Path]


@pytest.fixture
def own(small_dataset: Path, tmp_path: Path) -> Path:
    """A copy of a dataset built by quintic, to be damaged."""
    return Path(shutil.copytree(small_dataset, tmp_path / "own"))


def test_own_dataset_knows_its_tokenizer(small_dataset: Path) -> None:
    dataset = open_dataset(small_dataset)
    assert (dataset.vocab_size, dataset.eot_id) == (320, 0)
    tokenizer = dataset.load_tokenizer()
    assert tokenizer.decode(dataset.train.read(1, 12).tolist()).startswith("def function_")
    assert open_dataset(small_dataset, str(small_dataset)).vocab_size == 320


def test_manifest_round_trip(small_dataset: Path, tmp_path: Path) -> None:
    manifest = Manifest.read(small_dataset)
    assert Manifest.read(manifest.write(tmp_path).parent) == manifest
    assert [record.split for record in manifest.shards] == ["train", "val"]


def test_foreign_folder(make_foreign: MakeForeign) -> None:
    folder = make_foreign([50256, 1, 2, 3], [50256, 4])
    write_shard(folder / "fineweb_train_000002.bin", [70000, 5])  # 32-bit beside 16-bit
    write_shard(folder / "fineweb_train_000000.bin", [6])
    dataset = open_dataset(folder)
    assert dataset.train.read(0, 7).tolist() == [6, 50256, 1, 2, 3, 70000, 5]
    assert len(dataset.val) == 2
    assert (dataset.manifest, dataset.tokenizer_spec) == (None, None)
    assert (dataset.vocab_size, dataset.eot_id) == (None, None)
    with pytest.raises(
        QuinticError, match=r"gpt2 or the path of its tokenizer\.json, with --data\.tokenizer"
    ):
        dataset.load_tokenizer()


def test_foreign_folder_with_a_tokenizer_named(make_foreign: MakeForeign) -> None:
    dataset = open_dataset(make_foreign([1], [2]), "gpt2")
    assert dataset.tokenizer_spec == "gpt2"
    assert (dataset.vocab_size, dataset.eot_id) == (50257, 50256)


def test_foreign_folder_with_a_tokenizer_file(make_foreign: MakeForeign) -> None:
    folder = make_foreign([1], [2])
    train_bpe(["abc"], 257).save(folder)
    assert open_dataset(folder).vocab_size == 257
    with pytest.raises(QuinticError, match="'gtp2' is neither"):
        open_dataset(folder, "gtp2")


def test_the_last_word_of_a_name_is_its_split(tmp_path: Path) -> None:
    write_shard(tmp_path / "my_val_set_train_000.bin", [1])
    write_shard(tmp_path / "my_train_set_val_000.bin", [2])
    (tmp_path / "notes.bin").write_text("no shard")
    dataset = open_dataset(tmp_path)
    assert dataset.train.read(0, 1) == [1]
    assert dataset.val.read(0, 1) == [2]


def test_folders_that_hold_no_dataset(tmp_path: Path) -> None:
    with pytest.raises(QuinticError, match=r"absent does not exist: name a folder"):
        open_dataset(tmp_path / "absent")
    (tmp_path / "file").touch()
    with pytest.raises(QuinticError, match="file is not a folder"):
        open_dataset(tmp_path / "file")
    with pytest.raises(QuinticError, match=r"no train shards: expected .*_train_\*\.bin"):
        open_dataset(tmp_path)
    write_shard(tmp_path / "x_train_0.bin", [1])
    with pytest.raises(QuinticError, match=r"no val shards: expected .*_val_\*\.bin"):
        open_dataset(tmp_path)


def test_damaged_shard(make_foreign: MakeForeign) -> None:
    folder = make_foreign([1, 2], [3])
    with (folder / "fineweb_val_000000.bin").open("ab") as file:
        file.write(b"x")
    with pytest.raises(QuinticError, match=r"fineweb_val_000000\.bin has bytes after"):
        open_dataset(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content.pop("eot_id"), "'eot_id' is None, expected an integer"),
        (
            lambda content: content.update(vocab_size="9"),
            "'vocab_size' is '9', expected an integer",
        ),
        (lambda content: content.update(vocab_size=True), "'vocab_size' is True"),
        (lambda content: content.update(shards=3), "'shards' is 3, expected a list"),
        (lambda content: content["shards"][0].pop("sha256"), "'sha256' is None"),
        (lambda content: content["shards"].append(1), "'file' is None"),
        (lambda content: content["shards"][0].update(split="test"), "the split 'test'"),
        (lambda content: content.update(format_version=99), "format_version 99, this .* reads 1"),
        (lambda content: content["shards"].pop(), r"does not list python_val_000000\.bin"),
        (lambda content: content["shards"][0].update(tokens=5), "gives .* 5 train tokens, found"),
        (lambda content: content["shards"][0].update(split="val"), "val tokens, found .* train"),
    ],
)
def test_manifest_that_is_wrong(
    own: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    path = own / "manifest.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(QuinticError, match=message) as caught:
        open_dataset(own)
    assert str(path) in str(caught.value)


def test_a_manifest_with_a_key_twice_is_refused_by_name(own: Path) -> None:
    path = own / "manifest.json"
    path.write_text(path.read_text().replace('"eot_id"', '"eot_id": 1, "eot_id"', 1))
    with pytest.raises(QuinticError, match=f"manifest {path}: it has 'eot_id' twice"):
        open_dataset(own)


@pytest.mark.parametrize("text", ["{", "[]", '"text"', "\xff"])
def test_manifest_that_is_no_manifest(own: Path, text: str) -> None:
    (own / "manifest.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(QuinticError, match=r"manifest\.json"):
        open_dataset(own)


def test_manifest_that_lists_a_missing_shard(own: Path) -> None:
    (own / "python_val_000000.bin").rename(own / "other_val_000000.bin")
    with pytest.raises(QuinticError, match=r"does not list other_val_000000\.bin"):
        open_dataset(own)
    write_shard(own / "python_val_000000.bin", [1])
    (own / "other_val_000000.bin").unlink()
    with pytest.raises(QuinticError, match="val tokens, found 1 val tokens"):
        open_dataset(own)
    (own / "python_train_000000.bin").rename(own / "python_train_000000.txt")
    write_shard(own / "a_train_0.bin", [1])
    (own / "a_train_0.bin").rename(own / "zzz_train_0.bin")
    with pytest.raises(QuinticError, match=r"lists python_train_000000\.bin, which is not there"):
        open_dataset(own)


def test_another_tokenizer_than_the_manifests(own: Path, tmp_path: Path) -> None:
    with pytest.raises(QuinticError, match=r"made with the tokenizer 'tokenizer\.json'.*'gpt2'"):
        open_dataset(own, "gpt2")
    train_bpe(["another text"], 257).save(tmp_path)
    with pytest.raises(QuinticError, match="fingerprint"):
        open_dataset(own, str(tmp_path))
    # A copy of the same vocabulary elsewhere is the same tokenizer.
    shutil.copy(own / "tokenizer.json", tmp_path)
    assert open_dataset(own, str(tmp_path)).vocab_size == 320
    # A vocabulary that was exchanged in the folder is found out.
    train_bpe(["another text"], 257).save(own)
    with pytest.raises(QuinticError, match="fingerprint"):
        open_dataset(own)
    (own / "tokenizer.json").unlink()
    with pytest.raises(QuinticError, match=r"tokenizer\.json"):
        open_dataset(own)


def test_a_manifest_of_0_1_keeps_its_tokenizer_whatever_that_ignores(own: Path) -> None:
    path, manifest = own / "tokenizer.json", own / "manifest.json"
    definition = json.loads(path.read_text())
    definition["model"]["ignore_merges"] = True
    path.write_text(json.dumps(definition))
    assert open_dataset(own).vocab_size == 320, "its fingerprint of then"
    new, old = load_tokenizer(str(path)).fingerprint, load_tokenizer(str(path)).fingerprint_0_1
    manifest.write_text(manifest.read_text().replace(old, new))
    assert open_dataset(own).vocab_size == 320
    definition["model"]["ignore_merges"] = False
    path.write_text(json.dumps(definition))
    with pytest.raises(QuinticError, match="fingerprint"):
        open_dataset(own)


def test_fingerprint_does_not_depend_on_place_and_manifest(small_dataset: Path, own: Path) -> None:
    fingerprint = open_dataset(small_dataset).fingerprint
    assert open_dataset(own).fingerprint == fingerprint
    (own / "manifest.json").unlink()
    (own / "tokenizer.json").unlink()
    assert open_dataset(own).fingerprint == fingerprint
    assert len(bytes.fromhex(fingerprint)) == 32


def test_fingerprint_depends_on_tokens_order_and_split(make_foreign: MakeForeign) -> None:
    train = np.arange(200_000) % 1000
    folder = make_foreign(train.tolist(), [1, 2])

    def fingerprint() -> str:
        return open_dataset(folder).fingerprint

    def write(name: str, tokens: Sequence[int]) -> None:
        write_shard(folder / name, tokens)

    original = fingerprint()
    seen = {original}
    for position in (0, len(train) - 1):
        changed = train.copy()
        changed[position] += 1
        write("fineweb_train_000001.bin", changed.tolist())
        seen.add(fingerprint())
    changed = np.roll(train, 1)
    write("fineweb_train_000001.bin", changed.tolist())
    seen.add(fingerprint())
    write("fineweb_train_000001.bin", train[:-1].tolist())
    seen.add(fingerprint())
    write("fineweb_train_000001.bin", train.tolist())
    write("fineweb_val_000000.bin", [2, 1])
    seen.add(fingerprint())
    write("fineweb_val_000000.bin", [1, 2])
    write("fineweb_val_000001.bin", [3])
    seen.add(fingerprint())
    assert len(seen) == 7
    (folder / "fineweb_val_000001.bin").unlink()
    assert fingerprint() == original


def test_tokens_beyond_the_vocabulary_of_a_foreign_folder(make_foreign: MakeForeign) -> None:
    folder = make_foreign([1, 2, 300, 4, 500], [7])
    write_shard(folder / "fineweb_train_000002.bin", [600])
    dataset = open_dataset(folder)
    check_tokens(dataset, 601)
    check_tokens(dataset, 500, limit_tokens=4)
    with pytest.raises(QuinticError, match=r"train_000001\.bin .* id 500, .* 0 to 499.* 501 ids"):
        check_tokens(dataset, 500, limit_tokens=5)
    with pytest.raises(QuinticError, match=r"train_000002\.bin holds the token id 600"):
        check_tokens(dataset, 600)
    with pytest.raises(QuinticError, match=r"val_000000\.bin holds the token id 7,"):
        check_tokens(dataset, 7, limit_tokens=1)


def test_tokens_beyond_the_tokenizer_though_the_model_has_rows_for_them(
    make_foreign: MakeForeign,
) -> None:
    # A model's vocabulary is padded, and what stands for no text could not be scored in the end.
    dataset = open_dataset(make_foreign([1, 50257], [7]), "gpt2")
    check_tokens(dataset, 50304, limit_tokens=1)
    with pytest.raises(QuinticError, match=r"token id 50257, the tokenizer gpt2 .* 0 to 50256"):
        check_tokens(dataset, 50304)


def test_tokens_beyond_the_vocabulary_of_a_manifest(
    own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The manifest is trusted: nothing is read.
    monkeypatch.delattr(TokenStream, "shard_max_ids")
    dataset = open_dataset(own)
    check_tokens(dataset, 320)
    with pytest.raises(QuinticError, match=r"python_train_000000\.bin holds the token id 319,"):
        check_tokens(dataset, 319)


def test_tokens_beyond_the_vocabulary_met_in_training_or_validation(
    text_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A shard that was damaged after its manifest was written."""
    for split, token in (("train", 1546), ("val", 100)):
        folder = Path(shutil.copytree(text_data, tmp_path / split))
        path = folder / f"python_{split}_000000.bin"
        with path.open("r+b") as file:
            file.seek(HEADER_BYTES + 2 * token)
            file.write(b"\xff\xff")
        options = ["--model.vocab-size", "None", "--out", str(tmp_path / f"run-{split}")]
        line = refusal([*tiny_arguments(folder), *options], capsys)
        assert f"{path} holds the token id 65535 as its token {token}, counted from 0" in line
        assert (
            f"only the ids 0 to 319: see what else is damaged with quintic data check {folder},"
            in (line)
        )
    # Step 6 met it: what was trained before is kept.
    assert (tmp_path / "run-train" / "checkpoints" / "step-00000004").exists()


def test_model_smaller_than_the_vocabulary_of_a_foreign_folder(make_foreign: MakeForeign) -> None:
    dataset = open_dataset(make_foreign([1, 50260, 2], [7])).for_model(50257)
    with pytest.raises(QuinticError, match=r"train_000001\.bin .* 50260 as its token 1, .* 50256"):
        dataset.train.read(0, 3)
    assert dataset.train.read(2, 2).tolist() == [2, 1]
    named = open_dataset(dataset.path, "gpt2").for_model(50304)
    with pytest.raises(QuinticError, match="50260"):
        named.train.read(0, 3)


def test_benchmark_corpus_is_a_foreign_folder(bench_val_shard: Path) -> None:
    write_shard(bench_val_shard.parent / "corpus_train_000001.bin", [50256, 1])
    dataset = open_dataset(bench_val_shard.parent, "gpt2")
    assert len(dataset.val) == 1_994_019
    assert dataset.val.read(0, 1) == [50256]
    assert max(dataset.val.shard_max_ids().values()) == 50256
    check_tokens(dataset, 50257)
    with pytest.raises(QuinticError, match="50256"):
        check_tokens(dataset, 50256)


def test_data_is_prepared_without_torch() -> None:
    # It takes seconds to import, and commands such as `quintic data info` do not need it.
    program = (
        "import sys, quintic.data.corpus, quintic.data.verify, quintic.data_info.page; "
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert done.stdout.strip() == b"False"
