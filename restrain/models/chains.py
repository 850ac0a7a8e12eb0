"""Which blocks of a network follow one another directly, seen by watching a forward pass.

Between two blocks of a chain nothing happens to the stream: the second is given what the first returned, beside
arguments that both share, and nobody else looks at it. Such blocks can be computed by one call.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from restrain.models.blocks import ResidualBlock, residual_blocks


def chains(model: nn.Module, inputs: Tensor) -> list[list[str]]:
    """Names of the blocks that ``model`` calls once with ``inputs``, in the order of the forward pass, cut where the
    stream is seen between two of them. A model on the meta device computes nothing.
    """
    watch = _Watch(model)
    with torch.no_grad(), watch:
        model(inputs)
    watch.remove()
    found: list[list[str]] = []
    for number, call in enumerate(watch.calls):
        if sum(other.name == call.name for other in watch.calls) > 1:
            continue
        if found and number and found[-1][-1] == watch.calls[number - 1].name and watch.linked(number):
            found[-1].append(call.name)
        else:
            found.append([call.name])
    return found


class _Call:
    """One block's turn in the forward pass."""

    def __init__(self, name: str, arguments: tuple[Any, ...], options: dict[str, Any]):
        self.name, self.arguments, self.options = name, arguments, options
        self.result: Any = None
        self.strayed = False  # whether something but the next block has used the result


class _Watch(TorchDispatchMode):
    """Notes the calls of blocks, and which operations use what they return."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.calls: list[_Call] = []
        self.depth = 0
        self.made: dict[int, int] = {}  # id of a result, which its call keeps alive -> number of the call
        self.hooks: list[Any] = []
        for name, block in residual_blocks(model):
            self.hooks.append(block.register_forward_pre_hook(self._entering(name), with_kwargs=True))
            self.hooks.append(block.register_forward_hook(self._leaving))

    def remove(self) -> None:
        for hook in self.hooks:
            hook.remove()

    def _entering(self, name: str) -> Any:
        def hook(block: ResidualBlock, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
            if not self.depth:
                self.calls.append(_Call(name, arguments, options))
            self.depth += 1

        return hook

    def _leaving(self, block: ResidualBlock, arguments: tuple[Any, ...], result: Any) -> None:
        self.depth -= 1
        if not self.depth:
            self.calls[-1].result = result
            self.made.update({id(t): len(self.calls) - 1 for t in tree_leaves(result) if isinstance(t, Tensor)})

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        self._used(tree_leaves((args, kwargs)))
        return func(*args, **kwargs)

    def _used(self, values: Iterable[Any]) -> None:
        now = len(self.calls) - 1
        for value in values:
            maker = self.made.get(id(value))
            if maker is not None and not (self.depth and maker == now - 1):
                self.calls[maker].strayed = True

    def linked(self, number: int) -> bool:
        """Whether the call ``number`` takes what the one before it returned, and both share all other arguments."""
        one, two = self.calls[number - 1], self.calls[number]
        if one.strayed or not isinstance(one.result, Tensor) or not two.arguments or two.arguments[0] is not one.result:
            return False
        mine, theirs = ((call.arguments[1:], call.options) for call in (one, two))
        if len(mine[0]) != len(theirs[0]) or mine[1].keys() != theirs[1].keys():
            return False
        pairs = [*zip(mine[0], theirs[0], strict=True), *((value, theirs[1][key]) for key, value in mine[1].items())]
        return all(a is b or (not isinstance(a, Tensor) and not isinstance(b, Tensor) and a == b) for a, b in pairs)
