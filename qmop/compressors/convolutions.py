"""What the convolutional methods share: patches laid out as a map, pooling, gates and start values.

Maps are channels-last, `(B, height, width, C)`: a 1 x 1 convolution is then a linear layer and the "LayerNorm2d" of
the published designs an ordinary LayerNorm; only wider kernels see another view of the same memory.
"""

from __future__ import annotations

import math
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization as init

from qmop.compressors.values import is_whole
from qmop.features import VisualFeatures


def side_of(grid: int, tokens: int) -> int:
    """The side of a square of tokens, for methods that pool adaptively: it need not divide the grid.

    Raises:
        ValueError: if the budget is no square, or wider than the grid.
    """
    side = math.isqrt(max(tokens, 0)) if is_whole(tokens) else 0
    if side * side != tokens or not 1 <= side <= grid:
        raise ValueError(
            f"tokens is {tokens!r}, but the map is pooled to a square at most {grid} wide: "
            f"choose one of {', '.join(str(fitting * fitting) for fitting in range(1, grid + 1))}"
        )
    return side


def as_map(features: VisualFeatures, grid: int) -> Tensor:
    """The patches as a map, `(B, grid, grid, C)`."""
    return features.patches_BNC.unflatten(1, (grid, grid))


def pool_to(map_BHWC: Tensor, side: int) -> Tensor:
    """Adaptive average pooling, `(B, side, side, C)`."""
    grid = map_BHWC.shape[1]
    if grid % side:
        return F.adaptive_avg_pool2d(map_BHWC.permute(0, 3, 1, 2), side).permute(0, 2, 3, 1)
    # Even windows: the same mean, and unlike the adaptive kernel one whose gradient is reproducible on a GPU.
    stride = grid // side
    return map_BHWC.unflatten(2, (side, stride)).unflatten(1, (side, stride)).mean(dim=(2, 4))


def convolve(convolution: nn.Conv2d, map_BHWC: Tensor) -> Tensor:
    """A convolution of a channels-last map."""
    return convolution(map_BHWC.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class SqueezeExcite(nn.Module):
    """Channels weighed by a two-layer gate over their means (arXiv 1709.01507).

    Args:
        width: channels.
        squeezed: width between the two layers.
        kind: `silu` with a sigmoid gate (RegNet as Honeybee uses it), or `relu` with a hard sigmoid (MobileNetV3).
    """

    def __init__(self, width: int, squeezed: int, kind: Literal["silu", "relu"]) -> None:
        super().__init__()
        self.squeeze, self.excite = nn.Linear(width, squeezed), nn.Linear(squeezed, width)
        self.act = nn.SiLU() if kind == "silu" else nn.ReLU()
        self.gate = nn.Sigmoid() if kind == "silu" else nn.Hardsigmoid()

    def forward(self, map_BHWC: Tensor) -> Tensor:
        """The map with every channel weighed, of the same shape."""
        mean_B11C = map_BHWC.mean(dim=(1, 2), keepdim=True)
        return map_BHWC * self.gate(self.excite(self.act(self.squeeze(mean_B11C))))


def start_normal(module: nn.Module, std: float = 0.02) -> None:
    """Normal weights and zero biases in every linear layer and convolution."""
    for layer in _layers(module):
        init.normal_(layer.weight, std=std)
        if layer.bias is not None:
            init.zeros_(layer.bias)


def start_uniform(module: nn.Module) -> None:
    """PyTorch's own start values for every linear layer and convolution, in weights and biases.

    For designs published with these; transformers would otherwise put a normal of fixed deviation in their place.
    The bound comes from the layer and not from the weight, whose shape ZeRO-3 hides.
    """
    for layer in _layers(module):
        bound = _fan_in(layer) ** -0.5
        init.uniform_(layer.weight, -bound, bound)
        if layer.bias is not None:
            init.uniform_(layer.bias, -bound, bound)


def _layers(module: nn.Module) -> list[nn.Linear | nn.Conv2d]:
    return [layer for layer in module.modules() if isinstance(layer, nn.Linear | nn.Conv2d)]


def _fan_in(layer: nn.Linear | nn.Conv2d) -> int:
    if isinstance(layer, nn.Linear):
        return layer.in_features
    return layer.in_channels // layer.groups * math.prod(layer.kernel_size)
