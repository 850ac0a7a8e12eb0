"""Batches of tokens: the loaders of images over a `TokenSource`. Order, plan, ring and ledger are theirs."""

from __future__ import annotations

from typing import Any, Protocol

import torch

from restrain.data.batches import EvalBatch, MicroBatch
from restrain.data.loader import EvalLoader, TrainLoader
from restrain.data.order import Order, Plan
from restrain.data.rows import TokenRows
from restrain.data.text.source import TokenSource


class _Handed(Protocol):
    images: torch.Tensor
    labels: torch.Tensor


class _Tokens:
    """What a batch of tokens is read by. Views of a buffer that is reused, as in `MicroBatch`."""

    @property
    def tokens(self: _Handed) -> torch.Tensor:
        """int64 [b, T + 1]."""
        return self.images

    @property
    def inputs(self: _Handed) -> torch.Tensor:
        """int64 [b, T]: all but the last."""
        return self.images[:, :-1]

    @property
    def targets(self: _Handed) -> torch.Tensor:
        """int64 [b, T]: the token after each input."""
        return self.images[:, 1:]

    @property
    def documents(self: _Handed) -> torch.Tensor | None:
        """int32 [b, T + 1]: the number of each token's document in its window, from 0; None where not asked for.

        Attention stays inside a document where ``documents[:, :, None] == documents[:, None, :]``.
        """
        return self.labels if self.labels.shape[1] else None


class TokenMicroBatch(_Tokens, MicroBatch):
    """Rows ``row`` to ``row + b`` of a step, as ``tokens``, ``inputs``, ``targets`` and ``documents``."""


class TokenEvalBatch(_Tokens, EvalBatch):
    """Windows of an evaluation, ``valid`` false for padding."""


class TokenLoader(TrainLoader):
    """The steps [start, stop) of a run over windows of tokens; its micro-batches are `TokenMicroBatch`.

    A window whose bytes have rotted is replaced by the next of its shard, as an image is (``replaced``), within
    ``max_bad``. Resuming needs the step alone.
    """

    micro_batch = TokenMicroBatch

    def __init__(self, source: TokenSource, order: Order, plan: Plan, **settings: Any):
        """settings: rank, world, micro, start, stop, threads; max_bad, pin, laps as `TrainLoader`'s."""
        super().__init__(source, order, plan, TokenRows(source.context, source.documents), seed=order.seed, **settings)


class TokenEvalLoader(EvalLoader):
    """Every window of a set once, in its own order; its batches are `TokenEvalBatch`."""

    eval_batch = TokenEvalBatch

    def __init__(self, source: TokenSource, **settings: Any):
        """settings: rank, world, batch, threads; max_bad, pin as `EvalLoader`'s."""
        super().__init__(source, TokenRows(source.context, source.documents), **settings)
