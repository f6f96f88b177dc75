from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from qmop.slicing import candidate_grids, choose_grid, fit, slice_picture, tile_count, tile_layout, token_count

WIDE_9 = [(1, 1), (1, 2), (1, 3), (1, 4), (1, 5), (1, 6), (1, 7), (1, 8), (1, 9), (2, 2), (2, 3), (2, 4), (3, 3)]
WIDE_16 = [*WIDE_9, (2, 5), (2, 6), (2, 7), (2, 8), (3, 4), (3, 5), (4, 4)]
WIDE_25 = [*WIDE_16, (2, 9), (2, 10), (2, 11), (2, 12), (3, 6), (3, 7), (3, 8), (4, 5), (4, 6), (5, 5)]


@pytest.mark.parametrize(("tiles", "wide", "count"), [(9, WIDE_9, 23), (16, WIDE_16, 36), (25, WIDE_25, 55)])
def test_the_rule_gives_the_published_tables(tiles: int, wide: list[tuple[int, int]], count: int) -> None:
    grids = candidate_grids(tiles)
    assert len(grids) == len(set(grids)) == count
    assert set(grids) == {*wide, *((columns, rows) for rows, columns in wide)}


def test_other_numbers_of_tiles_are_possible() -> None:
    assert candidate_grids(1) == ((1, 1),)
    assert candidate_grids(4) == ((1, 1), (1, 2), (2, 1), (1, 3), (3, 1), (1, 4), (2, 2), (4, 1))


@pytest.mark.parametrize(
    ("size", "tiles", "grid"),
    [
        ((480, 640), 9, (2, 3)),
        ((480, 640), 16, (3, 4)),
        ((640, 480), 9, (3, 2)),
        ((1000, 1000), 9, (3, 3)),
        ((1000, 1000), 16, (4, 4)),
        ((336, 336), 9, (1, 1)),
        ((336, 336), 25, (1, 1)),
        ((100, 3000), 16, (1, 9)),
        ((3000, 100), 25, (9, 1)),
        ((2000, 2000), 25, (5, 5)),
        ((5000, 5000), 1, (1, 1)),
    ],
)
def test_the_grid_of_a_picture(size: tuple[int, int], tiles: int, grid: tuple[int, int]) -> None:
    assert choose_grid(*size, max_tiles=tiles) == grid


def overlap(first: tuple[float, float], second: tuple[float, float]) -> float:
    """Intersection over union of two boxes at the origin."""
    common = min(first[0], second[0]) * min(first[1], second[1])
    return common / (first[0] * first[1] + second[0] * second[1] - common)


def test_the_score_is_the_covered_share_and_a_tenth_of_the_overlap() -> None:
    sizes = torch.randint(30, 3000, (200, 2), generator=torch.Generator().manual_seed(0)).tolist()
    for height, width in sizes:
        scores = {}
        for rows, columns in candidate_grids(16):
            ratio = min(rows * 336 / height, columns * 336 / width)
            covered = round(height * ratio) * round(width * ratio) / (rows * columns * 336**2)
            box = (1.4 * height, 1.4 * width)
            scores[rows, columns] = covered + 0.1 * overlap((rows * 336, columns * 336), box)
        assert choose_grid(height, width, max_tiles=16) == max(scores, key=lambda grid: scores[grid])


def test_the_scale_of_the_published_code_leans_towards_more_tiles() -> None:
    assert choose_grid(450, 450) == (2, 2)
    assert choose_grid(450, 450, scale=1.0) == (1, 1)


def test_without_overlap_the_padding_alone_decides() -> None:
    assert choose_grid(2000, 2000, max_tiles=25, weight=0.0) == (1, 1)  # every square grid is filled
    assert choose_grid(2000, 2000, max_tiles=25) == (5, 5)


def test_the_size_of_a_tile_is_free() -> None:
    assert choose_grid(96, 96, tile=96) == choose_grid(336, 336)
    assert choose_grid(137, 183, tile=96, max_tiles=9) == choose_grid(480, 640, max_tiles=9)


def test_the_picture_fits_one_side_exactly() -> None:
    assert fit(480, 640, 672, 1008) == (672, 896)
    assert fit(640, 480, 672, 1008) == (672, 504)
    assert fit(1, 5000, 336, 336) == (1, 336)
    assert fit(5000, 1, 336, 336) == (336, 1)


def picture(height: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(3, height, width, generator=torch.Generator().manual_seed(seed))


def test_exact_multiples_are_cut_and_not_changed() -> None:
    pixels = picture(16, 24)
    tiles = slice_picture(pixels, tile=8, grid=(2, 3))
    assert tiles.shape == (7, 3, 8, 8)
    for row in range(2):
        for column in range(3):
            part = pixels[:, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8]
            assert torch.equal(tiles[3 * row + column], part)


def test_a_picture_of_one_tile_has_no_overview() -> None:
    pixels = picture(336, 336)
    assert torch.equal(slice_picture(pixels), pixels[None])


def test_padding_is_at_the_bottom_and_on_the_right_only() -> None:
    tiles = slice_picture(torch.ones(3, 20, 16), tile=8, grid=(2, 3))  # fits as 16 x 13 of 16 x 24
    assert [int((tile[0] != 0).sum()) for tile in tiles] == [64, 40, 0, 64, 40, 0, 48]
    assert (tiles[1][:, :, :5] == 1).all()
    assert (tiles[1][:, :, 5:] == 0).all()
    below = slice_picture(torch.ones(3, 16, 40), tile=8, grid=(2, 3))  # fits as 10 x 24
    assert (below[3][:, :2] == 1).all()
    assert (below[3][:, 2:] == 0).all()


def test_the_picture_is_resized_bilinearly_to_fit_the_grid() -> None:
    pixels = picture(480, 640)
    tiles = slice_picture(pixels)
    resized = F.interpolate(pixels[None], size=(672, 896), mode="bilinear")[0]
    assert tiles.shape == (7, 3, 336, 336)
    assert torch.equal(tiles[4], resized[:, 336:, 336:672])
    assert torch.equal(tiles[5][:, :, :224], resized[:, 336:, 672:])
    assert (tiles[5][:, :, 224:] == 0).all()


def test_the_overview_is_the_whole_picture() -> None:
    pixels = picture(480, 640)
    overview = slice_picture(pixels)[-1]
    assert torch.equal(overview[:, :252], F.interpolate(pixels[None], size=(252, 336), mode="bilinear")[0])
    assert (overview[:, 252:] == 0).all()


def test_the_published_overview_has_the_padding_squeezed_in() -> None:
    official = slice_picture(torch.ones(3, 480, 640), official=True)
    ours = slice_picture(torch.ones(3, 480, 640))
    assert torch.equal(official[:-1], ours[:-1])
    assert (ours[-1][:, :252] > 0.999).all()
    covered = round(336 * 896 / 1008)  # the picture fills 896 of the canvas's 1008 columns
    assert (official[-1][:, :252, : covered - 1] > 0.999).all()
    assert (official[-1][:, :252, covered + 1 :] == 0).all()
    assert (official[-1][:, 252:] == 0).all()


def test_the_chosen_grid_is_the_one_that_is_cut() -> None:
    for size in ((70, 33), (9, 9), (31, 90)):
        grid = choose_grid(*size, tile=16, max_tiles=9)
        assert len(slice_picture(picture(*size), tile=16)) == tile_count(grid)


def test_the_layout_writes_tiles_row_by_row_and_the_overview_last() -> None:
    assert tile_layout((2, 3), 2, "#") == "##,##,##\n##,##,##\n##\n"
    assert tile_layout((2, 1), 1, "#", column="|", row="/") == "#/#/#/"
    assert tile_layout((1, 1), 3, "#") == "###\n"


@pytest.mark.parametrize(
    ("grid", "tokens", "count"),
    [((2, 3), 144, 1015), ((3, 4), 144, 1885), ((1, 1), 144, 145), ((1, 1), 64, 65), ((1, 2), 36, 111)],
)
def test_tokens_of_a_picture(grid: tuple[int, int], tokens: int, count: int) -> None:
    assert token_count(grid, tokens) == count
    assert len(tile_layout(grid, tokens, "#")) == count


def test_the_layout_has_as_many_characters_as_the_formula_counts() -> None:
    for grid in candidate_grids(25):
        assert len(tile_layout(grid, 4, "#")) == token_count(grid, 4)


def test_impossible_pictures_are_refused() -> None:
    with pytest.raises(ValueError, match="max_tiles is 0, but a picture has one tile at least"):
        choose_grid(10, 10, max_tiles=0)
    with pytest.raises(ValueError, match="the picture is 0 x 10 pixels"):
        choose_grid(0, 10)
    with pytest.raises(ValueError, match=r"pixels are torch\.uint8, but zero must be the mean colour"):
        slice_picture(torch.zeros(3, 8, 8, dtype=torch.uint8))
