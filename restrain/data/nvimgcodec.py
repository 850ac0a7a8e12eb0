"""JPEGs through nvidia-nvimgcodec, which decodes a region without the rest of the image's pixels.

Its CPU backend is libjpeg-turbo with PIL's settings, so pixels are PIL's, in a region too. What it would decode
otherwise than PIL (CMYK, cut files, every other format) is left to PIL.
"""

from __future__ import annotations

import os
import sys
import tempfile
import threading
from typing import Any, NamedTuple

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

    def part(self, box: Box) -> Any:
        """The stream of a box alone, for `decode_on`."""
        top, left, height, width = box
        stream = self._stream.get_sub_code_stream(region=_decoder()[0].Region(top, left, top + height, left + width))
        return _Part(stream, self._data)

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


def decode_on(device: int | None, parts: list[Any], stream: int) -> list[Any | None]:
    """Images of many parts at once on a GPU, ordered on its ``stream``: what torch takes by CUDA's array interface, or
    None where one cannot be decoded. device None: on the host, as arrays."""
    module, _, params = _decoder()
    name = f"on_{device}"
    if not hasattr(_local, name):
        with _first:
            setattr(_local, name, _make(module) if device is None else _make_gpu(module, device))
    streams = [part.stream for part in parts]
    found = getattr(_local, name).decode(streams, params=params, cuda_stream=stream) if streams else []
    if device is not None:
        return found
    return [None if image is None else np.asarray(image).copy() for image in found]


class _Part(NamedTuple):
    stream: Any
    data: bytes | memoryview  # which the stream points into


def gpu_works(device: int) -> bool:
    """Whether JPEGs are decoded on this GPU here."""
    try:
        import io

        from PIL import Image

        out = io.BytesIO()
        Image.new("RGB", (64, 64)).save(out, "JPEG")
        jpeg = open_jpeg(out.getvalue())
        return jpeg is not None and decode_on(device, [jpeg.part((0, 0, 32, 32))], 0)[0] is not None
    except Exception:  # ImportError, and whatever its native libraries raise
        return False


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


def _make_gpu(module: Any, device: int) -> Any:
    """One backend, and no other to take what it cannot: two of them would round differently."""
    backend = module.Backend(module.BackendKind.HYBRID_CPU_GPU)
    return module.Decoder(device_id=device, backends=[backend], max_num_cpu_threads=1)


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
