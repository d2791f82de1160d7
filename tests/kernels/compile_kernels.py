"""Compile the kernels for GPUs that are not here, and say what of theirs the code uses."""

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from quintic.kernels import cross_entropy, gram


def compile_for(capability, kernel, arguments, constants, **options):
    """The PTX of a kernel whose pointers and strides are multiples of 16 bytes, as here."""
    signature = arguments | dict.fromkeys(constants, "constexpr")
    aligned = {
        (place,): [["tt.divisibility", 16]]
        for place, kind in enumerate(arguments.values())
        if kind.startswith(("*", "i"))
    }
    source = ASTSource(kernel, signature, constants, aligned)
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    assert compiled.asm["cubin"]
    return compiled.asm["ptx"]


def report(name, capability, ptx):
    used = [word for word in ("ld.global.v4", "wgmma", "mma.sync", "tcgen05.mma") if word in ptx]
    print(name, f"sm_{capability}", *used)


for capability in (80, 90, 100):
    ptx = compile_for(
        capability,
        cross_entropy._cross_entropy_row,
        {
            "logits_ptr": "*bf16",
            "targets_ptr": "*i64",
            "losses_ptr": "*fp32",
            "stride": "i32",
            "tokens": "i32",
        },
        {"VOCABULARY": 50_304, "GRADIENT": True, "FLOAT": tl.float32, "BLOCK": cross_entropy.BLOCK},
        num_warps=4,
    )
    report("cross_entropy", capability, ptx)
    for add in (False, True):
        block, block_k = gram.BLOCKS[gram.torch.bfloat16]
        ptx = compile_for(
            capability,
            gram._gram_tile,
            {"x_ptr": "*bf16", "out_ptr": "*bf16", "b": "fp32", "c": "fp32"},
            {"ROWS": 768, "COLUMNS": 3072, "ADD": add}
            | {"BLOCK": block, "BLOCK_K": block_k, "WIDEN": False},
            num_warps=8,
            num_stages=3,
        )
        report("gram", capability, ptx)
