from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from qmop.compressors import build_projector, list_compressors
from qmop.compressors.elastic import draw_budget
from qmop.compressors.mqt import MatryoshkaQueries, columns_first, resized
from qmop.features import VisualFeatures
from qmop.modeling_qmop import QMoPForConditionalGeneration
from qmop.tiny.assemble import tiny_model, tiny_processor

MakeFeatures = Callable[..., VisualFeatures]
Pictures = Callable[[int], list[Image.Image]]


def matryoshka(**options: Any) -> MatryoshkaQueries:
    torch.manual_seed(4)
    sizes = {"width": 16, "grid": 6, "tokens": 9, "language_width": 20, "queries": 25, "heads": 4}
    return MatryoshkaQueries(**{**sizes, **options})


def scrambled(**options: Any) -> MatryoshkaQueries:
    """Random everywhere, so that attention is far from uniform."""
    method = matryoshka(**options)
    with torch.no_grad():
        for value in method.parameters():
            value.copy_(torch.randn_like(value) * 0.5)
    return method.double()


def places_by_hand(side: int, width: int) -> Tensor:
    """sin and cos of the column, then of the row, at rates from 1 down to 1 / 10000."""
    quarter, table = width // 4, []
    for row in range(side):
        for column in range(side):
            line: list[float] = []
            for coordinate in (column, row):
                angles = [coordinate / 10000 ** (step / quarter) for step in range(quarter)]
                line += [math.sin(angle) for angle in angles] + [math.cos(angle) for angle in angles]
            table.append(line)
    return torch.tensor(table)


def cubic(distance: float) -> float:
    """The bicubic kernel with a = -0.75."""
    d, a = abs(distance), -0.75
    if d <= 1:
        return (a + 2) * d**3 - (a + 3) * d**2 + 1
    return a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a if d < 2 else 0.0


def along_by_hand(size: int, side: int) -> Tensor:
    """The matrix that resizes one axis; beyond the edge the last value goes on."""
    matrix = torch.zeros(size, side)
    for target in range(size):
        centre = (target + 0.5) * side / size - 0.5
        for source in range(math.floor(centre) - 1, math.floor(centre) + 3):
            matrix[target, min(max(source, 0), side - 1)] += cubic(centre - source)
    return matrix


def by_torchs_own_attention(method: MatryoshkaQueries, patches_BNC: Tensor, count: int) -> Tensor:
    """The same by `nn.MultiheadAttention`, image by image, with a bias of the keys as well."""
    width = method.width
    attention = nn.MultiheadAttention(width, method.heads, batch_first=True).double()
    with torch.no_grad():
        weights = (method.query.weight, method.key.weight, method.value.weight)
        attention.in_proj_weight.copy_(torch.cat(weights))
        attention.in_proj_bias.copy_(torch.cat([method.query.bias, torch.randn(width), method.value.bias]))
    attention.out_proj = method.output  # type: ignore[assignment]
    asked = method.query_norm((method.query_QC + method.place_QC)[:count])
    answers = []
    for patches_NC in patches_BNC:
        keys = method.key_norm(method.place_NC + (patches_NC if method.keys == "content" else 0))
        mixed, _ = attention(asked[None], keys[None], method.value_norm(patches_NC)[None])
        answers.append(mixed[0] @ method.readout.weight.T)
    return torch.stack(answers)


@pytest.mark.parametrize("keys", ["positions", "content"])
@pytest.mark.parametrize(("grid", "queries"), [(6, 25), (6, 20), (5, 25), (3, 9), (4, 256)])
def test_equals_torchs_own_attention(make_features: MakeFeatures, keys: str, grid: int, queries: int) -> None:
    method = scrambled(keys=keys, grid=grid, queries=queries)
    patches = make_features(2, grid=grid).patches_BNC.double()
    for count in (1, 4, 9):
        told = method(VisualFeatures(patches_BNC=patches), tokens=count).tokens_BMC
        expected = by_torchs_own_attention(method, patches, count)
        torch.testing.assert_close(told, expected, rtol=0, atol=1e-11)


def test_positions_put_the_column_first_and_follow_the_grid() -> None:
    torch.testing.assert_close(columns_first(5, 16), places_by_hand(5, 16), rtol=0, atol=1e-6)
    table = torch.arange(16.0).repeat_interleave(4).view(16, 4)
    torch.testing.assert_close(resized(table, 4), table)
    along = along_by_hand(6, 4)
    expected = torch.einsum("yr,xc,rcw->yxw", along, along, table.view(4, 4, 4)).reshape(36, 4)
    torch.testing.assert_close(resized(table, 6), expected, rtol=0, atol=1e-5)
    for queries, side in ((25, 5), (20, 5), (4, 2)):
        method, table = matryoshka(queries=queries, tokens=1), places_by_hand(side, 16)
        torch.testing.assert_close(method.place_QC, table[:queries], rtol=0, atol=1e-6)
        along = along_by_hand(6, side)
        placed = torch.einsum("yr,xc,rcw->yxw", along, along, table.view(side, side, 16)).reshape(36, 16)
        torch.testing.assert_close(method.place_NC, placed, rtol=0, atol=1e-5)


@pytest.mark.parametrize("keys", ["positions", "content"])
def test_fewer_tokens_are_the_first_of_more(make_features: MakeFeatures, keys: str) -> None:
    method, features = scrambled(keys=keys), make_features(2)
    features.patches_BNC = features.patches_BNC.double()
    most = method(features, tokens=25).tokens_BMC
    assert (most[:, 1:] - most[:, :1]).abs().amax(2).min() > 1e-3  # all queries answer differently
    for count in (1, 2, 9, 24):
        torch.testing.assert_close(method(features, tokens=count).tokens_BMC, most[:, :count], rtol=0, atol=1e-12)
    assert method(features).tokens_BMC.shape == (2, 9, 20)


@pytest.mark.parametrize("keys", ["positions", "content"])
def test_where_queries_look_depends_on_the_picture_only_with_content(make_features: MakeFeatures, keys: str) -> None:
    """Without the norm of the values the published form is linear in the picture, the other is not."""
    method, features = scrambled(keys=keys), make_features(1)
    method.value_norm = nn.Identity()  # type: ignore[assignment]
    nn.init.zeros_(method.value.bias)
    nn.init.zeros_(method.output.bias)
    patches = features.patches_BNC.double()
    once, twice = (method(VisualFeatures(patches_BNC=times * patches)).tokens_BMC for times in (1, 2))
    assert torch.allclose(twice, 2 * once) == (keys == "positions")


@pytest.mark.parametrize("count", [1, 4, 25])
def test_a_step_with_m_tokens_moves_the_first_m_queries_and_all_else(make_features: MakeFeatures, count: int) -> None:
    method, features = matryoshka(), make_features(2)
    method(features, tokens=count).tokens_BMC.square().sum().backward()
    moved = method.query_QC.grad.any(1).tolist()  # type: ignore[union-attr]
    assert moved == [place < count for place in range(25)]
    assert [name for name, p in method.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_gradients_equal_those_of_torchs_own_attention(make_features: MakeFeatures) -> None:
    method, patches = scrambled(), make_features(2).patches_BNC.double()
    slow = copy.deepcopy(method)
    method(VisualFeatures(patches_BNC=patches), tokens=4).tokens_BMC.square().sum().backward()
    by_torchs_own_attention(slow, patches, 4).square().sum().backward()
    for name in ("query_QC", "query_norm.weight", "key_norm.bias", "output.weight", "readout.weight"):
        mine, theirs = method.get_parameter(name).grad, slow.get_parameter(name).grad
        assert theirs is not None
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-9)


def test_batches_equal_single_pictures(make_features: MakeFeatures) -> None:
    for keys in ("positions", "content"):
        method, features = matryoshka(keys=keys), make_features(3)
        together = method(features, tokens=5).tokens_BMC
        for row in range(3):
            alone = method(features.rows(torch.tensor([row])), tokens=5).tokens_BMC
            torch.testing.assert_close(together[row : row + 1], alone, rtol=0, atol=1e-6)


def test_half_precision_stays_near(make_features: MakeFeatures) -> None:
    method, features = matryoshka(), make_features(2)
    expected = method(features).tokens_BMC
    features.patches_BNC = features.patches_BNC.bfloat16()
    told = copy.deepcopy(method).bfloat16()(features).tokens_BMC
    assert told.dtype == torch.bfloat16
    assert nn.functional.cosine_similarity(told.float(), expected, dim=-1).min() > 0.99


def test_the_published_sizes() -> None:
    assert list_compressors()["mqt"].elastic
    with torch.device("meta"):
        method: Any = build_projector("mqt", tokens=144).compressor
    assert (method.queries, method.heads, method.keys) == (256, 16, "positions")
    attention = 4 * 1024 * 1024 + 3 * 1024  # the published one has 1024 more, the keys' bias
    assert sum(p.numel() for p in method.parameters()) == 256 * 1024 + 6 * 1024 + attention + 1024 * 4096
    assert {norm.eps for norm in (method.query_norm, method.key_norm, method.value_norm)} == {1e-6}


def test_there_are_at_least_as_many_queries_as_tokens() -> None:
    assert matryoshka(tokens=30).queries == 30
    assert matryoshka(tokens=30).query_QC.shape == (30, 16)


def test_start_values_and_positions_survive_the_construction_of_a_model() -> None:
    torch.manual_seed(0)
    compressor: Any = tiny_model("mqt", 16, heads=8).model.multi_modal_projector.compressor
    assert compressor.query_QC.std().item() == pytest.approx(0.02, rel=0.05)
    bound = (6 / (4 * 128)) ** 0.5
    for linear in (compressor.query, compressor.key, compressor.value):
        assert 0.99 * bound < linear.weight.abs().max() <= bound
    assert compressor.output.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert compressor.readout.weight.std().item() == pytest.approx(160**-0.5, rel=0.05)
    assert not any(linear.bias.any() for linear in (compressor.query, compressor.value, compressor.output))
    torch.testing.assert_close(compressor.place_QC, places_by_hand(16, 128), rtol=0, atol=1e-5)


def test_models_serve_several_budgets_and_are_read_back_bit_by_bit(pictures: Pictures, tmp_path: Path) -> None:
    torch.manual_seed(6)
    model, processor = tiny_model("mqt", 16), tiny_processor(16)
    batch = processor(images=pictures(2), text=["<user> <image> a <assistant>"] * 2, return_tensors="pt")
    model.save_pretrained(tmp_path)
    again = QMoPForConditionalGeneration.from_pretrained(tmp_path).eval()
    pairs = zip([*model.parameters(), *model.buffers()], [*again.parameters(), *again.buffers()], strict=True)
    assert all(torch.equal(first, second) for first, second in pairs)
    with torch.no_grad():
        for tokens in (1, 16, 40, 144):
            first, second = (m.get_image_features(batch["pixel_values"], visual_tokens=tokens) for m in (model, again))
            assert first.compressed.tokens_BMC.shape == (2, tokens, 160)
            torch.testing.assert_close(first.compressed.tokens_BMC, second.compressed.tokens_BMC, rtol=0, atol=1e-6)


@pytest.mark.parametrize("tokens", [0, 26])
def test_more_tokens_than_queries_are_refused(make_features: MakeFeatures, tokens: int) -> None:
    with pytest.raises(ValueError, match=f"tokens is {tokens}, but this mqt has 25 queries .*: choose 1 to 25"):
        matryoshka()(make_features(1), tokens=tokens)


def test_training_draws_even_budgets_up_to_all_queries_or_patches(make_features: MakeFeatures) -> None:
    with torch.device("meta"):
        published: Any = build_projector("mqt", tokens=144).compressor
    assert published.training_budgets() == tuple(range(2, 257, 2))
    drawn = Counter(draw_budget(published, 7, step) for step in range(12_800))
    assert set(drawn) == set(published.training_budgets())
    assert all(50 < count < 160 for count in drawn.values())  # 100 each, give or take six deviations
    small, odd = matryoshka(grid=3), matryoshka()
    assert small.training_budgets() == (2, 4, 6, 8, 9)  # 25 queries, nine patches
    assert odd.training_budgets()[-3:] == (22, 24, 25)
    for method in (small, odd):
        features = make_features(1, grid=method.grid)
        shown = [method(features, tokens=count).tokens_BMC.shape[1] for count in method.training_budgets()]
        assert shown == list(method.training_budgets())


def test_more_tokens_than_patches_are_refused(make_features: MakeFeatures) -> None:
    with pytest.raises(ValueError, match=r"tokens is 10, .* 25 queries for 9 patches: choose 1 to 9"):
        matryoshka(grid=3)(make_features(1, grid=3), tokens=10)
    with pytest.raises(ValueError, match="tokens is 37, but a 6 x 6 grid has 36 patches"):
        matryoshka(tokens=37)
    with pytest.raises(ValueError, match=r"features have 16 patches, .* built for a 6 x 6 grid"):
        matryoshka()(make_features(1, grid=4))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"queries": 0}, "queries is 0, .*: choose 1 or more"),
        ({"heads": 5}, "heads is 5, which does not divide the width 16: choose a divisor"),
        ({"keys": "image"}, "keys is 'image': choose one of positions, content"),
        ({"width": 18, "heads": 2}, "width is 18, but two-dimensional positions need a multiple of 4"),
    ],
)
def test_fields_that_make_no_attention_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        matryoshka(**options)
