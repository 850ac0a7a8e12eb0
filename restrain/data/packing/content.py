"""What is stored of an image: its bytes as they are, or smaller ones, decided by its content and not by its name."""

from __future__ import annotations

import io
from dataclasses import dataclass

from restrain.data import images, tars
from restrain.data.packing.items import Item
from restrain.data.packing.writer import Members
from restrain.data.sources import EXTENSIONS


@dataclass(frozen=True)
class Encoding:
    """short_side: pixels that larger images are made smaller to, as JPEGs of ``quality``; None: bytes are kept.
    check: decode every image."""

    short_side: int | None = None
    quality: int = 90
    check: bool = False

    @property
    def library(self) -> str | None:
        """What decides the bytes besides the options."""
        return None if self.short_side is None else " ".join(images.resolve_decoder("pil"))


def stored(item: Item, encoding: Encoding) -> tuple[str, Members]:
    """(key, members) of an image's sample. Raises DecodeError."""
    data = item.read()
    if not item.whole:
        content = _image(data, encoding)
        return item.key, [(_extension(content, item.path), content), ("cls", str(item.label).encode())]
    key, fields = tars.parse(data)
    members = []
    for extension, view in fields.items():
        content = bytes(view)
        if extension in EXTENSIONS:
            content = _image(content, encoding)
            extension = _extension(content, extension)
        members.append((extension, content))
    return key, members


def _image(data: bytes, encoding: Encoding) -> bytes:
    if encoding.short_side is None:
        if encoding.check:
            images.decode(data, "pil")
        return data
    return smaller(data, encoding.short_side, encoding.quality)


def smaller(data: bytes, short_side: int, quality: int) -> bytes:
    """The image with that short side as a JPEG (4:2:0, Lanczos resizing); as it is where it is no larger."""
    from PIL import Image

    pixels = images.decode(data, "pil")
    height, width = pixels.shape[:2]
    if min(height, width) <= short_side:
        return data
    scale = short_side / min(height, width)
    size = (max(short_side, round(width * scale)), max(short_side, round(height * scale)))
    out = io.BytesIO()
    made = Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS)
    made.save(out, "JPEG", quality=quality, subsampling="4:2:0")
    return out.getvalue()


def _extension(data: bytes, name: str) -> str:
    """By content: ImageNet has a PNG and CMYK JPEGs among its .JPEG files."""
    found = next((extension for magic, extension in images.MAGIC.items() if data.startswith(magic)), None)
    return found or name.rpartition(".")[2].lower()
