"""Lines: who stands together is served together."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from isoloss.controller.line import Line
from isoloss.errors import InvalidSpec, IsolossError, StoreUnavailable


def test_who_is_answered_together_comes_again_together() -> None:
    async def body() -> None:
        rounds = list[int]()

        async def serve(wants: Sequence[int]) -> list[int]:
            rounds.append(len(wants))
            await asyncio.sleep(0.02)
            return list(wants)

        line = Line[int, int](serve)

        async def caller(number: int) -> None:
            for _ in range(20):
                assert await line.stand(number) == number
                await asyncio.sleep(0.002 * number)

        await asyncio.gather(*(caller(number) for number in range(4)))
        assert len(rounds) < 32, "40 when the first goes alone and the three others after it"

    asyncio.run(body())


def test_nobody_is_waited_for_who_does_not_come() -> None:
    async def body() -> None:
        hopes = list[float]()
        line = Line[int, int](lambda wants: asyncio.sleep(0.001, list(wants)))
        for _ in range(20):
            await asyncio.gather(line.stand(1), line.stand(2))
            await asyncio.gather(line.stand(1))  # the second is away for longer than a round takes
            await asyncio.sleep(0.01)
            hopes.append(line._hope)
        assert sum(hope < 0.5 for hope in hopes) > 10

    asyncio.run(body())


def test_an_error_is_heard_by_whom_it_concerns_alone() -> None:
    async def body() -> None:
        async def serve(wants: Sequence[int]) -> list[int | IsolossError]:
            if 13 in wants:
                raise InvalidSpec("13 is none.")
            return [InvalidSpec("7 is none.") if want == 7 else want for want in wants]

        line = Line[int, int](serve)
        found = await asyncio.gather(*(line.stand(n) for n in (1, 7, 13)), return_exceptions=True)
        assert found[0] == 1 and [str(error) for error in found[1:]] == ["7 is none.", "13 is none."]

    asyncio.run(body())


def test_nobody_is_served_alone_where_nobody_can_be_served() -> None:
    async def body() -> None:
        rounds = list[int]()

        async def serve(wants: Sequence[int]) -> list[int]:
            rounds.append(len(wants))
            raise StoreUnavailable("Postgres does not answer.")

        line = Line[int, int](serve)
        found = await asyncio.gather(*(line.stand(n) for n in range(5)), return_exceptions=True)
        assert rounds == [5] and all(isinstance(error, StoreUnavailable) for error in found)

    asyncio.run(body())


@pytest.mark.parametrize("seconds", [0.0, 0.05])
def test_who_is_not_served_stands_on_while_their_patience_lasts(seconds: float) -> None:
    async def body() -> None:
        rounds = list[int]()

        async def serve(wants: Sequence[int]) -> list[None]:
            rounds.append(len(wants))
            return [None] * len(wants)

        line = Line[int, int](serve)
        assert await line.stand(1, seconds=seconds) is None
        assert len(rounds) == 1 if not seconds else len(rounds) > 1

    asyncio.run(body())
