from __future__ import annotations

from typing import Any

import pytest
import torch

from qmop.placeholders import IGNORED
from qmop.prompt_attention import judge_attention, judges, visible
from tests.fixtures.stock_llava import stock_llava

NONE, PAD, WORD, PATCH = IGNORED, 0, 7, 1


@pytest.fixture(scope="module")
def language() -> Any:
    """Two query heads to each key head, in the kernel that returns its attention maps."""
    model = stock_llava().model.language_model
    model.set_attn_implementation("eager")
    return model


def rows_seen_by_hooks(language: Any, states: torch.Tensor, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
    """The layer of index 1 and what it was given in a pass, and the pass's attention map there."""
    caught: list[Any] = []
    hook = language.layers[1].register_forward_pre_hook(
        lambda layer, args, given: caught.append((layer, args[0], given)), with_kwargs=True
    )
    maps = language(inputs_embeds=states, output_attentions=True, **kwargs).attentions
    hook.remove()
    return caught[0], maps[1]


@torch.no_grad()
def test_the_row_is_that_of_the_full_map(language: Any) -> None:
    states, mask = torch.randn(2, 9, 160, generator=torch.Generator().manual_seed(0)), torch.ones(2, 9)
    mask[1, :3] = 0
    (layer, entering, given), attention = rows_seen_by_hooks(language, states, attention_mask=mask)
    for columns in ([8, 8], [5, 6]):
        row = judge_attention(layer, entering, given, torch.tensor(columns), seen=mask.bool(), past=0)
        expected = attention.mean(1)[torch.arange(2), columns]
        torch.testing.assert_close(row, expected, atol=1e-6, rtol=1e-5)


@torch.no_grad()
def test_the_row_counts_what_the_cache_holds(language: Any) -> None:
    states = torch.randn(1, 9, 160, generator=torch.Generator().manual_seed(0))
    _, attention = rows_seen_by_hooks(language, states)
    cache = language(inputs_embeds=states[:, :5], use_cache=True).past_key_values
    caught: list[Any] = []

    def ask(layer: Any, args: Any, given: Any) -> None:
        caught.append(judge_attention(layer, args[0], given, torch.tensor([3]), seen=None, past=5))

    hook = language.layers[1].register_forward_pre_hook(ask, with_kwargs=True)
    language(inputs_embeds=states[:, 5:], past_key_values=cache)
    hook.remove()
    torch.testing.assert_close(caught[0], attention.mean(1)[:, -1, 5:], atol=1e-6, rtol=1e-5)


def test_real_columns_are_read_off_every_kind_of_mask() -> None:
    rows = torch.tensor([[0, 1, 1], [1, 1, 1]])
    causal = torch.ones(3, 3, dtype=torch.bool).tril() & rows.bool()[:, None, None, :]
    added = torch.zeros(2, 1, 3, 3).masked_fill(~causal, torch.finfo(torch.float32).min)
    for mask in (rows, causal, added):
        seen = visible(mask, 3, 2)
        assert seen is not None
        assert seen.tolist() == rows.bool().tolist()
    assert visible(None, 3, 2) is None
    with pytest.raises(ValueError, match="attn_implementation='sdpa'"):
        visible(object(), 3, 2)


def test_the_last_real_column_decides() -> None:
    visual = torch.tensor([[PATCH, PATCH, PAD, PAD, PAD]]).bool().expand(3, -1)
    seen = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [0, 1, 1, 1, 1]]).bool()
    assert judges(visual, seen).tolist() == [4, 2, 4]
    assert judges(visual, None).tolist() == [4, 4, 4]
    assert judges(visual, torch.cat([torch.ones(3, 2).bool(), seen], dim=1)).tolist() == [4, 2, 4]


def test_labels_tell_where_the_prompt_ends() -> None:
    visual = torch.tensor([PAD, PATCH, PATCH, PAD, PAD, PAD]).bool().expand(4, -1)
    labels = torch.tensor(
        [
            [NONE, NONE, NONE, NONE, WORD, WORD],
            [NONE, NONE, NONE, WORD, WORD, WORD],
            [WORD, NONE, NONE, NONE, WORD, NONE],
            [NONE, NONE, NONE, NONE, NONE, NONE],
        ]
    )
    assert judges(visual, None, labels).tolist() == [3, 2, 3, 5]
