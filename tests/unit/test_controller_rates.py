"""How often a token may call, by a clock of the test's own."""

from __future__ import annotations

import pytest

from isoloss.controller import recent
from isoloss.controller.rates import of_guesses, of_tokens
from isoloss.errors import Busy


def test_a_token_calls_at_its_rate_after_a_burst_and_never_at_anothers_cost() -> None:
    now, told = [0.0], []
    limited = of_tokens(10.0, lambda: now[0])

    def calls(token_id: str) -> int:
        """How many calls are let in at this moment."""
        for count in range(1000):
            try:
                limited.take(token_id)
            except Busy as error:
                told.append(error.retry_seconds)
                return count
        return 1000

    assert calls("a") == 20, "two seconds' worth"
    now[0] += 0.35
    assert (calls("a"), calls("b")) == (3, 20)
    now[0] += 3600
    assert calls("a") == 20
    assert calls("") == 1000, "without tokens nobody is counted"
    assert told and all(0 < seconds <= 0.1 + 1e-9 for seconds in told)


def test_waiting_as_told_is_enough_and_a_refused_call_costs_nothing() -> None:
    now = [0.0]
    limited = of_tokens(4.0, lambda: now[0])
    for _ in range(8):
        limited.take("a")
    with pytest.raises(Busy, match="The token a makes more than 4 calls a second") as caught:
        limited.take("a")
    for _ in range(50):
        with pytest.raises(Busy):
            limited.take("a")
    now[0] += caught.value.retry_seconds
    limited.take("a")


def test_no_rate_is_no_limit_and_buckets_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(1000):
        of_tokens(0.0).take("a")
    monkeypatch.setattr(recent, "MOST", 3)
    limited = of_tokens(0.5, lambda: 0.0)
    for token_id in "abcd":
        limited.take(token_id)
    with pytest.raises(Busy):
        limited.take("d")
    limited.take("a")  # forgotten, so full again


def test_a_host_that_guesses_is_held_back_and_looking_costs_it_nothing() -> None:
    now = [0.0]
    guesses = of_guesses(lambda: now[0])
    for _ in range(10):
        guesses.check("10.0.0.1")
        guesses.take("10.0.0.1")
    for _ in range(3):
        with pytest.raises(Busy, match=r"10\.0\.0\.1 shows more than 5 unknown tokens a second"):
            guesses.check("10.0.0.1")
    guesses.check("10.0.0.2")
    now[0] += 0.21
    guesses.check("10.0.0.1")
    guesses.take("10.0.0.1")
    with pytest.raises(Busy):
        guesses.take("10.0.0.1")
