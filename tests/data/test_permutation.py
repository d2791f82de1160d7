import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quintic.data.permutation import ROUNDS, permute


def keys(seed: int) -> npt.NDArray[np.uint64]:
    return np.random.default_rng(seed).integers(0, 2**64, ROUNDS, dtype=np.uint64)


@given(size=st.integers(1, 3000), seed=st.integers(0, 2**32))
@settings(deadline=None, max_examples=150)
def test_is_a_bijection(size: int, seed: int) -> None:
    image = permute(np.arange(size), size, keys(seed))
    assert np.array_equal(np.sort(image), np.arange(size))


@given(st.integers(1, 2**62), st.integers(0, 2**32))
@settings(deadline=None, max_examples=50)
def test_large_sizes_stay_inside_and_do_not_repeat(size: int, seed: int) -> None:
    indices = np.unique(np.linspace(0, size - 1, 200).astype(np.int64).clip(0, size - 1))
    image = permute(indices, size, keys(seed))
    assert image.dtype == np.int64
    assert image.min() >= 0 and image.max() < size
    assert len(np.unique(image)) == len(indices)


def test_does_not_depend_on_what_is_asked_together() -> None:
    together = permute(np.arange(1000), 1000, keys(0))
    alone = [int(permute(np.array([index]), 1000, keys(0))[0]) for index in range(1000)]
    assert alone == together.tolist()


def test_keys_choose_the_permutation() -> None:
    images = {tuple(permute(np.arange(50), 50, keys(seed)).tolist()) for seed in range(50)}
    assert len(images) == 50


@pytest.mark.parametrize("size", [4, 5])
def test_small_sizes_are_well_mixed(size: int) -> None:
    # Every element is sent everywhere about equally often: chi-squared per row, far in the tail.
    trials = 4000
    counts = np.zeros((size, size))
    for seed in range(trials):
        counts[np.arange(size), permute(np.arange(size), size, keys(seed))] += 1
    expected = trials / size
    assert ((counts - expected) ** 2 / expected).sum(axis=1).max() < 30


def test_neighbours_do_not_stay_neighbours() -> None:
    image = permute(np.arange(100_000), 100_000, keys(1))
    assert abs(np.corrcoef(image[:-1], image[1:])[0, 1]) < 0.02
    assert abs(np.corrcoef(np.arange(100_000), image)[0, 1]) < 0.02
