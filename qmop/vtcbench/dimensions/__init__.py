"""Rendered task families, one file per dimension; add a family by adding it to its dimension's tuple."""

from qmop.vtcbench.dimensions.family import Asked, Family, Plan
from qmop.vtcbench.dimensions.global_understanding import FAMILIES as _GU
from qmop.vtcbench.dimensions.local_details import FAMILIES as _LD
from qmop.vtcbench.dimensions.reasoning import FAMILIES as _RC
from qmop.vtcbench.dimensions.spatial_counting import FAMILIES as _SC
from qmop.vtcbench.dimensions.style_emotion import FAMILIES as _SE

FAMILIES: tuple[Family, ...] = (*_GU, *_SC, *_RC, *_SE, *_LD)
"""Every rendered task family, in the order of the paper's dimensions."""

__all__ = ["FAMILIES", "Asked", "Family", "Plan"]
