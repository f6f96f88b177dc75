from __future__ import annotations

import pytest
from transformers import GenerationConfig

from qmop.continuing import asked_setting, require_whole_prefill


@pytest.mark.parametrize(
    ("in_call", "in_config", "in_model", "found"),
    [
        ({}, None, None, None),
        ({}, None, 3, 3),
        ({}, 2, 3, 2),
        ({}, None, 0, 0),
        ({"min_length": 1}, 2, 3, 1),
        ({"min_length": None}, 2, 3, None),
    ],
)
def test_a_setting_of_the_call_goes_before_its_configuration_and_that_before_the_model_s(
    in_call: dict[str, int | None], in_config: int | None, in_model: int | None, found: int | None
) -> None:
    kwargs = {**in_call, "generation_config": GenerationConfig(min_length=in_config)}
    assert asked_setting(kwargs, GenerationConfig(min_length=in_model), "min_length") == found
    if in_config is None:
        assert asked_setting(in_call, GenerationConfig(min_length=in_model), "min_length") == found


def test_a_prompt_in_pieces_is_named_with_its_size() -> None:
    require_whole_prefill({"prefill_chunk_size": None}, GenerationConfig(prefill_chunk_size=8))
    with pytest.raises(ValueError, match="prefill_chunk_size is 8, but .* in one pass: leave it out"):
        require_whole_prefill({}, GenerationConfig(prefill_chunk_size=8))
