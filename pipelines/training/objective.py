"""The loss, as a module that DeepSpeed can wrap, and which parameters a stage trains."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from pipelines.training.lora import LoraRecipe, adapt
from pipelines.training.recipe import StageName
from qmop.compressors.mixture import Mixture
from qmop.compressors.router import Router
from qmop.fitting import fit_words, take_image_inputs
from qmop.modeling_qmop import QMoPForConditionalGeneration
from qmop.placeholders import IGNORED


class Objective(nn.Module):
    """Sum of next-token cross-entropies over the answers of a micro-batch."""

    def __init__(self, model: QMoPForConditionalGeneration) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: dict[str, Any], labels: Tensor, *, dummy: bool) -> tuple[Tensor, Tensor | None]:
        """The summed loss, and the router's weights (detached) where there is a router.

        The caller divides the loss by the number of targets of the whole step.

        Args:
            inputs: see `Batch.inputs`.
            labels: `(R, L)`.
            dummy: the only image is a blank that no prompt refers to; times zero it is added to every word.
        """
        inputs = dict(inputs)
        images = self.model.get_image_features(**take_image_inputs(inputs))
        compressed = images.compressed
        assert compressed is not None
        assert compressed.tokens_BMC is not None
        encoded = {} if dummy else {"image": images}
        if not dummy and compressed.mask_BM is not None:
            inputs = fit_words(self.model.config, {**inputs, "labels": labels}, compressed, positions=True)
            labels = inputs.pop("labels")
        with self._reaching_words(compressed.tokens_BMC) if dummy else nullcontext():
            logits = self.model(**inputs, mm_encoder_outputs=encoded, use_cache=False).logits
        loss = F.cross_entropy(
            logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten(), ignore_index=IGNORED, reduction="sum"
        )
        weights = compressed.branch_weights_BS
        return loss, None if weights is None else weights.detach()

    @contextmanager
    def _reaching_words(self, tokens_BMC: Tensor) -> Iterator[None]:
        """Add visual tokens, times zero, to every word.

        Under ZeRO-3 gradients must pass the same modules in the same order in every process, also those of a frozen
        language model. So they begin where a picture's begin, and the word embedding is called where it always is.
        """
        embedding = self.model.get_input_embeddings()
        handle = embedding.register_forward_hook(lambda *call: call[-1] + 0.0 * tokens_BMC.sum())
        try:
            yield
        finally:
            handle.remove()


def router_of(model: QMoPForConditionalGeneration) -> Router | None:
    """The router of a mixture, or None."""
    compressor = model.model.multi_modal_projector.compressor
    return compressor.router if isinstance(compressor, Mixture) else None


def freeze(
    model: QMoPForConditionalGeneration, stage: StageName, lora: LoraRecipe | None = None
) -> dict[str, list[nn.Parameter]]:
    """Choose what a stage trains; the towers never train.

    Args:
        model: changed: what wants a gradient, and adapters if there are any.
        stage: of training.
        lora: adapters that train in the tuning stage instead of the language model.

    Returns:
        Parameters by group: `projector` always, `language` in the tuning stage. The router rests while aligning.
    """
    model.requires_grad_(requires_grad=False)
    model.model.multi_modal_projector.requires_grad_()
    groups = {"projector": model.model.multi_modal_projector}
    if stage == "tune" and lora is not None and lora.rank:
        adapt(model.model.language_model, lora)
        groups["language"] = model.model.language_model
    elif stage == "tune":
        model.model.language_model.requires_grad_()
        model.lm_head.requires_grad_()
        groups["language"] = model.model.language_model
    elif (router := router_of(model)) is not None:
        router.requires_grad_(requires_grad=False)
    trained = {name: [p for p in module.parameters() if p.requires_grad] for name, module in groups.items()}
    if stage == "tune" and not model.config.tie_word_embeddings:
        trained["language"] += [p for p in model.lm_head.parameters() if p.requires_grad]
    return trained
