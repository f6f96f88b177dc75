"""Keys: where one is asked for, nothing goes on without it."""

from __future__ import annotations

import platform

import pytest

from pipelines.training.signing import KEY_VARIABLE, check_signature, has_key, require_key, signature

SAID = {"stage": "tune", "step": 20}


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """As most machines are."""
    monkeypatch.delenv(KEY_VARIABLE, raising=False)


def test_a_signature_is_of_the_key_and_of_every_field(monkeypatch: pytest.MonkeyPatch) -> None:
    assert signature(SAID) is None
    check_signature("s", SAID, None)
    monkeypatch.setenv(KEY_VARIABLE, "secret")
    made = signature(SAID)
    # of {"stage": "tune", "step": 20} with the key `secret`, by `openssl dgst -sha256 -hmac secret`
    assert made == "114bf8edeb8d4c8e715348d1be77ce50a58887c1c6195f166659f14db84bcc08"
    check_signature("s", SAID, made)
    for said, given in (({**SAID, "step": 21}, made), (SAID, None), (SAID, ""), (SAID, made[:-1]), (SAID, 7)):
        with pytest.raises(ValueError, match=f"^s is not signed with the key in {KEY_VARIABLE}"):
            check_signature("s", said, given)


@pytest.mark.parametrize("value", ["", "  "])
def test_an_empty_key_is_a_mistake_that_names_the_variable(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv(KEY_VARIABLE, value)
    for use in (has_key, lambda: signature(SAID), lambda: check_signature("s", SAID, "x")):
        with pytest.raises(ValueError, match=f"^{KEY_VARIABLE} is set, but empty, .*: give it a key, or unset it"):
            use()


def test_a_process_without_the_key_of_its_run_refuses_to_start(monkeypatch: pytest.MonkeyPatch) -> None:
    require_key(signed=False)
    with pytest.raises(ValueError, match=f"^{KEY_VARIABLE} is set where .* on {platform.node()}, .*`ray start`"):
        require_key(signed=True)
    monkeypatch.setenv(KEY_VARIABLE, "secret")
    require_key(signed=True)
