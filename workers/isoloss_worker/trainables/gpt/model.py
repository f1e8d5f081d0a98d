"""A decoder-only transformer, small enough to read whole.

Pre-norm blocks (RMSNorm), rotary positions, GELU MLP of four widths, no biases, untied readout, heads of a fixed
width so that attention means the same at every size. Initial variance is 1 / fan_in (standard parameterization).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any, Final, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

BYTES: Final = 256  # the vocabulary of text
MOST_SHAPES: Final = 256  # graphs one process keeps, of one region


class Block(nn.Module):
    """Attention and MLP, each behind a norm and beside a residual."""

    def __init__(self, width: int, head_width: int) -> None:
        super().__init__()
        self.heads = width // head_width
        self.norm_attention, self.norm_mlp = nn.RMSNorm(width), nn.RMSNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.up = nn.Linear(width, 4 * width, bias=False)
        self.down = nn.Linear(4 * width, width, bias=False)

    def forward(self, x: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
        """Activations in, activations out, (batch, length, width); ``turn`` is ``rotation``'s cosines and sines."""
        batch, length, width = x.shape
        qkv = self.qkv(self.norm_attention(x)).view(batch, length, 3, self.heads, width // self.heads)
        qkv = qkv.permute(2, 0, 3, 1, 4)
        q, k = _turned(qkv[:2], turn)
        mixed = F.scaled_dot_product_attention(q, k, qkv[2], is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, length, width))
        widened: Tensor = F.gelu(self.up(self.norm_mlp(x)), approximate="tanh")
        return x + cast("Tensor", self.down(widened))


class Gpt(nn.Module):
    """Tokens in, the loss of the next token out."""

    def __init__(self, *, width: int, depth: int, head_width: int, context: int, vocabulary: int = BYTES) -> None:
        super().__init__()
        self.compiled = False  # set it to train through compiled regions
        self.embedding = nn.Embedding(vocabulary, width)
        self.blocks = nn.ModuleList(Block(width, head_width) for _ in range(depth))
        self.norm = nn.RMSNorm(width)
        self.readout = nn.Linear(width, vocabulary, bias=False)
        cosines, sines = rotation(context, head_width)
        self.register_buffer("cosines", cosines, persistent=False)
        self.register_buffer("sines", sines, persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """The mean loss in nats of ``tokens[:, 1:]``; ``tokens`` is (batch, context + 1)."""
        # Without gradients it would be another graph to compile, for a few passes: evaluation is never compiled.
        region = compiled if self.compiled and torch.is_grad_enabled() else _as_it_is
        inputs, targets = tokens[:, :-1], tokens[:, 1:]
        x = self.embedding(inputs)
        for block in self.blocks:
            x = region(Block.forward)(block, x, (self.cosines, self.sines))
        return cast("Tensor", region(next_token_loss)(x, self.norm, self.readout, targets))

    @torch.no_grad()
    def initialise(self, seed: int) -> None:
        """Draw every weight from ``seed`` alone, in the order of the names, on the CPU."""
        generator = torch.Generator().manual_seed(seed)
        for name, weight in sorted(self.named_parameters()):
            if weight.ndim < 2:
                weight.fill_(1.0)
                continue
            deviation = 1.0 if name == "embedding.weight" else 1 / math.sqrt(weight.shape[1])
            weight.copy_(torch.randn(weight.shape, generator=generator) * deviation)


def next_token_loss(x: Tensor, norm: nn.Module, readout: nn.Module, targets: Tensor) -> Tensor:
    """The end of the model: norm, readout and mean loss, a region of its own since its logits are the largest tensor."""
    logits: Tensor = readout(norm(x))
    return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())


@cache
def compiled(region: Callable[..., Any]) -> Callable[..., Any]:
    """The function compiled, one graph for each shape: all blocks share it, and all models of a process."""
    import torch._dynamo

    torch._dynamo.config.recompile_limit = MOST_SHAPES  # noqa: SLF001 - a warm child meets every shape of a study
    return torch.compile(region, fullgraph=True, dynamic=False)


def _as_it_is(region: Callable[..., Any]) -> Callable[..., Any]:
    return region


def rotation(context: int, head_width: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the rotary positions (Su et al. 2021), each (context, head_width).

    The slowest pair turns once in some ten contexts; a base of 10,000, meant for thousands of tokens, learns later here.
    """
    base = 1.6 * context
    rates = base ** -(torch.arange(0, head_width, 2) / head_width)
    angles = torch.outer(torch.arange(context), rates).repeat(1, 2)
    return angles.cos(), angles.sin()


def _turned(x: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
    cosines, sines = turn
    first, second = x.chunk(2, dim=-1)
    return x * cosines + torch.cat((-second, first), dim=-1) * sines
