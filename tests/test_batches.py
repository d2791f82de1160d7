"""How many sequences a step has, where the batch grows."""

from hypothesis import given
from hypothesis import strategies as st

from quintic.config import BatchSizes
from quintic.recipes import get_recipe


@given(st.integers(1, 6), st.integers(1, 5), st.integers(0, 40))
def test_what_came_before_is_the_sum_of_the_batches(each: int, stages: int, more: int) -> None:
    batches = BatchSizes(each * stages, stages, stages + more)
    sizes = [batches.at(step) for step in range(batches.steps + 3)]
    assert [batches.before(step) for step in range(len(sizes))] == [
        sum(sizes[:step]) for step in range(len(sizes))
    ]
    assert sizes == sorted(sizes)
    assert sizes[0] == batches.smallest == each
    assert set(sizes[: batches.steps]) == {each * (stage + 1) for stage in range(stages)}
    assert set(sizes[batches.steps :]) == {batches.sequences}
    # Stages are as equal as whole steps allow.
    lengths = [sizes[: batches.steps].count(size) for size in set(sizes)]
    assert max(lengths) - min(lengths) <= 1


def test_modded_in_four_stages_sees_five_eighths_of_the_tokens() -> None:
    modded = get_recipe("modded")
    assert modded.tokens == 5100 * 524_288
    four = modded.override({"train.batch_stages": 4})
    assert [four.batches.at(step) for step in (0, 1274, 1275, 2550, 3825, 5099)] == [
        *(128, 128, 256, 384, 512, 512)
    ]
    assert four.tokens == modded.tokens * 5 // 8
    assert four.tokens_before(1276) == (1275 * 128 + 256) * 1024
