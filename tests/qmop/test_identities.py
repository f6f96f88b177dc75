import copy

import pytest
import torch
from torch import Tensor, nn

from qmop.compressors.prune import Prune
from qmop.compressors.recoverable import Recoverable
from qmop.identities import image_digests, module_identity, plain_settings, query_digests


@pytest.fixture
def pixels() -> Tensor:
    return torch.rand(4, 3, 2, 2, generator=torch.Generator().manual_seed(0))


def test_pictures_are_told_apart_by_every_bit_their_shape_and_type(pixels: Tensor) -> None:
    digests = image_digests(pixels)
    assert len(set(digests)) == 4
    assert image_digests(pixels.flip(0)) == digests[::-1]
    changed = pixels.clone()
    changed[2, 0, 1, 1] = torch.nextafter(changed[2, 0, 1, 1], torch.tensor(2.0))
    assert [a == b for a, b in zip(image_digests(changed), digests, strict=True)] == [True, True, False, True]
    assert image_digests(pixels.bfloat16())[0] != digests[0]
    assert image_digests(pixels.reshape(4, 3, 1, 4))[0] != digests[0]


def test_questions_are_the_same_whatever_they_are_padded_to() -> None:
    ids = torch.tensor([[1, 5, 6, 0], [1, 7, 2, 9]])
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]])
    both, alone = query_digests(ids, mask), query_digests(ids[:1, :3], None)
    assert both[0] == alone[0] != both[1]
    assert query_digests(ids.view(1, 2, 4), mask.view(1, 2, 4)) != both[:1]


def test_a_module_is_itself_until_its_weights_change() -> None:
    module, other = nn.Linear(2, 2), nn.Linear(2, 2)
    first = module_identity(module)
    assert module_identity(module) == first
    assert len({first, module_identity(other), module_identity(copy.deepcopy(module))}) == 3
    with torch.no_grad():
        module.weight.add_(1)
    changed = module_identity(module)
    assert changed != first
    assert module_identity(module.half()) not in {first, changed}


def test_tuples_of_numbers_are_settings_too() -> None:
    one, other = (Recoverable(width=16, grid=12, tokens=16, mode="fixed") for _ in range(2))
    assert plain_settings(one) == plain_settings(other)
    other.shares = (0.1, 0.1, 0.8)
    assert plain_settings(one) != plain_settings(other)
    other.shares = ([0.1], 0.1, 0.8)  # type: ignore[assignment] # what cannot be a key is left out
    hash(plain_settings(other))


def test_settings_are_numbers_words_and_switches_of_every_part() -> None:
    one, other = Prune(width=16, grid=12, tokens=16), Prune(width=16, grid=12, tokens=16)
    assert plain_settings(one) == plain_settings(other)
    other.order = "score"
    assert plain_settings(one) != plain_settings(other)
    whole, same = nn.Sequential(one), nn.Sequential(other)
    assert plain_settings(whole) != plain_settings(same)
