"""How much of an error arrives at each step of a recurrent network's past: why LSTMs have a residual stream.

Shapes: B rows, T steps, H hidden units.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from restrain.models import Join, named_joins


def gradient_norms(model: nn.Module, forward: Callable[[], Tensor], layer: int = 0) -> list[float]:
    """The norm of dE/dy_t for the stream y_t behind a layer's join at each of its T passes, the first step first.

    y is the cell c of an LSTM and the state h of a plain RNN. ``forward`` runs the model and returns E, of shape []; it
    reads no generator here. In float64 norms down to 1e-300 can be told from zero, in float32 down to 1e-38.
    """
    joins = [join for _, join in named_joins(model) if isinstance(join, Join)]
    stream: list[Tensor] = []

    def observe(join: Join, x: Tensor, branch: Tensor, y: Tensor) -> None:
        stream.append(y)

    join = joins[layer]
    join.observers.append(observe)
    try:
        error = forward()
    finally:
        join.observers.remove(observe)
    # Where a stream does not reach the error, as behind a closed gate, its gradient is absent: nothing arrives.
    found = torch.autograd.grad(error, stream, allow_unused=True)
    return [0.0 if one is None else float(torch.linalg.vector_norm(one)) for one in found]
