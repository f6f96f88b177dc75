from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import pytest

from pipelines.serving.contract import Prompt, PromptError, Sampling
from pipelines.serving.counts import Counts
from pipelines.serving.errors import ApiError
from pipelines.serving.service import Abandoned, ChatService
from pipelines.serving.ticket import Ticket

PROMPT = Prompt(messages=[], images=[], question="hi")
SAMPLING = Sampling(max_new_tokens=8)


def admit(service: ChatService) -> Ticket:
    with service.admission():
        return service.submit(lambda: PROMPT, SAMPLING)


async def text(ticket: Ticket) -> str:
    return "".join([piece async for piece in ticket.pieces()])


async def settled(service: ChatService) -> Counts:
    """The counts once nothing is in flight."""
    until = time.monotonic() + 20
    while service.counts.in_flight:
        assert time.monotonic() < until
        await asyncio.sleep(0.005)
    counts = service.counts
    assert counts.received == counts.answered + counts.refused + counts.cancelled + counts.failed
    return counts


async def at_work(engine: Any) -> None:
    assert await asyncio.to_thread(engine.progressed.acquire, timeout=20)


def test_an_answer_comes_in_pieces_and_ends_with_its_completion(service: ChatService) -> None:
    async def scene() -> None:
        ticket = admit(service)
        assert [piece async for piece in ticket.pieces()] == ["a red", " circle"]
        assert ticket.completion is not None
        assert ticket.completion.completion_tokens == 2
        assert await settled(service) == Counts(received=1, answered=1)

    asyncio.run(scene())


def test_the_queue_is_bounded_and_a_place_comes_back(service: ChatService, engine: Any) -> None:
    async def scene() -> None:
        engine.gate = threading.Semaphore(0)
        tickets = [admit(service) for _ in range(service.limit)]
        for _ in range(2):
            with pytest.raises(ApiError) as caught:
                admit(service)
            assert (caught.value.status, caught.value.headers) == (429, {"Retry-After": "1"})
        assert service.counts.in_flight == 3
        engine.gate.release(100)
        assert [await text(ticket) for ticket in tickets] == ["a red circle"] * 3
        await settled(service)
        assert await text(admit(service)) == "a red circle"
        assert await settled(service) == Counts(received=6, answered=4, refused=2)

    asyncio.run(scene())


def test_what_fails_before_the_queue_gives_its_place_back(service: ChatService) -> None:
    def enter(error: BaseException) -> None:
        with pytest.raises(type(error)), service.admission():
            raise error

    for _ in range(service.limit + 1):
        enter(ApiError(400, "bad"))
    enter(asyncio.CancelledError())
    enter(Abandoned())
    enter(RuntimeError())
    assert service.counted() == Counts(received=7, refused=4, cancelled=2, failed=1)


def test_a_cancelled_answer_stops_at_its_next_token(service: ChatService, engine: Any) -> None:
    async def scene() -> None:
        engine.pieces, engine.gate = ["x"] * 50, threading.Semaphore(1)
        ticket = admit(service)
        pieces = ticket.pieces()
        assert await anext(pieces) == "x"
        ticket.cancel()
        engine.gate.release(100)
        assert await settled(service) == Counts(received=1, cancelled=1)
        assert engine.ended[0].completion_tokens <= 2

    asyncio.run(scene())


def test_an_answer_cancelled_in_the_queue_never_reaches_the_engine(service: ChatService, engine: Any) -> None:
    async def scene() -> None:
        engine.gate = threading.Semaphore(0)
        first, second = admit(service), admit(service)
        await at_work(engine)
        second.cancel()
        engine.gate.release(100)
        assert await text(first) == "a red circle"
        assert await settled(service) == Counts(received=2, answered=1, cancelled=1)
        assert len(engine.jobs) == 1

    asyncio.run(scene())


def test_a_failure_keeps_its_inside_to_itself_and_the_thread_goes_on(service: ChatService, engine: Any) -> None:
    async def scene() -> None:
        engine.fails_at = 0
        with pytest.raises(ApiError) as caught:
            await text(admit(service))
        assert caught.value.status == 500
        assert "secret" not in caught.value.message
        engine.error = PromptError("Too long: shorten it.")
        with pytest.raises(ApiError, match="Too long: shorten it") as caught:
            await text(admit(service))
        assert caught.value.status == 400
        engine.fails_at = None
        assert await text(admit(service)) == "a red circle"
        assert await settled(service) == Counts(received=3, answered=1, refused=1, failed=1)

    asyncio.run(scene())


def test_a_prompt_is_made_when_its_turn_has_come_and_not_for_who_has_left(service: ChatService, engine: Any) -> None:
    async def scene() -> None:
        made: list[int] = []

        def prepare(number: int) -> Prompt:
            made.append(number)
            if number == 2:
                raise ApiError(400, "The image is damaged.", param="messages")
            return PROMPT

        def enter(number: int) -> Ticket:
            with service.admission():
                return service.submit(lambda: prepare(number), SAMPLING)

        engine.gate = threading.Semaphore(0)
        tickets = [enter(number) for number in range(3)]
        await at_work(engine)
        assert made == [0]
        tickets[1].cancel()
        engine.gate.release(100)
        assert await text(tickets[0]) == "a red circle"
        with pytest.raises(ApiError, match=r"The image is damaged\.") as caught:
            await text(tickets[2])
        assert (caught.value.status, caught.value.param) == (400, "messages")
        assert await settled(service) == Counts(received=3, answered=1, refused=1, cancelled=1)
        assert made == [0, 2]

    asyncio.run(scene())


def test_an_engine_that_reports_twice_is_counted_once(service: ChatService, engine: Any) -> None:
    async def scene() -> None:
        ticket = admit(service)
        await text(ticket)
        engine.jobs[0].done(RuntimeError("late"))
        assert await settled(service) == Counts(received=1, answered=1)

    asyncio.run(scene())


def test_an_engine_that_decodes_in_batches_gets_what_waits(engine: Any) -> None:
    async def scene() -> None:
        engine.batch_limit, engine.gate = 3, threading.Semaphore(0)
        service = ChatService(engine, max_queued=10)
        engine.gate.release(2)
        await asyncio.to_thread(service.warm_up, PROMPT)
        engine.batches.clear()
        await at_work(engine)
        await at_work(engine)
        tickets = [admit(service)]
        await at_work(engine)
        tickets += [admit(service) for _ in range(4)]
        engine.gate.release(100)
        assert [await text(ticket) for ticket in tickets] == ["a red circle"] * 5
        assert [len(batch) for batch in engine.batches] == [1, 3, 1]
        service.close()

    asyncio.run(scene())


def test_what_waits_at_the_end_is_answered_and_then_the_thread_ends(engine: Any) -> None:
    async def scene() -> None:
        engine.batch_limit, engine.gate = 3, threading.Semaphore(2)
        service = ChatService(engine, max_queued=10)
        await asyncio.to_thread(service.warm_up, PROMPT)
        tickets = [admit(service)]
        for _ in range(3):
            await at_work(engine)
        tickets.append(admit(service))
        service.close()
        engine.gate.release(100)
        assert [await text(ticket) for ticket in tickets] == ["a red circle"] * 2
        await asyncio.to_thread(service._worker.join, 20)
        assert not service.ready

    asyncio.run(scene())


def test_nobody_comes_in_before_the_warm_up_or_after_the_end(engine: Any) -> None:
    async def scene() -> None:
        service = ChatService(engine, max_queued=2)
        with pytest.raises(ApiError) as caught:
            admit(service)
        assert caught.value.status == 503
        await asyncio.to_thread(service.warm_up, PROMPT)
        assert service.ready
        service.close()
        service._worker.join(20)
        with pytest.raises(ApiError) as caught:
            admit(service)
        assert caught.value.status == 503

    asyncio.run(scene())


def test_a_failing_or_hanging_warm_up_is_told(engine: Any) -> None:
    service = ChatService(engine, max_queued=2)
    engine.fails_at = 0
    with pytest.raises(RuntimeError, match="secret inside"):
        service.warm_up(PROMPT)
    engine.fails_at, engine.gate = None, threading.Semaphore(0)
    with pytest.raises(TimeoutError):
        service.warm_up(PROMPT, timeout_s=0.05)
    assert not service.ready
    engine.gate.release(100)
    service.close()


def test_an_engine_that_fails_on_every_request_makes_the_service_unwell(service: ChatService, engine: Any) -> None:
    async def fail() -> None:
        with pytest.raises(ApiError):
            await text(admit(service))

    async def scene() -> None:
        engine.fails_at = 0
        for _ in range(3):
            await fail()
        assert service.ailment is None
        await fail()
        assert "failed on 4 requests in a row" in str(service.ailment)
        assert service.ready  # answers go on, in case one succeeds
        engine.fails_at = None
        assert await text(admit(service)) == "a red circle"
        assert service.ailment is None

    asyncio.run(scene())


def test_pictures_that_cannot_be_decoded_do_not_make_the_service_unwell(service: ChatService) -> None:
    async def scene() -> None:
        def prepare() -> Prompt:
            raise MemoryError

        for _ in range(9):
            with service.admission():
                ticket = service.submit(prepare, SAMPLING)
            with pytest.raises(ApiError):
                await text(ticket)
        assert service.counted().failed == 9
        assert service.ailment is None

    asyncio.run(scene())


def test_an_engine_that_is_stuck_makes_the_service_unwell_until_its_next_piece(engine: Any) -> None:
    async def scene() -> None:
        service = ChatService(engine, max_queued=2, stall_timeout_s=1e-9)
        await asyncio.to_thread(service.warm_up, PROMPT)
        await at_work(engine)
        await at_work(engine)
        engine.gate = threading.Semaphore(0)
        ticket = admit(service)
        await at_work(engine)
        assert "gave no sign" in str(service.ailment)
        engine.gate.release(100)
        assert await text(ticket) == "a red circle"
        service.close()
        await asyncio.to_thread(service._worker.join, 20)
        assert service.ailment == "The engine's thread has ended."

    asyncio.run(scene())
