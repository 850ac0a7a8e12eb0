"""JPEGs decoded, cropped, resized and mirrored on a GPU, many at a time.

Reading, checksums and draws stay on the host; what is drawn is what the host would draw, so a recipe means the same.
Pixels differ from the host's by a grey level here and there, since a GPU's inverse DCT and chroma rounding are its own:
a run keeps to its decoder. One backend decodes all images, so that an image's pixels do not depend on those beside it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from restrain import draws
from restrain.data import images, nvimgcodec
from restrain.data.augment import Flip, Params, Pipeline, RandomResizedCrop
from restrain.data.batches import Replaced
from restrain.data.filling import TRIES, Buffer, Job, no_usable, read_sample
from restrain.data.laps import Laps, Sums
from restrain.data.reader import BadSample, Sample, Source
from restrain.errors import UserError

CHUNK = 64  # images that a thread decodes at once


def check(pipeline: Pipeline) -> None:
    """Raises UserError for a pipeline with operations that only the host has."""
    ops = pipeline.ops
    fits = bool(ops) and isinstance(ops[0], RandomResizedCrop) and all(isinstance(op, Flip) for op in ops[1:])
    if not fits or pipeline.channels != 3:
        raise UserError(
            f"data.decode=gpu decodes for data.augment=[random_resized_crop, flip] and RGB images; here are "
            f"{', '.join(type(op).__name__ for op in ops) or 'no operations'} and {pipeline.channels} channel(s). Use "
            f"data.decode=auto, which decodes on the host, where every operation is."
        )


class DeviceDecoder:
    """Decodes for one device, from any number of threads, each of which has its own decoder and stream.

    On a CPU device the CPU's backend takes the same steps, which is how they are tested without a GPU.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self._local = threading.local()

    def decode(
        self,
        encoded: Sequence[images.Encoded],
        keys: Sequence[int],
        pipeline: Pipeline,
        out: Tensor,
        rows: Sequence[int],
    ) -> list[str]:
        """Augmented images into ``rows`` of ``out``, uint8 [n, size, size, 3] on the device; there when this returns.

        Returns for each image why it could not be decoded, or "". What its row holds then is not defined.
        """
        if self.device.type == "cpu":
            return self._decode(encoded, keys, pipeline, out, rows, 0)
        torch.cuda.set_device(self.device)  # of this thread
        if not hasattr(self._local, "stream"):
            self._local.stream = torch.cuda.Stream(self.device)
        stream = self._local.stream
        with torch.cuda.stream(stream):
            reasons = self._decode(encoded, keys, pipeline, out, rows, stream.cuda_stream)
            stream.synchronize()
        return reasons

    def _decode(
        self,
        encoded: Sequence[images.Encoded],
        keys: Sequence[int],
        pipeline: Pipeline,
        out: Tensor,
        rows: Sequence[int],
        stream: int,
    ) -> list[str]:
        crop: Any = pipeline.ops[0]
        crops, params, reasons = self._crops(encoded, keys, crop, stream)
        size = pipeline.size
        pixels = torch.zeros((len(keys), size, size, 3), device=self.device)
        for row, (image, drawn) in enumerate(zip(crops, params, strict=True)):
            if image is not None:
                _resize(image, pixels[row : row + 1], drawn[4] if len(drawn) > 4 else crop.interpolation)
        flags = torch.from_numpy(_mirrored(pipeline, keys)).to(self.device)[:, None, None, None]
        pixels = torch.where(flags, pixels.flip(2), pixels)
        out.index_copy_(0, torch.tensor(rows, device=self.device), pixels.round_().clamp_(0, 255).to(torch.uint8))
        return reasons

    def _crops(
        self, encoded: Sequence[images.Encoded], keys: Sequence[int], crop: RandomResizedCrop, stream: int
    ) -> tuple[list[Tensor | None], list[Params], list[str]]:
        """(crops uint8 [h, w, 3] on the device, None where the image is damaged; parameters; reasons)."""
        found: list[Tensor | None] = [None] * len(encoded)
        params: list[Params] = [()] * len(encoded)
        reasons = [""] * len(encoded)
        rows, parts = [], []
        for row, (data, key) in enumerate(zip(encoded, keys, strict=True)):
            try:
                jpeg = nvimgcodec.open_jpeg(data)
                image = jpeg or images.opened(data)
            except images.DecodeError as error:
                reasons[row] = str(error)
                continue
            params[row] = crop.params(draws.extend_key(key, 0), image.height, image.width)
            if jpeg is None:
                found[row] = torch.from_numpy(image.pixels(crop.box(params[row])).copy()).to(self.device)
            else:
                rows.append(row)
                parts.append(jpeg.part(crop.box(params[row])))
        index = None if self.device.type == "cpu" else self.device.index or 0
        for row, image in zip(rows, nvimgcodec.decode_on(index, parts, stream), strict=True):
            if image is None:
                reasons[row] = "cannot be decoded: its JPEG data are damaged"
            else:
                found[row] = torch.as_tensor(image, device=self.device)
        return found, params, reasons


class DeviceFill:
    """Fills rows of batches through a `DeviceDecoder`: bad samples are replaced as a host's thread replaces them."""

    def __init__(self, source: Source, decoder: DeviceDecoder, laps: Laps):
        self._source, self._decoder, self._laps = source, decoder, laps

    def fill(self, job: Job, slot: Buffer, first: int, last: int) -> None:
        """Rows [first, last) of a job. Raises WorldError where no sample of a row and of those after it can be used."""
        out, pipeline = slot.stored(job.pipeline), cast(Pipeline, job.pipeline)
        tried, why = dict.fromkeys(range(first, last), 0), {}
        while tried:
            began = time.perf_counter(), time.thread_time()
            samples = {row: self._readable(job, row, tried, why) for row in tried}
            read = time.perf_counter(), time.thread_time()
            keys = [int(job.keys[row]) for row in samples]
            encoded = [cast(images.Encoded, sample.data) for sample, _ in samples.values()]
            reasons = self._decoder.decode(encoded, keys, pipeline, out, list(samples))
            self._time(began, read, len(samples))
            for (row, (sample, used)), reason in zip(samples.items(), reasons, strict=True):
                shard, j = int(job.shard[row]), int(job.j[row])
                if reason:
                    why.setdefault(row, BadSample(self._source.names[shard], used, sample.key, reason))
                    tried[row] += 1
                    continue
                del tried[row]
                slot.label_rows[row] = sample.label
                job.prefix[row] = draws.key(shard, used, sample.crc, job.epoch)
                if row in why:
                    job.events.append((row, Replaced(shard, j, why[row].key, why[row].reason, used)))

    def _readable(self, job: Job, row: int, tried: dict[int, int], why: dict[int, BadSample]) -> tuple[Sample, int]:
        """(sample, its j): the row's, or the next of its shard, after those that were tried, whose bytes are good."""
        shard, count = int(job.shard[row]), int(self._source.counts[int(job.shard[row])])
        while tried[row] <= TRIES:
            used = (int(job.j[row]) + tried[row]) % count
            try:
                return read_sample(self._source, shard, used), used
            except BadSample as error:
                why.setdefault(row, error)
                tried[row] += 1
        raise no_usable(self._source, shard, why[row])

    def _time(self, began: tuple[float, float], read: tuple[float, float], rows: int) -> None:
        sums, now = Sums(rows), (time.perf_counter(), time.thread_time())
        sums.wall["read"], sums.cpu["read"] = read[0] - began[0], read[1] - began[1]
        sums.wall["decode"], sums.cpu["decode"] = now[0] - read[0], now[1] - read[1]
        self._laps.merge(sums)


def _resize(image: Tensor, out: Tensor, kernel: str) -> None:
    """uint8 [h, w, 3] into ``out``, float [1, size, size, 3], antialiased: across, rounded to grey levels, then down,
    as the host's kernel goes. The last rounding is the caller's."""
    resize = getattr(torch.ops.aten, "_upsample_bicubic2d_aa" if kernel == "bicubic" else "_upsample_bilinear2d_aa")
    planes, (height, width) = image.permute(2, 0, 1)[None].float(), out.shape[1:3]
    across = resize(planes, [image.shape[0], width], False).round_().clamp_(0, 255)
    resize.out(across, [height, width], False, out=out.permute(0, 3, 1, 2))


def _mirrored(pipeline: Pipeline, keys: Sequence[int]) -> np.ndarray:
    """bool [n]: rows that an odd number of the flips mirror."""
    flips = np.zeros(len(keys), bool)
    for index, op in enumerate(pipeline.ops[1:], 1):
        assert isinstance(op, Flip)
        flips ^= np.array([op.params(draws.extend_key(key, index), 0, 0)[0] for key in keys], bool)
    return flips
