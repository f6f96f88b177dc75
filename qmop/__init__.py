"""Query-guided compression of visual tokens for multimodal language models.

Everything is imported on first use, so that `import qmop` costs next to nothing.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "QMoPConfig": "qmop.configuration_qmop",
    "QMoPForConditionalGeneration": "qmop.modeling_qmop",
    "QMoPModel": "qmop.modeling_qmop",
    "QMoPProcessor": "qmop.processing_qmop",
    "FeatureCache": "qmop.feature_cache",
    "build_compressor": "qmop.compressors",
    "build_projector": "qmop.compressors",
    "compress": "qmop.surgery",
    "derive": "qmop.loading",
    "from_llava": "qmop.stock_llava",
    "list_compressors": "qmop.compressors",
    "load": "qmop.loading",
}

__all__ = sorted(_HOMES)  # noqa: PLE0605 - the names of the table above, and nothing else


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'qmop' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
