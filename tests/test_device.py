"""One rule for devices: the choice, the precision, the micro-batch, the peak."""

import getpass
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor
from torch._inductor.exc import CppCompileError

from quintic.config import Config, ModelConfig
from quintic.device import (
    ACTIVATION_BYTES,
    CHECKPOINTED_BYTES,
    PEAK_BFLOAT16_FLOPS,
    activation_bytes_per_token,
    auto_micro_batch,
    check_cache_folder,
    check_compiler,
    choose_device,
    compiling,
    compute_dtype,
    device_name,
    peak_flops,
)
from quintic.errors import QuinticError, counted
from quintic.model.base import LanguageModel
from quintic.model.build import build_model, checkpoint_activations
from quintic.recipes import get_recipe
from tests.conftest import tiny_config

CPU, CUDA, MPS = torch.device("cpu"), torch.device("cuda"), torch.device("mps")


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Any:
    """machine(cuda=..., mps=...): pretend that this machine has these devices."""

    def pretend(*, cuda: bool, mps: bool) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)

    return pretend


@pytest.mark.parametrize(
    ("cuda", "mps", "chosen"),
    [(True, True, "cuda"), (True, False, "cuda"), (False, True, "mps"), (False, False, "cpu")],
)
def test_auto_is_the_first_of_cuda_mps_and_cpu(
    machine: Any, cuda: bool, mps: bool, chosen: str
) -> None:
    machine(cuda=cuda, mps=mps)
    assert choose_device("auto").type == chosen
    assert choose_device("cpu").type == "cpu"


@pytest.mark.parametrize("asked", ["cuda", "mps"])
def test_a_device_asked_for_and_absent_is_refused(machine: Any, asked: str) -> None:
    machine(cuda=asked == "mps", mps=asked == "cuda")
    there = "mps, cpu" if asked == "cuda" else "cuda, cpu"
    with pytest.raises(QuinticError) as caught:
        choose_device(asked)
    message = str(caught.value)
    assert message.startswith(f"there is no {asked} device here that PyTorch {torch.__version__}")
    assert message.endswith(f"it has {there}; ask for one of these, or for auto")


def test_precision_is_bfloat16_on_cuda_and_float32_elsewhere_unless_named() -> None:
    assert compute_dtype("auto", CUDA) is torch.bfloat16
    assert compute_dtype("auto", CPU) is compute_dtype("auto", MPS) is torch.float32
    for device in (CPU, CUDA):
        for precision in ("float32", "bfloat16", "float64"):
            assert compute_dtype(precision, device) is getattr(torch, precision)
    with pytest.raises(QuinticError, match="float64 does not exist on mps"):
        compute_dtype("float64", MPS)


@pytest.mark.parametrize(
    ("name", "tflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H100 NVL", 835),
        ("NVIDIA H200", 989),
        ("NVIDIA GH200 480GB", 989),
        ("NVIDIA B200", 2250),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA L40S", 362),
        ("NVIDIA L40", 181),
        ("NVIDIA L4", 121),
        ("NVIDIA GeForce RTX 4090", 165),
        ("NVIDIA GeForce GTX 1080", None),
    ],
)
def test_peak_is_that_of_the_gpus_data_sheet(
    name: str, tflops: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert peak_flops(CUDA, torch.bfloat16) == (None if tflops is None else tflops * 1e12)
    assert peak_flops(CUDA, torch.float32) is None
    assert device_name(CUDA) == name


def test_peak_is_unknown_on_a_cpu() -> None:
    assert peak_flops(CPU, torch.bfloat16) is None


def test_no_entry_of_the_peaks_hides_a_later_one() -> None:
    names = list(PEAK_BFLOAT16_FLOPS)
    for i, later in enumerate(names):
        for earlier in names[:i]:
            same = PEAK_BFLOAT16_FLOPS[earlier] == PEAK_BFLOAT16_FLOPS[later]
            assert earlier not in later or same, (earlier, later)


def test_the_cpu_is_named_with_its_threads() -> None:
    assert device_name(CPU).startswith("cpu (")
    assert f", {counted(torch.get_num_threads(), 'thread')})" in device_name(CPU)


@pytest.mark.parametrize("sequences", [1, 7, 12, 16, 97, 512])
@pytest.mark.parametrize("context", [64, 1024, 8192])
def test_the_micro_batch_divides_the_batch_and_stays_small_on_a_cpu(
    sequences: int, context: int
) -> None:
    config = Config().override(
        {
            "model.context": context,
            "train.batch_tokens": sequences * context,
            "train.eval_tokens": context,
        }
    )
    found = auto_micro_batch(config, CPU)
    divisors = [n for n in range(1, sequences + 1) if sequences % n == 0]
    assert found in divisors
    assert found == max(n for n in divisors if n == 1 or n * context <= 4096)


@pytest.mark.parametrize(
    ("processes", "found"), [(1, 8), (2, 4), (3, 4), (4, 2), (5, 2), (6, 2), (8, 1)]
)
def test_the_micro_batch_of_any_number_of_processes_divides_the_batch_and_needs_one_pass(
    processes: int, found: int
) -> None:
    config = tiny_config(Path("data"))
    assert config.batch_sequences == 8
    assert auto_micro_batch(config, CPU, processes) == found


def test_the_micro_batch_fills_at_most_half_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    class Properties:
        total_memory = 80 * 2**30

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: Properties)
    config = get_recipe("modded")
    per_sequence = activation_bytes_per_token(config.model) * config.model.context
    found = auto_micro_batch(config, CUDA)
    assert 512 % found == 0
    assert found * per_sequence <= 40 * 2**30 < 2 * found * per_sequence
    Properties.total_memory = 2**20  # one sequence is always tried
    assert auto_micro_batch(config, CUDA) == 1


@pytest.mark.parametrize(
    ("architecture", "way"),
    [("gpt", "eager"), ("gpt2", "eager"), ("gpt", "partitioned"), ("gpt", "checkpointed")],
)
def test_activations_take_the_bytes_that_autograd_saves_and_a_little_more(
    architecture: Literal["gpt", "gpt2"], way: str
) -> None:
    # `partitioned` divides forward from backward as the compiler does, and generates no code.
    tokens, width = 4 * 64, 96
    kept = {}
    for layers in (1, 2):
        config = ModelConfig(architecture, layers, width, heads=2, context=64, vocab_size=320)
        model = build_model(config, compute_dtype=torch.bfloat16)
        if way == "checkpointed":
            checkpoint_activations(model)
        backend = "aot_eager_decomp_partition"
        loss = (
            torch.compile(model.loss, dynamic=False, backend=backend)
            if way == "partitioned"
            else model.loss
        )
        kept[layers] = saved_activation_bytes(model, loss, tokens // 64)
    per_layer = (kept[2] - kept[1]) / tokens / width
    bound = CHECKPOINTED_BYTES if way == "checkpointed" else ACTIVATION_BYTES
    assert (0.7 if architecture == "gpt2" else 0.85) * bound <= per_layer <= 1.02 * bound


def saved_activation_bytes(
    model: LanguageModel, loss: Callable[[Tensor, Tensor], Tensor], sequences: int
) -> int:
    """Bytes of what autograd saves in a forward pass, without weights and casts of them."""
    weights = {p.shape for p in model.parameters()} | {p.shape[::-1] for p in model.parameters()}
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    saved: dict[int, Tensor] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own and tensor.shape not in weights:
            saved[storage.data_ptr()] = tensor
        return tensor

    ids_BT = torch.randint(model.vocab_size, (sequences, model.config.context + 1))
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss(ids_BT[:, :-1].contiguous(), ids_BT[:, 1:].contiguous())
    return sum(tensor.untyped_storage().nbytes() for tensor in saved.values())


def test_a_micro_batch_is_larger_where_activations_are_computed_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Properties:
        total_memory = 80 * 2**30

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: Properties)
    config = get_recipe("modded")
    again = config.override({"train.activation_checkpointing": True})
    assert auto_micro_batch(again, CUDA) > auto_micro_batch(config, CUDA)


def test_compiling_without_a_compiler_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(QuinticError, match=r"needs a C\+\+ compiler.*--train\.no-compile"):
        check_compiler(CPU)
    check_compiler(CUDA)
    monkeypatch.setattr(shutil, "which", lambda name: f"/bin/{name}")
    check_compiler(CPU)


def test_the_compiler_looked_for_is_the_one_that_pytorch_calls(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(shutil, "which", lambda name: name if name == "clang++" else None)
    with pytest.raises(QuinticError, match=r"g\+\+ is not there: install it, name another in CXX"):
        check_compiler(CPU)
    monkeypatch.setenv("CXX", "clang++")
    check_compiler(CPU)
    monkeypatch.setenv("CXX", "/opt/gone/g++")
    with pytest.raises(QuinticError, match=r"/opt/gone/g\+\+ is not there"):
        check_compiler(CPU)


@pytest.mark.parametrize("options", [[], ["--train.compile"]])
def test_a_run_without_a_folder_for_pytorchs_cache_names_the_variable_for_it(
    options: list[str], tiny: list[str], tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    cache = tmp_path / "file" / "cache"
    # In a process of its own: PyTorch makes the folder when its compiler is imported.
    done = subprocess.run(
        [sys.executable, "-m", "quintic", *tiny, *options, "--out", str(tmp_path / "run")],
        env={**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(cache)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (
        2,
        "quintic: PyTorch has no folder for what it compiles (Not a directory): name one "
        "that can be written in TORCHINDUCTOR_CACHE_DIR\n",
    )
    assert not (tmp_path / "run").exists()


def test_only_what_compiles_needs_to_write_in_that_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(**options: object) -> None:
        raise PermissionError("Permission denied")

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    check_cache_folder(compiles=False)
    with pytest.raises(QuinticError, match=r"PermissionError.*in TORCHINDUCTOR_CACHE_DIR"):
        check_cache_folder(compiles=True)


def test_a_user_without_a_name_has_such_a_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def nameless() -> str:
        raise KeyError("getpwuid(): uid not found: 12345")

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "")  # so that it is put back afterwards
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(getpass, "getuser", nameless)
    check_cache_folder(compiles=True)
    assert [path.name for path in tmp_path.iterdir()] == [f"torchinductor_uid_{os.getuid()}"]


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        (
            OSError("/tmp/c/x.so: failed to map segment from shared object.  Do this.\nOr that."),
            "train.compile failed (OSError: /tmp/c/x.so: failed to map segment from shared "
            "object.  Do this): mend that, or use --train.no-compile",
        ),
        (
            CppCompileError(
                ["g++", "a.cpp"], "a.cpp:1:10: fatal error: Python.h: No such file\n 1"
            ),
            "train.compile failed (a.cpp:1:10: fatal error: Python.h: No such file): mend that, "
            "or use --train.no-compile",
        ),
    ],
)
def test_a_compiler_that_fails_is_one_line(failure: Exception, message: str) -> None:
    def fail(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        raise failure

    function = torch.compile(lambda x: x + 1, backend=fail)
    with pytest.raises(QuinticError) as caught, compiling():
        function(torch.ones(2))
    assert str(caught.value) == message
