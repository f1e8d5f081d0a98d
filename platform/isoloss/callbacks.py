"""Callbacks for trainers of Hugging Face and Lightning: they report, end at the budget, and save when told to leave.

    trainer = transformers.Trainer(…, callbacks=[isoloss.callbacks.transformers()])
    trainer = lightning.Trainer(…, callbacks=[isoloss.callbacks.lightning()])

Outside of a trial they do nothing. The unit of the study is the optimizer's step, unless ``unit`` says how many of it a
step is, such as tokens. Resume from ``isoloss.current_trial().resume_from``, as each of the two libraries does it.
"""

from __future__ import annotations

import math
import shutil
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from isoloss.client.current import DONE, PREEMPTED, CurrentTrial, current_trial
from isoloss.errors import InvalidSpec

LIGHTNING_FILE: Final = "trainer.ckpt"


def transformers(*, unit: float = 1.0) -> Any:
    """A ``transformers.TrainerCallback``; the last checkpoint of ``output_dir`` becomes the trial's."""
    from transformers import TrainerCallback

    class Callback(TrainerCallback):
        """Reports logs and evaluations."""

        def __init__(self) -> None:
            self.run = _Run(unit)

        def on_train_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
            self.run.listen()

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **more: Any) -> None:
            self.run.report(state.global_step, logs or {})

        def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
            if self.run.ends(state.global_step):
                control.should_log = control.should_save = control.should_training_stop = True
                control.should_evaluate = not self.run.asked

        def on_save(self, args: Any, state: Any, control: Any, **more: Any) -> None:
            if state.is_world_process_zero:
                self.run.keep(Path(args.output_dir) / f"checkpoint-{state.global_step}", state.global_step)

        def on_train_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
            self.run.leave()

    return Callback()


def lightning(*, unit: float = 1.0) -> Any:
    """A ``lightning.Callback``; ``trainer.ckpt`` in the trial's folder is what ``fit(ckpt_path=…)`` takes."""
    from lightning.pytorch import Callback as Base

    class Callback(Base):
        """Reports ``callback_metrics``."""

        def __init__(self) -> None:
            self.run = _Run(unit)

        def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
            self.run.listen()

        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            if trainer.is_global_zero and trainer.global_step % trainer.log_every_n_steps == 0:
                self.run.report(trainer.global_step, trainer.callback_metrics)
            self.run.asked |= trainer.received_sigterm  # it has a handler of its own, and raises before the next batch
            if self.run.asked and self.run.trial.active:
                self.save(trainer)
                self.run.leave()
            trainer.should_stop |= self.run.ends(trainer.global_step)

        def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
            if trainer.is_global_zero and not trainer.sanity_checking:
                self.run.report(trainer.global_step, trainer.callback_metrics)

        def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
            self.save(trainer)

        def save(self, trainer: Any) -> None:
            """Save the state as the trial's, on every rank: each may write a shard."""
            if self.run.trial.save_to is not None:
                trainer.save_checkpoint(self.run.trial.save_to / LIGHTNING_FILE)
            if trainer.is_global_zero:
                self.run.done(trainer.global_step)

    return Callback()


class _Run:
    """What both know of the trial: where it ends, and whether it was told to leave."""

    def __init__(self, unit: float) -> None:
        if not unit > 0:
            raise InvalidSpec(f"unit is {unit:g}; accepted is a number above 0: how much of the budget a step is.")
        self.trial: CurrentTrial = current_trial()
        self.unit = unit
        self.asked = False

    def listen(self) -> None:
        """Remember SIGTERM, which means: save and leave."""
        if self.trial.active:
            signal.signal(signal.SIGTERM, self._ask)

    def _ask(self, *_: Any) -> None:
        self.asked = True

    def budget(self, step: int) -> int:
        """The budget that so many steps are."""
        return min(math.floor(step * self.unit + 0.5), self.trial.budget_to or sys.maxsize)

    def report(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Report what is a number."""
        numbers = {}
        for name, value in metrics.items():
            try:
                numbers[name] = float(value)
            except (TypeError, ValueError):
                continue
        if numbers and self.trial.active:
            self.trial.report(self.budget(step), **numbers)

    def ends(self, step: int) -> bool:
        """Whether this step is the last: the budget is reached, or it was told to leave."""
        return self.trial.active and (self.asked or step * self.unit >= self.trial.budget_to - 0.5)

    def keep(self, folder: Path, step: int) -> None:
        """Copy a library's own checkpoint into the trial's folder, complete or not at all."""
        if self.trial.save_to is None or not folder.is_dir():
            return
        self.trial.save_to.mkdir(parents=True, exist_ok=True)
        target = self.trial.save_to / folder.name
        if not target.exists():
            draft = self.trial.save_to / "draft"
            shutil.rmtree(draft, ignore_errors=True)
            shutil.copytree(folder, draft)
            draft.replace(target)
        self.done(step)
        steps = sorted(self.trial.save_to.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
        for old in steps[:-2]:  # the one before stays until this one is known
            shutil.rmtree(old, ignore_errors=True)

    def done(self, step: int) -> None:
        """Say that the trial's folder holds the state at this step."""
        if self.trial.save_to is not None:
            draft = self.trial.save_to / f"{DONE}.draft"
            draft.write_text(str(self.budget(step)))
            draft.replace(self.trial.save_to / DONE)

    def leave(self) -> None:
        """End as a preempted program does, when told to."""
        if self.trial.active and self.asked:
            sys.exit(PREEMPTED)
