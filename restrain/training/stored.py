"""Tensors of a file or a checkpoint, told of by their shapes and read box by box: a network that is cut over ranks may
fit into none of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from restrain.errors import UserError, WorldError
from restrain.parallel.held import index_of
from restrain.run import checkpoint

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Stored:
    """``described``: a tensor of each one's shape, on the meta device. ``part``: (name, offset, shape) -> that box of
    it, in the number format that it is stored in."""

    described: Mapping[str, Tensor]
    part: Callable[[str, Shape, Shape], Tensor]

    def whole(self, name: str) -> Tensor:
        shape = tuple(self.described[name].shape)
        return self.part(name, (0,) * len(shape), shape)

    def all(self) -> dict[str, Tensor]:
        """Every tensor, whole, at once."""
        return {name: self.whole(name) for name in self.described}


def _described(shapes: Mapping[str, Shape]) -> dict[str, Tensor]:
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


@contextmanager
def of_file(path: Path) -> Iterator[Stored]:
    """A safetensors file.

    Raises:
        UserError: it is none, or not whole.
        WorldError: it cannot be read.
    """
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            names = list(file.keys())
            described = _described({name: tuple(file.get_slice(name).get_shape()) for name in names})

            def part(name: str, offset: Shape, shape: Shape) -> Tensor:
                if tuple(described[name].shape) == shape:
                    return file.get_tensor(name)
                return file.get_slice(name)[index_of(offset, shape)]

            yield Stored(described, part)
    except SafetensorError as error:
        raise UserError(f"model.init.from: {path} is no whole safetensors file ({error}).") from None
    except OSError as error:
        raise WorldError(f"model.init.from: {path} cannot be read ({error.strerror}).") from None


@contextmanager
def of_checkpoint(path: Path, kinds: tuple[str, ...]) -> Iterator[Stored]:
    """The tensors of some kinds of a run's checkpoint, without the kind in their names.

    Raises:
        WorldError: it cannot be read.
    """
    with checkpoint.Reader(path) as reader:
        names = {name.rpartition("|")[0]: name for name in reader.names() if name.rpartition("|")[2] in kinds}

        def part(name: str, offset: Shape, shape: Shape) -> Tensor:
            found = torch.empty(shape, dtype=reader.dtype(names[name]))
            reader.read_into(names[name], found, offset)
            return found

        yield Stored(_described({name: reader.shape(stored) for name, stored in names.items()}), part)
