"""The lines that quintic prints of a run: before it starts, and when it has ended."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

from quintic import run_dir
from quintic.config import Config, CustomConfig, ModelConfig, TrainConfig, field_facts
from quintic.data.dataset import Dataset
from quintic.data.manifest import Split
from quintic.device import device_name
from quintic.diagnostics.record import DIAGNOSTICS, read_diagnostics
from quintic.errors import QuinticError, counted, in_command
from quintic.evaluate import LossSums, score_text
from quintic.generate import stream_text
from quintic.kernels.cpu_block import LONGEST
from quintic.kernels.runnable import choose_loss
from quintic.model.attention_backend import default_backend
from quintic.openmp import SPIN_COUNT, spins_less
from quintic.optim.matrix_optimizer import facts_of
from quintic.optim.newton_schulz import newton_schulz_dtype
from quintic.optim.param_groups import ParamSpec
from quintic.run import Run
from quintic.samples import PROMPT_TOKENS, TEMPERATURE, TOP_K, prompt_ids, sample_ids
from quintic.setup import uses_cpu_kernels

SAMPLE_TOKENS = 160


def opening_lines(run: Run) -> Iterator[str]:
    """Yield device, model, optimizers and data: everything that was chosen, once."""
    config, model = run.config, run.state.model
    c, t = config.model, config.train
    yield (
        f"device  {device_name(run.device)}, {t.precision}, "
        f"{'compiled' if t.compile else 'eager'}, {choose_loss(t.loss, run.device)} "
        f"loss{_float8_note(run)}"
    )
    if run.device.type == "cpu" and torch.get_num_threads() > 1 and spins_less():
        yield (
            f"threads spin {SPIN_COUNT:,} times before they sleep, not GNU OpenMP's 300,000, for "
            "cores that other programs use too; GOMP_SPINCOUNT sets it"
        )
    yield f"step    {', '.join(_step_choices(run))}"
    yield (
        f"model   {c.architecture}, {counted(c.layers, 'layer')} x {c.width}, "
        f"{counted(c.heads, 'head')} of {c.head_width}, context {c.context:,}, "
        f"vocabulary {c.vocab_size:,}: "
        f"{model.parameter_count():,} parameters, "
        f"{model.flops_per_token() / 1e6:,.1f} MFLOP a token"
    )
    switches = ((n, getattr(c, n), f) for n, f in field_facts(ModelConfig).items() if f.needs)
    if switched := [f"{name} {value}" for name, value, f in switches if value != f.default]:
        yield f"        {', '.join(switched)}"
    if run.world.size > 1:
        yield (
            f"procs   {run.world.size} processes, {t.sharding}, each with up to "
            f"{counted(len(run.rows(t.steps)), 'sequence')} of a batch in "
            f"{counted(run.micro_batches(t.steps), 'micro-batch', 'micro-batches')}"
        )
    for optimizer in dict.fromkeys([config.optim.matrices, "adamw"]):
        if own := [spec for spec in run.specs if spec.optimizer == optimizer]:
            yield f"optim   {_optimizer_line(optimizer, own, run)}"
    train, tokens = run.dataset.train, config.tokens
    yield (
        f"data    {run.dataset.path}: {counted(len(train), 'training token')} in "
        f"{counted(train.files, 'shard')}, {len(run.dataset.val):,} for validation, "
        f"{config.data.order} order"
    )
    yield (
        f"run     {counted(t.steps, 'step')} of {_batch_tokens(config)} tokens = "
        f"{tokens / 1e6:,.1f}M ({tokens / len(train):.2f} epochs), micro-batches of "
        f"{counted(t.micro_batch or 1, 'sequence')}, in {run.folder}"
    )
    if rules := [*_early_stops(t)]:
        yield f"        stops early {' or '.join(rules)}"
    if t.diagnostics_every:
        yield (
            f"        diagnostics every {counted(t.diagnostics_every, 'step')}, in "
            f"{run.folder / DIAGNOSTICS}; what they cost is said at the end"
        )


def _batch_tokens(config: Config) -> str:
    """Return the tokens of one step, or those of the first and the last stage."""
    first, last = (config.batches.at(s) * config.model.context for s in (0, config.train.steps))
    return f"{last:,}" if first == last else f"{first:,} to {last:,}"


def _early_stops(train: TrainConfig) -> Iterator[str]:
    """Yield the rules by which a run stops early."""
    if train.target_loss is not None:
        yield f"at a validation loss of {train.target_loss:g}"
    if train.patience is not None:
        yield f"after {train.patience} validations in a row without a new lowest loss"


def _step_choices(run: Run) -> Iterator[str]:
    """Yield how a step is computed, as far as it was chosen."""
    train, model = run.config.train, run.state.model
    fused = uses_cpu_kernels(train, run.device)
    if fused:
        yield "fused kernels for a CPU"
    if fused and train.attention == "auto" and run.config.model.context <= LONGEST:
        yield "attention by blocks of queries"
    elif train.attention == "auto":
        own = default_backend(run.config.model, run.device, model.compute_dtype)
        yield f"attention as PyTorch chooses{f' ({own})' if own else ''}"
    else:
        yield f"attention {train.attention}"
    if train.cuda_graphs:
        yield "micro-batches as CUDA graphs"
    if train.cache_bf16_weights:
        yield "weights cast once a step"
    if run.device.type == "cuda":
        yield f"batches uploaded {'ahead' if run.prefetches_to_gpu else 'inline'}"


def _float8_note(run: Run) -> str:
    if not run.config.train.float8_head:
        return ""
    return ", float8 head" + (" (rounded only: no faster here)" if run.device.type == "cpu" else "")


def _optimizer_line(optimizer: str, specs: list[ParamSpec], run: Run) -> str:
    elements = sum(math.prod(spec.shape) for spec in specs)
    lrs = " and ".join(f"{lr:g}" for lr in sorted({spec.lr for spec in specs}))
    if optimizer != "muon":
        settings = run.config.optim.matrix_settings if optimizer != "adamw" else None
        options = settings.options if isinstance(settings, CustomConfig) else ()
        return (
            f"{facts_of(optimizer).label} on {counted(len(specs), 'parameter')} "
            f"({counted(elements, 'element')}), "
            f"{', '.join([f'lr {lrs}', *options])}"
        )
    muon = run.config.optim.muon
    weights = next(run.state.model.parameters()).dtype
    ns_dtype = newton_schulz_dtype(muon.ns_dtype, run.device, weights)
    precision = str(ns_dtype).removeprefix("torch.")
    kind = "Newton-Schulz" if muon.ns_coefficients == "quintic" else muon.ns_coefficients
    return (
        f"Muon on {counted(len(specs), 'matrix', 'matrices')} ({elements:,} elements), lr {lrs}, "
        f"scale {muon.scale}, {counted(muon.ns_steps, f'{kind} step')} in {precision}"
        f"{', Triton kernel' if muon.kernel == 'triton' else ''}"
    )


def score_lines(dataset: Dataset, split: Split, sums: LossSums, *, unigram: bool) -> Iterator[str]:
    """Yield the loss on the first tokens of a split, per token and per byte, beside gzip and, if
    asked for, a unigram model of the dataset's training tokens."""
    perplexity = f"{sums.perplexity:{'.2f' if sums.perplexity < 1e6 else '.3g'}}"
    loss = f"loss {sums.mean:.4f} nats per token, perplexity {perplexity}"
    loss = f"{'validation' if split == 'val' else 'training'} {loss}"
    try:
        scores = score_text(
            sums,
            targets=dataset.streams[split].read(1, sums.tokens),
            tokenizer=dataset.load_tokenizer(),
            train=dataset.train if unigram else None,
        )
    except QuinticError as error:
        yield loss
        yield f"no bits per byte: {error}"
        return
    yield f"{loss}, {scores.bits_per_byte:.4f} bits per byte"
    others = [f"gzip -9 {scores.gzip_bits_per_byte:.4f}"]
    if scores.unigram_bits_per_byte is not None:
        others.append(f"unigram model {scores.unigram_bits_per_byte:.4f}")
    yield f"on the same text: {', '.join(others)} bits per byte"
    yield (
        f"bits per byte: the loss of the {scores.text_tokens:,} tokens that are text, over their "
        f"{scores.text_bytes:,} bytes; {sums.tokens - scores.text_tokens:,} are end of text and "
        "have none"
    )


def no_better_than_guessing(loss: float, vocab_size: int) -> str | None:
    """Return in words that a loss, in nats per token, is not below that of giving each token of the
    vocabulary the same chance; None where it is."""
    guessing = math.log(vocab_size)
    if loss < guessing - 1e-3:
        return None
    return (
        f"the loss is no better than that of guessing among all {vocab_size:,} tokens, "
        f"{guessing:.4f}"
    )


def closing_lines(run: Run) -> Iterator[str]:
    """Yield why it stopped early where it did, scores, whether it has learned nothing, a sample and
    the place of the figure, for a run that came to its end."""
    if run.stopped_early:
        steps = run.config.train.steps
        yield f"stopped early at step {run.state.step} of {steps}: {run.stopped_early}"
    assert run.validation is not None, "the end validates"
    yield from score_lines(run.dataset, "val", run.validation, unigram=True)
    assert run.config.model.vocab_size is not None, "set_up resolves it"
    if nothing := no_better_than_guessing(run.validation.mean, run.config.model.vocab_size):
        yield f"{nothing}: train with a lower {run.config.optim.lr_options}, or for more steps"
    if run.sharded:
        yield "no sample: the weights are divided among processes; generate from the run instead"
    else:
        yield from _sample_lines(run)
    yield f"figure  {run.folder / run_dir.FIGURE}"
    if run.config.train.diagnostics_every:
        yield _diagnostics_line(run)
    if run.dataset.tokenizer_spec is not None:
        yield f"more    quintic generate {in_command(run.folder)} --prompt 'def '"


def _diagnostics_line(run: Run) -> str:
    """Return where the diagnostics of a run are, and what they have cost."""
    records = read_diagnostics(run.folder)
    seconds = sum(record["seconds"] for record in records)
    return (
        f"diagnostics of {counted(len(records), 'step')} took {seconds:.1f} s, "
        f"{seconds / run.state.elapsed_s:.1%} of the {run.state.elapsed_s:,.0f} s of training: "
        f"{run.folder / DIAGNOSTICS}"
    )


def _sample_lines(run: Run) -> Iterator[str]:
    """Yield what the model makes of the beginning of the validation text."""
    try:
        tokenizer = run.dataset.load_tokenizer()
    except QuinticError:
        return  # score_lines has said why
    yield (
        f"sample: the first {PROMPT_TOKENS} tokens of the validation text, and after | what "
        f"the model makes of them (temperature {TEMPERATURE}, top-k {TOP_K})"
    )
    seen = "".join(stream_text(tokenizer, prompt_ids(run)))
    text = seen + "|" + "".join(stream_text(tokenizer, sample_ids(run, SAMPLE_TOKENS)))
    yield "".join(f"    {line}\n" for line in text.strip().splitlines())
