"""Adapters: what they change at first, what they train, and what exports make of them."""

from __future__ import annotations

import pytest
import torch

from pipelines.training.lora import LoraRecipe, adapt, merged
from pipelines.training.objective import freeze
from qmop.tiny.assemble import tiny_model

LORA = LoraRecipe(rank=4, alpha=12, layers=("q_proj", "down_proj"))
IDS = torch.arange(20, 32)[None]


def test_adapters_change_nothing_until_they_are_trained_and_exports_hold_the_sum() -> None:
    model = tiny_model().eval()
    before = model(input_ids=IDS).logits
    plain = {name: value.clone() for name, value in model.state_dict().items()}
    adapt(model.model.language_model, LORA)
    assert torch.equal(model(input_ids=IDS).logits, before)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    trained = model(input_ids=IDS).logits
    assert (trained - before).abs().max() > 1e-3
    after = merged(model.state_dict(), LORA)
    assert after.keys() == plain.keys()
    moved = {name.rsplit(".", 2)[1] for name, value in after.items() if not torch.equal(value, plain[name])}
    assert moved == {"q_proj", "down_proj"}
    fresh = tiny_model().eval()
    fresh.load_state_dict(after)
    torch.testing.assert_close(fresh(input_ids=IDS).logits, trained, atol=1e-5, rtol=1e-5)


def test_only_adapters_and_projector_train_and_aligning_knows_of_none() -> None:
    model = tiny_model()
    blocks = model.config.text_config.num_hidden_layers
    groups = freeze(model, "tune", LORA)
    wanting = {name for name, parameter in model.model.language_model.named_parameters() if parameter.requires_grad}
    assert len(groups["language"]) == len(wanting) == blocks * 2 * 2
    assert all(".lora_" in name for name in wanting)
    assert not model.lm_head.weight.requires_grad
    aligning = tiny_model()
    assert list(freeze(aligning, "align", LORA)) == ["projector"]
    assert not any("lora" in name for name, _ in aligning.named_parameters())


def test_a_state_without_adapters_stays_as_it_is() -> None:
    state = tiny_model().state_dict()
    assert {name: value.data_ptr() for name, value in merged(state, LoraRecipe()).items()} == {
        name: value.data_ptr() for name, value in state.items()
    }


def test_layers_that_are_not_there_are_named_with_those_that_are() -> None:
    with pytest.raises(ValueError, match=r"lora.layers are \['c_attn'\].*'down_proj', 'gate_proj'"):
        adapt(tiny_model().model.language_model, LoraRecipe(rank=2, layers=("c_attn",)))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"rank": -1}, "lora.rank is -1, but it must be at least 0"),
        ({"rank": 2, "alpha": 0}, "lora.alpha is 0, but it must be at least 1"),
        ({"rank": 2, "layers": ()}, "lora.layers is empty"),
    ],
)
def test_impossible_adapters_are_refused(wrong: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        LoraRecipe(**wrong)  # type: ignore[arg-type]
