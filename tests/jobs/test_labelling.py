from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Iterator
from typing import Any

import pytest

from jobs.labelling import Endpoint, Judge, NoVerdictError, Verdict, response_format
from pipelines.serving.errors import ApiError
from pipelines.serving.protocol import parse_request
from qmop.vtcbench.items import DIMENSIONS
from qmop.vtcbench.natural.labels import Label
from qmop.vtcbench.natural.samples import Sample
from tests.fixtures.openai_judge import JudgeServer, Reply, completion, judge_server, refusal, verdict
from tests.qmop.vtcbench.natural.copies import picture

pytestmark = pytest.mark.pipeline

SAMPLE = Sample(
    source="gqa", id="7", question="Who?\nAnswer.", answers=("she", "she", "her"), task="gqa", scorer="exact_match",
    load=lambda: picture(9, "JPEG"),
)  # fmt: skip


@pytest.fixture
def server() -> Iterator[JudgeServer]:
    with judge_server() as state:
        yield state


def judged(server: JudgeServer, sample: Sample = SAMPLE, *, retries: int = 0) -> tuple[Label, Judge]:
    async def ask() -> tuple[Label, Judge]:
        endpoint = Endpoint(url=server.url, model="seer", key="secret", key_env="MY_KEY")
        async with endpoint.client(retries, 20.0) as client:
            judge = Judge(client, endpoint, attempts=3, max_tokens=99)
            return await judge.verdict(sample), judge

    return asyncio.run(ask())


def test_the_judge_sees_picture_question_answers_and_the_schema(server: JudgeServer) -> None:
    label, judge = judged(server)
    body = server.requests[0]
    shown, asked = body["messages"][1]["content"]

    assert label == Label(source="gqa", id="7", decision="accept", dimension="GU", explanation="because")
    assert (body["model"], body["max_tokens"], server.keys) == ("seer", 99, ["Bearer secret"])
    assert shown["image_url"]["url"] == f"data:image/jpeg;base64,{base64.b64encode(picture(9, 'JPEG')).decode()}"
    assert asked["text"] == "Question: Who?\nAnswer.\n\nAccepted answers: she | her"
    assert all(f"{code} ({name})" in body["messages"][0]["content"] for code, name in DIMENSIONS.items())
    assert body["response_format"] == response_format()
    assert judge.refused == []


def test_the_schema_is_one_that_strict_services_take() -> None:
    schema = response_format()["json_schema"]["schema"]

    assert response_format()["json_schema"]["strict"] is True
    assert schema["additionalProperties"] is False
    assert set(schema["required"]) == set(schema["properties"]) == {"decision", "dimension", "explanation"}
    assert schema["properties"]["dimension"]["anyOf"] == [
        {"enum": list(DIMENSIONS), "type": "string"}, {"type": "null"},
    ]  # fmt: skip
    assert Verdict.model_validate_json('{"decision": "reject", "dimension": null, "explanation": ""}').dimension is None


@pytest.mark.parametrize(
    "said",
    [
        "I think it is LD.",
        "",
        {"decision": "accept", "dimension": None, "explanation": "x"},
        {"decision": "reject", "dimension": "LD", "explanation": "x"},
        {"decision": "accept", "dimension": "XX", "explanation": "x"},
        {"decision": "accept", "dimension": ["LD", "GU"], "explanation": "x"},
        {"decision": "accept", "dimension": "LD"},
        {"decision": "accept", "dimension": "LD", "explanation": "x", "more": 1},
    ],
)
def test_a_bad_answer_is_asked_again_with_what_was_wrong(server: JudgeServer, said: object) -> None:
    server.answer = lambda _, number: completion(said) if number == 0 else verdict("LD")
    label, _ = judged(server)
    told = server.requests[1]["messages"]

    assert label.dimension == "LD"
    assert [message["role"] for message in told] == ["system", "user", "assistant", "user"]
    assert told[2]["content"] == (said if isinstance(said, str) else json.dumps(said)) or said == ""
    assert told[3]["content"].startswith("That is no valid answer: ")


def test_words_and_fences_around_the_object_do_not_matter(server: JudgeServer) -> None:
    server.answer = lambda *_: completion(
        'Sure:\n```json\n{"decision": "reject", "dimension": null, "explanation": "{vague}"}\n```'
    )
    label, _ = judged(server)

    assert (label.decision, label.dimension, label.explanation, len(server.requests)) == ("reject", None, "{vague}", 1)


def test_after_three_bad_answers_there_is_no_verdict(server: JudgeServer) -> None:
    server.answer = lambda *_: completion("no")

    with pytest.raises(NoVerdictError, match="3 answers were unusable") as found:
        judged(server)
    assert (found.value.reason, len(server.requests)) == ("unusable answer", 3)


@pytest.mark.parametrize("status", [408, 429, 500, 503])
def test_passing_failures_are_repeated(server: JudgeServer, status: int) -> None:
    server.answer = lambda _, number: refusal(status, "later") if number < 2 else verdict("SE")

    assert judged(server, retries=2)[0].dimension == "SE"
    assert len(server.requests) == 3
    server.answer = lambda *_: refusal(status, "never")
    with pytest.raises(NoVerdictError) as found:
        judged(server, retries=1)
    assert found.value.reason == f"status {status}"
    assert len(server.requests) == 5


@pytest.mark.parametrize(
    ("status", "said"),
    [(401, "refuses the key .401.: put the right one into MY_KEY"), (403, "MY_KEY"), (404, "has no model 'seer'")],
)
def test_what_is_wrong_with_everything_is_a_sentence(server: JudgeServer, status: int, said: str) -> None:
    server.answer = lambda *_: refusal(status, "no")

    with pytest.raises(ValueError, match=said):
        judged(server)


def test_a_service_that_knows_no_schema_is_asked_without(server: JudgeServer) -> None:
    """The project's own service is one."""

    def ours(body: dict[str, Any], _: int) -> Reply:
        try:
            parse_request(json.dumps(body).encode())
        except ApiError as error:
            return refusal(error.status, str(error), error.param)
        return verdict("SC")

    server.answer = ours
    label, judge = judged(server)

    assert label.dimension == "SC"
    assert judge.refused == ["response_format"]
    assert ["response_format" in body for body in server.requests] == [True, False]


def test_a_service_with_other_names_for_parameters_is_served(server: JudgeServer) -> None:
    def other(body: dict[str, Any], _: int) -> Reply:
        for name in ("max_tokens", "temperature"):
            if name in body:
                return refusal(400, f"Unsupported parameter: '{name}' is not supported with this model.", name)
        return verdict()

    server.answer = other
    _, judge = judged(server)

    assert judge.refused == ["max_tokens", "temperature"]
    assert server.requests[-1]["max_completion_tokens"] == 99


def test_one_sample_that_is_refused_or_has_no_picture_is_no_verdict(server: JudgeServer) -> None:
    server.answer = lambda *_: refusal(400, "content policy")
    with pytest.raises(NoVerdictError, match="content policy") as found:
        judged(server)
    assert found.value.reason == "status 400"
    broken = Sample(
        source="gqa", id="8", question="q", answers=("a",), task="gqa", scorer="exact_match", load=lambda: b"x"
    )
    with pytest.raises(NoVerdictError, match="gqa 8: its picture cannot be decoded") as unreadable:
        judged(server, broken)
    assert unreadable.value.reason == "unreadable picture"


def test_nobody_there_is_no_verdict() -> None:
    with judge_server() as gone:
        pass
    with pytest.raises(NoVerdictError) as found:
        judged(gone)
    assert found.value.reason == "no connection"
