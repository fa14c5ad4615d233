"""Work for a client ends with the client, with its time, or with the server; whichever is first."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from starlette.types import Message

from diptych.core.errors import OverloadedError, RequestTimeoutError, UnavailableError
from diptych.frontend import client_connection
from diptych.frontend.client_connection import ClientConnection, ClientGoneError, Intake


class Work:
    """Work that never ends by itself and knows whether it was cancelled."""

    def __init__(self) -> None:
        self.was_cancelled = False

    async def run(self) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.was_cancelled = True
            raise


async def connected() -> Message:
    """Be a client that says nothing more and stays."""
    await asyncio.Event().wait()
    raise AssertionError


async def gone() -> Message:
    """Be a client that has hung up."""
    return {"type": "http.disconnect"}


def connect(receive: Callable[[], Awaitable[Message]], timeout_s: float = 60.0) -> ClientConnection:
    return ClientConnection(receive, Intake(1), timeout_s)


def test_work_that_ends_gives_its_result() -> None:
    async def answer() -> int:
        return 42

    assert asyncio.run(connect(connected).run(answer())) == 42


def test_an_error_of_the_work_is_the_callers() -> None:
    async def fail() -> None:
        raise OverloadedError("full")

    with pytest.raises(OverloadedError):
        asyncio.run(connect(connected).run(fail()))


def test_a_hang_up_cancels_the_work() -> None:
    work = Work()
    with pytest.raises(ClientGoneError):
        asyncio.run(connect(gone).run(work.run()))
    assert work.was_cancelled


def test_the_deadline_cancels_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_connection, "ROUTER_GRACE_S", 0.0)
    work = Work()
    with pytest.raises(RequestTimeoutError):
        asyncio.run(connect(connected, timeout_s=0.01).run(work.run()))
    assert work.was_cancelled


def test_a_cut_off_cancels_the_work() -> None:
    work = Work()

    async def cut_off() -> None:
        intake = Intake(1)
        intake.cut_off()
        await ClientConnection(connected, intake, 60.0).run(work.run())

    with pytest.raises(UnavailableError):
        asyncio.run(cut_off())
    assert work.was_cancelled


def test_trouble_on_the_way_out_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def stumble() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            raise ZeroDivisionError("while leaving")

    with pytest.raises(ClientGoneError):
        asyncio.run(connect(gone).run(stumble()))
    assert "could not be ended cleanly" in caplog.text


def test_the_intake_knows_when_it_is_idle() -> None:
    async def scenario() -> list[bool]:
        intake = Intake(2)
        seen = [await intake.try_wait_until_idle(0.0)]
        with intake.admit():
            seen.append(await intake.try_wait_until_idle(0.0))
        seen.append(await intake.try_wait_until_idle(0.0))
        return seen

    assert asyncio.run(scenario()) == [True, False, True]


@pytest.mark.parametrize("is_closed", [True, False])
def test_the_intake_refuses_when_closed_or_full(is_closed: bool) -> None:
    intake = Intake(1)
    error: type[Any] = UnavailableError if is_closed else OverloadedError
    with intake.admit():
        if is_closed:
            intake.close()
        with pytest.raises(error), intake.admit():
            pass
