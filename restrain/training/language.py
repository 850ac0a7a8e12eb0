"""Language models as a Lightning module: what comes next, or what was masked.

Shapes: B windows, T tokens that the model sees, V outputs a token (the vocabulary, or more).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from restrain import draws
from restrain.data.mix import MixDraw
from restrain.data.text.nothing import NOTHING
from restrain.draws import Purpose
from restrain.training.task import Example, Task, hits

TOP5_ABOVE = 10


@dataclass(frozen=True)
class MaskedTokens:
    """BERT's rule (Devlin et al. 2019, arXiv:1810.04805, section 3.1 and appendix A.1), its draws from keys.

    Of the T tokens of a window, padding apart, ``max(1, round(rate T))`` are to be found out: 80 % of these become the
    token ``mask``, 10 % one of the ``mask`` tokens below it, and 10 % stay as they are.
    """

    mask: int
    rate: float = 0.15
    hidden: float = 0.8
    wrong: float = 0.1

    def __call__(self, tokens_BT: Tensor, keys_B: Tensor) -> tuple[Tensor, Tensor]:
        """(what the model sees, what it is to find there or NOTHING), int64 [B, T]; ``keys_B``: int64, one a row."""
        tokens = tokens_BT.shape[1]
        keys_BT = draws.extend_torch(keys_B[:, None], torch.arange(tokens, device=tokens_BT.device))
        # Padding is never chosen: its keys are the largest.
        ranked = torch.where(tokens_BT == NOTHING, torch.iinfo(torch.int64).max, keys_BT)
        wanted_B = (self.rate * (tokens_BT != NOTHING).sum(1).double()).round().clamp(min=1.0)
        is_chosen = (ranked.argsort(1).argsort(1) < wanted_B[:, None]) & (tokens_BT != NOTHING)
        fate = draws.uniform_torch(draws.extend_torch(keys_BT, 1))
        other = draws.integers_torch(draws.extend_torch(keys_BT, 2), self.mask)
        shown = torch.where(fate < self.hidden + self.wrong, other, tokens_BT)
        shown = torch.where(fate < self.hidden, self.mask, shown)
        return torch.where(is_chosen, shown, tokens_BT), torch.where(is_chosen, tokens_BT, NOTHING)


class Language(Task):
    """A language model: ``model`` maps tokens [B, T] to logits [B, T, V].

    A row is a window of T + 1 tokens, of which the model sees the first T and says the token after each; with
    ``masked`` it sees the first T with some of them masked, and says these. The loss of a row is the mean over the
    tokens that it says, in nats.

    A plain Lightning module with automatic optimisation: it trains under any ``lightning.Trainer`` with any loader of
    int64 windows [B, T + 1], alone or the first of a tuple. Under ``restrain train`` the step of
    :class:`restrain.training.step.Run` holds it.

    Args:
        model: the network.
        smoothing: of the training loss; evaluations are always in nats a token.
        masked: which tokens are masked; None: the next token is learned.
        seed: of the masks.
        optimizer: makes the optimizer under a plain Trainer; AdamW at 1e-3 when not given.
    """

    one_label: ClassVar[bool] = False

    def __init__(
        self,
        model: nn.Module,
        smoothing: float = 0.0,
        masked: MaskedTokens | None = None,
        seed: int = 0,
        optimizer: Callable[[nn.Module], torch.optim.Optimizer] | None = None,
    ):
        super().__init__()
        self.model, self.smoothing, self.masked, self.seed = model, smoothing, masked, seed
        self.make_optimizer = optimizer

    def forward(self, tokens_BT: Tensor) -> Tensor:
        return self.model(tokens_BT)

    # ---------------------------------------------------------------------------------------------- of a run's step

    def example(
        self, samples: Tensor, labels: Tensor, mixed: MixDraw | None = None, step: int = 0, first: int = 0
    ) -> Example:
        if self.masked is None:
            return _next(samples)
        rows = torch.arange(first, first + len(samples), device=samples.device)
        return self._masked(samples, draws.extend_torch(_prefix(self.seed, Purpose.MASKED, step), rows))

    def question(self, samples: Tensor, labels: Tensor, index: Tensor) -> Example:
        if self.masked is None:
            asked = _next(samples)
        else:
            rows = index.to(samples.device)
            asked = self._masked(samples, draws.extend_torch(_prefix(self.seed, Purpose.MASKED_EVAL), rows))
        if getattr(self.model, "takes_padding", False):
            return asked
        return asked._replace(inputs=asked.inputs.clamp(min=0))  # what pads the last window is no token

    def _masked(self, samples: Tensor, keys_B: Tensor) -> Example:
        assert self.masked is not None
        shown, target = self.masked(samples[:, :-1], keys_B)
        return Example(shown, target, target)

    def rows(self, outputs: Tensor, target: Tensor) -> Tensor:
        """The mean over the tokens that a row says, [B], in fp32 or wider."""
        each = self._each(outputs, target, self.smoothing)
        return each.sum(-1) / (target != NOTHING).sum(-1).clamp(min=1)

    def correct(self, outputs: Tensor, answer: Tensor) -> Tensor:
        known = answer != NOTHING
        right = (outputs.argmax(-1) == answer) & known
        return (right.sum(-1, dtype=torch.float64) / known.sum(-1).clamp(min=1)).sum()

    def sums(self, outputs: Tensor, asked: Example, valid: Tensor) -> Tensor:
        answer = torch.where(valid[:, None], asked.answer, NOTHING)
        # where, not a product: a padded row may hold anything, and 0 x NaN is NaN
        loss = torch.where(answer != NOTHING, self._each(outputs, answer, 0.0).double(), 0.0).sum()
        best, among = hits(outputs, answer, 5 if outputs.shape[-1] > TOP5_ABOVE else 1)
        counts = [best.sum(), among.sum(), (answer != NOTHING).sum(), valid.sum()]
        return torch.stack([loss, *(count.double() for count in counts)])

    def metrics(self, sums: Sequence[float], width: int) -> dict[str, float]:
        """``loss`` in nats a token, its exponential ``perplexity``, ``top1`` (percent of tokens), ``count`` of tokens
        and, above ten outputs, ``top5``."""
        loss, top1, top5, tokens, _ = sums
        mean = loss / tokens
        perplexity = math.exp(mean) if mean < 700 else math.inf
        found = {"loss": mean, "perplexity": perplexity, "top1": 100.0 * top1 / tokens, "count": int(tokens)}
        return found | ({"top5": 100.0 * top5 / tokens} if width > TOP5_ABOVE else {})

    def blank(self, rows: int, shape: Sequence[int], device: torch.device) -> Tensor:
        return torch.zeros(rows, shape[0] - 1, dtype=torch.int64, device=device)

    def _each(self, logits_BTV: Tensor, target_BT: Tensor, smoothing: float) -> Tensor:
        """The loss of each token, [B, T]; 0 where the target is NOTHING."""
        logits = logits_BTV if logits_BTV.dtype == torch.float64 else logits_BTV.float()
        flat = F.cross_entropy(
            logits.flatten(0, 1), target_BT.flatten(), ignore_index=NOTHING, label_smoothing=smoothing, reduction="none"
        )
        return flat.view(target_BT.shape)

    # ------------------------------------------------------------------------------- under a plain lightning.Trainer

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        tokens = _tokens(batch)
        example = self.example(tokens, tokens, None, self.global_step)
        logits = self(example.inputs)
        loss = self.rows(logits, example.target).mean()
        self.log("train/loss", loss)
        self.log("train/top1", 100.0 * self.correct(logits.detach(), example.answer) / len(tokens), prog_bar=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        tokens = _tokens(batch)
        first = batch_idx * len(tokens)
        asked = self.question(tokens, tokens, torch.arange(first, first + len(tokens)))
        logits = self(asked.inputs)
        sums = self.sums(logits, asked, torch.ones(len(tokens), dtype=torch.bool, device=tokens.device))
        found = self.metrics(sums.tolist(), logits.shape[-1])
        for name in ("loss", "top1"):
            self.log(f"eval/{name}", found[name], batch_size=int(found["count"]), prog_bar=True, sync_dist=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        if self.make_optimizer is not None:
            return self.make_optimizer(self.model)
        return torch.optim.AdamW(self.model.parameters(), lr=1e-3)


def _next(samples: Tensor) -> Example:
    """The token after each; NOTHING where a window ends early."""
    target = samples[:, 1:]
    return Example(samples[:, :-1], target, target)


def _prefix(*key: int) -> int:
    return draws.signed(draws.key(*key))


def _tokens(batch: Any) -> Tensor:
    return batch[0] if isinstance(batch, (tuple, list)) else batch
