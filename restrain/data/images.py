"""Encoded bytes to pixels, behind one function; and the resizing of pixels.

An image is a uint8 array [H, W, 3], RGB. EXIF orientation is ignored, as torchvision and timm do. All decoders give the
same pixels where they are built on the same libjpeg-turbo; which one a run uses is in its lock all the same.
"""

from __future__ import annotations

import io
from typing import Protocol

import numpy as np

from restrain.data import nvimgcodec
from restrain.data.nvimgcodec import Box
from restrain.errors import UserError, nearest

DECODERS = ("nvimgcodec", "torchvision", "pil")  # in the order in which auto tries them
GPU = "gpu"  # decodes training images on the device; everything else is decoded by nvimgcodec on the host
JPEG = b"\xff\xd8\xff"
MAGIC = {JPEG: "jpg", b"\x89PNG": "png", b"BM": "bmp", b"II*\0": "tif", b"MM\0*": "tif", b"RIFF": "webp"}
RGB = 3  # torchvision.io.ImageReadMode.RGB.value


Encoded = bytes | memoryview


class DecodeError(ValueError):
    """These bytes are no image, or not a whole one."""


class Opened(Protocol):
    """An image whose size is known; its pixels are decoded when they are asked for."""

    height: int
    width: int

    def pixels(self, box: Box | None = None) -> np.ndarray:
        """uint8 [H, W, 3] of the whole, or of the box (top, left, height, width). Raises DecodeError."""
        ...


def resolve_decoder(name: str = "auto") -> tuple[str, str]:
    """``data.decode`` to (decoder, version): what the lock records, since decoders may differ in the last bit.

    ``auto`` is the fastest that works here. Raises UserError for an unknown name, or one that does not work here.
    """
    if name == "auto":
        return next(found for one in DECODERS if (found := _usable(one)) is not None)
    if name == GPU:
        return GPU, _gpu_version()
    if name not in DECODERS:
        known = (*DECODERS, GPU)
        raise UserError(
            f"data.decode={name}: unknown decoder.{nearest(name, known)} Allowed: auto, {', '.join(known)}."
        )
    found = _usable(name)
    if found is None:
        package = "nvidia-nvimgcodec-cu13" if name == "nvimgcodec" else name
        raise UserError(
            f"data.decode={name}: {package} is not installed here, or cannot decode JPEGs here. Install it, or use "
            f"data.decode=pil (on a run that exists with --allow data.decode)."
        )
    return found


def _gpu_version() -> str:
    import torch

    if not torch.cuda.is_available():
        raise UserError(
            "data.decode=gpu: torch finds no CUDA device. Use data.decode=auto, which decodes on the host (on a run "
            "that exists with --allow data.decode)."
        )
    if not nvimgcodec.gpu_works(torch.cuda.current_device()):
        raise UserError(
            "data.decode=gpu: nvidia-nvimgcodec cannot decode JPEGs on this GPU. Install its libraries (pip install "
            "'nvidia-nvimgcodec-cu13[all]'), or use data.decode=auto (on a run that exists with --allow data.decode)."
        )
    return nvimgcodec.version()


def working_decoder(name: str = "auto") -> str:
    """The decoder of that name, or where it does not work here the one that does: pixels differ in the last bit at
    most. For looking at a run and using it; training asks for the very decoder of its lock."""
    if name == GPU:  # looking and evaluating are done on the host
        name = DECODERS[0]
    return (_usable(name) or resolve_decoder("auto") if name in DECODERS else resolve_decoder(name))[0]


def _usable(name: str) -> tuple[str, str] | None:
    """(decoder, version) where it decodes a JPEG here."""
    try:
        if name == "nvimgcodec":
            version = nvimgcodec.version()
        elif name == "torchvision":
            import torchvision

            version = str(torchvision.__version__)
        else:
            import PIL
            from PIL import features

            return name, f"{PIL.__version__} libjpeg-turbo {features.version('libjpeg_turbo')}"
        return (name, version) if opened(_tiny_jpeg(), name).pixels().shape == (8, 8, 3) else None
    except Exception:  # ImportError, OSError of a library that it needs, RuntimeError of its own
        return None


def opened(data: Encoded, decoder: str = "pil") -> Opened:
    """The image in these bytes, grey, palette, CMYK and alpha as RGB. Raises DecodeError.

    Formats other than JPEG, and JPEGs that nvimgcodec would decode otherwise than PIL, are decoded by PIL.
    """
    if data[:3] == JPEG:
        if decoder == "nvimgcodec" and (jpeg := nvimgcodec.open_jpeg(data)) is not None:
            return _Regions(jpeg)
        if decoder == "torchvision":
            return _Whole(_decode_torchvision(data))
    return _Whole(_decode_pil(data))


def decode(data: Encoded, decoder: str = "pil") -> np.ndarray:
    """uint8 [H, W, 3] of an encoded image. Raises DecodeError."""
    return opened(data, decoder).pixels()


class _Whole:
    def __init__(self, image: np.ndarray):
        self.height, self.width = image.shape[:2]
        self._image = image

    def pixels(self, box: Box | None = None) -> np.ndarray:
        return self._image if box is None else crop(self._image, box)


class _Regions:
    def __init__(self, jpeg: nvimgcodec.Jpeg):
        self.height, self.width = jpeg.height, jpeg.width
        self._jpeg = jpeg

    def pixels(self, box: Box | None = None) -> np.ndarray:
        try:
            return self._jpeg.pixels(box)
        except (ValueError, RuntimeError) as error:
            raise DecodeError(f"cannot be decoded: {error}") from error


def crop(image: np.ndarray, box: Box) -> np.ndarray:
    """The view of a box (top, left, height, width)."""
    top, left, height, width = box
    return image[top : top + height, left : left + width]


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


def mirrored(image: np.ndarray) -> np.ndarray:
    """uint8 [H, W, C], left to right."""
    if image.shape[2] != 3 or not image.flags.c_contiguous:
        return image[:, ::-1]
    import torch

    # Of channels-last images torch moves whole vectors, numpy single bytes: 20 us instead of 400 for 224 x 224.
    return torch.from_numpy(image)[None].permute(0, 3, 1, 2).flip(3)[0].permute(1, 2, 0).numpy()


def _decode_pil(data: Encoded) -> np.ndarray:
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


def _decode_torchvision(data: Encoded) -> np.ndarray:
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
