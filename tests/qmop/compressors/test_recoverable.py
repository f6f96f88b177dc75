from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from sklearn.neighbors import LocalOutlierFactor

from qmop.compressors.recoverable import Recoverable
from qmop.compressors.registry import build_compressor
from qmop.features import CompressedTokens, Query, VisualFeatures

GRID, WIDTH, TEXT = 12, 64, 8
PATCHES = GRID * GRID
Reference = tuple[list[int], np.ndarray]


def method(**options: object) -> Recoverable:
    return Recoverable(**{"width": WIDTH, "grid": GRID, "tokens": PATCHES, **options})  # type: ignore[arg-type]


def features(batch: int, seed: int = 0) -> VisualFeatures:
    """Attention with a heavy upper tail, patches of which some suit some questions, keys of two heads."""
    random = np.random.default_rng(seed)
    attention = random.lognormal(sigma=1.5 + random.random((batch, 1)), size=(batch, PATCHES))
    attention = 0.9 * attention / attention.sum(axis=1, keepdims=True)
    text_space = random.normal(size=(batch, PATCHES, TEXT))
    return VisualFeatures(
        patches_BNC=torch.tensor(random.normal(size=(batch, PATCHES, WIDTH)), dtype=torch.float32),
        grid=(GRID, GRID),
        cls_attention_BN=torch.tensor(attention, dtype=torch.float32),
        keys_BNHd=torch.tensor(random.normal(size=(batch, PATCHES, 2, 5)) + 0.5, dtype=torch.float32),
        text_space_BNE=torch.tensor(text_space, dtype=torch.float32),
    )


def question(batch: int, seed: int = 0) -> Query:
    random = torch.Generator().manual_seed(seed)
    return Query(text_BE=torch.randn(batch, TEXT, generator=random), last_BE=torch.randn(batch, TEXT, generator=random))


# A slow reference, sample by sample, with scikit-learn's factor.


def labels(values: list[float], neighbours: int) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return LocalOutlierFactor(n_neighbors=neighbours).fit_predict(np.array(values)[:, None]) == -1


def upper(values: list[float], neighbours: int) -> int:
    if len(values) < 2:
        return 0
    median = sorted(values)[(len(values) - 1) // 2]
    return sum(bool(out) and value > median for value, out in zip(values, labels(values, neighbours), strict=True))


def best(scores: dict[int, float], count: int) -> list[int]:
    return sorted(scores, key=lambda place: (-scores[place], place))[:count]


def relevance(text_space: np.ndarray, text: np.ndarray) -> np.ndarray:
    unit = text_space / np.linalg.norm(text_space, axis=1, keepdims=True)
    return unit @ (text / np.linalg.norm(text)) / np.sqrt(len(text))


def merge(  # noqa: PLR0917
    patches: np.ndarray,
    attention: np.ndarray,
    text: np.ndarray,
    keys: dict[int, np.ndarray],
    left: list[int],
    centres: list[int],
) -> list[np.ndarray]:
    """Clusters round the centres; `keys` are those by which each remaining patch is compared."""
    tokens = []
    for centre in centres:
        affinity = {}
        for other in left:
            if other != centre:
                product = keys[centre] @ keys[other]
                cosine = product / np.linalg.norm(keys[centre]) / np.linalg.norm(keys[other])
                affinity[other] = cosine + 50 * text[other]
        tokens.append(patches[centre] + sum(attention[other] * patches[other] for other in best(affinity, 32)))
    return tokens


def arrays(shown: VisualFeatures, row: int) -> tuple[np.ndarray, ...]:
    fields = (shown.patches_BNC, shown.cls_attention_BN, shown.keys_BNHd.flatten(2), shown.text_space_BNE)
    return tuple(field[row].double().numpy() for field in fields)


def clean(shown: VisualFeatures, query: Query, row: int, cap: int) -> Reference:
    patches, attention, keys, text_space = arrays(shown, row)
    text = relevance(text_space, query.text_BE[row].double().numpy())
    scores = dict(enumerate(attention))
    visual = best(scores, min(cap, upper(list(attention), 20)))
    rest = [place for place in range(PATCHES) if place not in visual]
    picked = best({p: text[p] for p in rest}, min(cap - len(visual), upper([text[p] for p in rest], 20)))
    kept = sorted(visual + picked)
    left = [place for place in range(PATCHES) if place not in kept]
    count = min(cap - len(kept), upper([attention[p] for p in left], 10))
    centres = best({p: attention[p] for p in left}, count)
    tokens = [patches[p] for p in kept] + merge(patches, attention, text, {p: keys[p] for p in left}, left, centres)
    if len(tokens) < cap and len(centres) < len(left):
        tokens.append(sum(attention[p] * patches[p] for p in left if p not in centres))
    return kept, np.array(tokens).reshape(-1, WIDTH)


def published(shown: VisualFeatures, query: Query, row: int) -> Reference:
    patches, attention, keys, text_space = arrays(shown, row)
    text = relevance(text_space, query.need("last_BE")[row].double().numpy())
    visual = best(dict(enumerate(attention)), int(labels(list(attention), 20).sum()))
    text[visual] = text.min()
    picked = best(dict(enumerate(text)), (PATCHES - len(visual)) * int(labels(list(text), 20).sum()) // PATCHES)
    kept = sorted(visual + picked)
    left = [place for place in range(PATCHES) if place not in kept]
    count = WIDTH * int(labels([attention[p] for p in left], 10).sum()) // len(left)
    centres = best({p: attention[p] for p in left}, count)
    wrong = {p: keys[position] for position, p in enumerate(left)}
    tokens = [patches[p] for p in kept] + merge(patches, attention, text, wrong, left, centres)
    if centres:
        tokens.append(sum(attention[p] * patches[p] for p in left if p not in centres))
    return kept, np.array(tokens).reshape(-1, WIDTH)


def check(result: CompressedTokens, row: int, reference: Reference) -> None:
    kept, tokens = reference
    chosen = result.kept_BM[row]
    assert chosen[chosen >= 0].tolist() == kept
    assert result.counts_B[row] == len(tokens)
    np.testing.assert_allclose(result.per_image()[row], tokens, rtol=0, atol=2e-6)


@pytest.mark.parametrize("cap", [PATCHES, 36, 20, 12, 4, 1])
def test_adaptive_is_the_algorithm_of_the_paper_cut_at_the_cap(cap: int) -> None:
    shown, query = features(6), question(6)
    result = method(tokens=cap)(shown, query)
    assert result.tokens_BMC.shape == (6, cap, WIDTH)
    for row in range(6):
        check(result, row, clean(shown, query, row, cap))


def test_official_is_what_the_published_code_does() -> None:
    shown, query = features(8, seed=1), question(8)
    result = method(mode="official")(shown, query)
    counts = []
    for row in range(8):
        reference = published(shown, query, row)
        check(result, row, reference)
        counts.append(len(reference[1]) - len(reference[0]))
    assert 0 in counts  # no centre, so no extra token either
    assert max(counts) > 1


def test_official_makes_no_cluster_of_a_kept_patch_however_wide_the_tower() -> None:
    shown, query = features(4, seed=1), question(4)
    wide = method(mode="official")
    wide.width = 10_000  # the published code would ask for more centres than there are patches
    result = wide(shown, query)
    assert result.counts_B.max() == PATCHES
    assert torch.equal(result.kept_BM, method(mode="official")(shown, query).kept_BM)


def test_the_modes_differ() -> None:
    shown, query = features(4), question(4)
    counts = {mode: method(mode=mode, tokens=64)(shown, query).counts_B.tolist() for mode in ("adaptive", "official")}
    assert counts["adaptive"] != counts["official"]


def parts(result: CompressedTokens, row: int) -> tuple[int, int]:
    """Kept and merged tokens of an image."""
    kept = int((result.kept_BM[row] >= 0).sum())
    return kept, int(result.counts_B[row]) - kept


@pytest.mark.parametrize(
    ("tokens", "kept", "merged"), [(192, 153, 39), (128, 102, 26), (64, 51, 13), (576, 461, 115), (2, 1, 1), (1, 0, 1)]
)
def test_fixed_gives_exactly_the_budget(tokens: int, kept: int, merged: int) -> None:
    random = torch.Generator().manual_seed(0)
    shown = VisualFeatures(
        patches_BNC=torch.randn(2, 576, 4, generator=random),
        cls_attention_BN=torch.rand(2, 576, generator=random),
        keys_BNHd=torch.randn(2, 576, 1, 4, generator=random),
        text_space_BNE=torch.randn(2, 576, TEXT, generator=random),
    )
    result = build_compressor("recoverable", grid=24, width=4, tokens=tokens, mode="fixed")(shown, question(2))
    assert result.tokens_BMC.shape == (2, tokens, 4)
    assert result.mask_BM is None
    assert [parts(result, row) for row in range(2)] == [(kept, merged)] * 2


def test_fixed_divides_as_it_is_told() -> None:
    shown, query = features(1), question(1)
    attention, text = (list(values) for values in (shown.cls_attention_BN[0], clean_text(shown, query)))
    result = method(tokens=11, mode="fixed", shares=(2, 1, 2))(shown, query)
    visual = best(dict(enumerate(attention)), 4)
    picked = best({p: text[p] for p in range(PATCHES) if p not in visual}, 2)
    assert result.kept_BM[0].tolist() == sorted(visual + picked) + [-1] * 5
    left = {p: attention[p] for p in range(PATCHES) if p not in visual + picked}
    rest = [p for p in left if p not in best(left, 4)]
    extra = sum(attention[p] * shown.patches_BNC[0, p] for p in rest)
    torch.testing.assert_close(result.tokens_BMC[0, -1], extra, rtol=0, atol=1e-6)


def clean_text(shown: VisualFeatures, query: Query) -> np.ndarray:
    return relevance(shown.text_space_BNE[0].double().numpy(), query.text_BE[0].double().numpy())


def test_all_budget_to_the_image_leaves_the_rest_to_the_extra_token() -> None:
    result = method(tokens=9, mode="fixed", shares=(1, 0, 0))(features(2), question(2))
    assert parts(result, 0) == (8, 1)
    assert torch.equal(
        result.kept_BM, method(tokens=9, mode="fixed", shares=(1, 0, 0))(features(2), question(2, 5)).kept_BM
    )


@pytest.mark.parametrize("mode", ["adaptive", "fixed", "official"])
def test_kept_patches_are_unchanged_sorted_and_taken_once(mode: str) -> None:
    shown = features(4)
    result = method(mode=mode, tokens=48)(shown, question(4))
    for row in range(4):
        kept = result.kept_BM[row][result.kept_BM[row] >= 0]
        assert len(kept) > 3
        assert (kept.diff() > 0).all()
        assert torch.equal(result.tokens_BMC[row, : len(kept)], shown.patches_BNC[row, kept])
        assert (result.kept_BM[row, len(kept) :] == -1).all()


@pytest.mark.parametrize("mode", ["adaptive", "fixed", "official"])
def test_another_question_picks_other_patches_but_keeps_the_visual_ones(mode: str) -> None:
    shown = features(1)
    first, second = (method(mode=mode, tokens=48)(shown, question(1, seed)).kept_BM[0].tolist() for seed in (1, 2))
    assert first != second
    top = best(dict(enumerate(shown.cls_attention_BN[0].tolist())), 4)
    assert set(top) <= set(first)
    assert set(top) <= set(second)


@pytest.mark.parametrize("mode", ["adaptive", "fixed", "official"])
def test_pictures_of_a_batch_do_not_touch_each_other(mode: str) -> None:
    shown, query = features(6), question(6)
    compress = method(mode=mode, tokens=40)
    together = compress(shown, query)
    if mode != "fixed":
        assert len(set(together.counts_B.tolist())) > 2
    for row in range(6):
        only = torch.tensor([row])
        alone = compress(shown.rows(only), query.rows(only))
        assert torch.equal(alone.kept_BM[0], together.kept_BM[row])
        torch.testing.assert_close(alone.per_image()[0], together.per_image()[row], rtol=0, atol=1e-5)


@pytest.mark.parametrize("mode", ["adaptive", "official"])
def test_places_without_a_token_are_masked_and_zero(mode: str) -> None:
    result = method(mode=mode)(features(4), question(4))
    assert result.mask_BM.shape == (4, PATCHES)
    assert (result.tokens_BMC[~result.mask_BM] == 0).all()
    assert (result.mask_BM.int().diff(dim=1) <= 0).all()  # real tokens first


def test_equal_attention_leaves_only_the_question_and_the_extra_token() -> None:
    shown, query = features(1), question(1)
    shown.cls_attention_BN = torch.full((1, PATCHES), 1 / PATCHES)
    shown.text_space_BNE = torch.ones(1, PATCHES, TEXT)
    shown.text_space_BNE[0, [7, 90]] = query.text_BE
    # Against all the equal others these two stand out; but of scores that are all equal nothing does.
    result = method()(shown, query)
    assert result.kept_BM[0, :2].tolist() == [7, 90]
    assert result.counts_B.tolist() == [3]


def test_ties_go_to_the_lower_index() -> None:
    shown, query = features(1), question(1)
    shown.cls_attention_BN = torch.full((1, PATCHES), 0.5)
    shown.text_space_BNE = torch.ones(1, PATCHES, TEXT)
    result = method(tokens=11, mode="fixed")(shown, query)
    assert result.kept_BM[0, :8].tolist() == list(range(8))


def test_a_small_grid_has_fewer_members_than_a_cluster_would_take() -> None:
    shown = features(2)
    small = VisualFeatures(
        patches_BNC=shown.patches_BNC[:, :9],
        cls_attention_BN=shown.cls_attention_BN[:, :9],
        keys_BNHd=shown.keys_BNHd[:, :9],
        text_space_BNE=shown.text_space_BNE[:, :9],
    )
    for mode in ("adaptive", "fixed", "official"):
        result = method(grid=3, tokens=9, mode=mode)(small, question(2))
        assert torch.isfinite(result.tokens_BMC).all()
    # Nine tokens of nine patches: four and two kept, two clusters of both other remaining ones, one left over.
    assert [parts(method(grid=3, tokens=9, mode="fixed")(small, question(2)), row) for row in (0, 1)] == [(6, 3)] * 2


def test_another_budget_may_be_asked_for() -> None:
    shown, query = features(2), question(2)
    built = method(tokens=20, mode="fixed")(shown, query)
    asked = method(tokens=64, mode="fixed")(shown, query, tokens=20)
    assert torch.equal(built.tokens_BMC, asked.tokens_BMC)
    with pytest.raises(ValueError, match="tokens is 145, but a 12 x 12 grid has 144 patches"):
        method()(shown, query, tokens=145)


@pytest.mark.parametrize("mode", ["adaptive", "fixed", "official"])
def test_half_precision_keeps_the_type_and_the_choice(mode: str) -> None:
    shown, query = features(2), question(2)
    half = VisualFeatures(**{**shown, "patches_BNC": shown.patches_BNC.bfloat16()})
    half.grid = shown.grid
    compress = method(mode=mode, tokens=30)
    full, low = compress(shown, query), compress(half, query)
    assert low.tokens_BMC.dtype == torch.bfloat16
    assert torch.equal(low.kept_BM, full.kept_BM)
    torch.testing.assert_close(low.tokens_BMC.float(), full.tokens_BMC, rtol=0.02, atol=0.02)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = compress(shown, query)
    assert torch.equal(mixed.tokens_BMC, full.tokens_BMC)


def test_gradients_reach_the_patches() -> None:
    shown = features(1)
    shown.patches_BNC.requires_grad_()
    method(tokens=20, mode="fixed")(shown, question(1)).tokens_BMC.sum().backward()
    assert (shown.patches_BNC.grad != 0).all()


def test_the_modes_declare_what_they_read() -> None:
    adaptive, fixed, official = (method(mode=mode).declaration for mode in ("adaptive", "fixed", "official"))
    assert adaptive.reads == fixed.reads == {"cls_attention", "keys", "text_space", "query"}
    assert official.reads == adaptive.reads | {"last_text"}
    assert (adaptive.fixed_count, fixed.fixed_count, official.fixed_count) == (False, True, False)
    assert (adaptive.text_norm, official.text_norm) == (True, False)
    assert {(d.attention_layer, d.split_heads, d.trained, d.text_guided) for d in (adaptive, fixed, official)} == {
        (-1, False, False, True)
    }


def test_the_cap_is_what_the_prompt_holds_room_for() -> None:
    assert method(tokens=20).token_count(20, grid=(GRID, GRID), stage=2) == 20


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("mode", "fast", "mode is 'fast': choose one of adaptive, fixed, official"),
        ("shares", (1, 1), "shares is .*three numbers from 0 up"),
        ("shares", (1, -1, 1), "shares is .*three numbers from 0 up"),
        ("shares", (0, 0, 0), "shares is .*one of them positive"),
        ("neighbours", 0, "neighbours is 0, but it counts patches"),
        ("centre_neighbours", 0, "centre_neighbours is 0"),
        ("members", 0, "members is 0"),
    ],
)
def test_options_out_of_range_are_refused(option: str, value: object, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        method(**{option: value})


def test_a_missing_question_or_feature_is_named() -> None:
    shown, query = features(1), question(1)
    with pytest.raises(ValueError, match=r"query is missing, but recoverable .*pass query= to the processor"):
        method()(shown)
    query.last_BE = None
    with pytest.raises(ValueError, match=r"query\.last_BE is missing"):
        method(mode="official")(shown, query)
    shown.keys_BNHd = None
    with pytest.raises(ValueError, match=r"features\.keys_BNHd is missing"):
        method()(shown, query)
