from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from qmop.compressors import build_compressor
from qmop.compressors.selection import asked_budget, best, full_precision, need_query, rank, raster, take
from qmop.features import Query

MakeQuery = Callable[..., Query]


def test_the_best_come_first_and_ties_go_to_the_lower_index() -> None:
    score = torch.tensor([[1.0, 3.0, 3.0, 2.0, 3.0], [0.0, 0.0, 0.0, 0.0, 0.0]])
    assert best(score, 3).tolist() == [[1, 2, 4], [0, 1, 2]]
    assert best(score, 0).shape == (2, 0)


def test_ties_hold_in_long_rows() -> None:
    score = torch.zeros(1, 4096)
    score[0, 4000] = 1.0
    assert best(score, 3000).tolist() == [[4000, *range(2999)]]


def test_the_best_are_taken_along_the_last_dimension() -> None:
    score = torch.tensor([[[1.0, 2.0], [4.0, 3.0]]])
    assert best(score, 1).tolist() == [[[1], [0]]]


def test_ranks_count_from_the_largest() -> None:
    assert rank(torch.tensor([[5.0, 9.0, 5.0, 7.0]])).tolist() == [[2, 0, 3, 1]]


def test_raster_and_take() -> None:
    states = torch.arange(2 * 4 * 3.0).view(2, 4, 3)
    index = raster(torch.tensor([[3, 1], [2, 0]]))
    assert index.tolist() == [[1, 3], [0, 2]]
    assert torch.equal(take(states, index), torch.stack([states[0, [1, 3]], states[1, [0, 2]]]))


def test_a_call_may_ask_for_any_budget_that_the_grid_holds() -> None:
    method = build_compressor("fastervlm", grid=6, width=16, tokens=9)
    assert (asked_budget(method, None), asked_budget(method, 36)) == (9, 36)
    for wrong in (0, 37):
        with pytest.raises(ValueError, match=rf"tokens is {wrong}, but a 6 x 6 grid has 36 patches: choose 1 to 36"):
            asked_budget(method, wrong)


def test_a_missing_question_is_one_sentence(make_query: MakeQuery) -> None:
    query = make_query(1)
    assert need_query(query, "x") is query
    with pytest.raises(ValueError, match="query is missing, but x selects patches by the question: pass query="):
        need_query(None, "x")


def test_scores_stay_in_single_precision_under_autocast() -> None:
    states = torch.ones(2, 2)
    with torch.autocast("cpu", torch.bfloat16):
        assert (states @ states).dtype == torch.bfloat16
        with full_precision(states):
            assert (states @ states).dtype == torch.float32
    with full_precision(states.to("meta")):
        pass
