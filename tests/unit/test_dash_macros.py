"""Grafana's macros, as the built-in page expands them."""

from __future__ import annotations

import pytest

from isoloss.dash.boards import BOARDS
from isoloss.dash.macros import Window, expand
from isoloss.dash.panels import Board
from isoloss.errors import InvalidSpec

WINDOW = Window(1000.0, 1900.0)


def test_times_and_variables_are_put_in_place() -> None:
    sql = expand(
        "WHERE $__timeFilter(at) AND c = ${campaign:sqlstring} AND at > $__timeFrom()", {"campaign": "a"}, WINDOW
    )
    assert (
        sql
        == "WHERE at BETWEEN to_timestamp(1000.000) AND to_timestamp(1900.000) AND c = 'a' AND at > to_timestamp(1000.000)"
    )


def test_a_group_of_time_is_a_bin_and_an_interval_is_round() -> None:
    sql = expand("$__timeGroupAlias(at,$__interval), $__interval_ms, interval '$__interval'", {}, WINDOW)
    assert "date_bin(interval '10 seconds', at, " in sql
    assert sql.endswith("AS \"time\", 10000, interval '10s'")


@pytest.mark.parametrize("name", ["o'hara", "'; DROP TABLE study; --", "$__timeFrom()", "${study:sqlstring}", "a$b"])
def test_a_name_stays_a_string_whatever_it_says(name: str) -> None:
    sql = expand("SELECT ${campaign:sqlstring}", {"campaign": name}, WINDOW)
    assert sql == "SELECT '" + name.replace("'", "''") + "'"


@pytest.mark.parametrize(
    "sql", ["SELECT $__timeTypo(at)", "SELECT ${nobody:sqlstring}", "SELECT $campaign", "${campaign}"]
)
def test_a_word_that_is_left_over_is_an_error(sql: str) -> None:
    with pytest.raises(InvalidSpec, match=r"has '\$"):
        expand(sql, {"campaign": "a"}, WINDOW)


@pytest.mark.parametrize("board", BOARDS, ids=lambda board: board.id)
def test_no_panel_has_a_word_left_over(board: Board) -> None:
    given = {variable.name: "x" for variable in board.variables}
    for sql in (board.span, *(panel.sql for panel in board.panels)):
        expand(sql, given, WINDOW)
        assert "dash_" in sql
