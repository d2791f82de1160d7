"""The transpose of one-byte matrices by the kernel, against PyTorch's: the same to the bit."""

import pytest
import torch

pytestmark = pytest.mark.device


@pytest.mark.parametrize("shape", [(1, 1), (16, 48), (128, 128), (130, 400), (7, 301)])
@pytest.mark.parametrize("dtype", [torch.float8_e5m2, torch.float8_e4m3fn])
def test_every_byte_arrives_at_its_place(
    device: torch.device, shape: tuple[int, int], dtype: torch.dtype
) -> None:
    from quintic.kernels.transpose import transposed

    random = torch.Generator().manual_seed(0)
    matrix = torch.randint(256, shape, generator=random, dtype=torch.uint8).to(device).view(dtype)
    found = transposed(matrix)
    assert found.dtype is dtype and found.is_contiguous()
    assert torch.equal(found.view(torch.uint8), matrix.view(torch.uint8).T)
