"""Low-rank adapters in the language model, for tuning where its own weights' gradients and moments do not fit.

Every linear layer `W` of the language model's blocks stays as it is and gets an addition `(alpha / rank) B A`
(LoRA, arXiv:2106.09685, section 4.1). Exports hold the sum, so whoever loads them needs to know nothing of adapters.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from cluster.bounds import require_at_least

_ADAPTER = "default"
_BASE, _DOWN, _UP = ".base_layer.weight", f".lora_A.{_ADAPTER}.weight", f".lora_B.{_ADAPTER}.weight"


@dataclass(frozen=True, kw_only=True)
class LoraRecipe:
    """Adapters of the tuning stage.

    Attributes:
        rank: of the adapters; with 0 there are none, and the language model itself trains.
        alpha: the addition counts `alpha / rank`; twice the rank in LLaVA's published recipe (128 and 256).
        layers: names of the linear layers of a block that get one.
    """

    rank: int = 0
    alpha: int = 256
    layers: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

    def __post_init__(self) -> None:
        """Refuse adapters that cannot be made.

        Raises:
            ValueError: naming the field, its value and what it must be.
        """
        require_at_least(self, 0, "rank", inside="lora.")
        require_at_least(self, 1, "alpha", inside="lora.")
        if self.rank and not self.layers:
            raise ValueError("lora.layers is empty, but adapters are wanted: name at least one layer, or lora.rank 0")


def adapt(language_model: nn.Module, lora: LoraRecipe) -> None:
    """Put adapters into a language model; it computes what it did before until they are trained.

    Args:
        language_model: changed in place; only the adapters want a gradient afterwards.
        lora: with a rank above 0.

    Raises:
        ValueError: if the language model has no layer of these names.
    """
    from peft import LoraConfig, inject_adapter_in_model  # noqa: PLC0415 - seconds that plain tuning does without

    config = LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules=list(lora.layers))
    try:
        inject_adapter_in_model(config, language_model, adapter_name=_ADAPTER)
    except ValueError as error:
        linear = {
            name.rsplit(".", 1)[-1] for name, module in language_model.named_modules() if isinstance(module, nn.Linear)
        }
        raise ValueError(
            f"lora.layers are {list(lora.layers)}, but the language model's linear layers are {sorted(linear)}: "
            "choose among these"
        ) from error


def merged(state: dict[str, Tensor], lora: LoraRecipe) -> dict[str, Tensor]:
    """A state without adapters, their products added to the weights that they stand beside.

    Args:
        state: of a model, with or without adapters.
        lora: that they were made by.
    """
    bare = {key: value for key, value in state.items() if _BASE not in key and _DOWN not in key and _UP not in key}
    for key, weight in state.items():
        if key.endswith(_BASE):
            name = key.removesuffix(_BASE)
            up, down = state[f"{name}{_UP}"].float(), state[f"{name}{_DOWN}"].float()
            bare[f"{name}.weight"] = (weight.float() + lora.alpha / lora.rank * (up @ down)).to(weight.dtype)
    return {key.replace(".base_layer.", "."): value for key, value in bare.items()}
