from __future__ import annotations

import json
from pathlib import Path

import pytest

from cluster.lease import Lease
from cluster.storage import read_bytes, remove


class Clock:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_one_holds_it_until_it_is_released_and_every_holding_has_a_higher_number(tmp_path: Path) -> None:
    uri = str(tmp_path / "lease.json")
    one, other = Lease(uri, "one", 30.0), Lease(uri, "other", 30.0)
    assert one.take()
    assert not other.take()
    assert one.renew()
    one.release()
    assert other.take()
    assert (one.fence, other.fence) == (1, 2)
    assert not one.renew()
    one.release()  # it is another's: nothing happens
    assert json.loads(read_bytes(uri)) == {"fence": 2, "holder": "other", "beat": 0}


def test_a_silent_holder_is_followed_and_a_lively_one_is_not(tmp_path: Path) -> None:
    uri, clock = str(tmp_path / "lease.json"), Clock()
    one, other = Lease(uri, "one", 30.0, clock), Lease(uri, "other", 30.0, clock)
    assert one.take()
    for _ in range(5):
        assert not other.take()
        clock.now += 20.0
        assert one.renew()
    assert not other.take()
    clock.now += 29.9
    assert not other.take()
    clock.now += 0.2
    assert other.take()
    assert other.fence == 2
    assert not one.renew()
    assert not one.take()


def test_a_lease_whose_file_is_gone_is_lost(tmp_path: Path) -> None:
    uri = str(tmp_path / "lease.json")
    one = Lease(uri, "one", 30.0)
    assert one.take()
    remove(uri)
    assert not one.renew()


def test_a_holder_that_is_known_to_be_gone_is_followed_at_once(tmp_path: Path) -> None:
    uri = str(tmp_path / "lease.json")
    one, other = Lease(uri, "one", 30.0), Lease(uri, "other", 30.0)
    assert one.take()
    assert not other.take(lambda holder: holder == "two")
    assert other.other == "one"
    assert other.take(lambda holder: holder == "one")
    assert other.fence == 2


def test_a_sign_of_life_between_two_tries_is_seen(tmp_path: Path) -> None:
    uri = str(tmp_path / "lease.json")
    one, other = Lease(uri, "one", 30.0), Lease(uri, "other", 30.0)
    assert one.take()
    assert [other.take(), other.take()] == [False, False]
    assert not other.lively
    assert one.renew()
    assert not other.take()
    assert other.lively


@pytest.mark.parametrize(
    ("damaged", "fence"),
    [
        (b"", 1),
        (b"{", 1),
        (b"[]", 1),
        (b"\xff\xfe", 1),
        (b'{"beat": 4, "fence": 7, "hol', 8),
        (b'{"beat": 4, "fence": "7", "holder": 3}', 1),
    ],
)
def test_a_damaged_lease_is_taken_over_after_the_usual_time_and_is_whole_again(
    tmp_path: Path, damaged: bytes, fence: int
) -> None:
    file, clock = tmp_path / "lease.json", Clock()
    holder, other = Lease(str(file), "holder", 30.0, clock), Lease(str(file), "other", 30.0, clock)
    assert holder.take()
    file.write_bytes(damaged)
    assert not holder.renew()
    assert not other.take(lambda name: name == "holder")
    assert other.other == ""
    clock.now += 30.0
    assert other.take()
    assert json.loads(file.read_bytes()) == {"fence": fence, "holder": "other", "beat": 0}
    assert not holder.take()
    assert holder.other == "other"
    other.release()
    assert holder.take()
