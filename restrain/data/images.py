"""Encoded bytes to pixels, behind one function; and the resizing of pixels.

An image is a uint8 array [H, W, 3], RGB. EXIF orientation is ignored, as torchvision and timm do.
"""

from __future__ import annotations

import io

import numpy as np

from restrain.errors import UserError, nearest

DECODERS = ("pil", "torchvision")
JPEG = b"\xff\xd8\xff"
RGB = 3  # torchvision.io.ImageReadMode.RGB.value


class DecodeError(ValueError):
    """These bytes are no image, or not a whole one."""


def resolve_decoder(name: str = "auto") -> tuple[str, str]:
    """``data.decode`` to (decoder, version): what the lock records, since decoders may differ in the last bit.

    ``auto`` is PIL. torchvision decodes JPEGs with a fifth less time, but calls its own decoders deprecated since 0.29.
    Raises UserError for an unknown name, or where torchvision has no JPEG decoder any more.
    """
    if name in ("auto", "pil"):
        import PIL
        from PIL import features

        return "pil", f"{PIL.__version__} libjpeg-turbo {features.version('libjpeg_turbo')}"
    if name == "torchvision":
        import torchvision

        try:
            _decode_torchvision(_tiny_jpeg())
        except Exception as error:
            raise UserError(
                f"data.decode=torchvision: torchvision {torchvision.__version__} cannot decode JPEGs here "
                f"({str(error).splitlines()[0]}). Use data.decode=pil."
            ) from error
        return name, str(torchvision.__version__)
    raise UserError(f"data.decode={name}: unknown decoder.{nearest(name, DECODERS)} Allowed: auto, pil, torchvision.")


def decode(data: bytes, decoder: str = "pil") -> np.ndarray:
    """uint8 [H, W, 3] of an encoded image; grey, palette, CMYK and alpha become RGB. Raises DecodeError."""
    if decoder == "torchvision" and data[:3] == JPEG:
        return _decode_torchvision(data)
    return _decode_pil(data)


def resize(image: np.ndarray, height: int, width: int, exact: bool = False, kernel: str = "bilinear") -> np.ndarray:
    """Antialiased resize of uint8 [H, W, C], ``kernel`` being bilinear or bicubic.

    exact: by PIL, bit-equal to torchvision's and timm's pipelines on PIL images. Otherwise by torch's integer kernel,
    four times faster; a crop of a photograph differs by one grey level here and there, 0.02 on average.
    """
    if image.shape[:2] == (height, width):
        return image
    if exact and image.shape[2] == 3:
        from PIL import Image

        resample = Image.Resampling.BICUBIC if kernel == "bicubic" else Image.Resampling.BILINEAR
        return np.array(Image.fromarray(image).resize((width, height), resample))
    import torch

    # The batch dimension is added first: then torch sees channels-last and takes its fast path.
    pixels = torch.from_numpy(image)[None].permute(0, 3, 1, 2)
    out = torch.nn.functional.interpolate(pixels, (height, width), mode=kernel, antialias=True)
    return out[0].permute(1, 2, 0).numpy()


def _decode_pil(data: bytes) -> np.ndarray:
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.mode.startswith("I;16"):  # PIL would clip 16 bits at 255: white
                grey = (np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8)
                return np.repeat(grey[..., None], 3, axis=2)
            if image.mode in ("I", "F"):
                raise ValueError(f"32-bit pixels (mode {image.mode}), whose scale nobody knows; store 8 or 16 bits")
            # A palette goes through RGBA: PIL warns when it converts one with transparency straight to RGB.
            return np.array((image.convert("RGBA") if image.mode == "P" else image).convert("RGB"))
    except Exception as error:  # PIL's plugins raise OSError, SyntaxError, ValueError, struct.error, ...
        reason = "no image format that PIL knows" if "cannot identify" in str(error) else str(error)
        raise DecodeError(f"cannot be decoded: {reason}") from error


def _decode_torchvision(data: bytes) -> np.ndarray:
    import torch
    import torchvision.io  # noqa: F401  # registers the operator

    # The operator itself: its public wrapper warns of its deprecation at every image.
    try:
        encoded = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        return torch.ops.image.decode_jpeg(encoded, RGB, False).permute(1, 2, 0).numpy()
    except RuntimeError as error:
        reason = str(error).splitlines()[0].rsplit(", ", 1)[-1]  # the rest is a path in torchvision's sources
        raise DecodeError(f"cannot be decoded: {reason}") from error


def _tiny_jpeg() -> bytes:
    from PIL import Image

    out = io.BytesIO()
    Image.new("RGB", (8, 8)).save(out, "JPEG")
    return out.getvalue()
