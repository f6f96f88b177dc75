from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from qmop.tiny.assemble import tiny_processor
from qmop.tiny.pretraining.world import GRID, INKS, KINDS, PATCH_TARGETS, focus_mask, normalise, patch_targets
from qmop.vtcbench.rendered import training_scene
from qmop.vtcbench.scene import LARGE_RADIUS, Scene, Thing


def test_pixels_are_normalised_as_the_shipped_processor_does() -> None:
    pixels = np.stack([training_scene(0, place).pixels for place in range(3)])
    images = [Image.fromarray(picture) for picture in pixels]
    shipped = tiny_processor()(images=images, text=["<image>"] * 3, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(normalise(pixels), shipped, rtol=0, atol=1e-5)


def test_patches_are_labelled_by_the_object_over_their_centre() -> None:
    sign = Thing(shape="sign", colour="blue", cell=4, centre=(48, 48), radius=LARGE_RADIUS, digit=7)
    targets = patch_targets(Scene(things=(sign,), mood="warm", texture="plain"))
    covered = np.flatnonzero(targets["kind"])
    centres = [8 * k + 4 for k in range(GRID) if abs(8 * k + 4 - 48) <= LARGE_RADIUS]
    assert covered.tolist() == [y // 8 * GRID + x // 8 for y in centres for x in centres]
    assert set(targets["kind"][covered]) == {KINDS.index("sign")}
    assert set(targets["ink"][covered]) == {INKS.index("blue")}
    assert set(targets["digit"][covered]) == {8}
    assert set(targets["large"][covered]) == {1}
    assert set(targets["cell"][covered]) == {4}
    assert (targets["cell"] == -1).sum() == GRID * GRID - len(covered)


@pytest.mark.parametrize("place", range(3))
def test_targets_stay_below_their_number_of_classes(place: int) -> None:
    targets = patch_targets(training_scene(1, place).scene)
    for name, classes in PATCH_TARGETS.items():
        assert targets[name].shape == (144,)
        assert 0 <= targets[name].min() <= targets[name].max() < classes


def test_focus_marks_the_asked_for_cells_only() -> None:
    cells = np.array([[-1, 0, 0, 3], [2, -1, 1, 1]], dtype=np.int8)
    mask = focus_mask(cells, [(0,), (1, 2)])
    assert mask.tolist() == [[0, 1, 1, 0], [1, 0, 1, 1]]
    assert focus_mask(cells, [(), (8,)]).tolist() == [[0] * 4] * 2
