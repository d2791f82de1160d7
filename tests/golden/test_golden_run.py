"""The implementation in float64 against a golden run of the original algorithm.

40 losses and the final norms of the original trainer of 2024-10-14, run on a tiny model with
everything in float64, Newton-Schulz and rotary tables included. The set-up below is written from
the run's description, not from the original's code.
"""

import numpy as np
import pytest
import torch

from quintic.config import AdamWConfig, ModelConfig, MuonConfig, OptimConfig
from quintic.kernels import cpu_block, cpu_cross_entropy
from quintic.model.build import build_model
from quintic.model.fused import fuse
from quintic.model.loss import CHUNK_ELEMENTS
from quintic.optim.param_groups import assign_parameters, build_optimizers
from quintic.optim.schedule import trapezoid

LAYERS, HEADS, WIDTH, VOCAB = 2, 2, 64, 256
BATCH, CONTEXT, ACCUMULATION = 4, 64, 2
STEPS, COOLDOWN, SEED = 40, 12, 1337

LOSSES = [
    5.565448431861862, 5.552417537341443, 5.491802763053725, 5.387185667078027,
    5.278873365270462, 5.1738545323259295, 5.104028435762199, 4.893977005025099,
    4.7588698971369565, 4.646760888063759, 4.49838068050664, 4.31345159531546,
    4.119426111225213, 3.8688882228620294, 3.7413507343668053, 3.547227533113213,
    3.3117088535202814, 3.17190961479442, 3.08176885107447, 2.8411005526857673,
    2.6442805116175623, 2.5185482729368216, 2.3569365799553736, 2.269281214783632,
    1.9796355036786215, 1.8758730396071308, 1.8972161165287866, 1.7116538480860295,
    1.6359006844546438, 1.587120922764117, 1.4499655848531607, 1.3936110862213429,
    1.3287511069038993, 1.40081478695654, 1.2988239559396373, 1.2836211323667264,
    1.1943814990718284, 1.1883668805413288, 1.1731827699278845, 1.1639973196923545,
]  # fmt: skip

FINAL_NORMS = {
    "embed": 16.3816317525596,
    "0.q": 3.9247158069438712, "0.k": 3.949792636689593,
    "0.v": 2.728418082046488, "0.o": 2.7053872257171685,
    "0.up": 8.338463142322462, "0.down": 7.988688280576879,
    "1.q": 3.9420209525984338, "1.k": 3.904903151608865,
    "1.v": 2.898168003689891, "1.o": 2.771005848378993,
    "1.up": 7.9511586345072, "1.down": 7.784981555039264,
}  # fmt: skip


def full_name(short: str) -> str:
    if short == "embed":
        return "embed.weight"
    layer, matrix = short.split(".")
    part = "mlp" if matrix in ("up", "down") else "attention"
    return f"layers.{layer}.{part}.{matrix}.weight"


def golden_inputs() -> tuple[dict[str, torch.Tensor], np.ndarray]:
    rs = np.random.RandomState(SEED)

    def normal(shape: tuple[int, int], std: float) -> torch.Tensor:
        return torch.from_numpy((std * rs.standard_normal(shape)).astype(np.float32)).double()

    weights = {"embed": normal((VOCAB, WIDTH), 0.02)}
    shapes = dict.fromkeys("qkvo", (WIDTH, WIDTH))
    shapes |= {"up": (4 * WIDTH, WIDTH), "down": (WIDTH, 4 * WIDTH)}
    for layer in range(LAYERS):
        for name, shape in shapes.items():
            weights[f"{layer}.{name}"] = normal(shape, 0.05)
    count = STEPS * ACCUMULATION * BATCH * CONTEXT + 1
    noise = rs.randint(0, 2, size=count)
    tokens = np.empty(count, dtype=np.int64)
    tokens[0], tokens[1] = 1, 2
    for i in range(2, count):
        tokens[i] = (3 * tokens[i - 1] + noise[i]) % VOCAB
    return weights, tokens


@pytest.mark.parametrize(
    ("loss", "fused"), [("plain", False), ("chunked", False), ("chunked", True)]
)
def test_losses_and_final_norms_equal_the_golden_run(
    loss: str, fused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Small chunks, so that there are several of them to add up.
    monkeypatch.setitem(CHUNK_ELEMENTS, "cpu", 100 * VOCAB)
    monkeypatch.setattr(cpu_cross_entropy, "CHUNK_ELEMENTS", 100 * VOCAB)
    monkeypatch.setattr(cpu_block, "CHUNK_ELEMENTS", 100 * 4 * WIDTH)
    monkeypatch.setattr(cpu_block, "QUERIES", 24)
    weights, tokens = golden_inputs()
    model = build_model(
        ModelConfig(layers=LAYERS, heads=HEADS, width=WIDTH, context=CONTEXT, vocab_size=VOCAB),
        compute_dtype=torch.float64,
        loss=loss,
    )
    if fused:
        fuse(model)
    model.load_state_dict({full_name(short): weight for short, weight in weights.items()})
    config = OptimConfig(
        muon=MuonConfig(lr=0.002, scale="max_dim", ns_dtype="float64"), adamw=AdamWConfig(lr=0.01)
    )
    optimizers = build_optimizers(
        model, assign_parameters(model, config), config, device=torch.device("cpu")
    )
    batches = torch.from_numpy(tokens)
    losses = []
    for step in range(STEPS):
        total = 0.0
        for j in range(step * ACCUMULATION, (step + 1) * ACCUMULATION):
            window = batches[j * BATCH * CONTEXT : (j + 1) * BATCH * CONTEXT + 1]
            micro = model.loss(window[:-1].view(BATCH, -1), window[1:].view(BATCH, -1))
            (micro / ACCUMULATION).backward()
            total += micro.item() / ACCUMULATION
        factor = trapezoid(step, steps=STEPS, warmup=0, cooldown=COOLDOWN)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["base_lr"] * factor
            optimizer.step()
            optimizer.zero_grad()
        losses.append(total)
    assert losses == pytest.approx(LOSSES, abs=1e-9, rel=0)
    parameters = dict(model.named_parameters())
    norms = {short: parameters[full_name(short)].norm().item() for short in FINAL_NORMS}
    assert norms == pytest.approx(FINAL_NORMS, abs=1e-9, rel=0)
