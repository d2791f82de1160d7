"""Where the kernels are tested: on a GPU where there is one, else in Triton's interpreter."""

from importlib.util import find_spec

import pytest
import torch

from quintic.kernels.runnable import interpreted


@pytest.fixture(scope="session")
def device() -> torch.device:
    if find_spec("triton") is None:
        pytest.skip("triton is not installed: pip install 'quintic[kernels]'")
    if torch.cuda.is_available():
        return torch.device("cuda")
    if not interpreted():
        pytest.skip("there is no GPU, and TRITON_INTERPRET=0 forbids the interpreter")
    return torch.device("cpu")


@pytest.fixture
def gpu() -> torch.device:
    if not torch.cuda.is_available():
        pytest.skip("speed and memory of a kernel show on a GPU only, and there is none")
    return torch.device("cuda")
