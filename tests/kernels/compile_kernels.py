"""Compile the kernels for a GPU that is not here, and say what of its own their code uses."""

from typing import Any

import torch
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from quintic.kernels import cross_entropy, gram, transpose

CAPABILITY = 90
"""Hopper's."""


def ptx_of(
    kernel: Any, arguments: dict[str, str], constants: dict[str, Any], **options: int
) -> str:
    """The code of a kernel whose pointers and strides are multiples of 16 bytes."""
    signature = arguments | dict.fromkeys(constants, "constexpr")
    aligned = {
        (place,): [["tt.divisibility", 16]]
        for place, kind in enumerate(arguments.values())
        if kind.startswith(("*", "i"))
    }
    source = ASTSource(kernel, signature, constants, aligned)
    compiled = triton.compile(source, target=GPUTarget("cuda", CAPABILITY, 32), options=options)
    assert compiled.asm["cubin"]
    ptx: str = compiled.asm["ptx"]
    return ptx


def report(name: str, ptx: str) -> None:
    print(
        name,
        *(word for word in ("ld.global.v4", "cvt.rn.satfinite.e5m2x2.f32", "wgmma") if word in ptx),
    )


for targets, grad in ((1, "*bf16"), (1, "*fp8e5"), (3, "*fp8e5")):
    report(
        f"cross_entropy {targets} {grad}",
        ptx_of(
            cross_entropy._cross_entropy_row,
            {
                "logits_ptr": "*bf16",
                "targets_ptr": "*i64",
                "weights_ptr": "*fp32",
                "losses_ptr": "*fp32",
                "grad_ptr": grad,
                "stride": "i32",
                "divisor": "fp32",
                "softcap": "fp32",
            },
            {"VOCABULARY": 50_304, "GRADIENT": True, "FLOAT": tl.float32, "CAPPED": True}
            | {"TARGETS": targets, "WEIGHTED": targets > 1, "BLOCK": cross_entropy.BLOCK},
            num_warps=cross_entropy.WARPS,
        ),
    )
block, block_k = gram.BLOCKS[torch.bfloat16]
report(
    "gram",
    ptx_of(
        gram._gram_tile,
        {"x_ptr": "*bf16", "out_ptr": "*bf16", "b": "fp32", "c": "fp32"},
        {"ROWS": 768, "COLUMNS": 3072, "ADD": True, "WIDEN": False}
        | {"BLOCK": block, "BLOCK_K": block_k},
        num_warps=gram.WARPS,
        num_stages=gram.STAGES,
    ),
)
report(
    "transpose",
    ptx_of(
        transpose._transpose_tile,
        {"source_ptr": "*u8", "out_ptr": "*u8", "rows": "i32", "columns": "i32"},
        {"BLOCK": transpose.BLOCK},
        num_warps=transpose.WARPS,
    ),
)
