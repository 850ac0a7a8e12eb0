"""Images as text that a page carries."""

from __future__ import annotations

import base64
import io

import numpy as np

SIDE = 128  # pixels; a larger image is made smaller
QUALITY = 80


def data_uri(image: np.ndarray) -> str:
    """``image``: uint8 [H, W, C], C being 1 or 3. Small ones lose nothing, larger ones are WebP of ``QUALITY``."""
    from PIL import Image

    picture = Image.fromarray(image[..., 0] if image.shape[2] == 1 else np.ascontiguousarray(image))
    small = max(picture.size) <= SIDE // 2
    picture.thumbnail((SIDE, SIDE))
    out = io.BytesIO()
    picture.convert("RGB").save(out, "WEBP", lossless=small, quality=QUALITY, method=6)
    return "data:image/webp;base64," + base64.b64encode(out.getvalue()).decode()
