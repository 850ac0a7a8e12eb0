"""Images with captions, laid out as one picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

MARGIN = 8
TEXT = 13  # pixels of a line of text
PAPER, INK, FAINT = (255, 255, 255), (32, 32, 32), (128, 128, 128)


@dataclass(frozen=True)
class Tile:
    """``images``: uint8 [H, W, C] each, C being 1 or 3, side by side; ``caption`` below them, ``note`` below that."""

    images: tuple[np.ndarray, ...]
    caption: str
    note: str = ""


def grid(tiles: Sequence[Tile], columns: int, side: int) -> bytes:
    """A PNG of the tiles in rows of ``columns``, every image fitted into ``side`` x ``side`` pixels.

    Small images are enlarged by whole factors without smoothing, so that their pixels are seen as they are.
    """
    import io

    from PIL import Image, ImageDraw, ImageFont

    across = max(len(tile.images) for tile in tiles)
    width, height = across * side + (across - 1) * 2, side + 2 * TEXT + 4
    rows = -(-len(tiles) // columns)
    columns = min(columns, len(tiles))
    picture = Image.new("RGB", (MARGIN + columns * (width + MARGIN), MARGIN + rows * (height + MARGIN)), PAPER)
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(11)
    for number, tile in enumerate(tiles):
        left = MARGIN + number % columns * (width + MARGIN)
        top = MARGIN + number // columns * (height + MARGIN)
        for place, image in enumerate(tile.images):
            fitted = _fit(image, side)
            x = left + place * (side + 2) + (side - fitted.width) // 2
            picture.paste(fitted, (x, top + (side - fitted.height) // 2))
        for line, (text, colour) in enumerate(((tile.caption, INK), (tile.note, FAINT))):
            draw.text((left, top + side + 2 + line * TEXT), _cut(text, font, width), colour, font=font)
    out = io.BytesIO()
    picture.save(out, "PNG", optimize=True)
    return out.getvalue()


def _fit(image: np.ndarray, side: int):
    from PIL import Image

    found = Image.fromarray(image[..., 0] if image.shape[2] == 1 else image).convert("RGB")
    longest = max(found.size)
    if longest * 2 <= side:
        factor = side // longest
        return found.resize((found.width * factor, found.height * factor), Image.Resampling.NEAREST)
    scale = side / longest
    size = (max(1, round(found.width * scale)), max(1, round(found.height * scale)))
    return found.resize(size, Image.Resampling.BILINEAR)


def _cut(text: str, font, width: int) -> str:
    """As much of a text as fits."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text + "..."
