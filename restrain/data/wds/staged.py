"""Shards whose samples go through stages of one's own before the image and the label are taken from them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from restrain.data.reader import BadSample, Sample, check_label
from restrain.data.sources import EXTENSIONS, ShardSource, label_of
from restrain.data.wds.stages import Stage, StageError, apply
from restrain.errors import UserError


class StagedSource:
    """A `ShardSource` seen through stages: same samples, same order, same identity, other content.

    The CRC of a sample, and so the run's ledger, stay those of its stored bytes. Stages are called by several threads.
    """

    def __init__(self, inner: ShardSource, stages: Sequence[Stage], classes: int | None = None):
        """classes: of the model, labels are checked against it."""
        self._inner, self._stages, self._classes = inner, list(stages), classes
        self.names, self.counts, self.fingerprint = inner.names, inner.counts, inner.fingerprint
        self.classes, self.channels = inner.classes, inner.channels
        self.expect, self.check_room = inner.expect, inner.check_room

    def crcs(self, shard: int) -> np.ndarray:
        """uint32 [count], of the stored bytes."""
        return self._inner.crcs(shard)

    def sample(self, shard: int, j: int) -> Any:
        """What the stages make of a sample. Raises BadSample."""
        stored = self._inner.sample(shard, j)
        try:
            return apply(self._stages, stored)
        except StageError as error:
            raise BadSample(self.names[shard], j, str(stored["__key__"]), str(error)) from error

    def read(self, shard: int, j: int) -> Sample:
        """Raises BadSample, UserError (pixels or a label that no run can use) or WorldError."""
        stored = self._inner.sample(shard, j)
        key = str(stored["__key__"])
        where = f"sample {key} of {self.names[shard]}"
        try:
            pixels, label = made(self._stages, stored, where)
        except (StageError, ValueError) as error:
            raise BadSample(self.names[shard], j, key, str(error)) from error
        crc = self._inner.index.crc(shard, j)  # `sample` has checked it
        return Sample(key, pixels, check_label(label, self._classes, where), crc)

    def close(self) -> None:
        """Close the shards."""
        self._inner.close()


def made(stages: Sequence[Stage], stored: dict[str, Any], where: str) -> tuple[bytes | np.ndarray, int]:
    """(image, label) of what the stages make of a sample. Raises StageError, ValueError: a bad sample; UserError."""
    image, label = _taken(apply(stages, stored))
    return _image(image, where), label


def _taken(made: Any) -> tuple[Any, int]:
    """(image, label) of a sample that stages made. Raises ValueError that says what is missing."""
    if isinstance(made, (tuple, list)) and len(made) == 2:  # wds.to_tuple
        return made[0], _label({"cls" if not isinstance(made[1], dict) else "json": made[1]})
    if not isinstance(made, dict):
        raise ValueError(f"the stages gave {type(made).__name__}, neither a sample nor (image, label)")
    fields = {name: data for name, data in made.items() if not name.startswith("__")}
    name = next((e for e in (*EXTENSIONS, "image") if e in fields), None)
    if name is None:
        raise ValueError(f"no image among its files after the stages ({_listed(fields)})")
    return fields[name], _label(fields)


def _label(fields: dict[str, Any]) -> int:
    """As for stored samples; stages may have decoded ``cls`` and ``json`` already."""
    plain = dict(fields)
    if isinstance(cls := plain.get("cls"), (int, np.integer)) and not isinstance(cls, bool):
        return int(cls)
    if isinstance(plain.get("json"), dict):
        plain["json"] = json.dumps({k: v for k, v in plain["json"].items() if isinstance(v, (int, str))}).encode()
    for name in ("cls", "json"):
        if isinstance(plain.get(name), str):
            plain[name] = plain[name].encode()
        if name in plain and not isinstance(plain[name], (bytes, memoryview)):
            raise ValueError(f"label missing: its .{name} is {type(plain[name]).__name__} after the stages")
    return label_of({name: plain[name] for name in plain if name in ("cls", "json")} or fields)


def _image(image: Any, where: str) -> bytes | np.ndarray:
    """Encoded bytes, or uint8 [H, W, 3]. Raises ValueError (a bad sample), UserError (stages that no run can use)."""
    if isinstance(image, (bytes, memoryview)):
        return bytes(image)
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise UserError(
                f"data.stages: the image of {where} is {image.dtype} {list(image.shape)} after them; it is to be uint8 "
                f"[height, width, 3], a PIL image or encoded bytes: wds.decode('rgb8') or wds.decode('pil')."
            )
        return np.require(image, requirements=("C", "W"))
    if hasattr(image, "convert"):  # PIL
        return np.array(image.convert("RGB"))
    raise UserError(
        f"data.stages: the image of {where} is {type(image).__name__} after them; it is to be uint8 [height, width, "
        f"3], a PIL image or encoded bytes: wds.decode('rgb8') or wds.decode('pil')."
    )


def _listed(fields: dict[str, Any]) -> str:
    return ", ".join(f".{name}" for name in fields) or "none"
