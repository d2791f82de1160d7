"""The config: round trips, every rule with its message, overrides, the nearest field."""

import dataclasses
import json
import math
import typing
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quintic import __version__
from quintic.config import (
    AdamWConfig,
    Config,
    ContinuedFrom,
    CustomConfig,
    DataConfig,
    Imported,
    InitFrom,
    ModelConfig,
    MuonConfig,
    OptimConfig,
    ScheduleConfig,
    SGDConfig,
    ShampooConfig,
    SOAPConfig,
    TrainConfig,
    differing_fields,
    field_facts,
    resolve_eot,
    resolve_vocabulary,
    unknown_field,
)
from quintic.config.schema import field_types
from quintic.errors import QuinticError
from quintic.recipes import RECIPES, get_recipe

positive = st.floats(1e-9, 1e3)
fraction = st.floats(0, 1, exclude_max=True)


@st.composite
def configs(draw: st.DrawFn) -> Config:
    """Any valid config."""
    heads, context = draw(st.integers(1, 8)), draw(st.integers(1, 64))
    micro = draw(st.none() | st.integers(1, 4))
    sequences = draw(st.integers(1, 8)) * (micro or 1)
    steps = draw(st.integers(1, 10_000))
    cooled = draw(st.booleans())
    cooldown = draw(st.floats(0, 1)) if cooled else 0.28
    warmup = draw(st.integers(0, steps - round(cooldown * steps)))
    warmed = draw(st.booleans())
    fsdp = draw(st.booleans())
    rows, whole = ["muon", "adamw", "sgd", "lion:Lion"], ["soap", "shampoo"]
    matrices = draw(st.sampled_from(rows if fsdp else rows + whole))
    stages = draw(st.integers(1, min(steps, 4)))
    eval_every = draw(st.integers(1, 1_000))
    between = (steps - 1) // eval_every  # validations at which a run may stop early
    compiled = draw(st.booleans())
    architecture: Literal["gpt", "gpt2"] = draw(st.sampled_from(["gpt", "gpt2"]))

    def switch(*values: Any) -> Any:
        """gpt2 has no switches: the default, which comes first."""
        return draw(st.sampled_from(values)) if architecture == "gpt" else values[0]

    layers, vocabulary = draw(st.integers(1, 48)), draw(st.none() | st.integers(1, 200_000))
    document_mask, muon_decay = switch(False, True), draw(st.just(0.0) | positive)
    tied_head, x0_skip = switch(True, False), switch(False, True)
    unet_skips = layers > 1 and switch(False, True)
    value_embeddings = switch(0, layers // 2)
    scalars = x0_skip or unet_skips or value_embeddings > 0
    path = draw(st.just("embedded") | st.text(min_size=1))
    normuon = draw(st.booleans())

    def part_of(on: bool, cls: Any) -> Any:
        """The class of a section, or its defaults where nothing heeds it."""
        return cls if on else lambda **_: cls()

    return Config(
        recipe=draw(st.text(max_size=8)),
        model=ModelConfig(
            architecture=architecture,
            layers=layers,
            width=heads * 2 * draw(st.integers(1, 32)),
            heads=heads,
            context=context,
            vocab_size=vocabulary,
            positions=switch("rotary", "learned"),
            norm=switch("rmsnorm", "layernorm"),
            activation=switch("relu2", "gelu"),
            init=switch("zero", "classic"),
            qk_norm=switch(True, False),
            tied_head=tied_head,
            logit_softcap=switch(None, 15.0, 30.0),
            embed_norm=switch(False, True),
            token_smear=switch(False, True),
            key_smear=switch(False, True),
            bigram_embeddings=switch(0, 1, 4096),
            value_embeddings=value_embeddings,
            x0_skip=x0_skip,
            unet_skips=unet_skips,
            window=(window := switch(None, 1, context)),
            window_start=draw(st.sampled_from([None, 1, window])) if window else None,
            document_mask=document_mask,
            eot_id=draw(st.none() | st.integers(0, (vocabulary or 2**63) - 1))
            if document_mask
            else None,
        ),
        data=DataConfig(
            path=path,
            tokenizer=draw(st.none() | st.text()),
            order=draw(st.sampled_from(["stream", "shuffle"])),
            embedded_vocab=draw(st.integers(512, 65_536)) if path == "embedded" else 4096,
        ),
        optim=OptimConfig(
            matrices=matrices,
            muon=part_of(matrices == "muon", MuonConfig)(
                lr=draw(positive),
                momentum=draw(st.floats(0.85, 0.999) if warmed else fraction),
                momentum_warmup_steps=draw(st.integers(1, 500)) if warmed else 0,
                nesterov=draw(st.booleans()),
                scale=draw(st.sampled_from(["max_dim", "aspect", "rms", "none"])),
                ns_steps=draw(st.integers(1, 12)),
                ns_coefficients=draw(st.sampled_from(["quintic", "polar_express", "dion"])),
                ns_dtype=draw(st.sampled_from(["auto", "float32", "bfloat16", "float64"])),
                kernel=draw(st.sampled_from(["auto", "torch", "triton"])),
                normuon=normuon,
                beta2=draw(fraction) if normuon else 0.95,
                weight_decay=muon_decay,
                cautious=muon_decay > 0 and draw(st.booleans()),
            ),
            adamw=AdamWConfig(
                lr=draw(positive),
                matrix_lr=draw(st.none() | positive) if matrices == "adamw" else None,
                head_lr=None if tied_head else draw(st.none() | positive),
                scalar_lr=draw(st.none() | positive) if scalars else None,
                betas=draw(st.tuples(fraction, fraction)),
                eps=draw(positive),
                weight_decay=draw(st.just(0.0) | positive),
            ),
            sgd=part_of(matrices == "sgd", SGDConfig)(
                lr=draw(positive), momentum=draw(st.floats(0.01, 0.999))
            ),
            soap=part_of(matrices == "soap", SOAPConfig)(
                lr=draw(positive),
                betas=draw(st.tuples(fraction, fraction)),
                precondition_frequency=draw(st.integers(1, 100)),
            ),
            shampoo=part_of(matrices == "shampoo", ShampooConfig)(
                lr=draw(positive),
                betas=draw(st.tuples(fraction, fraction)),
                precondition_frequency=draw(st.integers(1, 100)),
            ),
            custom=part_of(matrices == "lion:Lion", CustomConfig)(
                lr=draw(positive),
                options=draw(st.sampled_from([(), ("beta1=0.9", "betas=(0.9, 0.99)", "kind=a=b")])),
            ),
            schedule=ScheduleConfig(
                kind="trapezoid" if cooled else draw(st.sampled_from(["trapezoid", "cosine"])),
                warmup_steps=warmup,
                cooldown_fraction=cooldown,
            ),
            clip_norm=draw(st.none() | positive),
        ),
        train=TrainConfig(
            steps=steps,
            batch_tokens=context * sequences * stages,
            batch_stages=stages,
            micro_batch=micro,
            seed=draw(st.integers(0, 2**64 - 1)),
            device=draw(st.sampled_from(["auto", "cuda", "mps", "cpu"])),
            precision=draw(st.sampled_from(["auto", "float32", "bfloat16", "float64"])),
            compile=compiled,
            sharding="fsdp" if fsdp else "zero1",
            activation_checkpointing=draw(st.booleans()),
            hang_timeout_s=draw(positive),
            loss=draw(st.sampled_from(["auto", "chunked", "plain", "fused"])),
            mtp_tokens=draw(st.integers(1, min(steps, context))),
            float8_head=False,  # what it asks of the sizes has a test of its own
            attention="flex"
            if compiled and switch(False, True)
            else draw(st.sampled_from(["auto", "math", "flash", "efficient", "cudnn"])),
            cuda_graphs=compiled and draw(st.booleans()),
            cpu_kernels="plain" if compiled else draw(st.sampled_from(["plain", "fused"])),
            cache_bf16_weights=not fsdp and draw(st.booleans()),
            prefetch_to_gpu=draw(st.sampled_from(["auto", "on", "off"])),
            eval_every=eval_every,
            eval_tokens=context * draw(st.integers(1, 100)),
            target_loss=draw(st.none() | st.floats(0.1, 20)) if between else None,
            patience=draw(st.none() | st.integers(1, between)) if between else None,
            checkpoint_every=draw(st.integers(1, 1_000)),
            keep_checkpoints=draw(st.integers(1, 10)),
            keep_before_cooldown=draw(st.booleans()),
            log_every=draw(st.integers(1, 10)),
            diagnostics_every=draw(st.none() | st.integers(1, 10)),
            log_to=tuple(draw(st.sets(st.sampled_from(["tensorboard", "wandb"])))),
            sample_tokens=draw(st.integers(0, 1000)),
            report=draw(st.booleans()),
            export_at_end=draw(st.sampled_from(["none", "hf"])),
            eval_tasks=(eval_tasks := draw(st.sampled_from([None, "blimp,piqa"]))),
            eval_tasks_every=draw(st.sampled_from([None, 100])) if eval_tasks else None,
            eval_task_data=draw(st.sampled_from([None, "tasks"])) if eval_tasks else None,
        ),
        continued_from=ContinuedFrom(
            run=draw(st.none() | st.text()),
            at_step=draw(st.integers(0, 99)),
            config_sha256=draw(st.none() | st.text()),
            fingerprint=draw(st.none() | st.text()),
            anew=draw(st.integers(0, 99)),
            before=draw(st.none() | st.text()),
        ),
        init_from=InitFrom(
            run=draw(st.none() | st.text()),
            at_step=draw(st.integers(0, 99)),
            checkpoint=draw(st.none() | st.text()),
        ),
        imported=Imported(
            source=draw(st.none() | st.text()),
            revision=draw(st.none() | st.text()),
            kind=draw(st.none() | st.text()),
            sha256=draw(st.none() | st.text()),
        ),
    )


@given(configs())
@settings(deadline=None)
def test_every_config_survives_json(config: Config) -> None:
    again = Config.from_dict(json.loads(json.dumps(config.to_dict())))
    assert again == config
    assert differing_fields(again, config) == []


def test_the_round_trip_covers_every_field() -> None:
    # The strategy above names each field; a new one must be added there.
    def names(kind: Any) -> set[str]:
        return {field.name for field in dataclasses.fields(kind)}

    strategy = Path(__file__).read_text().split("def configs", 1)[1].split("@given", 1)[0]
    sections = (
        *(ModelConfig, DataConfig, MuonConfig, AdamWConfig, SGDConfig, SOAPConfig, ShampooConfig),
        *(CustomConfig, ScheduleConfig, TrainConfig, ContinuedFrom, InitFrom),
        Imported,
    )
    for section in (Config, OptimConfig, *sections):
        assert {name for name in names(section) if f"{name}=" not in strategy} == set()


@pytest.mark.parametrize("recipe", list(RECIPES))
def test_every_recipe_survives_json(recipe: str) -> None:
    config = get_recipe(recipe)
    assert Config.from_dict(json.loads(json.dumps(config.to_dict()))) == config


# Rules --------------------------------------------------------------------------------------------

POSITIVE = [
    *(f"model.{name}" for name in ("layers", "width", "heads", "context", "vocab_size")),
    *(f"optim.muon.{name}" for name in ("lr", "ns_steps")),
    *(f"optim.adamw.{name}" for name in ("lr", "matrix_lr", "eps")),
    "optim.sgd.lr",
    *(f"optim.{name}.lr" for name in ("soap", "shampoo")),
    *(f"optim.{name}.precondition_frequency" for name in ("soap", "shampoo")),
    "optim.clip_norm",
    "train.steps",
    "train.batch_tokens",
    "train.micro_batch",
    "train.eval_every",
    "train.eval_tokens",
    "train.checkpoint_every",
    "train.keep_checkpoints",
    "train.log_every",
]
NOT_NEGATIVE = [
    "optim.muon.weight_decay",
    "optim.muon.momentum_warmup_steps",
    "optim.adamw.weight_decay",
    "optim.schedule.warmup_steps",
]
CHOICES = {
    "model.architecture": "gpt, gpt2",
    "model.positions": "rotary, learned",
    "model.norm": "rmsnorm, layernorm",
    "model.activation": "relu2, gelu",
    "model.init": "zero, classic",
    "data.order": "stream, shuffle",
    "optim.muon.scale": "max_dim, aspect, rms, none",
    "optim.muon.ns_coefficients": "quintic, polar_express, dion",
    "optim.muon.ns_dtype": "auto, float32, bfloat16, float64",
    "optim.muon.kernel": "auto, torch, triton",
    "optim.schedule.kind": "trapezoid, cosine",
    "train.device": "auto, cuda, mps, cpu",
    "train.precision": "auto, float32, bfloat16, float64",
    "train.loss": "auto, chunked, plain, fused",
    "train.attention": "auto, math, flash, efficient, cudnn, flex",
    "train.prefetch_to_gpu": "auto, on, off",
}
FLOATS = {"optim.muon.lr", "optim.adamw.lr", "optim.adamw.matrix_lr", "optim.adamw.eps"} | {
    "optim.clip_norm",
    "optim.muon.weight_decay",
    "optim.adamw.weight_decay",
    *(f"optim.{name}.lr" for name in ("sgd", "soap", "shampoo")),
}


def refused(changes: dict[str, Any]) -> str:
    with pytest.raises(QuinticError) as caught:
        Config().override(changes)
    return str(caught.value)


@pytest.mark.parametrize("field", POSITIVE)
def test_what_must_be_positive_is_refused_otherwise(field: str) -> None:
    number = float if field in FLOATS else int
    for value in (number(0), number(-3)):
        message, *_ = refused({field: value}).split("; None: ")
        assert message == f"{field} is {value}: it must be positive"


def test_where_none_is_a_value_the_refusal_says_in_the_fields_own_words_what_it_stands_for() -> (
    None
):
    assert refused({"train.diagnostics_every": 0}).endswith("it must be positive; None: no record")
    assert refused({"train.patience": 0}).endswith("; None: however many they are")
    optional = {
        name: kind
        for name, hint in field_types(Config).items()
        for kind in {int, float} & {*typing.get_args(hint)}
        if type(None) in typing.get_args(hint) and name != "model.eot_id"  # whose rule is another
    }
    assert "optim.clip_norm" in optional
    for name, kind in optional.items():
        assert "it must be positive; None: " in refused({name: kind(-1)})


@pytest.mark.parametrize("field", NOT_NEGATIVE)
def test_what_must_not_be_negative_is_refused_otherwise(field: str) -> None:
    value = -1.0 if field in FLOATS else -1
    assert refused({field: value}) == f"{field} is {value}: it must be zero or positive"


@pytest.mark.parametrize("field", sorted(FLOATS | {"optim.muon.momentum"}))
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_no_number_is_infinite_or_none_at_all(field: str, value: float) -> None:
    rule = "at least 0 and less than 1" if field == "optim.muon.momentum" else "finite"
    assert f"{refused({field: value})};".startswith(f"{field} is {value}: it must be {rule};")


@pytest.mark.parametrize("field", list(CHOICES))
def test_a_choice_outside_the_list_is_refused_with_the_list(field: str) -> None:
    for value in ("sideways", 3, None, ["gpt"]):
        message = refused({field: value})
        assert message == f"{field} is {value!r}: it must be one of {CHOICES[field]}"


@pytest.mark.parametrize("value", ["sideways", "my module:Lion", "lion:", ":Lion", "a:b:c"])
def test_an_optimizer_that_is_none_is_refused_with_the_list(value: str) -> None:
    assert refused({"optim.matrices": value}) == (
        f"optim.matrices is {value!r}: it must be one of muon, adamw, sgd, soap, shampoo, or "
        "MODULE:Class, an optimizer of your own (docs/extending.md)"
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"model.width": 100, "model.heads": 6},
            "model.width 100 is not divisible by model.heads 6: choose a multiple, for example "
            "--model.width 96",
        ),
        (
            {"model.width": 2, "model.heads": 5},
            "model.width 2 is not divisible by model.heads 5: choose a multiple, for example "
            "--model.width 10",
        ),
        (
            {"model.width": 45, "model.heads": 5},
            "the head width model.width / model.heads = 45 / 5 = 9 is odd, and rotary embeddings "
            "rotate pairs: make it even, for example with --model.width 40",
        ),
        ({"data.path": ""}, "data.path is empty: name a folder of shards, or `embedded`"),
        (
            {"data.embedded_vocab": 511},
            "data.embedded_vocab is 511: it must be from 512 to 65,536",
        ),
        (
            {"data.embedded_vocab": 65_537},
            "data.embedded_vocab is 65537: it must be from 512 to 65,536",
        ),
        (
            {"optim.muon.momentum": 1.0},
            "optim.muon.momentum is 1.0: it must be at least 0 and less than 1",
        ),
        (
            {"optim.muon.momentum": 0.5, "optim.muon.momentum_warmup_steps": 300},
            "optim.muon.momentum is 0.5 and its warm-up rises from 0.85: use "
            "--optim.muon.momentum 0.85 or more, or --optim.muon.momentum-warmup-steps 0",
        ),
        (
            {"optim.adamw.betas": (0.9, 1.0)},
            "optim.adamw.betas is (0.9, 1.0): both must be at least 0 and less than 1",
        ),
        (
            {"optim.soap.betas": (-0.1, 0.9)},
            "optim.soap.betas is (-0.1, 0.9): both must be at least 0 and less than 1",
        ),
        (
            {"optim.shampoo.betas": (0.9, math.nan)},
            "optim.shampoo.betas is (0.9, nan): both must be at least 0 and less than 1",
        ),
        (
            {"optim.sgd.momentum": 0.0},
            "optim.sgd.momentum is 0.0: it must be between 0 and 1, since Nesterov's method has "
            "momentum",
        ),
        (
            {"optim.schedule.cooldown_fraction": 1.5},
            "optim.schedule.cooldown_fraction is 1.5: it must be from 0 to 1",
        ),
        (
            {"optim.matrices": "lion:Lion", "optim.custom.options": ("beta1",)},
            "optim.custom.options has 'beta1': each must be NAME=VALUE, such as beta1=0.9",
        ),
        (
            {"optim.matrices": "lion:Lion", "optim.custom.options": ("lr=0.9",)},
            "optim.custom.options has 'lr=0.9': use --optim.custom.lr",
        ),
        (
            {"optim.matrices": "lion:Lion", "optim.custom.options": ("b=0.9", "b=1")},
            "optim.custom.options has b twice",
        ),
        (
            {"optim.custom.lr": 0.5},
            "optim.custom.lr is 0.5, which has no effect with optim.matrices muon: leave it "
            "out, or use --optim.matrices MODULE:Class",
        ),
        (
            {"train.sharding": "fsdp", "optim.matrices": "soap"},
            "train.sharding fsdp cuts matrices into rows, and optim.matrices soap needs them "
            "whole: use --train.sharding zero1",
        ),
        (
            {"train.cuda_graphs": True},
            "train.cuda_graphs is True, which has no effect with train.compile False: leave it at "
            "False, or use --train.compile",
        ),
        (
            {"train.cache_bf16_weights": True, "train.sharding": "fsdp"},
            "train.cache_bf16_weights keeps whole weights in two precisions, and train.sharding "
            "fsdp has no whole ones: use --train.sharding zero1, or --train.no-cache-bf16-weights",
        ),
        (
            {"optim.adamw.head_lr": 0.008},
            "optim.adamw.head_lr is 0.008, which has no effect with model.tied_head True: leave it "
            "out, or use --model.no-tied-head",
        ),
        (
            {"optim.adamw.scalar_lr": 0.04},
            "optim.adamw.scalar_lr is 0.04, which has no effect with model.value_embeddings 0, "
            "model.x0_skip False, model.unet_skips False: leave it out, or use "
            "--model.value-embeddings, --model.x0-skip or --model.unet-skips",
        ),
        (
            {"model.value_embeddings": 4, "model.layers": 7},
            "model.value_embeddings is 4: each serves two of the 7 layers, so use "
            "--model.value-embeddings 3",
        ),
        (
            {"model.unet_skips": True, "model.layers": 1},
            "model.unet_skips is True and there is one layer: a skip needs two, so use "
            "--model.no-unet-skips or more --model.layers",
        ),
        (
            {"model.window": 2000},
            "model.window is 2000 and model.context 1024: a token sees no more than the context, "
            "so use --model.window 1024, or None for no window",
        ),
        (
            {"model.window_start": 64},
            "model.window_start is 64, which has no effect with model.window None: leave it "
            "out, or use --model.window",
        ),
        (
            {"model.window_start": 64, "model.window": 63},
            "model.window_start is 64 and model.window 63: the window grows, so use "
            "--model.window-start 63, or a larger --model.window",
        ),
        (
            {"model.eot_id": 0},
            "model.eot_id is 0, which has no effect with model.document_mask False: leave it "
            "out, or use --model.document-mask",
        ),
        (
            {"model.eot_id": 512, "model.document_mask": True, "model.vocab_size": 512},
            "model.eot_id is 512: it must be a token of the vocabulary, from 0 to 511",
        ),
        (
            {"model.eot_id": -1, "model.document_mask": True},
            "model.eot_id is -1: it must be a token of the vocabulary",
        ),
        (
            {"optim.muon.cautious": True},
            "optim.muon.cautious is True, which has no effect with optim.muon.weight_decay 0.0: "
            "leave it at False, or use --optim.muon.weight-decay",
        ),
        (
            {"optim.muon.beta2": 0.9},
            "optim.muon.beta2 is 0.9, which has no effect with optim.muon.normuon False: leave it "
            "out, or use --optim.muon.normuon",
        ),
        (
            {"optim.sgd.lr": 0.5},
            "optim.sgd.lr is 0.5, which has no effect with optim.matrices muon: leave it out, "
            "or use --optim.matrices sgd",
        ),
        (
            {"optim.matrices": "sgd", "optim.muon.normuon": True},
            "optim.muon.normuon is True, which has no effect with optim.matrices sgd: leave it "
            "out, or use --optim.matrices muon",
        ),
        (
            {"optim.adamw.matrix_lr": 0.1},
            "optim.adamw.matrix_lr is 0.1, which has no effect with optim.matrices muon: leave it "
            "out, or use --optim.matrices adamw",
        ),
        (
            {"optim.schedule.kind": "cosine", "optim.schedule.cooldown_fraction": 0.5},
            "optim.schedule.cooldown_fraction is 0.5, which has no effect with "
            "optim.schedule.kind cosine: leave it out, or use --optim.schedule.kind trapezoid",
        ),
        (
            {"data.path": "some/folder", "data.embedded_vocab": 512},
            "data.embedded_vocab is 512, which has no effect with data.path some/folder: leave it "
            "out, or use --data.path embedded",
        ),
        (
            {"train.float8_head": True, "train.loss": "plain"},
            "train.float8_head is True, which has no effect with train.loss plain: leave it at "
            "False, or use --train.loss auto, --train.loss chunked or --train.loss fused",
        ),
        ({"train.seed": -1}, "train.seed is -1: it must be from 0 to 2**64 - 1"),
        (
            {"train.seed": 2**64},
            "train.seed is 18446744073709551616: it must be from 0 to 2**64 - 1",
        ),
        (
            {"train.batch_tokens": 3000},
            "train.batch_tokens 3,000 is not a multiple of model.context 1,024: use "
            "--train.batch-tokens 3072",
        ),
        (
            {"train.batch_tokens": 10},
            "train.batch_tokens 10 is not a multiple of model.context 1,024: use "
            "--train.batch-tokens 1024",
        ),
        (
            {"train.batch_tokens": 6 * 1024, "train.micro_batch": 4},
            "train.batch_tokens 6,144 is not a multiple of train.micro_batch 4 times model.context "
            "1,024: the batch has 6 sequences, so --train.micro-batch must divide that",
        ),
        (
            {"train.batch_tokens": 8 * 1024, "train.batch_stages": 3},
            "train.batch_stages is 3: it must divide the 8 sequences of a batch, and "
            "5,100 steps are to be cut into stages; use --train.batch-stages 1, or another "
            "--train.batch-tokens",
        ),
        (
            {"train.batch_tokens": 8 * 1024, "train.batch_stages": 4, "train.micro_batch": 4},
            "train.batch_tokens 8,192 is not a multiple of train.micro_batch 4 times "
            "model.context 1,024 in each of 4 stages: the smallest batch has 2 sequences, so "
            "--train.micro-batch must divide that",
        ),
        (
            {"train.attention": "flex", "train.compile": False},
            "train.attention flex is made for the model by train.compile, and that is off: use "
            "--train.compile, or another --train.attention",
        ),
        (
            {"train.attention": "flex", "train.compile": True, "model.architecture": "gpt2"},
            "train.attention flex is for model.architecture gpt, and this is gpt2: use another "
            "--train.attention",
        ),
        (
            {"train.mtp_tokens": 3, "train.steps": 2},
            "train.mtp_tokens is 3 and train.steps 2: each number of tokens has a part of the "
            "run, so use --train.mtp-tokens 2, or more --train.steps",
        ),
        (
            {"train.mtp_tokens": 1025},
            "train.mtp_tokens is 1025 and model.context 1024: no sequence has as many tokens "
            "ahead, so use --train.mtp-tokens 1024",
        ),
        (
            {"train.eval_tokens": 5000},
            "train.eval_tokens 5,000 is not a multiple of model.context 1,024: use "
            "--train.eval-tokens 5120",
        ),
        (
            {"train.steps": 100, "optim.schedule.warmup_steps": 90},
            "optim.schedule.warmup_steps 90 and 28 steps of cooldown do not fit in train.steps "
            "100: use --optim.schedule.warmup-steps 72, or a smaller "
            "--optim.schedule.cooldown-fraction",
        ),
    ],
)
def test_what_does_not_fit_together_is_refused(changes: dict[str, Any], message: str) -> None:
    assert refused(changes) == message


def test_an_odd_head_width_is_fine_without_rotary_embeddings() -> None:
    for field, value in (("model.architecture", "gpt2"), ("model.positions", "learned")):
        config = Config().override({field: value, "model.width": 45, "model.heads": 5})
        assert config.model.head_width == 9


@pytest.mark.parametrize(
    ("name", "default", "value"),
    [
        ("positions", "rotary", "learned"),
        ("norm", "rmsnorm", "layernorm"),
        ("activation", "relu2", "gelu"),
        ("init", "zero", "classic"),
        ("qk_norm", True, False),
        ("tied_head", True, False),
        ("logit_softcap", None, 15.0),
        ("embed_norm", False, True),
        ("token_smear", False, True),
        ("key_smear", False, True),
        ("bigram_embeddings", 0, 4096),
        ("value_embeddings", 0, 2),
        ("x0_skip", False, True),
        ("unet_skips", False, True),
        ("window", None, 256),
        ("window_start", None, 64),
        ("document_mask", False, True),
    ],
)
def test_a_switch_of_gpt_is_refused_for_gpt2_and_absent_in_older_configs(
    name: str, default: Any, value: Any
) -> None:
    assert field_facts(ModelConfig)[name].needs
    assert refused({"model.architecture": "gpt2", f"model.{name}": value}) == (
        f"model.{name} is {value!r}, which has no effect with model.architecture gpt2: leave it at "
        f"{default!r}, or use --model.architecture gpt"
    )
    growing = {"model.window": 256} if name == "window_start" else {}
    assert getattr(Config().override({**growing, f"model.{name}": value}).model, name) == value
    for architecture in ("gpt", "gpt2"):
        values = Config().override({"model.architecture": architecture}).to_dict()
        del values["model"][name]  # as saved before the switch existed
        assert getattr(Config.from_dict(values).model, name) == default


def test_all_that_has_no_effect_for_one_reason_is_named_with_the_options_that_undo_it() -> None:
    with pytest.raises(QuinticError) as error:
        get_recipe("laptop").override({"model.architecture": "gpt2"})
    options = (
        "--model.tied-head --model.no-embed-norm --model.no-token-smear "
        "--model.bigram-embeddings 0 --model.no-key-smear --model.value-embeddings 0"
    )
    assert str(error.value) == (
        "model.tied_head False, model.embed_norm True, model.token_smear True, "
        "model.bigram_embeddings 16384, model.key_smear True, model.value_embeddings 2 have no "
        f"effect with model.architecture gpt2: give {options}, or use --model.architecture gpt"
    )


@pytest.mark.parametrize(
    ("field", "value", "kind"),
    [
        ("train.steps", "ten", "int"),
        ("train.steps", 1.5, "int"),
        ("train.steps", True, "int"),
        ("train.steps", None, "int"),
        ("train.compile", 1, "bool"),
        ("optim.muon.lr", "fast", "float"),
        ("optim.muon.lr", False, "float"),
        ("data.path", 7, "str"),
        ("model.vocab_size", "many", "int"),
        ("optim.adamw.betas", [0.9], "tuple"),
        ("optim.adamw.betas", [0.9, "b"], "float"),
    ],
)
def test_a_value_of_another_type_is_refused(field: str, value: Any, kind: str) -> None:
    message = refused({field: value})
    assert message.startswith(f"{field} is ")
    assert kind in message


def test_a_whole_number_may_stand_for_a_float() -> None:
    config = Config().override({"optim.muon.lr": 1, "optim.adamw.betas": [0, 0.5]})
    assert type(config.optim.muon.lr) is float
    assert config.optim.adamw.betas == (0.0, 0.5)


def test_a_section_that_is_no_object_is_refused() -> None:
    with pytest.raises(QuinticError, match="section model is not an object"):
        Config.from_dict({"model": 3})
    with pytest.raises(QuinticError, match=r"an object with sections, and this is \[1\]: res"):
        Config.from_dict([1])  # type: ignore[arg-type]


# Overrides ----------------------------------------------------------------------------------------


def test_fields_that_depend_on_each_other_change_together() -> None:
    # Each of these alone is refused.
    changes: dict[str, Any] = {
        "model.context": 96,
        "train.batch_tokens": 960,
        "train.eval_tokens": 192,
        "train.micro_batch": 5,
    }
    for field, value in changes.items():
        assert refused({field: value})
    config = Config().override(changes)
    assert config.batch_sequences == 10
    assert set(differing_fields(config, Config())) == set(changes)


def test_an_override_leaves_the_original_alone() -> None:
    config = Config()
    other = config.override({"optim.muon.lr": 0.5})
    assert (config.optim.muon.lr, other.optim.muon.lr) == (3.6e-4, 0.5)
    assert other.override({"optim.muon.lr": 3.6e-4}) == config
    assert config.override({}) == config


@pytest.mark.parametrize(
    ("typed", "nearest"),
    [
        ("train.step", "train.steps"),
        ("train.batch_token", "train.batch_tokens"),
        ("steps", "train.steps"),
        ("model.n_heads", "model.heads"),
        ("optim.lr", "optim.muon.lr"),
        ("optim.momentum", "optim.muon.momentum"),
        ("train.warmup_steps", "optim.schedule.warmup_steps"),
        ("model.lyers.deep", "model.layers"),
    ],
)
def test_an_unknown_field_suggests_the_nearest(typed: str, nearest: str) -> None:
    assert unknown_field(Config, typed) == f"there is no field {typed}: did you mean {nearest}?"
    assert refused({typed: 1}) == unknown_field(Config, typed)


def test_an_unknown_field_unlike_any_points_to_the_help() -> None:
    assert unknown_field(Config, "zzz") == "there is no field zzz: see quintic train --help"
    with pytest.raises(QuinticError, match=r"no field train\.stps: did you mean train\.steps"):
        Config.from_dict({"train": {"stps": 3}})


def test_what_an_override_switches_off_takes_its_settings_along_but_no_switch() -> None:
    tuned = {"optim.muon.lr": 0.5, "optim.muon.normuon": True, "optim.muon.beta2": 0.5}
    muon = Config().override(tuned)
    assert muon.override({"optim.muon.normuon": False}).optim.muon == MuonConfig(lr=0.5)
    sgd = {"optim.matrices": "sgd", "optim.sgd.lr": 0.25}
    assert muon.override(sgd) == Config().override(sgd)
    laptop = get_recipe("laptop").override({"data.path": "some/folder"})
    assert laptop.data == DataConfig(path="some/folder", order="shuffle")
    graphs = Config().override({"train.compile": True, "train.cuda_graphs": True})
    with pytest.raises(QuinticError, match=r"train\.cuda_graphs is True, which has no effect"):
        graphs.override({"train.compile": False})


# Format -------------------------------------------------------------------------------------------

RENAMED = {
    "model.embed_shortcut": ("model.x0_skip", True),
    "optim.muon.coefficients": ("optim.muon.ns_coefficients", "polar_express"),
    "optim.muon.normalize": ("optim.muon.normuon", True),
    "train.cast_once": ("train.cache_bf16_weights", True),
    "train.predict_tokens": ("train.mtp_tokens", 2),
    "train.upload": ("train.prefetch_to_gpu", "on"),
}


def nested(values: dict[str, Any]) -> dict[str, Any]:
    """Dotted names as JSON has them."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        *sections, last = name.split(".")
        inner = found
        for section in sections:
            inner = inner.setdefault(section, {})
        inner[last] = value
    return found


def test_a_config_of_0_1_has_its_fields_under_their_names_of_now() -> None:
    old = {name: "ahead" if name == "train.upload" else v for name, (_, v) in RENAMED.items()}
    assert Config.from_dict(nested(old)) == Config().override(dict(RENAMED.values()))
    for before, now in (("auto", "auto"), ("ahead", "on"), ("inline", "off")):
        config = Config.from_dict({"train": {"upload": before}})
        assert config.train.prefetch_to_gpu == now
    with pytest.raises(QuinticError, match=r"train\.prefetch_to_gpu is \[\]: it must be one of"):
        Config.from_dict({"train": {"upload": []}})


def test_a_config_of_0_1_loses_what_had_no_effect_and_one_of_now_is_refused_for_it() -> None:
    idle = nested({"optim.muon.beta2": 0.5, "data.path": "a", "data.embedded_vocab": 512})
    assert Config.from_dict(idle) == Config().override({"data.path": "a"})
    with pytest.raises(QuinticError, match=r"embedded_vocab is 512, which has no effect"):
        Config.from_dict({"format": 2, **idle})


@pytest.mark.parametrize("name", list(RENAMED))
def test_an_old_name_is_unknown_and_suggests_the_new_one(name: str) -> None:
    new, value = RENAMED[name]
    assert refused({name: value}) == f"there is no field {name}: did you mean {new}?"
    with pytest.raises(QuinticError, match=f"there is no field {name}: did you mean {new}"):
        Config.from_dict({"format": 2, **nested({name: value})})


@pytest.mark.parametrize("value", [False, True])
def test_a_config_from_when_micro_batches_could_be_side_by_side_is_read(value: bool) -> None:
    assert Config.from_dict({"format": 2, "train": {"side_by_side": value}}) == Config()


@pytest.mark.parametrize("number", [1, 2])
def test_a_config_from_before_there_were_trackers_writes_tensorboard_or_not(number: int) -> None:
    for writes, names in ((True, ("tensorboard",)), (False, ())):
        config = Config.from_dict({"format": number, "train": {"tensorboard": writes}})
        assert config.train.log_to == names
    for train, message in (
        ({"tensorboard": "yes"}, r"train.tensorboard is 'yes': it must be True or False"),
        ({"tensorboard": True, "log_to": []}, r"config has train.tensorboard and train.log_to"),
        ({"log_to": ["wandb", "mlfow"]}, r"train.log_to is 'mlfow': it must be one of tensorbo"),
        ({"log_to": "wandb"}, r"train.log_to is 'wandb': it must be"),
    ):
        with pytest.raises(QuinticError, match=message):
            Config.from_dict({"format": number, "train": train})
    assert refused({"train.tensorboard": False}) == (
        "there is no field train.tensorboard: did you mean train.log_to?"
    )


def test_the_format_of_a_later_release_is_refused_and_names_that_release() -> None:
    saved = Config().to_dict()
    assert saved["format"] == 2
    with pytest.raises(QuinticError) as caught:
        Config.from_dict({**saved, "format": 3, "needs_quintic": "0.9.0", "novel": 1})
    assert str(caught.value) == (
        f"config format 3 needs quintic 0.9.0, and this is {__version__}, which reads formats 1 to "
        "2: update quintic"
    )


# Vocabulary ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dataset", "rows"), [(1, 128), (128, 128), (129, 256), (4096, 4096), (50_257, 50_304)]
)
def test_the_vocabulary_is_the_datasets_rounded_up_to_128(dataset: int, rows: int) -> None:
    assert resolve_vocabulary(Config(), dataset).model.vocab_size == rows


def test_a_vocabulary_of_ones_own_stays() -> None:
    config = Config().override({"model.vocab_size": 1000})
    assert resolve_vocabulary(config, 1000) == config
    assert resolve_vocabulary(config, 900) == config
    assert resolve_vocabulary(config, None) == config


def test_a_vocabulary_too_small_for_the_tokenizer_is_refused() -> None:
    config = Config().override({"model.vocab_size": 1000})
    with pytest.raises(QuinticError, match=r"vocab_size is 1000 .* has 1001 tokens: give .* or le"):
        resolve_vocabulary(config, 1001)


def test_an_unknown_vocabulary_is_refused_with_both_ways_out() -> None:
    config = Config().override({"data.path": "some/folder"})
    with pytest.raises(
        QuinticError, match=r"some/folder is unknown.*--data\.tokenizer.*--model\.vocab-size"
    ):
        resolve_vocabulary(config, None)


def test_the_end_of_text_is_the_datasets_where_documents_are_masked() -> None:
    assert resolve_eot(Config(), 7) == Config()
    config = Config().override({"model.document_mask": True})
    for eot_id in (0, 50_256):
        assert resolve_eot(config, eot_id).model.eot_id == eot_id
    named = config.override({"model.eot_id": 0})
    assert resolve_eot(named, None) == resolve_eot(named, 0) == named


def test_an_unknown_or_another_end_of_text_is_refused_with_the_way_out() -> None:
    config = Config().override({"data.path": "some/folder", "model.document_mask": True})
    with pytest.raises(
        QuinticError,
        match=r"end-of-text token of some/folder is unknown.*--data\.tok.*--model\.eot",
    ):
        resolve_eot(config, None)
    with pytest.raises(QuinticError, match=r"eot_id is 3 .* begins documents with 7: leave --mo"):
        resolve_eot(config.override({"model.eot_id": 3}), 7)


@pytest.mark.parametrize("number", [0, -1, True, 1.0, "2", "x", None, [2]])
def test_a_format_that_is_no_number_is_refused(number: object) -> None:
    with pytest.raises(QuinticError) as caught:
        Config.from_dict({**Config().to_dict(), "format": number})
    assert str(caught.value) == (
        f"config format is {number!r}: it must be a whole number from 1; restore the file"
    )


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"train.steps": 8}, "config key 'train.steps' has a dot: a section is an object"),
        ({"optim": {"muon.lr": 1}}, "config key optim.'muon.lr' has a dot: a section is an object"),
        (
            {"model": {"x0_skip": True, "embed_shortcut": False}},
            "config has model.embed_shortcut and model.x0_skip, its name now: keep one",
        ),
        ({"optim": {"matrices": 5}}, "optim.matrices is 5: it must be str"),
        ({"optim": {"muon": {"lr": 10**400}}}, "optim.muon.lr is beyond what a number can be"),
    ],
)
def test_what_an_old_config_cannot_say_is_refused_in_a_line(
    values: dict[str, Any], message: str
) -> None:
    with pytest.raises(QuinticError) as caught:
        Config.from_dict(values)
    assert str(caught.value) == message
