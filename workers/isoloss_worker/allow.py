"""What a worker may run. Deny by default: a study names its trainable, the worker's owner allows it, or it is refused."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from isoloss.domain.spec import Run
from isoloss.errors import NotAllowed
from isoloss.v1 import work_pb2
from isoloss_worker.gpus import GpuIds


@dataclass(frozen=True, slots=True, kw_only=True)
class AllowList:
    """Functions ``module:name`` and command prefixes; the built-in GPT is always allowed."""

    functions: tuple[str, ...] = ()
    command_prefixes: tuple[str, ...] = ()
    everything: bool = False

    def check(self, run: Run) -> None:
        """Raise ``NotAllowed`` unless this worker may run it."""
        if self.everything or run.gpt is not None:
            return
        if run.function is not None and run.function not in self.functions:
            accepted = ", ".join(self.functions) or "none"
            raise NotAllowed(
                f"run.function is {run.function!r}; accepted on this worker: {accepted}.",
                hint="Start it with --allow module:function.",
            )
        if run.command is not None and not any(_begins(run.command, prefix) for prefix in self.command_prefixes):
            accepted = ", ".join(map(repr, self.command_prefixes)) or "none"
            raise NotAllowed(
                f"run.command is {shlex.join(run.command)!r}; accepted on this worker are commands that begin with: "
                f"{accepted}.",
                hint="Start it with --allow-command PREFIX.",
            )

    def message(self, shares: Sequence[GpuIds], nodes: int = 1) -> work_pb2.Allowed:
        """As the controller is told, for slots with these GPUs each; a task may have those of all, if each is one slot's."""
        gpus, of_all = min(map(len, shares), default=0), [gpu for share in shares for gpu in share]
        most_gpus = gpus * (len(shares) if len({*of_all}) == len(of_all) else 1)
        return work_pb2.Allowed(
            everything=self.everything, functions=self.functions, command_prefixes=self.command_prefixes, gpt=True,
            gpus=gpus, most_gpus=most_gpus, nodes=nodes,
        )  # fmt: skip


def _begins(command: tuple[str, ...], prefix: str) -> bool:
    words = tuple(shlex.split(prefix))
    return bool(words) and command[: len(words)] == words
