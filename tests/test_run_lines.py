"""What quintic says of a run, before it starts and when it has ended."""

import math
import re
import sys
from pathlib import Path

import pytest
import torch

from quintic.console import Console
from quintic.data.bpe_tokenizer import train_bpe
from quintic.data.dataset import open_dataset
from quintic.data.shards import write_shard
from quintic.errors import QuinticError
from quintic.evaluate import LossSums
from quintic.openmp import SPIN_COUNT
from quintic.run_lines import SAMPLE_TOKENS, closing_lines, opening_lines, score_lines
from quintic.samples import PROMPT_TOKENS
from quintic.setup import set_up, start
from quintic.train import train_run
from tests.conftest import tiny_config

TEXT = "".join(f"def f{i}(x):\n    return x + {i}\n\n" for i in range(200))


@pytest.fixture
def text_data(tmp_path: Path) -> Path:
    """A folder of Python-like text with its tokenizer beside it."""
    folder = tmp_path / "text"
    folder.mkdir()
    bpe = train_bpe([TEXT], 270)
    bpe.save(folder)
    ids = [bpe.eot_id, *bpe.encode(TEXT)]
    write_shard(folder / "text_train_000001.bin", ids)
    write_shard(folder / "text_val_000000.bin", ids[:1500])
    return folder


def test_the_opening_names_device_model_optimizers_data_and_run(
    tiny_data: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    run = set_up(tiny_config(tiny_data), folder, Console())
    text = "\n".join(opening_lines(run))
    model = run.state.model
    assert re.search(r"device +cpu \(.*\), float32, eager, chunked loss", text)
    assert "gpt, 2 layers x 32, 2 heads of 16, context 32, vocabulary 128" in text
    # 2 layers of 12 * 32^2, and 128 * 32 of the embedding
    assert f"{model.parameter_count():,} parameters" in text
    assert "28,672 parameters" in text
    assert f"{model.flops_per_token() / 1e6:,.1f} MFLOP a token" in text
    assert "Muon on 12 matrices (24,576 elements), lr 0.02, scale aspect" in text
    assert "5 Newton-Schulz steps in float32" in text
    assert "AdamW on 1 parameter (4,096 elements)" in text
    assert "12,000 training tokens in 3 shards, 2,000 for validation, stream order" in text
    assert "12 steps of 256 tokens = 0.0M (0.26 epochs)" in text
    assert str(folder) in text
    assert not folder.exists()


@pytest.mark.skipif(sys.platform != "linux", reason="PyTorch brings GNU OpenMP on Linux")
@pytest.mark.parametrize(
    ("count", "threads", "said"),
    [(str(SPIN_COUNT), 2, True), (str(SPIN_COUNT), 1, False), ("5", 2, False)],
)
def test_how_threads_wait_is_said_where_quintic_chose_it(
    count: str,
    threads: int,
    said: bool,
    tiny_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("GOMP_SPINCOUNT", count)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    lines = [*opening_lines(set_up(tiny_config(tiny_data), tmp_path / "run", Console()))]
    assert any(line.startswith("threads spin 30,000 times") for line in lines) == said


def test_one_of_anything_is_no_plural(tiny_data: Path, tmp_path: Path) -> None:
    tokens = dict.fromkeys(["train.batch_tokens", "train.eval_tokens"], 32)
    sizes = dict.fromkeys(["model.layers", "model.heads", "train.steps", "train.micro_batch"], 1)
    changes = {**tokens, **sizes, "optim.muon.ns_steps": 1}
    run = set_up(tiny_config(tiny_data, changes), tmp_path / "run", Console())
    text = "\n".join(opening_lines(run))
    assert "1 layer x 32, 1 head of 32" in text
    assert "1 Newton-Schulz step in" in text
    assert "1 step of 32 tokens" in text
    assert not re.search(r"\b1 \w+s\b", text)


def test_every_learning_rate_of_adamw_is_named(tiny_data: Path, tmp_path: Path) -> None:
    changes = {"optim.matrices": "adamw", "optim.adamw.matrix_lr": 0.001, "optim.adamw.lr": 0.25}
    run = set_up(tiny_config(tiny_data, changes), tmp_path / "run", Console())
    text = "\n".join(opening_lines(run))
    assert "AdamW on 13 parameters (28,672 elements), lr 0.001 and 0.25" in text
    assert "Muon" not in text


def test_the_scores_stand_beside_gzip_and_unigram(text_data: Path) -> None:
    dataset = open_dataset(text_data, str(text_data))
    tokens = 960
    tokenizer = dataset.load_tokenizer()
    targets = dataset.val.read(1, tokens)
    ends = int((targets == tokenizer.eot_id).sum())
    sums = LossSums(tokens, 1.5 * tokens, 1.25 * tokens)
    lines = list(score_lines(dataset, "val", sums, unigram=True))
    assert len(lines) == 3
    size = len(tokenizer.decode_bytes(targets))
    bits = 1.25 / math.log(2) * tokens / size
    expected = f"validation loss 1.5000 nats per token, perplexity 4.48, {bits:.4f} bits per byte"
    assert lines[0] == expected
    assert lines[2] == (
        f"bits per byte: the loss of the {tokens - ends:,} tokens that are text, over their "
        f"{size:,} bytes; {ends} are end of text and have none"
    )
    found = re.fullmatch(
        r"on the same text: gzip -9 (\d\.\d{4}), unigram model (\d\.\d{4}) bits per byte", lines[1]
    )
    assert found is not None
    gzip, unigram = (float(number) for number in found.groups())
    assert 0 < gzip < unigram < 8


@pytest.mark.parametrize(
    ("loss", "perplexity"), [(1.5, "4.48"), (128.0, "3.89e+55"), (2_000.0, "inf")]
)
def test_without_a_tokenizer_the_loss_is_told_and_why_no_bytes(
    tiny_data: Path, loss: float, perplexity: str
) -> None:
    sums = LossSums(512, 512 * loss, 512 * loss)
    lines = list(score_lines(open_dataset(tiny_data), "val", sums, unigram=True))
    assert lines[0] == f"validation loss {loss:.4f} nats per token, perplexity {perplexity}"
    assert lines[1].startswith("no bits per byte: ")
    assert "--data.tokenizer" in lines[1]


def test_the_closing_has_scores_a_sample_and_where_the_figure_lies(
    text_data: Path, tmp_path: Path
) -> None:
    changes = {"data.tokenizer": str(text_data), "model.vocab_size": None}
    run = start(tiny_config(text_data, changes), tmp_path / "run", Console())
    assert train_run(run, Console())
    lines = list(closing_lines(run))
    assert run.state.val_loss is not None
    assert lines[0].startswith(f"validation loss {run.state.val_loss:.4f} nats per token")
    assert lines[1].startswith("on the same text: gzip -9")
    assert lines[2].startswith("bits per byte: the loss of the ")
    assert lines[3].startswith(f"sample: the first {PROMPT_TOKENS} tokens of the validation text")
    assert all(line.startswith("    ") for line in lines[4].splitlines())
    shown = "\n".join(line.removeprefix("    ") for line in lines[4].splitlines())
    prompt, _, continuation = shown.partition("|")
    tokenizer = run.dataset.load_tokenizer()
    seen = tokenizer.decode_bytes(run.dataset.val.read(0, PROMPT_TOKENS).tolist()).decode()
    assert prompt.strip() == seen.strip()
    assert 0 < len(continuation) <= SAMPLE_TOKENS * 30
    assert lines[5] == f"figure  {tmp_path / 'run' / 'loss.png'}"
    assert (tmp_path / "run" / "loss.png").exists()
    assert lines[6].startswith(f"more    quintic generate {tmp_path / 'run'} ")


def test_the_closing_without_a_tokenizer_has_no_sample(tiny_data: Path, tmp_path: Path) -> None:
    run = start(tiny_config(tiny_data, {"train.steps": 2}), tmp_path / "run", Console())
    assert train_run(run, Console())
    text = "\n".join(closing_lines(run))
    nothing = "no better than that of guessing among all 128 tokens, 4.8520: train with a lower"
    for loss, said in ((4.8521, True), (4.84, False)):
        run.validation = LossSums(512, 512 * loss, 512 * loss)
        assert any(nothing in line for line in closing_lines(run)) == said
    assert "no bits per byte" in text
    assert "sample" not in text
    assert "figure" in text
    assert "quintic generate" not in text, "which needs a tokenizer"


def test_a_tokenizer_too_large_for_the_model_is_refused_before_the_first_step(
    text_data: Path, tmp_path: Path
) -> None:
    # Or the run would end in a traceback: the sample's prompt has an id that the model lacks.
    changes = {"data.tokenizer": str(text_data), "model.vocab_size": 128}
    with pytest.raises(QuinticError, match=r"vocab_size is 128 and the .* has 270 tokens"):
        start(tiny_config(text_data, changes), tmp_path / "run", Console())
    assert not (tmp_path / "run").exists()
