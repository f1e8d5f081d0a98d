"""A line: those who want the same kind of thing stand in it and are served together, one pass for all of them.

While a pass is under way newcomers gather for the next one, so the busier a controller is, the more each transaction
carries. Whoever is not served stands on until their patience ends, and is served again when something may have changed.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from isoloss.errors import IsolossError, Unreachable

W = TypeVar("W")
A = TypeVar("A")
MOST: Final = 400  # served in one pass
LOOK_AGAIN_SECONDS: Final = 1.0
LONGEST_GATHER_SECONDS: Final = 0.02  # where a round takes longer, nobody who came is kept for others that long
HOPE: Final = 0.01  # regained by a round that hopes for nobody: one in twenty-five looks whether they come again now
PAUSE_SECONDS: Final = 0.01  # between two rounds for the same people


@dataclass(slots=True, eq=False)
class _Standing(Generic[W, A]):
    want: W
    until: float
    answer: asyncio.Future[A | None]


class Line(Generic[W, A]):
    """``serve`` answers each of many wants, in their order; ``None`` lets one stand on, if it has the patience.

    It answers an error where one call is wrong. An error it raises for many is found again for whom it is meant: they are
    then served one by one, unless nobody can be served now (``Unreachable``).
    """

    def __init__(self, serve: Callable[[Sequence[W]], Awaitable[Sequence[A | IsolossError | None]]]) -> None:
        self._serve = serve
        self._standing: list[_Standing[W, A]] = []
        self._come = 0  # since the last round began
        self._expected, self._all_come = 0, asyncio.Event()
        self._hope = 1.0  # that those who were answered come again at once
        self._took = 0.0  # seconds of the last round
        self._news = asyncio.Event()
        self._passes: asyncio.Task[None] | None = None
        self._closed = False

    async def stand(self, want: W, *, seconds: float = 0.0) -> A | None:
        """What the want is answered within so many seconds, or ``None``."""
        loop = asyncio.get_running_loop()
        one = _Standing[W, A](want, 0.0 if self._closed else loop.time() + seconds, loop.create_future())
        self._standing.append(one)
        self._come += 1
        if self._come >= self._expected:
            self._all_come.set()
        self._news.set()
        if self._passes is None or self._passes.done():
            self._passes = loop.create_task(self._work())
        return await one.answer

    def look(self) -> None:
        """Something has changed: whoever stands here may be served now."""
        self._news.set()

    def close(self) -> None:
        """Nobody is to wait any longer, from now on."""
        self._closed = True
        for one in self._standing:
            one.until = 0.0
        self._news.set()

    @property
    def waiting(self) -> int:
        """How many stand here."""
        return len(self._standing)

    async def _work(self) -> None:
        """Rounds until nobody stands here; whoever went away, and whose call is cancelled, is passed over."""
        loop = asyncio.get_running_loop()
        while True:
            await self._gather()
            self._standing = [one for one in self._standing if not one.answer.done()]
            if not self._standing:
                return
            self._news.clear()
            served, begun = list(self._standing), loop.time()
            for first in range(0, len(served), MOST):
                await self._pass(served[first : first + MOST])
            now = loop.time()
            self._took, answered = now - begun, sum(one.answer.done() for one in served)
            self._expected = self._come + (answered if self._hope >= 0.5 else 0)
            for one in served:
                if not one.answer.done() and now >= one.until:
                    one.answer.set_result(None)
            patient = [one.until for one in served if not one.answer.done()]
            if patient:
                await asyncio.sleep(PAUSE_SECONDS)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(max(0.0, min(LOOK_AGAIN_SECONDS, min(patient) - now))):
                        await self._news.wait()

    async def _gather(self) -> None:
        """Wait for all who come in this moment, and for those just answered, if they are wont to come again within a round.

        Else two rounds would go on in turn, one for a single caller and one for all the others, at twice the price.
        """
        await asyncio.sleep(0)
        if self._come >= self._expected:
            self._hope = min(1.0, self._hope + HOPE)
        else:
            self._all_come.clear()
            try:
                async with asyncio.timeout(min(self._took, LONGEST_GATHER_SECONDS)):
                    await self._all_come.wait()
                self._hope = 1.0
            except TimeoutError:
                self._hope /= 2
        self._come = 0

    async def _pass(self, served: Sequence[_Standing[W, A]]) -> None:
        try:
            answers = await self._serve([one.want for one in served])
        except Exception as error:  # noqa: BLE001 - it is the callers' to hear
            if len(served) > 1 and not isinstance(error, Unreachable):
                for one in served:
                    await self._pass([one])
                return
            for one in served:
                if not one.answer.done():
                    one.answer.set_exception(error)
            return
        for one, answer in zip(served, answers, strict=True):
            if answer is None or one.answer.done():
                continue
            if isinstance(answer, IsolossError):
                one.answer.set_exception(answer)
            else:
                one.answer.set_result(answer)
