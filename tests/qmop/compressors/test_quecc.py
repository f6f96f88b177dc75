from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qmop.compressors import build_projector
from qmop.compressors.projector import projector_spec
from qmop.compressors.quecc import QueCC
from qmop.features import Query, VisualFeatures
from qmop.tiny.assemble import tiny_config, tiny_model

MakeFeatures = Callable[..., VisualFeatures]
MakeQuery = Callable[..., Query]


def quecc(stride: int = 2, *, grid: int = 12, **options: object) -> QueCC:
    torch.manual_seed(3)
    fields = {"width": 16, "grid": grid, "tokens": (grid // stride) ** 2, "language_width": 12, "heads": 4, **options}
    return QueCC(**fields)  # type: ignore[arg-type]


def sharpened(method: QueCC) -> QueCC:
    """Weights as a trained module may have them: every vector away from its start, attention far from uniform."""
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
        method.attention.in_proj_weight.mul_(3)
    return method


def by_hand(method: QueCC, features: VisualFeatures, query: Query, picture: int) -> Tensor:
    """One picture with torch's convolution and its attention, region by region."""
    stride, side, grid, width = method.stride, method.side, method.grid, method.width
    attention = nn.MultiheadAttention(width, method.attention.num_heads, dtype=torch.double)
    attention.load_state_dict(method.attention.state_dict())
    gather = nn.Conv2d(width, width, stride, stride, groups=width, dtype=torch.double)
    gather.weight.data = method.pool_KC.data.T.reshape(width, 1, stride, stride)
    gather.bias = nn.Parameter(method.pool_bias_C.data)
    assert features.levels_BNF is not None
    assert query.language_BD is not None
    levels = features.levels_BNF[picture]

    def path(part: nn.Module, states: Tensor) -> Tensor:
        inner = part.mlp
        hidden = F.gelu(states @ inner.linear_1.weight.T + inner.linear_1.bias)  # type: ignore[union-attr, operator]
        return part.norm(hidden @ inner.linear_2.weight.T + inner.linear_2.bias)  # type: ignore[union-attr, operator]

    text = F.linear(query.language_BD[picture], method.text.weight, method.text.bias)
    text = F.layer_norm(text, (width,), method.text_norm.weight, method.text_norm.bias, 1e-6)
    asking = path(method.query, features.patches_BNC[picture] + text)
    coarse = gather(asking.T.view(1, width, grid, grid))[0].flatten(1).T
    key, value = path(method.key, levels), path(method.value, levels)
    rows = []
    for token in range(side * side):
        top, left = token // side * stride, token % side * stride
        inside = [(top + y) * grid + left + x for y in range(stride) for x in range(stride)]
        rows.append(attention(coarse[token, None], key[inside], value[inside])[0][0])
    return torch.stack(rows)


@pytest.mark.parametrize("stride", [1, 2, 3, 4, 6, 12])
def test_equals_torchs_convolution_and_a_loop_over_regions(
    make_features: MakeFeatures, make_query: MakeQuery, stride: int
) -> None:
    method, features, query = sharpened(quecc(stride)).double(), make_features(2, grid=12), make_query(2)
    assert features.levels_BNF is not None
    assert query.language_BD is not None
    features.patches_BNC, features.levels_BNF = features.patches_BNC.double(), features.levels_BNF.double()
    query.language_BD = query.language_BD.double()
    fast = method(features, query).tokens_BMC
    assert fast.shape == (2, (12 // stride) ** 2, 16)
    for picture in range(2):
        torch.testing.assert_close(fast[picture], by_hand(method, features, query, picture), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("tokens", "kernel"), [(144, 4), (36, 16), (16, 36), (4, 144), (1, 576)])
def test_only_the_gathering_grows_with_the_stride(tokens: int, kernel: int) -> None:
    with torch.device("meta"):
        projector = build_projector("quecc", tokens=tokens, language_width=4096)
    inner = 1024 * 1024 + 1024
    path = 4 * 1024 * 1024 + 1024 + inner + 2 * 1024
    text, query = 4096 * 1024 + 1024 + 2 * 1024, 2 * inner + 2 * 1024
    connector = 1024 * 4096 + 4096 + 4096 * 4096 + 4096
    wanted = text + query + 2 * path + 4 * inner + connector + (kernel + 1) * 1024
    assert sum(parameter.numel() for parameter in projector.parameters()) == wanted


def test_the_question_changes_every_token_of_its_own_picture(
    make_features: MakeFeatures, make_query: MakeQuery
) -> None:
    method, features, query = sharpened(quecc()), make_features(2, grid=12), make_query(2)
    before = method(features, query).tokens_BMC
    assert query.language_BD is not None
    query.language_BD[1] = -query.language_BD[1]
    after = method(features, query).tokens_BMC
    assert torch.equal(before[0], after[0])
    assert bool((before[1] != after[1]).any(dim=1).all())
    assert (before[1] - after[1]).abs().mean() > 0.01 * before[1].abs().mean()


@pytest.mark.parametrize("field", ["levels_BNF", "patches_BNC"])
@pytest.mark.parametrize("stride", [2, 3, 4])
@pytest.mark.parametrize("patch", [0, 17, 143])
def test_a_patch_changes_the_token_above_it_and_no_other(
    make_features: MakeFeatures, make_query: MakeQuery, field: str, stride: int, patch: int
) -> None:
    method, features, query = sharpened(quecc(stride)), make_features(1, grid=12), make_query(1)
    before = method(features, query).tokens_BMC[0]
    getattr(features, field)[0, patch] *= -1.0
    after = method(features, query).tokens_BMC[0]
    changed = (before != after).any(dim=1).nonzero().flatten().tolist()
    assert changed == [patch // 12 // stride * (12 // stride) + patch % 12 // stride]


def test_batch_equals_single_pictures(make_features: MakeFeatures, make_query: MakeQuery) -> None:
    method, features, query = quecc(), make_features(3, grid=12), make_query(3)
    together = method(features, query).tokens_BMC
    for row in range(3):
        index = torch.tensor([row])
        alone = method(features.rows(index), query.rows(index)).tokens_BMC
        torch.testing.assert_close(together[row : row + 1], alone, rtol=1e-5, atol=1e-5)


def test_runs_in_half_precision_whatever_the_questions(make_features: MakeFeatures, make_query: MakeQuery) -> None:
    method, features, query = quecc(), make_features(2, grid=12), make_query(2)
    exact = method(features, query).tokens_BMC
    assert features.levels_BNF is not None
    features.patches_BNC, features.levels_BNF = features.patches_BNC.bfloat16(), features.levels_BNF.bfloat16()
    tokens = method.bfloat16()(features, query).tokens_BMC
    assert tokens.dtype == torch.bfloat16
    torch.testing.assert_close(tokens.float(), exact, rtol=0, atol=0.03 * exact.abs().max().item())


def test_gradients_reach_every_parameter(make_features: MakeFeatures, make_query: MakeQuery) -> None:
    method, features = sharpened(quecc()), make_features(2, grid=12)
    weight = torch.randn(36, 16, generator=torch.Generator().manual_seed(0))
    (method(features, make_query(2)).tokens_BMC * weight).sum().backward()
    largest = {
        name: value.grad.abs().max().item() for name, value in method.named_parameters() if value.grad is not None
    }
    assert largest.keys() == dict(method.named_parameters()).keys()
    # What is added to every key of a region alike cannot change a softmax.
    assert largest.pop("key.norm.bias") < 1e-2
    assert min(largest.values()) > 1


def starts_as_published(method: QueCC) -> None:
    """torch's own start of linear layers, convolution and attention."""
    for name, linear in method.named_modules():
        if isinstance(linear, nn.Linear):
            bound = linear.in_features**-0.5
            assert linear.weight.abs().max().item() == pytest.approx(bound, rel=0.02), name
            assert linear.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.05), name
            assert bool(linear.bias.any()) == (name != "attention.out_proj")
    assert method.pool_KC.abs().max().item() == pytest.approx(1 / method.stride, rel=0.02)
    assert 0.5 / method.stride < method.pool_bias_C.abs().max().item() <= 1 / method.stride
    xavier = (6 / (4 * method.width)) ** 0.5
    assert method.attention.in_proj_weight.abs().max().item() == pytest.approx(xavier, rel=0.01)
    assert not method.attention.in_proj_bias.any()


def test_start_values_are_the_published_ones_with_and_without_a_model_around() -> None:
    starts_as_published(quecc(4, width=64, heads=8))
    inside = tiny_model("quecc", 16).model.multi_modal_projector.compressor
    assert isinstance(inside, QueCC)
    starts_as_published(inside)


def test_widths_and_levels_come_from_the_model() -> None:
    config = tiny_config("quecc", 36)
    config.feature_levels = [2, 5]
    method = projector_spec(config).build().compressor
    assert isinstance(method, QueCC)
    assert (method.text.in_features, method.key.mlp.linear_1.in_features) == (160, 2 * 128)


def test_a_tiny_model_asks_its_own_language_model() -> None:
    model = tiny_model("quecc", 36)
    pixels = torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    words = {"query_input_ids": torch.tensor([[5, 6], [5, 6]])}

    def tokens(ids: list[list[int]]) -> Tensor:
        with torch.no_grad():
            images = model.get_image_features(pixels, language_query_ids=torch.tensor(ids), **words)
        return torch.stack(images.pooler_output)

    before, after = tokens([[7, 8, 9], [10, 11, 12]]), tokens([[7, 8, 9], [10, 11, 13]])
    assert before.shape == (2, 36, 160)
    torch.testing.assert_close(before[0], after[0])
    assert (before[1] - after[1]).abs().max() > 1e-4


def test_a_missing_question_is_refused_but_not_in_alignment(make_features: MakeFeatures, make_query: MakeQuery) -> None:
    method, features = sharpened(quecc()), make_features(2, grid=12)
    with pytest.raises(ValueError, match=r"query is missing, but quecc .*: pass query= to the processor"):
        method(features)
    with pytest.raises(ValueError, match=r"query\.language_BD is missing"):
        method(features, Query(text_BE=torch.zeros(2, 8)))
    with pytest.raises(ValueError, match="tokens is 16, but this quecc was built for 36"):
        method(features, make_query(2), tokens=16)
    silent = method.align(features).tokens_BMC
    assert silent.shape == (2, 36, 16)
    assert torch.equal(method.align(features, make_query(2)).tokens_BMC, method(features, make_query(2)).tokens_BMC)
    nn.init.zeros_(method.text_norm.weight)
    nn.init.zeros_(method.text_norm.bias)
    torch.testing.assert_close(method(features, make_query(2)).tokens_BMC, silent)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"tokens": 20}, "tokens is 20, but a 12 x 12 grid can be cut evenly only into 144, 36, 16, 9, 4, 1 tokens"),
        ({"heads": 3}, "heads is 3, which does not divide the width 16: choose a divisor"),
        ({"levels": 0}, "levels is 0, but keys and values need a layer to come from"),
    ],
)
def test_fields_that_do_not_fit_are_refused(options: dict[str, int], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        quecc(**options)
