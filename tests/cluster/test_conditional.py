from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from cluster import conditional, storage
from tests.cluster.conftest import listed


def test_of_many_creators_exactly_one_wins_and_its_content_stands(root: str) -> None:
    start = threading.Barrier(8)

    def create(number: int, uri: str) -> bool:
        start.wait()
        return conditional.create_if_absent(uri, b"%d" % number * 1000)

    rounds = 5 if root.startswith("s3:") else 40  # a check before the write loses only some of the races
    with ThreadPoolExecutor(8) as pool:
        for number in range(rounds):
            uri = storage.join(root, f"lease-{number}")
            won = list(pool.map(create, range(8), [uri] * 8))
            assert sum(won) == 1
            assert storage.read_bytes(uri) == b"%d" % won.index(True) * 1000
    assert len(storage.list_files(root)) == rounds


def test_of_many_replacers_with_one_version_exactly_one_wins(root: str) -> None:
    uri = storage.join(root, "lease")
    storage.write_atomic(uri, b"0")
    start = threading.Barrier(8)

    def replace(number: int, version: str) -> str | None:
        start.wait()
        return conditional.replace_if_match(uri, b"%d" % number * 1000, version)

    rounds = 5 if root.startswith("s3:") else 40
    with ThreadPoolExecutor(8) as pool:
        for number in range(rounds):
            _, version = conditional.read_versioned(uri)
            numbers = range(10 + 8 * number, 18 + 8 * number)
            got = list(pool.map(replace, numbers, [version] * 8))
            (winner,) = [(one, new) for one, new in zip(numbers, got, strict=True) if new is not None]
            assert conditional.read_versioned(uri) == (b"%d" % winner[0] * 1000, winner[1])
    assert storage.list_files(root) == [listed(uri)]


def test_only_the_version_that_was_read_is_replaced(root: str) -> None:
    uri = storage.join(root, "a")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        conditional.read_versioned(uri)
    storage.write_atomic(uri, b"one")
    _, first = conditional.read_versioned(uri)
    second = conditional.replace_if_match(uri, b"two", first)
    assert second is not None
    assert conditional.replace_if_match(uri, b"three", first) is None
    assert conditional.read_versioned(uri) == (b"two", second)
    storage.remove(uri)
    assert conditional.replace_if_match(uri, b"three", second) is None
    assert not storage.exists(uri)
