"""One method per file, one registry, one declaration each.

To add a method: write a file here with a `Compressor` subclass decorated by `register`, and its test.
"""

from qmop.compressors.base import Compressor, Declaration
from qmop.compressors.projector import Projector, build_projector, projector_spec
from qmop.compressors.registry import build_compressor, list_compressors, register

__all__ = [
    "Compressor",
    "Declaration",
    "Projector",
    "build_compressor",
    "build_projector",
    "list_compressors",
    "projector_spec",
    "register",
]
