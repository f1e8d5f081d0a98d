"""All boards there are, in the order of the tabs."""

from __future__ import annotations

from typing import Final

from isoloss.dash import campaign_board, preference_board, studies_board, workers_board
from isoloss.dash.panels import Board

BOARDS: Final[tuple[Board, ...]] = (
    campaign_board.BOARD,
    studies_board.BOARD,
    preference_board.BOARD,
    workers_board.BOARD,
)
BY_ID: Final = {board.id: board for board in BOARDS}
