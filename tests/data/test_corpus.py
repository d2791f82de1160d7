import multiprocessing
import shutil
import time
from pathlib import Path

import pytest

from quintic.data import corpus
from quintic.data.corpus import _dataset_of_tree, embedded_dataset
from quintic.data.dataset import open_dataset
from quintic.data.shards import TokenStream
from quintic.data.verify import check_dataset
from quintic.errors import QuinticError
from tests.waiting import LAST_BOUND_S


@pytest.fixture
def library(small_tree: Path, tmp_path: Path) -> Path:
    """A copy of the small library, to be changed."""
    return Path(shutil.copytree(small_tree, tmp_path / "library"))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def documents(folder: Path) -> dict[str, list[str]]:
    """Text of every document by split, as decoded from the shards."""
    dataset = open_dataset(folder)
    tokenizer = dataset.load_tokenizer()

    def texts(stream: TokenStream) -> list[str]:
        text = tokenizer.decode(stream.read(0, len(stream)).tolist())
        return text.split("<|endoftext|>")[1:]

    return {split: texts(stream) for split, stream in dataset.streams.items()}


def test_two_builds_are_equal_byte_for_byte(small_tree: Path, tmp_path: Path) -> None:
    one = _dataset_of_tree(small_tree, 320, tmp_path / "one")
    two = _dataset_of_tree(small_tree, 320, tmp_path / "two")
    assert one.name == two.name
    assert contents(one) == contents(two)
    assert set(contents(one)) == {
        "manifest.json",
        "tokenizer.json",
        "python_train_000000.bin",
        "python_val_000000.bin",
    }


def test_every_file_is_one_document_of_one_split(small_tree: Path, small_dataset: Path) -> None:
    found = documents(small_dataset)
    files = {path.read_text() for path in small_tree.rglob("*.py")}
    assert sorted(found["train"] + found["val"]) == sorted(files)
    assert not set(found["train"]) & set(found["val"])
    assert found["val"]
    # Shuffled by file: not the order of the names.
    by_name = [path.read_text() for path in sorted(small_tree.rglob("*.py"))]
    assert found["train"] != [text for text in by_name if text in set(found["train"])]


def test_second_use_is_found(small_tree: Path, tmp_path: Path) -> None:
    built = _dataset_of_tree(small_tree, 320, tmp_path)
    before = {path: path.stat().st_mtime_ns for path in [built, *built.iterdir()]}
    stages: list[str] = []
    again = _dataset_of_tree(small_tree, 320, tmp_path, lambda stage, part: stages.append(stage))
    assert again == built
    assert stages == []
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_other_sources_and_vocabularies_get_their_own(library: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    first = _dataset_of_tree(library, 320, cache)
    assert _dataset_of_tree(library, 300, cache) != first
    path = library / "package" / "module_1.py"
    path.write_text(path.read_text().replace("argument", "argumenT"))  # of the same size
    assert _dataset_of_tree(library, 320, cache) != first


def test_what_does_not_belong_is_left_out(library: Path, tmp_path: Path) -> None:
    before = documents(_dataset_of_tree(library, 300, tmp_path / "one"))
    for folder in ["site-packages/torch", "dist-packages", "test", "json/tests", "__pycache__"]:
        (library / folder).mkdir(parents=True)
        (library / folder / "outside.py").write_text("outside = 1\n")
    (library / "_sysconfigdata__linux.py").write_text("build_time_vars = {}\n")
    (library / "notes.txt").write_text("no source\n")
    (library / "empty.py").write_text("")
    (library / "blank.py").write_text("\n\n")
    (library / "undecodable.py").write_bytes(b"name = '\xff'\n")
    (library / "unknown.py").write_bytes(b"# coding: klingon\n")
    (library / "zzz_copy.py").write_text((library / "package" / "module_1.py").read_text())
    (library / "dangling.py").symlink_to(library / "nowhere.py")
    assert documents(_dataset_of_tree(library, 300, tmp_path / "two")) == before


def test_sources_are_decoded_as_they_declare(library: Path, tmp_path: Path) -> None:
    (library / "latin.py").write_bytes("# coding: latin-1\nname = 'é'\n".encode("latin-1"))
    (library / "dos.py").write_bytes(b"first = 1\r\nsecond = 2\r\n")
    (library / "bom.py").write_bytes(b"\xef\xbb\xbfthird = 3\n")
    (library / "special.py").write_text("text = '<|endoftext|>'\n")
    folder = _dataset_of_tree(library, 300, tmp_path / "cache")
    manifest = open_dataset(folder).manifest
    assert manifest is not None
    assert sum(record.documents for record in manifest.shards) == 44
    found = documents(folder)
    texts = set(found["train"] + found["val"])
    assert "# coding: latin-1\nname = 'é'\n" in texts
    assert "first = 1\nsecond = 2\n" in texts
    assert "third = 3\n" in texts


def test_progress(small_tree: Path, tmp_path: Path) -> None:
    calls: list[tuple[str, float]] = []
    _dataset_of_tree(small_tree, 320, tmp_path, lambda stage, part: calls.append((stage, part)))
    stages = list(dict.fromkeys(stage for stage, _ in calls))
    assert stages == ["text", "vocabulary", "train tokens", "val tokens"]
    for stage in stages:
        parts = [part for name, part in calls if name == stage]
        assert parts == sorted(parts)
        assert parts[-1] == 1.0


def test_interrupted_build_leaves_nothing(small_tree: Path, tmp_path: Path) -> None:
    def interrupt(stage: str, part: float) -> None:
        if stage == "val tokens":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _dataset_of_tree(small_tree, 320, tmp_path, interrupt)
    assert list((tmp_path / "corpus").iterdir()) == []


def _build(root: Path, cache: Path, together: float) -> None:
    time.sleep(max(0.0, together - time.time()))
    folder = _dataset_of_tree(root, 320, cache)
    assert check_dataset(folder).ok


def test_two_processes_can_build_at_once(small_tree: Path, tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    arguments = (small_tree, tmp_path, time.time() + 2.0)
    processes = [context.Process(target=_build, args=arguments) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(LAST_BOUND_S)
    assert [process.exitcode for process in processes] == [0, 0]
    assert len(list((tmp_path / "corpus").iterdir())) == 1


def test_the_slower_of_two_builds_takes_the_faster_ones(small_tree: Path, tmp_path: Path) -> None:
    built: list[Path] = []

    def other_process(stage: str, part: float) -> None:
        if stage == "val tokens" and not built:
            built.append(tmp_path)  # before the call, which reports too
            built[0] = _dataset_of_tree(small_tree, 320, tmp_path)

    assert _dataset_of_tree(small_tree, 320, tmp_path, other_process) == built[0]
    assert list((tmp_path / "corpus").iterdir()) == built


def test_python_without_sources(tmp_path: Path) -> None:
    (tmp_path / "library").mkdir()
    with pytest.raises(
        QuinticError,
        match=r"no sources .*library: .*with --data\.path when training",
    ):
        _dataset_of_tree(tmp_path / "library", 320, tmp_path / "cache")


def test_cache_that_cannot_be_written(small_tree: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(QuinticError, match=r"cannot be written to .*file.*QUINTIC_CACHE"):
        _dataset_of_tree(small_tree, 320, tmp_path / "file")


def test_full_disk(small_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(corpus, "write_shard", full)
    with pytest.raises(QuinticError, match=r"No space left.*QUINTIC_CACHE"):
        _dataset_of_tree(small_tree, 320, tmp_path)
    assert list((tmp_path / "corpus").iterdir()) == []


def test_vocabulary_too_large_for_the_text(small_tree: Path, tmp_path: Path) -> None:
    with pytest.raises(QuinticError, match="ask for at most"):
        _dataset_of_tree(small_tree, 100_000, tmp_path)
    assert list((tmp_path / "corpus").iterdir()) == []


def test_cache_by_argument_environment_and_platform(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Path] = []

    def see(root: Path, vocab_size: int, cache: Path, progress: object) -> Path:
        seen.append(cache)
        return cache

    monkeypatch.setattr(corpus, "_dataset_of_tree", see)
    monkeypatch.setenv("QUINTIC_CACHE", str(tmp_path / "named"))
    embedded_dataset(cache=tmp_path / "given")
    embedded_dataset()
    monkeypatch.delenv("QUINTIC_CACHE")
    embedded_dataset()
    assert seen[:2] == [tmp_path / "given", tmp_path / "named"]
    assert seen[2].name == "quintic"


def test_embedded_dataset_of_this_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = embedded_dataset(1024, cache=tmp_path)
    dataset = open_dataset(folder)
    assert (dataset.vocab_size, dataset.eot_id) == (1024, 0)
    assert len(dataset.train) > 2_000_000
    assert len(dataset.val) > 200_000
    assert check_dataset(folder).ok
    found = documents(folder)
    assert not set(found["train"]) & set(found["val"])
    monkeypatch.delattr(corpus, "_build")  # found at once from now on
    assert embedded_dataset(1024, cache=tmp_path) == folder
