"""Keys, turns and the members of a shard."""

from __future__ import annotations

import json

import pytest

from pipelines.corpus.recipe import Limits
from pipelines.corpus.samples import BadSampleError, Fault, Message, Raw, Sample, check_messages, sample_key
from pipelines.corpus.validation import check


def turns(*texts: str) -> list[Message]:
    return [{"role": ("user", "assistant")[number % 2], "text": text} for number, text in enumerate(texts)]


def raw(*texts: str, identity: str = "a", images: tuple[bytes, ...] = ()) -> Raw:
    return Raw(position=0, identity=identity, images=images, messages=turns(*texts), origin={"record": 0})


@pytest.mark.parametrize(
    ("identity", "key"),
    [
        ("000123", "000000007-000123"),
        ("coco/train.2017/0.jpg", "000000007-coco_train_2017_0_jpg"),
        ("../../etc/passwd", "000000007-etc_passwd"),
        ("äöü", "000000007"),
        ("x" * 500, "000000007-" + "x" * 48),
    ],
)
def test_keys_are_safe_file_names(identity: str, key: str) -> None:
    assert sample_key(7, identity) == key


def test_keys_differ_where_identities_do_not() -> None:
    assert sample_key(1, "same") != sample_key(2, "same")


def test_turns_alternate_and_teach() -> None:
    check_messages(turns("q", "a"))
    check_messages(turns("", "a", "q", "b"))


@pytest.mark.parametrize(
    ("texts", "reason"),
    [((), "no_caption"), (("q", ""), "no_caption"), (("q", "a", "q", ""), "no_caption"), (("q",), "bad_record")],
)
def test_turns_that_teach_nothing_are_named(texts: tuple[str, ...], reason: str) -> None:
    with pytest.raises(BadSampleError) as caught:
        check_messages(turns(*texts))
    assert caught.value.reason == reason


def test_an_answer_before_any_question_is_a_bad_record() -> None:
    with pytest.raises(BadSampleError, match="assistant, user"):
        check_messages(list(reversed(turns("q", "a"))))


def test_members_stand_image_first_and_text_only_has_one(jpegs: list[bytes]) -> None:
    seen = check(raw("q", "a", images=(jpegs[0],)), Limits())
    assert isinstance(seen, Sample)
    assert [name for name, _ in seen.members()] == ["000000000-a.jpg", "000000000-a.json"]
    text = check(raw("q", "a"), Limits())
    assert isinstance(text, Sample)
    ((name, data),) = text.members()
    assert name == "000000000-a.json"
    assert json.loads(data) == {"id": "a", "image": False, "messages": turns("q", "a")}


def test_half_a_surrogate_pair_is_a_bad_record_and_can_be_reported() -> None:
    fault = check(raw("q", "broken \ud83d emoji"), Limits())
    assert isinstance(fault, Fault)
    assert fault.reason == "bad_record"
    odd = Fault(reason="bad_record", origin={"id": "\ud83d"}, detail="x")
    assert odd.to_json().encode().isascii()
