"""The models `qmop` and `qmop_compress` of the lmms-eval harness, found through its entry point `lmms_eval.models`.

    lmms-eval --model qmop --model_args pretrained=FOLDER --tasks mme --batch_size 8
    lmms-eval --model qmop_compress --model_args pretrained=FOLDER,compressor=visionzip,tokens=64 --tasks mme

The harness is imported only when it asks for one of them: `__getattr__` marries the models of `qmop.harness_models` to
its base class.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from functools import cache
from typing import Any

from qmop.harness_models import CheckpointModel, CompressedModel, PictureModel

_KINDS: dict[str, tuple[str, type[PictureModel]]] = {
    "qmop": ("HarnessCheckpointModel", CheckpointModel),
    "qmop_compress": ("HarnessCompressedModel", CompressedModel),
}


def manifests() -> list[Any]:
    """The entry point: the harness's manifests of both models."""
    manifest = importlib.import_module("lmms_eval.models.registry_v2").ModelManifest
    return [manifest(model_id=name, simple_class_path=f"{__name__}.{kind}") for name, (kind, _) in _KINDS.items()]


@cache
def _married(kind: str) -> type:
    base, result = (importlib.import_module(f"lmms_eval.api.{name}") for name in ("model", "instance"))
    own = next(own for name, own in _KINDS.values() if name == kind)

    def loglikelihood(self: PictureModel, requests: Sequence[Any]) -> list[Any]:
        # Release 0.7.3 turns a pair into text unless its own type of result holds it.
        return [result.GenerationResult(text=pair) for pair in own.loglikelihood(self, requests)]

    members = {"__doc__": own.__doc__, "__module__": __name__, "loglikelihood": loglikelihood}
    return type(kind, (own, base.lmms), members)


def __getattr__(name: str) -> Any:
    if name not in {kind for kind, _ in _KINDS.values()}:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return _married(name)
