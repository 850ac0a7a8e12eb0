"""Small data sets for tests: real JPEGs, made here."""

import io
import tarfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from PIL import Image

from restrain.data import augment
from restrain.data.loader import TrainLoader
from restrain.data.order import Order, Plan, resolve_shuffle

SHARED = Path(__file__).parents[3] / "shared" / "data"


def op(name, **fields):
    return SimpleNamespace(name=name, **fields)


CROP = (op("random_resized_crop", scale=(0.3, 1.0), ratio=(0.75, 4 / 3), interpolation="bilinear"), op("flip", p=0.5))


def jpeg(number: int, width: int = 20, height: int = 16, mode: str = "RGB", format: str = "JPEG") -> bytes:
    """An image that depends on ``number``: noise, so that each differs from each."""
    pixels = np.random.Generator(np.random.PCG64(number)).integers(0, 256, (height, width, 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(out, format)
    return out.getvalue()


def write_tar(path: Path, members: list[tuple[str, bytes]], format: int = tarfile.USTAR_FORMAT) -> Path:
    with tarfile.open(path, "w", format=format) as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def write_shards(root: Path, shards: int, samples: int, prefix: str = "train", classes: int = 5) -> Path:
    root.mkdir(exist_ok=True)
    for shard in range(shards):
        numbers = range(shard * samples, (shard + 1) * samples)
        members = [m for n in numbers for m in ((f"s{n:05d}.cls", b"%d" % (n % classes)), (f"s{n:05d}.jpg", jpeg(n)))]
        write_tar(root / f"{prefix}-{shard:03d}.tar", members)
    return root


def write_folder(root: Path, classes: dict[str, int]) -> Path:
    number = 0
    for name, count in classes.items():
        (root / name).mkdir(parents=True)
        for i in range(count):
            (root / name / f"{i}.jpg").write_bytes(jpeg(number := number + 1))
    return root


def section(name: str, root: Path | None = None, **fields) -> SimpleNamespace:
    """A ``data`` section of a recipe."""
    split = {"train": "train", "eval": "val"} if name == "folder" else {"train": "train-*.tar", "eval": "val-*.tar"}
    return SimpleNamespace(
        **{
            "name": name,
            "root": root and str(root),
            "cache": None,
            "cache_bytes": None,
            "index": None,
            "mode": "shards",
            **split,
            **fields,
        }
    )


def train_loader(
    source, *, batch=8, group=2, seed=3, size=12, ops=CROP, lanes="auto", window="auto", repeats=1, **fields
):
    samples = int(source.counts.sum())
    order = Order(source.counts, seed, *resolve_shuffle(samples, lanes, window), repeats=repeats)
    plan = Plan(samples, batch, group, order.lanes, repeats=repeats)
    pipeline = augment.train_pipeline(ops, size, channels=source.channels)
    world, micro = fields.pop("world", 1), fields.pop("micro", None)
    settings = {"rank": 0, "start": 0, "stop": 2 * plan.steps_per_epoch, "threads": 2, **fields}
    return TrainLoader(source, order, plan, pipeline, seed=seed, world=world, micro=micro or batch // world, **settings)


def contents(batches) -> list[tuple]:
    """Everything of the steps but the waiting time: what must not depend on threads, ranks and restarts."""
    out = []
    for batch in batches:
        for micro in batch.micros:
            rows = micro.images.permute(0, 2, 3, 1).contiguous().numpy()
            for i in range(len(rows)):
                row = (batch.step, batch.epoch, micro.row + i)
                out.append((*row, int(micro.labels[i]), int(micro.prefix[i]), rows[i].tobytes()))
    return out
