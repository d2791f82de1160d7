"""A seeded permutation of 0 .. size - 1 that is computed, not stored.

An index array for the samples of 100B tokens would take 800 MB in every process. A Feistel network
is a bijection on numbers of 2h bits whatever its round function is (Luby and Rackoff 1988), and
cycle walking (Black and Rogaway 2002) cuts it down to any size: a value that falls outside is sent
through again until it falls inside. With the smallest h the domain is at most four times the size,
so a value needs four passes on average at worst.
"""

import numpy as np
import numpy.typing as npt

# Four rounds are enough for large sizes. Where a half has few bits, a round has few round functions
# to choose from and more rounds mix better; they cost microseconds for a batch.
ROUNDS = 8


def permute(
    indices: npt.NDArray[np.int64], size: int, keys: npt.NDArray[np.uint64]
) -> npt.NDArray[np.int64]:
    """Return where a bijection of 0 .. size - 1 sends each index, in an array of the same shape.

    `keys`, uint64 [ROUNDS] of random bits, choose the bijection; `size` is 1 to 2**62.
    """
    assert 1 <= size <= 2**62 and keys.shape == (ROUNDS,)
    half_bits = max(1, ((size - 1).bit_length() + 1) // 2)
    shift, mask = np.uint64(half_bits), np.uint64((1 << half_bits) - 1)

    def encrypted(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
        left, right = values >> shift, values & mask
        for key in keys:
            left, right = right, left ^ (_mix(right ^ key) & mask)
        return (left << shift) | right

    values = encrypted(indices.astype(np.uint64))
    while (outside := values >= np.uint64(size)).any():
        values[outside] = encrypted(values[outside])
    return values.astype(np.int64)


def _mix(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Apply SplitMix64's finaliser (Steele, Lea and Flood 2014): every bit moves all others.

    The products wrap modulo 2**64, as they should.
    """
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
