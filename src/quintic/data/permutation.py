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


class Permutation:
    """A bijection of 0 .. size - 1, chosen by `keys`, uint64 [ROUNDS] of random bits.

    `size` is 1 to 2**62.
    """

    def __init__(self, size: int, keys: npt.NDArray[np.uint64]) -> None:
        assert 1 <= size <= 2**62 and keys.shape == (ROUNDS,)
        half_bits = max(1, ((size - 1).bit_length() + 1) // 2)
        self._size = np.uint64(size)
        self._keys = keys
        self._half_bits = np.uint64(half_bits)
        self._mask = np.uint64((1 << half_bits) - 1)

    def __call__(self, indices: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return where each index, in 0 .. size - 1, is sent, in an array of the same shape."""
        values = self._encrypt(indices.astype(np.uint64))
        while (outside := values >= self._size).any():
            values[outside] = self._encrypt(values[outside])
        return values.astype(np.int64)

    def _encrypt(self, values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
        left, right = values >> self._half_bits, values & self._mask
        for key in self._keys:
            left, right = right, left ^ (_mix(right ^ key) & self._mask)
        return (left << self._half_bits) | right


def _mix(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Apply SplitMix64's finaliser (Steele, Lea and Flood 2014): every bit moves all others.

    The products wrap modulo 2**64, as they should.
    """
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
