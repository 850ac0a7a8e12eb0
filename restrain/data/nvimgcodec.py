"""JPEGs through nvidia-nvimgcodec's CPU backend, which decodes a region without the rest of the image's pixels.

It is libjpeg-turbo with PIL's settings, so pixels are PIL's, in a region too. What it would decode otherwise than PIL
(CMYK, cut files, every other format) is left to PIL.
"""

from __future__ import annotations

import os
import sys
import tempfile
import threading
from typing import Any

import numpy as np

Box = tuple[int, int, int, int]  # top, left, height, width
END = b"\xff\xd9"  # of a whole JPEG
NARROW = 8  # columns below which libjpeg-turbo spreads chroma more simply than in the whole image
ABSENT = ("nvjpeg", "nvjpeg2k", "nvtiff", "NVIDIA GPU", "CUDA driver")  # for GPUs only: that they lack is no news
_local = threading.local()
_first = threading.Lock()
_loaded: list[Any] = []


class Jpeg:
    """An opened JPEG. Raises ValueError where it cannot be decoded."""

    def __init__(self, stream: Any, data: bytes | memoryview):
        self.height, self.width = int(stream.height), int(stream.width)
        self._stream, self._data = stream, data  # the stream points into the data

    def pixels(self, box: Box | None = None) -> np.ndarray:
        """uint8 [H, W, 3] of the image, or of a box of it."""
        module, decoder, params = _decoder()
        stream, spare = self._stream, 0
        if box is not None:
            top, left, height, width = box
            if width < NARROW:
                spare = left - max(0, min(left, self.width - NARROW))
                left, width = left - spare, min(NARROW, self.width)
            stream = stream.get_sub_code_stream(region=module.Region(top, left, top + height, left + width))
        found = decoder.decode(stream, params=params)
        if found is None:
            raise ValueError("its JPEG data are damaged")
        pixels = np.asarray(found)
        return pixels if box is None or pixels.shape[1] == box[3] else pixels[:, spare : spare + box[3]]


def version() -> str:
    """Raises ImportError, or whatever its native libraries raise, where it cannot be used."""
    return str(_decoder()[0].__version__)


def open_jpeg(data: bytes | memoryview) -> Jpeg | None:
    """The JPEG, or None where PIL is to decode these bytes."""
    if data[-2:] != END:  # cut, which it would decode in silence; or with something after its end, which PIL skips
        return None
    try:
        stream = _decoder()[0].CodeStream(np.frombuffer(data, np.uint8))
        if stream.num_channels not in (1, 3) or stream.precision not in (0, 8):
            return None
        return Jpeg(stream, data)
    except RuntimeError:
        return None


def _decoder() -> tuple[Any, Any, Any]:
    """(module, decoder, parameters) of this thread: a decoder is used by one thread at a time."""
    if not hasattr(_local, "decoder"):
        with _first:
            module = _loaded[0] if _loaded else _load()
            _local.decoder = (module, _make(module), module.DecodeParams(apply_exif_orientation=False))
    return _local.decoder


def _make(module: Any) -> Any:
    backend = module.Backend(module.BackendKind.CPU_ONLY)
    return module.Decoder(device_id=module.NVIMGCODEC_DEVICE_CPU_ONLY, backends=[backend], max_num_cpu_threads=1)


def _load() -> Any:
    """The module, loaded with its complaints about absent GPU libraries kept back. They come from C++, so the process's
    stderr is set aside meanwhile; whatever else was written to it follows."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with tempfile.TemporaryFile() as aside:
            os.dup2(aside.fileno(), 2)
            try:
                from nvidia import nvimgcodec

                _make(nvimgcodec)  # the first one loads the extensions
            finally:
                os.dup2(kept, 2)
                aside.seek(0)
                lines = aside.read().decode(errors="replace").splitlines(keepends=True)
                os.write(2, "".join(line for line in lines if not _about_gpus(line)).encode())
    finally:
        os.close(kept)
    _loaded.append(nvimgcodec)
    return nvimgcodec


def _about_gpus(line: str) -> bool:
    plain = line.lower()
    return not plain.strip() or any(name.lower() in plain for name in ABSENT) or "python distribution" in plain
