import gzip
import hashlib
import io
import itertools
import json
import os
import random
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
from filelock import FileLock
from pyarrow import ipc, parquet

from quintic.cli.main import main
from quintic.data.bpe_tokenizer import train_bpe
from quintic.data.build import chunks, encode, encoder_pool, pipeline, shuffle, text_files
from quintic.data.build import vocabulary as vocabulary_module
from quintic.data.build.encode import EncodedChunks, text_split
from quintic.data.build.encoder_pool import EncoderPool
from quintic.data.build.inputs import find_text_files
from quintic.data.build.pipeline import BuildReport, BuildStatus, build_dataset
from quintic.data.build.settings import BuildSettings
from quintic.data.dataset import open_dataset
from quintic.data.description import describe_dataset
from quintic.data.load_tokenizer import load_tokenizer
from quintic.data.manifest import Manifest
from quintic.data.shards import ShardWriter, open_shard
from quintic.data.tokenizer import Tokenizer
from quintic.data.verify import check_dataset
from quintic.errors import QuinticError
from tests.conftest import refusal
from tests.data.conftest import SHARED
from tests.waiting import LAST_BOUND_S

CHUNK_BYTES = 2000  # of the builds below, so that small inputs are many tasks


def make_texts(count: int, seed: int = 0) -> list[str]:
    draw = random.Random(seed)
    words = ["".join(draw.choices("abcdeé漢", k=draw.randint(1, 7))) for _ in range(200)]
    return [" ".join(draw.choices(words, k=draw.randint(1, 60))) for _ in range(count)]


TEXTS = make_texts(400)


def write_lines(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


@pytest.fixture(scope="session")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer.json with 300 tokens."""
    return train_bpe(TEXTS, 300).save(tmp_path_factory.mktemp("vocabulary"))


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """400 documents in a folder of four files. Not to be written to."""
    folder = tmp_path_factory.mktemp("inputs")
    write_lines(folder / "a.jsonl", TEXTS[:150])
    parquet.write_table(
        pyarrow.table({"text": TEXTS[150:300]}), folder / "b.parquet", row_group_size=40
    )
    (folder / "c.jsonl").write_text(json.dumps([{"text": text} for text in TEXTS[300:350]]))
    with ipc.new_stream(folder / "d.arrow", pyarrow.schema([("text", pyarrow.string())])) as writer:
        writer.write_table(pyarrow.table({"text": TEXTS[350:]}), max_chunksize=20)
    return folder


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "CHUNK_BYTES", CHUNK_BYTES)
    monkeypatch.setattr(pipeline, "CHUNK_BYTES", CHUNK_BYTES)


Build = Callable[..., BuildReport]


@pytest.fixture
def build(inputs: Path, vocabulary: Path, tmp_path: Path) -> Build:
    """build("out", val_share=0.1, workers=2): a build of `inputs` into a folder of that name."""

    def build(out: str, **changes: Any) -> BuildReport:
        how = {
            key: changes.pop(key)
            for key in ("workers", "max_bad", "on_progress", "log")
            if key in changes
        }
        settings = {"shard_tokens": 3000, "val_share": 0.2, **changes}
        source = settings.pop("source", inputs)
        return build_dataset(
            BuildSettings((str(source),), "words", **{"tokenizer": str(vocabulary), **settings}),
            tmp_path / out,
            **{"workers": 1, **how},
        )

    return build


def contents(folder: Path) -> dict[str, str]:
    """SHA-256 of every file."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def split_texts(folder: Path) -> dict[str, list[str]]:
    """The documents of each split, as decoded from the shards."""
    dataset = open_dataset(folder, splits=())
    tokenizer = dataset.load_tokenizer()
    return {
        split: tokenizer.decode(stream.read(0, len(stream)).tolist()).split("<|endoftext|>")[1:]
        for split, stream in dataset.streams.items()
    }


# What is built -----------------------------------------------------------------------------------


@pytest.mark.usefixtures("gpt2_vocabulary")
def test_golden_validation_shard_bit_for_bit(
    bench_val_shard: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The text of the benchmark corpus gives the shard that somebody else's program made of it."""
    monkeypatch.undo()
    packed = Path(os.environ.get("QUINTIC_BENCH_DATA") or SHARED / "data") / "docs_val.jsonl.zst"
    folder = Path(os.environ.get("TIKTOKEN_CACHE_DIR") or SHARED / "tiktoken")
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(folder))
    main(["data", "build", str(packed), "--out", str(tmp_path / "out"), "--val-share", "1"])
    (shard,) = (tmp_path / "out").glob("*.bin")
    assert shard.name == "out_val_000000.bin"
    assert shard.read_bytes() == bench_val_shard.read_bytes()
    assert check_dataset(tmp_path / "out").problems == []


def test_shards_are_the_documents_in_order_each_behind_end_of_text(
    build: Build, vocabulary: Path, tmp_path: Path
) -> None:
    report = build("out")
    tokenizer = load_tokenizer(str(vocabulary))
    expected: dict[str, list[int]] = {"train": [], "val": []}
    for text in TEXTS:
        expected[text_split(text, 0.2)] += [tokenizer.eot_id, *tokenizer.encode(text)]
    names = {"train": "words_train_{:06}.bin", "val": "words_val_{:06}.bin"}
    for split, first in (("train", 1), ("val", 0)):
        ids = expected[split]
        assert len(ids) > 3000
        for number, start in enumerate(range(0, len(ids), 3000), first):
            shard = open_shard(tmp_path / "out" / names[split].format(number))
            assert shard.tokens.tolist() == ids[start : start + 3000]
            assert shard.dtype == np.uint16
    assert [record.file for record in report.shards] == sorted(
        path.name for path in (tmp_path / "out").glob("*.bin")
    )
    assert set(contents(tmp_path / "out")) == {
        *(record.file for record in report.shards),
        *("manifest.json", "build.json", "tokenizer.json"),
    }
    assert sum(record.documents for record in report.shards) == 400
    checked = check_dataset(tmp_path / "out")
    assert (checked.problems, checked.notes) == ([], [])


@pytest.mark.parametrize("shuffle", [None, 7])
def test_every_number_of_workers_gives_the_same_files(
    build: Build, tmp_path: Path, shuffle: int | None
) -> None:
    for workers in (1, 2, 4):
        build(f"by{workers}", workers=workers, shuffle=shuffle)
    assert len(contents(tmp_path / "by1")) > 10
    assert contents(tmp_path / "by1") == contents(tmp_path / "by2") == contents(tmp_path / "by4")


@pytest.mark.parametrize("slot_bytes", [None, 100, 3 * CHUNK_BYTES // 2])
def test_what_does_not_fit_into_shared_memory_is_built_the_same(
    build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slot_bytes: int | None
) -> None:
    """Without it, as on other systems than Linux; text without room; tokens without."""
    build("whole")
    if slot_bytes is None:
        monkeypatch.delattr(os, "memfd_create", raising=False)
    else:
        monkeypatch.setattr(encoder_pool, "_SLOT_BYTES", slot_bytes)
    build("out", workers=2)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_reading_goes_on_while_the_first_task_is_not_done(
    build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build("whole")
    encode, first = EncoderPool.encode, Unwaited()
    tasks: list[Future[EncodedChunks]] = []

    def late(self: EncoderPool, chunks: Any) -> Future[EncodedChunks]:
        tasks.append(encode(self, chunks))
        if len(tasks) == 9:
            first.set_result(tasks[0].result())
        return first if len(tasks) == 1 else tasks[-1]

    monkeypatch.setattr(EncoderPool, "encode", late)
    build("out")
    assert first.done()
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


class Unwaited(Future[EncodedChunks]):
    """One that must not be waited for."""

    def result(self, timeout: float | None = None) -> EncodedChunks:
        assert self.done()
        return super().result(timeout)


def test_shuffle_is_a_permutation_chosen_by_its_seed(
    build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build("ordered")
    ordered = split_texts(tmp_path / "ordered")
    shuffled = []
    for seed in (0, 1):
        build(f"seed{seed}", shuffle=seed)
        shuffled.append(split_texts(tmp_path / f"seed{seed}"))
    for split in ("train", "val"):
        assert sorted(shuffled[0][split]) == sorted(shuffled[1][split]) == sorted(ordered[split])
        orders = [ordered[split], shuffled[0][split], shuffled[1][split]]
        assert len({tuple(order) for order in orders}) == 3
        # Spread over the whole: a document's place says nothing of where it was.
        places = np.array([orders[1].index(text) for text in orders[0]])
        assert abs(np.corrcoef(places, np.arange(len(places)))[0, 1]) < 0.25
    # The buckets are how it is done, not what.
    monkeypatch.setattr(shuffle, "_BUCKET_INPUT_BYTES", 500)
    monkeypatch.setattr(shuffle, "_BUFFER_BYTES", 1000)
    build("buckets", shuffle=0)
    assert contents(tmp_path / "buckets") == contents(tmp_path / "seed0")


def test_equal_documents_are_not_neighbours_in_a_shuffle(build: Build, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "twice.jsonl", make_texts(50) * 2)
    build("out", source=path, shuffle=0, val_share=0)
    found = split_texts(tmp_path / "out")["train"]
    assert sum(one == other for one, other in itertools.pairwise(found)) < 5


def test_more_input_moves_no_document_between_the_splits(build: Build, tmp_path: Path) -> None:
    folder = tmp_path / "growing"
    folder.mkdir()
    write_lines(folder / "b.jsonl", TEXTS[:200])
    build("before", source=folder)
    write_lines(folder / "a.jsonl", TEXTS[200:])
    build("after", source=folder)
    before, after = split_texts(tmp_path / "before"), split_texts(tmp_path / "after")
    assert set(before["train"]) < set(after["train"])
    assert set(before["val"]) < set(after["val"])
    assert 40 < len(after["val"]) < 120
    # A larger share only adds to what is held out.
    build("larger", source=folder, val_share=0.5)
    assert set(after["val"]) < set(split_texts(tmp_path / "larger")["val"])


@pytest.mark.parametrize(("share", "there", "lacks"), [(0, "train", "val"), (1, "val", "train")])
def test_all_documents_in_one_split(
    build: Build, tmp_path: Path, share: int, there: str, lacks: str
) -> None:
    report = build("out", val_share=share)
    assert {record.split for record in report.shards} == {there}
    assert report.notes == [f"no document is in the {lacks} split"]
    assert split_texts(tmp_path / "out") == {there: TEXTS}
    assert check_dataset(tmp_path / "out").notes == [f"no {lacks} shards"]
    assert check_dataset(tmp_path / "out").ok
    assert len(describe_dataset(tmp_path / "out").samples) == 5
    with pytest.raises(QuinticError, match=f"has no {lacks} shards"):
        open_dataset(tmp_path / "out")


def test_large_vocabularies_are_stored_in_32_bits(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path / "x_train_1.bin", vocab_size=70_000)
    writer.append(np.array([1, 2], dtype=np.uint32))
    writer.append(np.array([69_999], dtype=np.uint32))
    assert not (tmp_path / "x_train_1.bin").exists()
    shard = writer.finish()
    assert open_shard(tmp_path / "x_train_1.bin") == shard
    assert shard.tokens.tolist() == [1, 2, 69_999]
    assert shard.dtype == np.uint32


def test_vocabulary_trained_on_the_input(
    build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build("one", tokenizer="train:290")
    build("two", tokenizer="train:290", workers=2)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    train = [text for text in TEXTS if text_split(text, 0.2) == "train"]
    own = open_dataset(tmp_path / "one").load_tokenizer()
    assert own.fingerprint == train_bpe(train, 290).fingerprint
    assert own.vocab_size == 290
    build("three", tokenizer="train:290:gpt2")
    own = open_dataset(tmp_path / "three").load_tokenizer()
    assert own.fingerprint == train_bpe(train, 290, cut_as_gpt2=True).fingerprint
    with pytest.raises(QuinticError, match=r'tokenizer "train:290:gpt2", now it is "train:290"'):
        build("three", tokenizer="train:290")


def test_sample_for_the_vocabulary_is_bounded_and_of_all_files(
    inputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, _ = find_text_files([str(inputs)], leave_out=Path("nowhere"))
    format = chunks.DocumentFormat("text", None)
    train = [text for text in TEXTS if text_split(text, 0.2) == "train"]
    assert list(vocabulary_module.sample_texts(found, format, 0.2)) == train
    monkeypatch.setattr(vocabulary_module, "SAMPLE_BYTES", 6000)
    sample = list(vocabulary_module.sample_texts(found, format, 0.2))
    assert 6000 <= sum(map(len, sample)) < 7000
    assert set(sample) < set(train)
    for part in (TEXTS[:150], TEXTS[150:300], TEXTS[300:]):
        assert len(set(sample) & set(part)) > 3


def test_tokenizer_that_truncates_is_used_without_and_said(
    build: Build, vocabulary: Path, tmp_path: Path
) -> None:
    content = json.loads(vocabulary.read_text())
    how = {"direction": "Right", "strategy": "LongestFirst"}
    content["truncation"] = {"max_length": 64, "stride": 0, **how}
    path = tmp_path / "truncating.json"
    path.write_text(json.dumps(content))
    report = build("out", tokenizer=str(path))
    assert report.notes == [f"truncation of {path} left out: documents stay whole"]
    build("expected")
    for record in report.shards:
        shards = [tmp_path / folder / record.file for folder in ("out", "expected")]
        assert shards[0].read_bytes() == shards[1].read_bytes()


@pytest.mark.parametrize("workers", [1, 2])
def test_document_that_the_tokenizer_changes_ends_the_build(
    build: Build, vocabulary: Path, tmp_path: Path, workers: int
) -> None:
    content = json.loads(vocabulary.read_text())
    # Loses a character that no probe at loading has.
    sign = {"pattern": {"String": "\u00a7"}, "behavior": "Removed", "invert": False}
    content["pre_tokenizer"]["pretokenizers"].insert(0, {"type": "Split", **sign})
    path = tmp_path / "lossy.json"
    path.write_text(json.dumps(content))
    source = write_lines(tmp_path / "a.jsonl", [*TEXTS[:50], "see \u00a7 5", *TEXTS[50:]])
    with pytest.raises(QuinticError, match=r"a\.jsonl:51: the tokenizer .*lossy\.json does not"):
        build("out", source=source, tokenizer=str(path), workers=workers, max_bad=9)
    assert not (tmp_path / "out").exists()


def test_standard_input_goes_on_where_it_was(
    build: Build, inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = (inputs / "a.jsonl").read_bytes()

    def piped(out: str) -> BuildReport:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
        return build(out, source="-")

    assert piped("whole").notes == ["standard input is read as JSON"]
    with monkeypatch.context() as patched:
        stop_at(patched, 5, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            piped("out")
    assert (tmp_path / "out" / ".build" / "progress.json").exists()
    piped("out")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_separator_that_never_occurs_is_said(build: Build, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name in ("a.txt", "b.txt"):
        (tmp_path / "in" / name).write_text("some words\n" * 400)
    said = build("one", source=tmp_path / "in" / "a.txt", separator="##", val_share=0).notes[0]
    assert said == f"--separator '##' is nowhere in {tmp_path}/in/a.txt, which is one document"
    said = build("two", source=tmp_path / "in", separator="\n\n", val_share=0).notes[0]
    where = f"({tmp_path}/in/a.txt, {tmp_path}/in/b.txt)"
    assert said == (
        f"--separator '\\n\\n' is nowhere in 2 of 2 files of text {where}, each of which is one "
        f"document"
    )
    # In its last chunk only.
    (tmp_path / "in" / "b.txt").write_bytes(b"some words\n" * 400 + b"some words\r\n\r\n" * 2)
    said = build("three", source=tmp_path / "in", separator="\n\n", val_share=0).notes[0]
    assert said == (
        f"--separator '\\n\\n' is nowhere in 1 of 2 files of text ({tmp_path}/in/a.txt), which is "
        f"one document"
    )
    (tmp_path / "in" / "a.txt").write_text("one\n\ntwo")
    said = build("six", source=tmp_path / "in", separator="\n\n", val_share=0).notes[0]
    assert said == "no document is in the val split"
    # Neither is for every kind of file.
    (tmp_path / "a.jsonl").write_text('{"text": "a", "messages": ["b"]}\n')
    said = build("four", source=tmp_path / "a.jsonl", separator="##", val_share=0).notes[0]
    assert said == "--separator is for text (.txt, .md), of which the input has none"
    said = build("five", source=tmp_path / "in", messages="{content}", val_share=0).notes[0]
    assert said == f"--messages is for lists: {tmp_path}/in/a.txt is text, which stays as it is"


def test_progress_and_end(build: Build, tmp_path: Path) -> None:
    calls: list[BuildStatus] = []
    build("out", tokenizer="train:290", shuffle=1, on_progress=calls.append)
    stages = [call.stage for call in calls]
    assert sorted(set(stages), key=stages.index) == [
        *("vocabulary", "tokens", "shuffle", "checksums")
    ]
    for stage in set(stages):
        fractions = [call.fraction for call in calls if call.stage == stage]
        assert fractions == sorted(fractions)
        assert fractions[-1] <= 1
    assert (calls[-1].fraction, calls[-1].documents) == (1, 400)


# Interrupted and continued -----------------------------------------------------------------------

# Runs the command in a process that is killed at the N-th of its operations on files; without N
# counts them.
KILLED = """
import os, signal, sys
from quintic.cli.main import main
from quintic.data.build import chunks, pipeline, shuffle
pipeline.CHUNK_BYTES = chunks.CHUNK_BYTES = {chunk_bytes}
pipeline.COMMIT_EVERY_S = 0.0
shuffle._BUCKET_INPUT_BYTES = 10_000
shuffle._BUFFER_BYTES = 8_000
os.fsync = lambda descriptor: None  # is for power cuts, and takes most of the time
at, count = {at}, 0

def watch(event, arguments):
    global count
    if event in ("open", "os.rename", "os.truncate", "os.remove", "os.mkdir", "shutil.rmtree"):
        if any("killed-out" in str(argument) for argument in arguments):
            count += 1
            if count == at:
                os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(watch)
main(sys.argv[1:])
print(count, file=sys.stderr)
"""


def run_killed(arguments: list[str], at: int | None) -> subprocess.CompletedProcess[str]:
    program = KILLED.format(chunk_bytes=CHUNK_BYTES, at=at)
    return subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True
    )


@pytest.mark.parametrize(
    ("workers", "moments", "options"),
    [(2, 5, []), (1, 3, ["--shuffle", "3", "--tokenizer", "train:290"])],
)
def test_killed_at_random_moments_and_continued_is_byte_identical(
    inputs: Path, vocabulary: Path, tmp_path: Path, workers: int, moments: int, options: list[str]
) -> None:
    def command(out: Path) -> list[str]:
        fixed = ["--name", "words", "--shard-tokens", "1500", "--val-share", "0.2"]
        if "--tokenizer" not in options:
            fixed += ["--tokenizer", str(vocabulary)]
        return ["data", "build", str(inputs), "--out", str(out), *fixed, *options]

    whole, out = tmp_path / "killed-out-whole", tmp_path / "killed-out"
    done = run_killed([*command(whole), "--workers", "1"], at=None)
    assert done.returncode == 0, done.stderr
    operations = int(done.stderr)
    draw = random.Random(4)
    # Early and late kills of the same build, each after the progress of those before.
    kills = 0
    for at in [draw.randint(10, operations // 3) for _ in range(moments)]:
        killed = run_killed([*command(out), "--workers", str(workers)], at)
        kills += killed.returncode == -signal.SIGKILL
        if killed.returncode != -signal.SIGKILL:
            assert killed.returncode == 0, killed.stderr
            break
        with pytest.raises(QuinticError, match="is not finished: run the quintic data build"):
            open_dataset(out)
    assert kills >= 3
    main([*command(out), "--workers", "1"])
    assert contents(out) == contents(whole)


def stop_at(monkeypatch: pytest.MonkeyPatch, task: int, error: BaseException) -> None:
    """Let the build fail at a task, after everything before was kept."""
    monkeypatch.setattr(pipeline, "COMMIT_EVERY_S", 0.0)
    encode, count = EncoderPool.encode, 0

    def failing(self: EncoderPool, chunks: Any) -> Any:
        nonlocal count
        count += 1
        if count == task:
            raise error
        return encode(self, chunks)

    monkeypatch.setattr(EncoderPool, "encode", failing)


@pytest.mark.parametrize("content", ["", '{"position": [0, ', "[]"])
def test_damaged_progress_of_a_build_is_named(
    build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str
) -> None:
    with monkeypatch.context() as patched:
        stop_at(patched, 20, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            build("out")
    progress = tmp_path / "out" / ".build" / "progress.json"
    assert progress.exists()
    progress.write_text(content)
    with pytest.raises(QuinticError, match=r"progress\.json is damaged .*: delete .*/out, or name"):
        build("out")


@pytest.mark.skipif(not hasattr(signal, "pthread_sigmask"), reason="needs a mask of signals")
def test_a_process_that_starts_gets_no_ctrl_c(vocabulary: Path) -> None:
    settings = BuildSettings(("none",), "words", tokenizer=str(vocabulary))
    tokenizer = load_tokenizer(str(vocabulary))
    with EncoderPool(workers=2) as pool:
        pool.use(settings, tokenizer, use_fast=False)
        pool.encode([]).result()
        # What it was started with; a Ctrl-C before it ignores them ended it, and with it the build.
        of_process = pool._pool.submit(signal.pthread_sigmask, signal.SIG_BLOCK, ()).result()
    assert signal.SIGINT in of_process
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


def test_ctrl_c_says_that_the_same_command_continues(
    inputs: Path,
    vocabulary: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = ["data", "build", str(inputs), "--tokenizer", str(vocabulary), "--name", "words"]
    main([*command, "--out", str(tmp_path / "whole")])
    with monkeypatch.context() as patched:
        stop_at(patched, 9, KeyboardInterrupt())
        with pytest.raises(SystemExit) as caught:
            main([*command, "--out", str(tmp_path / "out"), "--workers", "1"])
    assert caught.value.code == 130
    assert "the same command continues this build" in capsys.readouterr().err
    assert (tmp_path / "out" / ".build" / "progress.json").exists()
    main([*command, "--out", str(tmp_path / "out"), "--workers", "1"])
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_killed_worker_is_reported_and_the_build_continues(
    build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build("whole")
    with monkeypatch.context() as patched:
        stop_at(patched, 9, BrokenProcessPool("gone"))
        with pytest.raises(QuinticError, match=r"was killed.*fewer --workers, and it continues"):
            build("out")
    assert any(name.endswith(".part") for name in contents(tmp_path / "out"))
    build("out")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_workers_end_when_their_parent_is_killed(
    inputs: Path, vocabulary: Path, tmp_path: Path
) -> None:
    program = f"""
import multiprocessing, os, signal
from pathlib import Path
from quintic.data.build import chunks, pipeline
from quintic.data.build.pipeline import build_dataset
from quintic.data.build.settings import BuildSettings
pipeline.CHUNK_BYTES = chunks.CHUNK_BYTES = {CHUNK_BYTES}

def kill(status):
    print(*(child.pid for child in multiprocessing.active_children()), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)

settings = BuildSettings(({str(inputs)!r},), "words", tokenizer={str(vocabulary)!r})
build_dataset(settings, Path({str(tmp_path / "out")!r}), workers=3, on_progress=kill)
"""
    # The pipe is shared with the workers: it is at its end when all of them have ended.
    done = subprocess.run(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, timeout=LAST_BOUND_S
    )
    workers = [int(pid) for pid in done.stdout.split()]
    assert len(workers) == 2
    for pid in workers:
        status = Path(f"/proc/{pid}/status")
        assert not status.exists() or "zombie" in status.read_text()


@pytest.mark.skipif(sys.platform != "linux", reason="limits a file's size as Linux does")
def test_full_disk_is_one_line_and_the_build_continues(
    inputs: Path, vocabulary: Path, tmp_path: Path
) -> None:
    """A limit on the size of files stands in for the disk: writes fail in the same place."""
    command = ["data", "build", str(inputs), "--tokenizer", str(vocabulary), "--name", "words"]
    command += ["--val-share", "0.2", "--workers", "1"]
    program = f"""
import resource, signal, sys
from quintic.cli.main import main
from quintic.data.build import chunks, pipeline
chunks.CHUNK_BYTES = pipeline.CHUNK_BYTES = {CHUNK_BYTES}
pipeline.COMMIT_EVERY_S = 0.0
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
main(sys.argv[1:])
"""
    main([*command, "--out", str(tmp_path / "whole")])
    full = subprocess.run(
        [sys.executable, "-c", program, *command, "--out", str(tmp_path / "out")],
        capture_output=True,
        text=True,
    )
    assert full.returncode == 2
    (line,) = full.stderr.splitlines()
    assert "cannot be written (File too large): raise the limit on the size of a file" in line
    main([*command, "--out", str(tmp_path / "out")])
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_finished_build_is_left_as_it_is(build: Build, tmp_path: Path) -> None:
    assert build("out").built
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    again = build("out")
    assert not again.built
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()} == before


# A fast encoder -----------------------------------------------------------------------------------


class FakeFastEncoder:
    """Gives the ids of the reference; of documents from one on, what `change` makes of them."""

    def __init__(self, reference: Tokenizer, change: Callable[[Any], Any], first: int) -> None:
        self._reference, self._change, self._left = reference, change, first

    def encode(self, text: str, content: bytes) -> Any:
        assert content == text.encode()
        ids = self._reference.encode_to_array(text)
        self._left -= 1
        return self._change(ids) if self._left < 0 else ids


def use_none(patch: pytest.MonkeyPatch) -> None:
    """Let the reference encode, whatever is installed."""
    patch.setattr(pipeline, "fast_encoder_name", lambda reference, log: None)


def use_fake(
    patch: pytest.MonkeyPatch, change: Callable[[Any], Any] = lambda ids: ids, first: int = 0
) -> None:
    patch.setattr(pipeline, "fast_encoder_name", lambda reference, log: "fake 1.0")
    patch.setattr(encode, "FastEncoder", lambda known: FakeFastEncoder(known, change, first))


def fail(ids: Any) -> Any:
    raise TypeError("expected str")


def shards(folder: Path) -> dict[str, str]:
    return {name: digest for name, digest in contents(folder).items() if name.endswith(".bin")}


@pytest.mark.parametrize(
    ("change", "first", "compared_every", "place"),
    [
        (lambda ids: ids[::-1], 0, 1 << 30, "a.jsonl:1"),  # the first is always compared
        (lambda ids: ids[::-1], 200, 1, "b.parquet:51"),
        (lambda ids: ids[:-1], 200, 1 << 30, "b.parquet:51"),  # text is lost
        (fail, 200, 1 << 30, "b.parquet:51"),
    ],
)
def test_mistake_of_a_fast_encoder_is_said_and_all_is_encoded_again(
    build: Build,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[Any], Any],
    first: int,
    compared_every: int,
    place: str,
) -> None:
    use_none(monkeypatch)
    build("expected")
    monkeypatch.setattr(encode, "_REFERENCE_EVERY", compared_every)
    use_fake(monkeypatch, change, first)
    lines: list[str] = []
    build("out", log=lines.append)
    (line,) = lines
    assert re.fullmatch(rf"fake 1\.0 is wrong at .*{place}: all is encoded again by .*", line)
    assert re.fullmatch(r"tokenizers [\d.]+", Manifest.read(tmp_path / "out").encoder)
    assert contents(tmp_path / "out") == contents(tmp_path / "expected")


def test_ctrl_c_within_a_fast_encoder_is_no_mistake_of_it(
    build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(ids: Any) -> Any:
        raise KeyboardInterrupt

    use_fake(monkeypatch, interrupted, first=200)
    lines: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        build("out", log=lines.append)
    assert not lines


def test_what_a_fast_encoder_wrote_before_its_mistake_is_dropped_for_good(
    build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_none(monkeypatch)
    build("expected")
    calls, lines = itertools.count(), list[str]()
    with monkeypatch.context() as patch:
        # The order of ids is not looked at, until a document is lost.
        patch.setattr(encode, "_COMPARED_TOKENS", 0)
        patch.setattr(encode, "_REFERENCE_EVERY", 1 << 30)
        use_fake(patch, lambda ids: ids[::-1] if next(calls) < 250 else ids[1:], first=1)
        stop_at(patch, 55, KeyboardInterrupt())  # while all is encoded again
        with pytest.raises(KeyboardInterrupt):
            build("out", log=lines.append)
    assert len(lines) == 1
    state = json.loads((tmp_path / "out" / ".build" / "progress.json").read_text())
    assert state["only_reference"] and state["documents"]
    monkeypatch.delattr(pipeline, "fast_encoder_name")
    build("out")
    assert contents(tmp_path / "out") == contents(tmp_path / "expected")


@pytest.mark.parametrize("begun_with", ["fake 1.0", "tokenizers"])
def test_a_build_goes_on_with_or_without_the_fast_encoder(
    build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, begun_with: str
) -> None:
    use_none(monkeypatch)
    build("expected")
    with monkeypatch.context() as patch:
        if begun_with == "fake 1.0":
            use_fake(patch)
        stop_at(patch, 12, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            build("out")
    if begun_with == "tokenizers":
        use_fake(monkeypatch)
    build("out")
    encoders = Manifest.read(tmp_path / "out").encoder.split(", ")
    assert len(encoders) == 2 and encoders[0].startswith(begun_with)
    assert shards(tmp_path / "out") == shards(tmp_path / "expected")


# What is refused ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"field": "body"}, 'field "text", now it is "body"'),
        ({"shard_tokens": 3001}, "shard_tokens 3000, now it is 3001"),
        ({"shuffle": 0}, "shuffle null, now it is 0"),
        ({"tokenizer": "train:300"}, "tokenizer"),
    ],
)
def test_other_settings_in_the_same_folder_are_refused(
    build: Build, tmp_path: Path, changes: dict[str, Any], named: str
) -> None:
    build("out")
    before = contents(tmp_path / "out")
    with pytest.raises(QuinticError, match=f"out holds a build with {named}.* another --out"):
        build("out", **changes)
    assert contents(tmp_path / "out") == before


def test_other_input_in_the_same_folder_is_refused(build: Build, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", TEXTS)
    build("out", source=path)
    write_lines(path, [*TEXTS, "more"])
    with pytest.raises(QuinticError, match="out holds a build with input_bytes"):
        build("out", source=path)


def test_input_of_the_same_size_and_another_content_is_refused(
    build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_lines(tmp_path / "a.jsonl", TEXTS)
    monkeypatch.setattr(text_files, "_HASHED_WHOLE_BYTES", 5000)
    monkeypatch.setattr(text_files, "_PIECE_BYTES", 100)
    build("out", source=path)
    os.utime(path, (1, 1))
    assert not build("out", source=path).built  # a copy is no other input
    content = path.read_bytes()
    assert len(content) > 30_000
    for place in (0, len(content) // 3, len(content) - 2500):
        path.write_bytes(content[:place] + bytes(2500) + content[place + 2500 :])
        with pytest.raises(QuinticError, match="of an input whose files had the same names"):
            build("out", source=path)


def test_other_text_on_standard_input_is_refused(
    build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for text, built in (("abc first", True), ("abc first", False), ("xyz first", None)):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
        if built is None:
            with pytest.raises(QuinticError, match="of an input whose files had the same names"):
                build("out", source="-", val_share=0)
        else:
            assert build("out", source="-", val_share=0).built is built


@pytest.mark.parametrize("seed", [None, 3])
def test_a_build_goes_on_with_a_file_that_was_mended_and_what_it_has_not_read(
    build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int | None
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    write_lines(folder / "a.jsonl", TEXTS[:50])
    packed = gzip.compress(write_lines(folder / "b.jsonl", TEXTS[50:300]).read_bytes())
    (folder / "b.jsonl").unlink()
    (folder / "b.jsonl.gz").write_bytes(packed[:-500])
    write_lines(folder / "c.jsonl", TEXTS[300:310])
    monkeypatch.setattr(pipeline, "COMMIT_EVERY_S", 0.0)
    monkeypatch.setattr(shuffle, "_BUFFER_BYTES", 1)
    monkeypatch.setattr(chunks, "_UNPACK_BYTES", 500)
    with pytest.raises(QuinticError, match=r"b\.jsonl\.gz is truncated"):
        build("out", source=folder, shuffle=seed)
    state = json.loads((tmp_path / "out" / ".build" / "progress.json").read_bytes())
    assert state["position"][0] == 1 and state["position"][1] > 0
    # Other content where it was read already is refused.
    (folder / "b.jsonl.gz").write_bytes(b"\x1f\x8b\0" + packed[3:])
    with pytest.raises(QuinticError, match=r"has read .*/in/b\.jsonl\.gz, which has changed since"):
        build("out", source=folder, shuffle=seed)
    (folder / "b.jsonl.gz").write_bytes(packed)
    write_lines(folder / "a.jsonl", [*TEXTS[:49], TEXTS[49][::-1]])
    with pytest.raises(QuinticError, match=r"has read .*/in/a\.jsonl, which has changed since"):
        build("out", source=folder, shuffle=seed)
    write_lines(folder / "a.jsonl", TEXTS[:50])
    write_lines(folder / "c.jsonl", TEXTS[300:])
    assert build("out", source=folder, shuffle=seed).built
    build("whole", source=folder, shuffle=seed)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_a_vocabulary_in_training_needs_all_of_its_input(
    build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    write_lines(folder / "a.jsonl", TEXTS)
    write_lines(folder / "b.jsonl", TEXTS[:5])
    with monkeypatch.context() as patched:
        stop_at(patched, 5, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            build("out", source=folder, tokenizer="train:300")
    write_lines(folder / "b.jsonl", TEXTS[:6])
    with pytest.raises(QuinticError, match=r"has read .*/in/b\.jsonl, which has changed since"):
        build("out", source=folder, tokenizer="train:300")


def test_folder_of_something_else_is_refused(build: Build, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("years of work")
    with pytest.raises(QuinticError, match="out holds other files: name a new or an empty folder"):
        build("out")
    assert (tmp_path / "out" / "thesis.tex").read_text() == "years of work"
    with pytest.raises(QuinticError, match="is a file: name a folder"):
        build("out/thesis.tex")


@pytest.mark.parametrize("argument", ["own", "./own/", "ow?", "link"])
def test_folder_cannot_be_input_and_output(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    argument: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("own").mkdir()
    Path("link").symlink_to("own")
    write_lines(Path("own") / "a.jsonl", TEXTS[:50])
    for command in ([argument], ["--tokenizer", "train:280", "own/a.jsonl", argument]):
        line = refusal(["data", "build", *command, "--out", "own"], capsys)
        assert f"input {argument} is also --out: " in line
        assert "name another folder with --out" in line
    assert [path.name for path in Path("own").iterdir()] == ["a.jsonl"]


def test_two_builds_in_one_folder_are_refused(build: Build, tmp_path: Path) -> None:
    (tmp_path / "out" / ".build").mkdir(parents=True)
    with (
        FileLock(tmp_path / "out" / ".build" / "lock"),
        pytest.raises(QuinticError, match="another quintic data build works there; wait"),
    ):
        build("out")
    build("out")


def bad_input(tmp_path: Path) -> Path:
    """40 documents, and bad ones at the lines 11, 22 and 33."""
    lines = [json.dumps({"text": text}) for text in TEXTS[:40]]
    lines[10:10] = ["{"]
    lines[21:21] = ['{"text": ""}']
    lines[32:32] = ['{"body": "x"}']
    path = tmp_path / "bad.jsonl"
    path.write_text("\n".join(lines))
    return path


def test_bad_documents_are_refused_where_none_may_be_and_nothing_is_left(
    build: Build, tmp_path: Path
) -> None:
    path = bad_input(tmp_path)
    with pytest.raises(QuinticError, match=r"bad\.jsonl:11: broken JSON .*--max-bad allows 0 bad"):
        build("out", source=path)
    assert not (tmp_path / "out").exists()
    (tmp_path / "empty").mkdir()
    with pytest.raises(QuinticError, match=r"bad\.jsonl:33: no field 'text' .*--max-bad allows 2"):
        build("empty", source=path, max_bad=2)
    assert not list((tmp_path / "empty").iterdir())


def test_bad_documents_are_skipped_under_the_limit_and_listed(
    build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = bad_input(tmp_path)
    report = build("out", source=path, max_bad=3, val_share=0)
    assert report.skipped == 3
    lines = (tmp_path / "out" / "skipped.txt").read_text().splitlines()
    assert [line.split(": ")[0] for line in lines] == [f"{path}:{line}" for line in (11, 22, 33)]
    assert "broken JSON" in lines[0]
    assert lines[1].endswith("empty document")
    assert split_texts(tmp_path / "out")["train"] == TEXTS[:40]
    # A build that stopped at the limit continues with a larger one.
    monkeypatch.setattr(pipeline, "COMMIT_EVERY_S", 0.0)
    with pytest.raises(QuinticError, match="--max-bad allows 2"):
        build("again", source=path, max_bad=2, val_share=0)
    assert (tmp_path / "again" / ".build" / "progress.json").exists()
    build("again", source=path, max_bad=3, val_share=0)
    assert contents(tmp_path / "again") == contents(tmp_path / "out")


def test_broken_links_and_empty_files_end_no_build_that_may_skip_them(
    build: Build, tmp_path: Path
) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    for index, text in enumerate(TEXTS[:20]):
        (folder / f"{index:02}.txt").write_text(text)
    (folder / "05a.txt").symlink_to("moved.txt")
    (folder / "06a.txt").touch()
    with pytest.raises(QuinticError, match=r"05a\.txt:1: a broken link.*larger --max-bad to skip"):
        build("out", source=folder, val_share=0)
    report = build("out", source=folder, val_share=0, max_bad=1)
    assert report.skipped == 1
    assert "05a.txt:1: a broken link" in (tmp_path / "out" / "skipped.txt").read_text()
    assert f"{folder}: 1 empty file left out" in report.notes
    assert split_texts(tmp_path / "out") == {"train": TEXTS[:20]}


@pytest.mark.usefixtures("gpt2_vocabulary")
def test_text_that_the_tokenizer_gives_up_on_is_a_bad_document(
    build: Build, tmp_path: Path
) -> None:
    path = write_lines(tmp_path / "a.jsonl", ["good", " " * 2_000_000 + "x", ""])
    report = build("out", source=path, max_bad=2, tokenizer="gpt2", val_share=0)
    assert report.skipped == 2
    second, third = (tmp_path / "out" / "skipped.txt").read_text().splitlines()
    assert "a.jsonl:2: cannot be tokenized" in second
    assert "a.jsonl:3: empty document" in third


def test_lone_surrogates_and_special_tokens_are_text(build: Build, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a\\ud800b"}\n{"text": "<|endoftext|>"}\n')
    report = build("out", source=path, val_share=0)
    assert [(record.documents, record.text_bytes) for record in report.shards] == [(2, 5 + 13)]
    assert check_dataset(tmp_path / "out").ok


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--val-share", "1.5"], "--val-share is 1.5: it must be 0 to 1"),
        (["--shard-tokens", "0"], "--shard-tokens is 0: it must be 1 to 2147483647"),
        (["--workers", "0"], "--workers is 0: it must be at least 1"),
        (["--max-bad", "-1"], "--max-bad is -1: it must be 0 or more"),
        (["--name", "a b"], "--name is 'a b'"),
        (["--separator", ""], "--separator is empty"),
        (["--tokenizer", "train:many"], "train:SIZE, such as train:16384"),
        (["--tokenizer", "train:300:gpt4"], "with GPT-2's cut of text as train:SIZE:gpt2"),
        (["--tokenizer", "train:10:gpt2"], "a vocabulary of 10 tokens is too small"),
        (["--tokenizer", "train:300", "--val-share", "1"], "--val-share 1 leaves none"),
        (["--tokenizer", "train:10"], "a vocabulary of 10 tokens is too small"),
        (["--tokenizer", "absent.json"], "no file absent.json"),
        (["--field", "body"], "a.jsonl:1: no field 'body' (--field), there are text"),
        (["--out", "/proc/nowhere"], "--out /proc/nowhere cannot be written (No such file"),
    ],
)
def test_bad_options_are_one_line_and_leave_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    path = write_lines(tmp_path / "a.jsonl", TEXTS[:50])
    given = {"--out": str(tmp_path / "out"), "--tokenizer": "train:280"}
    given |= dict(zip(options[::2], options[1::2], strict=True))
    with pytest.raises(SystemExit) as caught:
        main(["data", "build", str(path), *itertools.chain.from_iterable(given.items())])
    assert caught.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("quintic: ")
    assert message in line
    assert not (tmp_path / "out").exists()


def test_input_without_documents_is_one_line(build: Build, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("\n\n")
    with pytest.raises(
        QuinticError, match="the input has no documents: 1 file, 0 bad documents; name"
    ):
        build("out", source=tmp_path / "a.jsonl")
    assert not (tmp_path / "out").exists()


def test_command_says_what_was_built_and_skipped(
    tmp_path: Path, vocabulary: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "my words"
    command = ["data", "build", str(bad_input(tmp_path)), "--out", str(out)]
    command += ["--tokenizer", str(vocabulary), "--max-bad", "5", "--val-share", "0"]
    main(command)
    lines = capsys.readouterr().out
    assert "note: no document is in the val split" in lines
    assert "skipped 3 bad documents" in lines
    assert "bad.jsonl:22: empty document" in lines
    assert "train: 40 documents" in lines
    assert (out / "my_words_train_000001.bin").exists()
    main(command)
    assert "was built before" in capsys.readouterr().out


def test_the_command_that_is_named_next_can_be_copied(
    vocabulary: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, source = tmp_path / "my data", write_lines(tmp_path / "a.jsonl", TEXTS[:30])
    main(["data", "build", str(source), "--out", str(out), "--tokenizer", str(vocabulary),
          "--val-share", "0.5"])  # fmt: skip
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith(f"{out} is built; ")
    assert shlex.split(last)[-3:] == ["train", "--data.path", str(out)]


@pytest.mark.parametrize(("share", "way_out"), [("0", "larger"), ("1", "smaller"), ("0.5", "")])
def test_command_calls_trainable_what_has_both_splits(
    inputs: Path,
    vocabulary: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    share: str,
    way_out: str,
) -> None:
    out = tmp_path / "out"
    for done in ("is built", "was built before"):
        command = ["data", "build", str(inputs), "--out", str(out), "--val-share", share]
        main([*command, "--tokenizer", str(vocabulary)])
        last = capsys.readouterr().out.splitlines()[-1]
        assert last.startswith(f"{out} {done}; ")
        assert last.endswith(f"; train on it with: quintic train --data.path {out}") == (
            not way_out
        )
        assert (
            f"in both splits: build into another --out, with a {way_out} --val-share" in last
        ) == (bool(way_out))


def test_separator_escapes_of_the_command(tmp_path: Path, vocabulary: Path) -> None:
    (tmp_path / "a.txt").write_text("one\n\ntwo\n\nthree")
    command = ["data", "build", str(tmp_path / "a.txt"), "--out", str(tmp_path / "out")]
    main([*command, "--tokenizer", str(vocabulary), "--val-share", "0", "--separator", r"\n\n"])
    assert split_texts(tmp_path / "out") == {"train": ["one", "two", "three"]}


def test_info_and_check_as_json(
    build: Build, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = build("out")
    tokens = sum(record.tokens for record in report.shards)
    main(["data", "check", str(tmp_path / "out"), "--json"])
    checked = json.loads(capsys.readouterr().out)
    assert (checked["ok"], checked["tokens"], checked["problems"]) == (True, tokens, [])
    main(["data", "info", str(tmp_path / "out"), "--json"])
    info = json.loads(capsys.readouterr().out)
    assert sum(split["tokens"] for split in info["splits"].values()) == tokens
    assert set(info["splits"]["train"]["document_tokens"]) == {"5", "25", "50", "75", "95", "100"}
    path = tmp_path / "out" / report.shards[0].file
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(SystemExit) as caught:
        main(["data", "check", str(tmp_path / "out"), "--json"])
    assert caught.value.code == 2
    checked = json.loads(capsys.readouterr().out)
    assert not checked["ok"]
    assert "is truncated" in checked["problems"][0]
