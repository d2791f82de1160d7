"""The modernised GPT: against the formulas written out in NumPy, and at its full size."""

import lzma
import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from quintic.config import ModelConfig
from quintic.data.gpt2_tokenizer import Gpt2Tokenizer
from quintic.data.shards import TokenStream, open_shard
from quintic.model.attention import attend
from quintic.model.base import LanguageModel
from quintic.model.build import build_model, meta_model
from quintic.model.gpt import GPT, MLP, Block, Rotary
from quintic.model.loss import CROSS_ENTROPIES
from quintic.recipes import get_recipe

Array = npt.NDArray[np.float64]

SHARED = Path(__file__).parents[3] / "shared"
VOCABULARY = Path(os.environ.get("TIKTOKEN_CACHE_DIR") or SHARED / "tiktoken")
BENCHMARK = Path(os.environ.get("QUINTIC_BENCH_DATA") or SHARED / "data")
SMALL = ModelConfig(layers=3, width=24, heads=2, context=16, vocab_size=40)

ENGLISH = """\
The harbour was quiet when the first boats came home. On the long wall above the water an old man
mended his nets, and beside him a child counted the gulls aloud, losing the number each time one of
them rose. "Forty," she said, although there were not half as many. He nodded, as he did to most of
what she said, and went on with his work. Behind them the town climbed the hill in rows of white
houses; smoke stood over a few of the chimneys, straight as a mast, for there was no wind.

In the market the talk was about the new road. It would bring visitors, said the baker, and with
them money, so that the school could have a roof that kept the rain out. It would bring noise, said
the schoolmaster, who lived beside the place where it was to begin. The two had argued about it for
a year and neither had moved the other by an inch. What nobody mentioned was that the road had been
promised three times before, by three different governments, and that each time a young engineer
had arrived with maps and measuring rods, had drunk the local wine, and had not been seen again.
"""


def drawn(config: ModelConfig, seed: int = 0) -> LanguageModel:
    """A float64 model in which no weight is zero, so that every part shows in the logits."""
    model = build_model(config, compute_dtype=torch.float64)
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(0.3 * torch.randn(p.shape, generator=random, dtype=p.dtype))
    return model


def reference_logits(w: dict[str, Array], tokens: list[int], config: ModelConfig) -> Array:
    """The whole model for one sequence, position by position and head by head."""
    heads, width = config.heads, config.width // config.heads
    half = width // 2

    def rms_norm(x: Array) -> Array:
        return x / math.sqrt(float(np.mean(x**2)) + np.finfo(np.float64).eps)

    def norm(x: Array, name: str) -> Array:
        if config.norm == "rmsnorm":
            return rms_norm(x)
        centred = x - np.mean(x)
        gain, bias = w[f"{name}.weight"], w[f"{name}.bias"]
        return gain * centred / math.sqrt(float(np.mean(centred**2)) + 1e-5) + bias

    def head_norm(x: Array) -> Array:
        return rms_norm(x) if config.qk_norm else x

    def activate(h: Array) -> Array:
        if config.activation == "relu2":
            return np.maximum(h, 0.0) ** 2
        gelu: Array = h / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (h + 0.044715 * h**3)))
        return gelu

    def rotate(x: Array, t: int) -> Array:
        if config.positions != "rotary":
            return x
        y = np.empty_like(x)
        for i in range(half):
            angle = t / 10_000 ** (2 * i / width)
            x1, x2 = x[i], x[i + half]
            y[i] = x1 * math.cos(angle) + x2 * math.sin(angle)
            y[i + half] = -x1 * math.sin(angle) + x2 * math.cos(angle)
        return y

    def visible(s: int, t: int) -> bool:
        if config.window is not None and s <= t - config.window:
            return False
        return not config.document_mask or config.eot_id not in tokens[s + 1 : t + 1]

    def begins_document(t: int) -> bool:
        return config.document_mask and tokens[t] == config.eot_id

    xs = [w["embed.weight"][token] for token in tokens]
    if config.positions == "learned":
        xs = [x + w["positions.weight"][t] for t, x in enumerate(xs)]
    if config.embed_norm:
        xs = [rms_norm(x) for x in xs]
    embedded_tokens = list(xs)
    for t, token in enumerate(tokens):
        before = None if t == 0 or begins_document(t) else tokens[t - 1]
        if config.token_smear:
            xs[t] = w["smear.own"] * xs[t]
            if before is not None:
                xs[t] = xs[t] + w["smear.before"] * embedded_tokens[t - 1]
        if config.bigram_embeddings:
            pair = token * 10_007 + (-1 if before is None else before) * 1_000_003
            xs[t] = xs[t] + w["bigram_embed.weight"][pair % config.bigram_embeddings]
    x0s = list(xs)
    outputs_of: list[list[Array]] = []
    for layer in range(config.layers):
        if config.unet_skips and layer >= config.layers - config.layers // 2:
            opposite = config.layers - 1 - layer
            skip = w[f"skips.{opposite}.weight"][0]
            xs = [x + skip * y for x, y in zip(xs, outputs_of[opposite], strict=True)]
        if config.x0_skip:
            a, b = w[f"layers.{layer}.shortcut.weight"]
            xs = [a * x + b * x0 for x, x0 in zip(xs, x0s, strict=True)]
        q, k, v, o = (w[f"layers.{layer}.attention.{name}.weight"] for name in "qkvo")
        normed = [norm(x, f"layers.{layer}.attention_norm") for x in xs]
        values, keys = ([m @ x for x in normed] for m in (v, k))
        if config.key_smear:
            own, prior = (
                w[f"layers.{layer}.attention.key_smear.{name}"] for name in ("own", "before")
            )
            keys = [
                own * y if t == 0 or begins_document(t) else own * y + prior * keys[t - 1]
                for t, y in enumerate(keys)
            ]
        # Of 3 layers with one table, the first and the last have it.
        if config.value_embeddings and layer in (0, config.layers - 1):
            a, b = w[f"layers.{layer}.attention.value_mix.weight"]
            embedded = [
                w["value_embed.weight"][token] * math.sqrt(config.width) for token in tokens
            ]
            values = [a * x + b * e for x, e in zip(values, embedded, strict=True)]
        for t in range(len(xs)):
            outputs = []
            for h in range(heads):
                part = slice(h * width, (h + 1) * width)
                seen = [s for s in range(t + 1) if visible(s, t)]
                query = rotate(head_norm((q @ normed[t])[part]), t)
                scores = np.array(
                    [query @ rotate(head_norm(keys[s][part]), s) / math.sqrt(width) for s in seen]
                )
                p = np.exp(scores) / np.exp(scores).sum()
                outputs.append(sum(p[i] * values[s][part] for i, s in enumerate(seen)))
            xs[t] = xs[t] + o @ np.concatenate(outputs)
        up, down = (w[f"layers.{layer}.mlp.{name}.weight"] for name in ("up", "down"))
        xs = [x + down @ activate(up @ norm(x, f"layers.{layer}.mlp_norm")) for x in xs]
        outputs_of.append(list(xs))
    head = w["embed.weight"] if config.tied_head else w["head.weight"]
    logits = np.stack([head @ norm(x, "final_norm") for x in xs])
    cap = config.logit_softcap
    return logits if cap is None else cap * np.tanh(logits / cap)


ABLATIONS: dict[str, dict[str, Any]] = {
    "none": {},
    "positions": {"positions": "learned"},
    "norm": {"norm": "layernorm"},
    "activation": {"activation": "gelu"},
    "qk_norm": {"qk_norm": False},
}
TECHNIQUES: dict[str, dict[str, Any]] = {
    "tied_head": {"tied_head": False},
    "logit_softcap": {"logit_softcap": 3.0},
    "embed_norm": {"embed_norm": True},
    "token_smear": {"token_smear": True},
    "key_smear": {"key_smear": True},
    "bigram_embeddings": {"bigram_embeddings": 13},
    "value_embeddings": {"value_embeddings": 1},
    "x0_skip": {"x0_skip": True},
    "unet_skips": {"unet_skips": True},
    "window": {"window": 3},
    "document_mask": {"document_mask": True, "eot_id": 17},
}
EVERY_TECHNIQUE = {field: value for t in TECHNIQUES.values() for field, value in t.items()}
SWITCHES = ABLATIONS | TECHNIQUES | {"every technique": EVERY_TECHNIQUE}


@pytest.mark.parametrize("switch", [*SWITCHES, "unet_skips of an even number"])
def test_forward_equals_the_formulas_written_out_in_float64(switch: str) -> None:
    config = replace(SMALL, **SWITCHES.get(switch, {"unet_skips": True, "layers": 4}))
    model = drawn(config)
    weights = {name: p.detach().numpy() for name, p in model.named_parameters()}
    tokens = [3, 17, 17, 0, 39, 8, 21, 5, 3, 30, 1]
    expected = reference_logits(weights, tokens, config)
    found = model(torch.tensor([tokens])).detach().numpy()[0]
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)


def rotary(dtype: torch.dtype, config: ModelConfig = SMALL) -> Rotary:
    model = build_model(config, compute_dtype=dtype)
    assert isinstance(model, GPT)
    assert isinstance(model.positions, Rotary)
    return model.positions


def test_rotary_embedding_is_relative() -> None:
    rotate = rotary(torch.float64).rotate
    random = torch.Generator().manual_seed(1)
    q, k = torch.randn(2, 1, 1, 1, SMALL.head_width, generator=random, dtype=torch.float64)

    def score(t: int, s: int) -> float:
        return float((rotate(q, slice(t, t + 1)) * rotate(k, slice(s, s + 1))).sum())

    for shift in (1, 4, 9):
        assert score(5 + shift, 2 + shift) == pytest.approx(score(5, 2), rel=1e-12)
    assert abs(score(6, 2) - score(5, 2)) > 1e-3


def test_rotary_embedding_rotates_the_planes_as_the_original_does() -> None:
    rotate = rotary(torch.float64).rotate
    random = torch.Generator().manual_seed(2)
    x = torch.randn(2, 3, 5, SMALL.head_width, generator=random, dtype=torch.float64)
    y = rotate(x, slice(4, 9))
    half = SMALL.head_width // 2
    for i in range(half):
        angle = torch.arange(4, 9, dtype=torch.float64) / 10_000.0 ** (i / half)
        cos, sin = angle.cos(), angle.sin()
        x1, x2 = x[..., i], x[..., i + half]
        torch.testing.assert_close(y[..., i], x1 * cos + x2 * sin, rtol=0, atol=1e-13)
        torch.testing.assert_close(y[..., i + half], -x1 * sin + x2 * cos, rtol=0, atol=1e-13)


@pytest.mark.parametrize(
    ("compute", "tables"),
    [
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_rotary_tables_are_never_below_float32(compute: torch.dtype, tables: torch.dtype) -> None:
    positions = rotary(
        compute, ModelConfig(layers=1, width=32, heads=2, context=1024, vocab_size=8)
    )
    assert positions.cos_TK.dtype == positions.sin_TK.dtype == tables
    angle = torch.arange(1024, dtype=torch.float64)
    torch.testing.assert_close(positions.cos_TK[:, 0], angle.cos().to(tables), rtol=0, atol=1e-7)
    assert positions.rotate(torch.ones(1, 1, 3, 16, dtype=compute), slice(3)).dtype == compute


def test_every_block_is_the_identity_at_the_start() -> None:
    model = build_model(SMALL, compute_dtype=torch.float64)
    tokens = torch.randint(SMALL.vocab_size or 0, (2, 9))
    assert torch.equal(model.features(tokens), F.rms_norm(model.embed(tokens), (SMALL.width,)))
    for block in model.layers:
        assert isinstance(block, Block)
        assert not block.attention.o.weight.any()
        assert not block.mlp.down.weight.any()


def test_initialisation_is_that_of_a_linear_layer_tied_head_included() -> None:
    model = build_model(ModelConfig(layers=2, width=128, heads=4, context=8, vocab_size=512))
    for name, p in model.named_parameters():
        if name.endswith(("attention.o.weight", "mlp.down.weight")):
            continue
        bound = 1 / math.sqrt(128)
        assert p.abs().max() <= bound, name
        assert p.abs().max() > 0.99 * bound, name
        assert p.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.02), name


def test_classic_initialisation_divides_the_output_projections_and_changes_nothing_else() -> None:
    config = ModelConfig(layers=3, width=128, heads=4, context=8, vocab_size=64)
    zero = build_model(config, seed=5).state_dict()
    classic = build_model(replace(config, init="classic"), seed=5).state_dict()
    assert zero.keys() == classic.keys()
    for name, weight in classic.items():
        if name.endswith(("attention.o.weight", "mlp.down.weight")):
            bound = 1 / math.sqrt(weight.shape[1]) / math.sqrt(2 * 3)
            assert 0.98 * bound < weight.abs().max() <= bound, name
            assert weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.02), name
        else:
            assert torch.equal(weight, zero[name]), name


@pytest.mark.parametrize("switch", list(SWITCHES))
def test_a_seed_gives_the_weights_that_both_have_the_same_values(switch: str) -> None:
    default = build_model(SMALL, seed=5).state_dict()
    switched = build_model(replace(SMALL, **SWITCHES[switch]), seed=5).state_dict()
    assert default.keys() <= switched.keys()
    for name, weight in default.items():
        assert torch.equal(switched[name], weight), name


def test_learned_positions_start_as_the_embedding_does() -> None:
    model = build_model(replace(SMALL, width=128, context=64, positions="learned"))
    bound = 1 / math.sqrt(128)
    weight = dict(model.named_parameters())["positions.weight"]
    assert weight.shape == (64, 128)
    assert 0.99 * bound < weight.abs().max() <= bound
    assert weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.03)


def test_with_every_switch_thrown_it_is_gpt2_without_biases() -> None:
    config = replace(SMALL, positions="learned", norm="layernorm", activation="gelu", qk_norm=False)
    model = drawn(config)
    classic = build_model(replace(SMALL, architecture="gpt2"), compute_dtype=torch.float64)
    left_out = classic.load_state_dict(model.state_dict(), strict=False)
    assert not left_out.unexpected_keys
    assert len(left_out.missing_keys) == 6 * SMALL.layers
    for name in left_out.missing_keys:  # the biases of q, k, v, o, up and down
        assert not classic.get_parameter(name).any(), name
    tokens = torch.randint(40, (2, 16), generator=torch.Generator().manual_seed(4))
    torch.testing.assert_close(model(tokens), classic(tokens), rtol=0, atol=1e-12)


@pytest.mark.parametrize("switch", [*ABLATIONS, "every technique"])
def test_loss_and_gradient_compile_as_one_graph(switch: str) -> None:
    # The ablations are the same in every block; the techniques join several.
    layers = 1 if switch in ABLATIONS else SMALL.layers
    model = drawn(replace(SMALL, layers=layers, **SWITCHES[switch]))
    model.cross_entropy = CROSS_ENTROPIES["plain"]
    tokens = torch.randint(40, (2, 16), generator=torch.Generator().manual_seed(5))
    torch.compiler.reset()  # what it has compiled for other models of this process
    # Without a code generator: what is tested is that nothing breaks the graph.
    compiled = torch.compile(model.loss, fullgraph=True, dynamic=False, backend="aot_eager")
    gradients = []
    for loss in (model.loss, compiled):
        model.zero_grad()
        loss(tokens, tokens).backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    assert len(gradients[0]) == len(list(model.parameters()))
    torch.testing.assert_close(gradients[1], gradients[0], rtol=0, atol=1e-12)


def test_head_is_the_embedding() -> None:
    model = drawn(SMALL)
    tokens = torch.tensor([[1, 2, 3]])
    torch.testing.assert_close(model(tokens), model.features(tokens) @ model.embed.weight.T)
    # Token 7 is never an input, so only the head can move its row.
    model.loss(tokens, torch.tensor([[2, 3, 4]])).backward()
    assert model.embed.weight.grad is not None
    assert model.embed.weight.grad[7].any()
    shapes = [p.shape for p in model.parameters()]
    assert shapes.count(model.embed.weight.shape) == 1


def test_an_untied_head_starts_at_zero_and_shares_nothing_with_the_embedding() -> None:
    config = replace(SMALL, tied_head=False)
    model = build_model(config, compute_dtype=torch.float64)
    ids = torch.tensor([[1, 2, 3]])
    assert not model.head.weight.any()
    assert model.loss(ids, ids).item() == pytest.approx(math.log(40), rel=1e-12)
    assert model.parameter_count() == meta_model(SMALL).parameter_count() + 40 * 24
    assert model.flops_per_token() == meta_model(SMALL).flops_per_token()
    model = drawn(config)
    model.loss(ids, torch.tensor([[2, 3, 4]])).backward()
    assert model.embed.weight.grad is not None
    assert model.head.weight.grad is not None
    assert not model.embed.weight.grad[7].any()  # never an input
    assert model.head.weight.grad[7].any()


def test_attention_scale_is_one_over_the_root_of_the_head_width() -> None:
    random = torch.Generator().manual_seed(3)
    q, k, v = torch.randn(3, 2, 3, 7, 16, generator=random, dtype=torch.float64)
    scores = (q @ k.mT / math.sqrt(16)).masked_fill(
        torch.ones(7, 7, dtype=torch.bool).triu(1), -torch.inf
    )
    expected = scores.softmax(-1) @ v
    torch.testing.assert_close(attend(q, k, v), expected, rtol=0, atol=1e-12)
    # A single new query sees every key that the cache holds.
    torch.testing.assert_close(attend(q[:, :, -1:], k, v), expected[:, :, -1:], rtol=0, atol=1e-12)


def test_mlp_is_relu_squared() -> None:
    mlp = MLP(ModelConfig(layers=1, width=4, heads=1, context=4, vocab_size=4)).double()
    x = torch.randn(5, 4, dtype=torch.float64)
    h = x @ mlp.up.weight.T
    expected = torch.where(h > 0, h * h, torch.zeros_like(h)) @ mlp.down.weight.T
    torch.testing.assert_close(mlp(x), expected, rtol=0, atol=1e-14)


def test_parameters_of_modded_are_counted_exactly() -> None:
    model = meta_model(get_recipe("modded").model)
    assert model.parameter_count() == 12 * 12 * 768**2 + 50_304 * 768 == 123_568_128
    assert model.blocks_parameter_count() == 84_934_656
    assert all(p.ndim == 2 for p in model.parameters())
    assert len(list(model.parameters())) == 1 + 12 * 6


def test_flops_of_modded_are_0_798_gigaflop_a_token() -> None:
    flops = meta_model(get_recipe("modded").model).flops_per_token()
    assert flops == pytest.approx(0.798e9, rel=1e-3)


# At full size on English text ---------------------------------------------------------------------


def prose() -> Tensor:
    return torch.tensor(Gpt2Tokenizer().encode(" ".join(ENGLISH.split())))


def benchmark_corpus(folder: Path) -> Tensor:
    path = folder / "corpus_val_000000.bin"
    path.write_bytes(lzma.decompress((BENCHMARK / f"{path.name}.xz").read_bytes()))
    return torch.from_numpy(TokenStream([open_shard(path)]).read(0, 129))


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    """Token ids by source, as far as the sources are there."""
    shuffled = torch.randperm(50_257, generator=torch.Generator().manual_seed(0))
    found = {"distinct tokens": shuffled[:65]}
    if VOCABULARY.is_dir():
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("TIKTOKEN_CACHE_DIR", str(VOCABULARY))
            found["prose"] = prose()
    if BENCHMARK.is_dir():
        found["benchmark corpus"] = benchmark_corpus(tmp_path_factory.mktemp("bench"))
    return found


@pytest.fixture(scope="module")
def initial_losses(texts: dict[str, Tensor]) -> dict[str, float]:
    """Loss of `modded` at full size before its first step, on each text.

    A few hundred tokens, many of them alike, vary by 0.1 from one draw of the weights to another:
    hence the mean over three. The first is the whole model; one layer does for the others, since
    every block is the identity at the start.
    """
    config = get_recipe("modded")
    sums = dict.fromkeys(texts, 0.0)
    for seed, layers in ((config.train.seed, 12), (0, 1), (1, 1)):
        model = build_model(replace(config.model, layers=layers), seed=seed)
        assert layers == 1 or model.parameter_count() == 123_568_128
        with torch.no_grad():
            for source, ids in texts.items():
                sums[source] += model.loss(ids[None, :-1], ids[None, 1:]).item() / 3
    return sums


@pytest.mark.parametrize("source", ["distinct tokens", "prose", "benchmark corpus"])
def test_initial_loss_of_modded_is_16(
    source: str, texts: dict[str, Tensor], initial_losses: dict[str, float]
) -> None:
    # The tied rows have entries of variance 1 / (3 * 768), so a token predicts itself with a logit
    # near sqrt(768 / 3) = 16. That is what the next one costs, unless it is the same again, as it
    # is at times in the tables of the benchmark corpus.
    if source not in texts:
        where = "TIKTOKEN_CACHE_DIR" if source == "prose" else "QUINTIC_BENCH_DATA"
        pytest.skip(f"no {source}: set {where}, or put the material into {SHARED}")
    ids = texts[source]
    repeated = (ids[1:] == ids[:-1]).double().mean().item()
    assert repeated < 0.02 if source == "benchmark corpus" else repeated == 0
    assert initial_losses[source] == pytest.approx(16.0 * (1 - repeated), abs=0.1)
