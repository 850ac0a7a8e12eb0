"""What is done to an image on its way: nothing; decoded to see that it can be; or made smaller, which is lossy."""

from __future__ import annotations

import io
from dataclasses import dataclass

from restrain.data.images import DecodeError, decode

KNOWN = {b"\xff\xd8\xff": "jpg", b"\x89PNG\r\n\x1a\n": "png", b"BM": "bmp", b"II*\0": "tif", b"MM\0*": "tif",
         b"P5": "pgm", b"P6": "ppm"}  # fmt: skip


@dataclass(frozen=True)
class Recoding:
    """short_side: pixels of the smaller side at most, images above it are encoded anew as JPEG of this quality."""

    short_side: int | None = None
    quality: int = 90
    check: bool = False


@dataclass(frozen=True)
class Image:
    """What is stored, and whether it was encoded anew."""

    data: bytes
    extension: str
    anew: bool = False


def recoded(data: bytes, extension: str, recoding: Recoding) -> Image:
    """The image as it is stored. Raises DecodeError where it was to be decoded and cannot be, or has no known format.

    Bytes are untouched unless the image is made smaller; the extension is that of the content (ImageNet has a PNG named
    .JPEG), that of the name where the content is not known.
    """
    as_it_is = Image(data, extension_of(data, extension))
    if recoding.short_side is None:
        if recoding.check:
            decode(data)
        return as_it_is
    pixels = decode(data)
    height, width = pixels.shape[:2]
    if min(height, width) <= recoding.short_side:
        return as_it_is
    return Image(_smaller(pixels, recoding.short_side, recoding.quality), "jpg", True)


def extension_of(data: bytes, name: str) -> str:
    """``jpg`` or the like from the first bytes. Raises DecodeError where neither they nor the name tell."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    found = next((extension for magic, extension in KNOWN.items() if data.startswith(magic)), name)
    if not found:
        raise DecodeError("no image format is known by its first bytes, and it has no name")
    return found


def _smaller(pixels, short_side: int, quality: int) -> bytes:
    """JPEG, 4:2:0, Lanczos. Always RGB; colour profile and EXIF are left out, as decoding ignores them."""
    from PIL import Image as Pillow

    height, width = pixels.shape[:2]
    scale = short_side / min(height, width)
    size = (short_side, round(height * scale)) if width < height else (round(width * scale), short_side)
    out = io.BytesIO()
    image = Pillow.fromarray(pixels).resize(size, Pillow.Resampling.LANCZOS)
    image.save(out, "JPEG", quality=quality, subsampling="4:2:0")
    return out.getvalue()


def versions() -> dict[str, str]:
    """What the bytes of images encoded anew depend on."""
    import PIL
    from PIL import features

    return {"pillow": PIL.__version__, **{n: str(features.version(n)) for n in ("libjpeg_turbo", "zlib")}}
