"""How the calls of a step are grouped into compiled subgraphs."""

import pytest

from soda_compile.compiler.steps import LONGEST_JOIN, _chunks, _runs


def test_blocks_that_compute_stay_alone_and_the_others_join():
    light = [True, False, False, True, True, True]
    assert _runs(range(6), light) == [[0], [1], [2], [3, 4, 5]]


def test_a_call_without_work_is_left_out():
    assert _runs([0, 2, 3], [True] * 4) == [[0, 2, 3]]


@pytest.mark.parametrize("blocks", range(1, 60))
def test_long_runs_are_cut_evenly_with_their_ends_alone(blocks: int):
    run = list(range(blocks))
    parts = _chunks(run)
    assert [index for part in parts for index in part] == run
    if blocks <= LONGEST_JOIN + 2:
        assert parts == [run]
    else:
        inner = [len(part) for part in parts[1:-1]]
        assert len(parts[0]) == len(parts[-1]) == 1
        assert max(inner) <= LONGEST_JOIN
        assert max(inner) - min(inner) <= 1
