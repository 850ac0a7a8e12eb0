"""Predictions for images of one's own: a run's network, its evaluation's preprocessing, one row an image."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from restrain.data.augment import Pipeline
from restrain.data.images import DecodeError
from restrain.data.indexing import IMAGES
from restrain.errors import UserError
from restrain.training.classify import Classify
from restrain.training.inputs import image_sides, refuse_text
from restrain.training.loaded import Loaded
from restrain.training.preprocessing import class_names, eval_pipeline

BATCH = 64
THREADS = 4


@dataclass(frozen=True)
class Prediction:
    """``classes``: the best ones (names where they are known, else numbers), best first; ``shares``: their softmax.

    ``error``: why there is none, instead.
    """

    image: str
    classes: tuple[str, ...] = ()
    shares: tuple[float, ...] = ()
    error: str | None = None


def predict(loaded: Loaded, paths: Sequence[Path], top: int) -> Iterator[Prediction]:
    """One prediction an image, in the order of ``paths``; what a folder or a shard holds, in the order of names.

    Images are read a few batches ahead and never all held. One that cannot be read is a prediction with an ``error``.
    Raises UserError for a path that is not there, or ``top`` beyond the classes.
    """
    recipe = loaded.recipe
    refuse_text(recipe, "predict", f"Use restrain sample {loaded.located.run} --prompt TEXT.")
    if top > recipe.model.classes:
        raise UserError(f"--top {top}: the network has {recipe.model.classes} classes.")
    side = recipe.resolution.eval or image_sides(recipe)[0]
    pipeline = eval_pipeline(recipe, side)
    names = class_names(recipe) or [str(number) for number in range(recipe.model.classes)]
    task = Classify(loaded.model, None, recipe.data.mean, recipe.data.std)
    images = _images(paths)
    with ThreadPoolExecutor(THREADS) as pool:
        while batch := list(islice(images, BATCH)):
            made = list(pool.map(lambda item: _made(pipeline, *item), batch))
            yield from _predicted(task, [name for name, _ in batch], made, names, top)


def _predicted(
    task: Classify, images: list[str], made: list[np.ndarray | str], names: list[str], top: int
) -> Iterator[Prediction]:
    good = [one for one in made if not isinstance(one, str)]
    rows = iter(())
    if good:
        pixels = torch.from_numpy(np.stack(good)).permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)
        with torch.no_grad():
            found = task(pixels).float().softmax(-1).topk(top)
        rows = iter(zip(found.indices.tolist(), found.values.tolist(), strict=True))
    for image, one in zip(images, made, strict=True):
        if isinstance(one, str):
            yield Prediction(image, error=one)
        else:
            indices, shares = next(rows)
            yield Prediction(image, tuple(names[k] for k in indices), tuple(shares))


def _made(pipeline: Pipeline, name: str, stored: bytes | str) -> np.ndarray | str:
    """The pixels of an image, or why there are none."""
    if isinstance(stored, str):
        return stored
    out = np.empty(pipeline.shape, np.uint8)
    try:
        pipeline(stored if pipeline.channels == 3 else _grey(stored), 0, out)
    except (DecodeError, UserError) as error:
        return " ".join(str(error).split())
    return out


def _grey(stored: bytes) -> np.ndarray:
    """Grey levels of an encoded image, uint8 [H, W, 1], for a network of one channel."""
    import io

    from PIL import Image

    try:
        with Image.open(io.BytesIO(stored)) as image:
            return np.asarray(image.convert("L"))[..., None]
    except Exception as error:  # PIL's plugins raise OSError, SyntaxError, ValueError, struct.error, ...
        raise DecodeError(f"cannot be decoded: {error}") from error


def _images(paths: Sequence[Path]) -> Iterator[tuple[str, bytes | str]]:
    """(name, encoded bytes or why they cannot be read) of every image."""
    for path in paths:
        if not path.exists():
            raise UserError(f"There is no {path}. Name images, folders of images, or tar shards.")
    for path in paths:
        if path.is_dir():
            found = sorted(file for file in path.rglob("*") if file.suffix.lower() in IMAGES)
            yield from ((str(file), _read(file)) for file in found)
        elif path.suffix == ".tar":
            yield from _of_shard(path)
        else:
            yield str(path), _read(path)


def _read(path: Path) -> bytes | str:
    try:
        return path.read_bytes()
    except OSError as error:
        return f"cannot be read: {error.strerror}"


def _of_shard(path: Path) -> Iterator[tuple[str, bytes | str]]:
    try:
        with tarfile.open(path) as tar:
            for member in tar:
                if member.isfile() and Path(member.name).suffix.lower() in IMAGES:
                    file = tar.extractfile(member)
                    yield f"{path}/{member.name}", file.read() if file else "cannot be read"
    except (tarfile.TarError, OSError, EOFError) as error:
        yield str(path), f"the shard is damaged: {error}"
