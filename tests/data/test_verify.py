import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from quintic.data.bpe_tokenizer import train_bpe
from quintic.data.dataset import open_dataset
from quintic.data.shards import open_shard, write_shard
from quintic.data.verify import check_dataset

MakeForeign = Callable[[Sequence[int], Sequence[int]], Path]


@pytest.fixture
def own(small_dataset: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(small_dataset, tmp_path / "own"))


def test_own_dataset_is_in_order(small_dataset: Path) -> None:
    calls: list[float] = []
    report = check_dataset(small_dataset, on_progress=calls.append)
    assert report.ok
    assert report.notes == []
    dataset = open_dataset(small_dataset)
    assert (report.shards, report.tokens) == (2, len(dataset.train) + len(dataset.val))
    assert (calls[0], calls[-1]) == (0.0, 1.0)


def _rewrite(shard: Path, change: Callable[[list[int]], None]) -> None:
    tokens = open_shard(shard).tokens.tolist()
    change(tokens)
    write_shard(shard, tokens)


def test_changed_token_is_found(own: Path) -> None:
    def swap(tokens: list[int]) -> None:
        tokens[1], tokens[2] = tokens[2], tokens[1]

    _rewrite(own / "python_train_000000.bin", swap)
    problems = check_dataset(own).problems
    assert len(problems) == 1
    assert "python_train_000000.bin has the checksum" in problems[0]


def test_every_kind_of_damage_is_listed(own: Path) -> None:
    def damage(tokens: list[int]) -> None:
        tokens[0] = 900

    _rewrite(own / "python_train_000000.bin", damage)
    problems = "\n".join(check_dataset(own).problems)
    assert "holds the token id 900, the vocabulary has 320 ids" in problems
    assert "has max_id 900, its manifest says 319" in problems
    assert "documents" in problems
    assert "checksum" in problems
    assert "the train split begins in the middle of a document" in problems


def test_wrong_count_of_bytes_is_found(own: Path) -> None:
    path = own / "manifest.json"
    content = json.loads(path.read_text())
    content["shards"][1]["text_bytes"] += 1
    path.write_text(json.dumps(content))
    (problem,) = check_dataset(own).problems
    assert "python_val_000000.bin has text_bytes" in problem


def test_what_cannot_be_opened_is_a_problem(tmp_path: Path) -> None:
    (problem,) = check_dataset(tmp_path / "absent").problems
    assert "does not exist" in problem


def test_foreign_shards_may_begin_in_the_middle(make_foreign: MakeForeign) -> None:
    folder = make_foreign([1, 0, 2], [0, 3])
    train_bpe(["abc"], 257).save(folder)
    report = check_dataset(folder)
    assert report.ok
    assert any("no manifest" in note for note in report.notes)
    assert "the train split begins in the middle of a document" in report.notes
    assert not any("val split" in note for note in report.notes)


def test_foreign_folder_without_a_tokenizer(make_foreign: MakeForeign) -> None:
    folder = make_foreign([1, 0, 2], [0, 3])
    report = check_dataset(folder)
    assert report.ok
    assert any("--data.tokenizer" in note for note in report.notes)
