"""What a GPU must hold in a training step, in bytes: DeepSpeed's own estimates and what those leave out.

Four things share a GPU:

- model states: parameters, gradients and AdamW's of what is trained. For bf16 on ZeRO-2 and 3 these are DeepSpeed's
  estimators (`estimate_zero2_model_states_mem_needs`, `estimate_zero3_model_states_mem_needs`): 2 bytes per parameter
  and 18 for its gradients (2 + 4), single-precision copy (4) and moments (8); 16 without the single-precision gradient.
  ZeRO-0 and 1, and fp32, which the estimators do not know, follow the same terms;
- frozen weights, which ZeRO-3 shards as well;
- activations, see `layer_bytes` and `head_bytes`, for micro-batches whose rows are all as long as they may be;
- a reserve: CUDA and NCCL, and the buckets that DeepSpeed communicates in.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from qmop.language_shape import LanguageShape

Offload = Literal["none", "optimizer", "optimizer and parameters"]
OFFLOADS: dict[int, tuple[Offload, ...]] = {
    0: ("none",),
    1: ("none", "optimizer"),
    2: ("none", "optimizer"),
    3: ("none", "optimizer", "optimizer and parameters"),
}
"""What each ZeRO stage can put into the host's memory."""

GIB = 2**30
_STATE_BYTES = 12
"""Of a parameter in a saved state: single-precision weight and two moments."""
_ADAM = 8
_CONTEXT = GIB
_BUCKET, _LIVE = 500_000_000, 1_000_000_000
"""DeepSpeed's defaults, in numbers: `reduce_bucket_size` and `allgather_bucket_size`; `stage3_max_live_parameters`."""
_PROJECTOR_WIDTHS = 24


@dataclass(frozen=True, kw_only=True)
class Machines:
    """GPUs that a run is spread over.

    Attributes:
        gpus: in all.
        per_node: on one machine.
    """

    gpus: int
    per_node: int

    @property
    def nodes(self) -> int:
        """Machines."""
        return -(-self.gpus // self.per_node)

    @property
    def used(self) -> int:
        """GPUs of a machine that are used, where the machines share evenly."""
        return -(-self.gpus // self.nodes)


@dataclass(frozen=True, kw_only=True)
class Load:
    """Sizes that decide what training needs.

    Attributes:
        trained: parameters that are trained.
        frozen: parameters that are not.
        largest: parameters of the largest single module.
        width: bytes of a number in compute, 2 for bf16.
        activations: bytes of a micro-batch's activations.
    """

    trained: int
    frozen: int
    largest: int
    width: int
    activations: int


@dataclass(frozen=True, kw_only=True)
class Needs:
    """Bytes for one way to shard.

    Attributes:
        zero: ZeRO stage.
        offload: what lies in the host's memory.
        states: parameters, gradients and AdamW's, on each GPU.
        frozen: frozen weights, on each GPU.
        activations: on each GPU.
        reserve: on each GPU.
        host: memory of each machine, by DeepSpeed's estimate, with its factor of 1.5.
    """

    zero: int
    offload: Offload
    states: int
    frozen: int
    activations: int
    reserve: int
    host: int

    @property
    def gpu(self) -> int:
        """Bytes on each GPU."""
        return self.states + self.frozen + self.activations + self.reserve


def needs_of(load: Load, zero: int, offload: Offload, machines: Machines) -> Needs:
    """What one way to shard needs."""
    host, states = _states(load, zero, offload, machines)
    frozen = load.frozen * load.width
    if zero == 3:  # noqa: PLR2004 - a ZeRO stage
        frozen = 0 if offload == "optimizer and parameters" else frozen // machines.gpus
    if offload == "optimizer and parameters":
        host += load.frozen * load.width
    return Needs(
        zero=zero,
        offload=offload,
        states=states,
        frozen=frozen,
        activations=load.activations,
        reserve=_reserve(load, zero),
        host=host,
    )


def _states(load: Load, zero: int, offload: Offload, machines: Machines) -> tuple[int, int]:
    """Bytes in the host's memory and on each GPU."""
    from deepspeed.runtime.zero import stage3, stage_1_and_2  # noqa: PLC0415 - see engine.quiet_start

    spread = {"num_gpus_per_node": machines.used, "num_nodes": machines.nodes, "cpu_offload": offload != "none"}
    if zero == 3:  # noqa: PLR2004 - a ZeRO stage
        host, gpu, _ = stage3.estimate_zero3_model_states_mem_needs(
            load.trained,
            load.largest,
            cpu_offload_params=offload == "optimizer and parameters",
            zero_init=False,  # every process builds the whole model before it is sharded
            **spread,
        )
    else:
        host, gpu = stage_1_and_2.estimate_zero2_model_states_mem_needs(load.trained, **spread)
    half = load.width == 2  # noqa: PLR2004 - bytes of a bf16 number
    if half and zero > 1:
        return host, gpu
    return host, _plain_states(load, zero, offload, 1 if zero == 0 else machines.gpus)


def _plain_states(load: Load, zero: int, offload: Offload, share: int) -> int:
    """The estimators' terms, for stages and precisions that they leave out.

    Whole on every GPU are weights (but on ZeRO-3) and, below ZeRO-2, gradients; the rest is divided by `share`.
    """
    masters = 8 if load.width == 2 else 0  # noqa: PLR2004 - a single-precision gradient and weight beside the bf16 ones
    kept, divided = {
        0: (2 * load.width, _ADAM + masters),
        1: (2 * load.width, _ADAM + masters),
        2: (load.width, load.width + _ADAM + masters),
        3: (0, 2 * load.width + _ADAM + masters),
    }[zero]
    if offload == "none":
        return kept * load.trained + divided * load.trained // share + _gathered(load, zero)
    here = load.width if zero == 3 and offload == "optimizer" else 0  # noqa: PLR2004 - a ZeRO stage
    return kept * load.trained + here * load.trained // share + _gathered(load, zero)


def _gathered(load: Load, zero: int) -> int:
    """The largest module, gathered with its gradient."""
    return 2 * load.width * load.largest if zero == 3 else 0  # noqa: PLR2004 - a ZeRO stage


def _reserve(load: Load, zero: int) -> int:
    buckets = 2 * min(_BUCKET, load.trained)
    live = min(_LIVE, load.trained + load.frozen) if zero == 3 else 0  # noqa: PLR2004 - a ZeRO stage
    return _CONTEXT + (buckets + live) * load.width


def state_file_bytes(trained: int) -> int:
    """A resumable state on disk, whole."""
    return _STATE_BYTES * trained


def layer_bytes(shape: LanguageShape, width: int, *, trained: bool) -> int:
    """What one decoder layer keeps of a token for its backward pass.

    With D the model's width, A and K the width of all query heads and of all key heads, F that of the feed-forward
    layer and w bytes per number: two norms keep 4 D each (in single precision) and, where their weights train, 2 w D;
    attention keeps query, key, value and result, w (2 A + 2 K), and no map (fused kernels compute it again); the
    feed-forward layer 3 w F, and w F more where its last matrix trains.

    Args:
        shape: of the language model.
        width: w.
        trained: whether the layer's own weights train; gradients pass through it in any case.
    """
    queries, keys = shape.heads * shape.head_width, shape.key_heads * shape.head_width
    norms = 2 * (4 + (2 * width if trained else 0)) * shape.width
    attention = width * (2 * queries + 2 * keys)
    return norms + attention + width * (4 if trained else 3) * shape.inner


def head_bytes(vocabulary: int, width: int) -> int:
    """What the loss holds of a token at its peak: logits, their logarithms, two gradients in single precision."""
    return (12 + width) * vocabulary


def language_activations(
    shape: LanguageShape, vocabulary: int, tokens: int, width: int, *, trained: bool, recompute: bool
) -> int:
    """Bytes of the language model's activations for that many tokens at once.

    Kept are all layers or, when they are computed again, each layer's input and one whole layer; the head's come on
    top, since the loss is computed while everything is kept.
    """
    layer = layer_bytes(shape, width, trained=trained)
    body = shape.layers * (width * shape.width if recompute else layer)
    head = head_bytes(vocabulary, width)
    return tokens * (body + (max(layer, head) if recompute else head))


def picture_activations(images: int, patches: int, vision_width: int, layers: int, width: int) -> int:
    """Bytes of the frozen tower's hidden states, and an allowance for what the projector keeps.

    The tower keeps no activations for a backward pass, but its layers' outputs live until the projector has read
    them. For the projector stand 24 numbers per patch and vision width, about what TokenPacker's four levels keep.
    """
    return images * patches * vision_width * width * (layers + 1 + _PROJECTOR_WIDTHS)
