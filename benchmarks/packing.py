"""How fast ``restrain data pack`` is: copying from ImageNet's archives and encoding anew, on the photographs given.

``python benchmarks/packing.py SHARDS [--copies 10] [--workers N] [--json FILE]``. SHARDS is a folder of tar shards with
photographs. They are written, ``--copies`` times, into archives of ImageNet's format (a tar of class tars, a flat one,
the devkit), which are then packed: everything is in the page cache, so a slower disk is slower. What the real archives
would take at these rates is computed beside it.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from pathlib import Path

import reporting

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from restrain.data.packing.archive import members, read
from restrain.data.packing.items import Spool
from restrain.data.packing.packing import Settings, default_workers, pack
from restrain.data.packing.recode import Recoding
from restrain.data.packing.source import Source, list_source
from tests.data.originals import imagenet

IMAGES, BYTES = 1_281_167 + 50_000, 147_897_477_120 + 6_744_924_160  # of the archives of 2012
CLASSES = 100


def photographs(folder: Path) -> list[bytes]:
    return [
        read(span) for path in sorted(folder.glob("*.tar")) for name, span in members(path) if name.endswith(".jpg")
    ]


def measure(folder: Path, images: list[bytes], workers: int) -> dict[str, dict[str, float]]:
    """Seconds and rates of each way to pack."""
    imagenet(folder / "src", images, {f"n{n:08d}": n for n in range(1, CLASSES + 1)}, [1] * (len(images) // 25))
    size = sum(path.stat().st_size for path in (folder / "src").iterdir())
    source = Source(folder / "src", "imagenet")
    began = time.perf_counter()
    list_source(source, Spool(folder))
    listing = time.perf_counter() - began
    found = {"list": {"seconds": listing, "images_per_s": len(images) / listing}}
    ways = {"copy": Recoding(), "check": Recoding(check=True), "short side 352, quality 90": Recoding(352, 90)}
    for name, recoding in ways.items():
        settings = Settings(recoding=recoding, workers=workers, shard_size=max(size // 20, 10_000))
        began = time.perf_counter()
        made = pack(source, folder / "out", settings).record
        seconds = time.perf_counter() - began - listing
        stored = sum(split["bytes"] for split in made["splits"].values())
        found[name] = {
            "seconds": seconds,
            "images_per_s": len(images) / seconds,
            "mb_per_s": size / seconds / 1e6,
            "stored": stored / size,
            "anew": made["encoded_anew"] / len(images),
            "imagenet_hours": _hours(name, len(images), size, seconds, listing),
        }
        shutil.rmtree(folder / "out")
    return found


def _hours(name: str, images: int, size: int, seconds: float, listing: float) -> float:
    """Of the real archives: copying goes by bytes, decoding by images, listing by images."""
    work = seconds * (BYTES / size if name == "copy" else IMAGES / images)
    return (work + listing * IMAGES / images) / 3600


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("shards", type=Path)
    parser.add_argument("--copies", type=int, default=10)
    parser.add_argument("--workers", type=int, default=default_workers())
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        images = photographs(arguments.shards) * arguments.copies
        found = measure(Path(folder), images, arguments.workers)
    for name, figures in found.items():
        print(name, {key: round(value, 3) for key, value in figures.items()})
    reporting.write(arguments.json, {**vars(arguments), "images": len(images)}, found)


if __name__ == "__main__":
    main()
