"""What one GPU does with quintic, in one command: `python -m bench.gpu`.

It needs PyTorch, NumPy and this source tree; neither network nor an installation nor the command
line's library. Parts, in this order, each alone with `--parts`:

    floor     operations and bytes of a step of each recipe, counted; needs no device
    ceilings  what the device reaches on a large matrix product and on a copy
    parity    every fast path against its reference on the device
    steps     each recipe as it is, with each switch, and the plain compiled loop beside it
    train     each recipe trained on real shards for some minutes, with validation

All of it fits into `--budget` seconds: a part that has too little left is shortened or skipped, and
the output says so. The figures are written after every part and every measurement, so that what was
measured survives a run that is cut off. `--device cpu` runs the same program at a toy size.
"""
