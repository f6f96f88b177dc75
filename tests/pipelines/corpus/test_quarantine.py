"""What was put aside: small, safe names, never opened."""

from __future__ import annotations

import io
import json
import tarfile

from pipelines.corpus.quarantine import encode_faults
from pipelines.corpus.samples import Evidence, Fault


def fault(position: int, **evidence: bytes) -> Fault:
    return Fault(reason="bad_record", origin={"key": "x"}, detail="d", position=position, evidence=dict(evidence))


def held(data: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]


def test_account_and_bytes_stand_together_and_are_the_same_every_time() -> None:
    faults = [fault(3, image=b"half a picture"), fault(7)]
    found = held(encode_faults(faults, 100))
    assert list(found) == ["000000003.json", "000000003.image.bin", "000000007.json"]
    assert json.loads(found["000000003.json"]) == json.loads(faults[0].to_json())
    assert json.loads(found["000000007.json"]) == {
        "position": 7,
        "reason": "bad_record",
        "origin": {"key": "x"},
        "detail": "d",
    }
    assert encode_faults(faults, 100) == encode_faults(faults, 100)


def test_names_are_harmless_and_nothing_takes_another_s_place() -> None:
    evidence: Evidence = {"../x": b"1", "pkl": b"2", "P K L": b"3", "": b"4", "é" * 300: b"5", "x": b"6"}
    odd = Fault(reason="bad_record", origin={}, detail="\ud83d", position=0, evidence=evidence)
    found = held(encode_faults([odd], 100))
    assert sorted(found.values())[:6] == [b"1", b"2", b"3", b"4", b"5", b"6"]
    assert all(name == name.lower() and "/" not in name and name.endswith((".bin", ".json")) for name in found)


def test_the_bytes_are_bounded_and_the_accounts_are_not() -> None:
    faults = [fault(number, image=b"x" * 40) for number in range(5)] + [fault(5, image=b"x" * 101)]
    found = held(encode_faults(faults, max_bytes=100, most_bytes=130))
    assert sum(name.endswith(".json") for name in found) == 6
    assert [name for name in found if name.endswith(".bin")] == [f"00000000{number}.image.bin" for number in range(3)]
