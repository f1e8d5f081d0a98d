"""Merging models: three tuned copies of one small network, and the coefficients with which their changes are added.

A network predicts the next character from the last eight. It is trained a little on everything, then a copy is tuned on each of
three tasks: prose (documentation), code (source), sums. What the tuning changed is a task vector; a merged model adds the three
with a coefficient each, the parameters of ``merging.yaml``, and is measured on held-out text of all three. All of it takes a
second or two, is the same every time, and needs torch.
"""

import functools
import importlib
import inspect
import random
import string
from typing import Any

import torch
from retrieval import DOCUMENTS

TASKS = ("prose", "code", "sums")
ALPHABET = {character: place for place, character in enumerate(string.printable)}
CONTEXT, WIDTH, BATCH = 8, 64, 256
Network = list[torch.Tensor]


def text_of(task: str) -> str:
    """A text of the task, the same every time."""
    if task == "prose":
        return "\n".join(text for texts in DOCUMENTS.values() for text in texts)
    if task == "code":
        return "\n".join(
            inspect.getsource(importlib.import_module(name)) for name in ("ast", "json.decoder", "heapq", "csv")
        )
    draw = random.Random(0)
    pairs = ((draw.randrange(100), draw.randrange(100)) for _ in range(8000))
    return "\n".join(f"{a}+{b}={a + b}" for a, b in pairs)


@functools.cache
def examples(task: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Contexts and the characters that follow: the last fifth is held out."""
    codes = torch.tensor([ALPHABET[c] for c in text_of(task) if c in ALPHABET][:60_000])
    return codes.unfold(0, CONTEXT, 1)[:-1], codes[CONTEXT:]


def loss_of(network: Network, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    embedding, hidden, bias, out = network
    activity = torch.tanh(embedding[inputs].flatten(1) @ hidden + bias)
    return torch.nn.functional.cross_entropy(activity @ out, targets)


def trained(network: Network, tasks: tuple[str, ...], steps: int) -> Network:
    """A copy after so many steps of Adam on these tasks in turn."""
    copy = [tensor.clone().requires_grad_() for tensor in network]
    optimizer, draw = torch.optim.Adam(copy, lr=3e-3), torch.Generator().manual_seed(1)
    for step in range(steps):
        inputs, targets = examples(tasks[step % len(tasks)])
        chosen = torch.randint(len(inputs) * 4 // 5, (BATCH,), generator=draw)
        optimizer.zero_grad()
        loss_of(copy, inputs[chosen], targets[chosen]).backward()
        optimizer.step()
    return [tensor.detach() for tensor in copy]


@functools.cache
def networks() -> tuple[Network, dict[str, Network]]:
    """The base network, and the task vectors."""
    draw = torch.Generator().manual_seed(0)
    shapes = ((len(ALPHABET), 16), (16 * CONTEXT, WIDTH), (WIDTH,), (WIDTH, len(ALPHABET)))
    base = trained([0.1 * torch.randn(shape, generator=draw) for shape in shapes], TASKS, 300)
    tuned = {task: trained(base, (task,), 200) for task in TASKS}
    return base, {task: [t - b for t, b in zip(tuned[task], base, strict=True)] for task in TASKS}


def main(trial: Any) -> dict[str, float]:
    """The function: ``run: {function: "merging:main"}``."""
    torch.set_num_threads(1)
    base, vectors = networks()
    merged = [
        tensor + sum(trial.params[task] * vectors[task][place] for task in TASKS) for place, tensor in enumerate(base)
    ]
    losses = {}
    with torch.no_grad():
        for task in TASKS:
            inputs, targets = examples(task)
            held_out = slice(len(inputs) * 4 // 5, None)
            losses[f"{task}_loss"] = float(loss_of(merged, inputs[held_out], targets[held_out]))
    trial.report(1, **losses)
    return losses
