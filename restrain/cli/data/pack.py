"""``restrain data pack``: images in whatever form they come, as tar shards with an index. No torch here."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

Source = Annotated[Path, typer.Argument(metavar="SRC", help="Folder, list or archive of images.")]
Target = Annotated[Path, typer.Argument(metavar="DST", help="Folder for the shards.")]
Layout = Annotated[
    str | None,
    typer.Option(
        "--from", help="folder, list, imagefolder, shards, imagenet, cifar.", show_default="by looking at SRC"
    ),
]
Split = Annotated[str, typer.Option(help="What a source without splits is: train, val, test.")]
Root = Annotated[Path | None, typer.Option(help="What a list's paths are relative to.", show_default="its folder")]
ImageColumn = Annotated[str | None, typer.Option(help="A list's column of paths or bytes.", show_default="by its name")]
LabelColumn = Annotated[str | None, typer.Option(help="A list's column of labels.", show_default="by its name")]
Size = Annotated[str, typer.Option(help="Of a shard, about: 128MB, 1GiB.")]
Seed = Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Of the shuffle.")]
Shuffle = Annotated[bool, typer.Option("--shuffle/--no-shuffle", help="All samples of a split, or the source's order.")]
ShortSide = Annotated[
    int | None, typer.Option(min=1, help="LOSSY: images with a larger short side are made smaller, as JPEG.")
]
Quality = Annotated[int | None, typer.Option(min=1, max=100, help="Of those JPEGs.", show_default="90")]
Check = Annotated[bool, typer.Option("--check", help="Decode every image, and stop at one that cannot be.")]
SkipBad = Annotated[bool, typer.Option("--skip-bad", help="Check, leave bad images out, and list them.")]
Workers = Annotated[
    int | None, typer.Option(min=1, help="Shards written at a time.", show_default="the cores, at most 8")
]

UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
SMALLEST, LARGEST = 10_000, 1 << 40


def pack(
    source: Source,
    target: Target,
    layout: Layout = None,
    shard_size: Size = "128MB",
    shuffle: Shuffle = True,
    seed: Seed = 0,
    short_side: ShortSide = None,
    quality: Quality = None,
    check: Check = False,
    skip_bad: SkipBad = False,
    split: Split = "train",
    root: Root = None,
    image_column: ImageColumn = None,
    label_column: LabelColumn = None,
    workers: Workers = None,
) -> None:
    """Pack images into tar shards with an index: the same bytes every time, and again after a kill.

    SRC is recognised: class/image.jpg, also below train/ and val/; a list (.csv, .jsonl, .parquet); metadata.csv beside
    images; tar shards; ImageNet's archives; CIFAR's. Samples are shuffled over all shards. Images keep their bytes,
    unless --short-side is given.
    """
    from restrain.data.packing.packing import Settings
    from restrain.data.packing.packing import pack as pack_source
    from restrain.data.packing.recode import Recoding
    from restrain.data.packing.source import Source as Described
    from restrain.data.packing.source import recognise
    from restrain.data.packing.table import Columns
    from restrain.data.progress import console_reporter
    from restrain.errors import UserError

    if quality is not None and short_side is None:
        raise UserError("--quality is that of images made smaller: give --short-side too, or neither.")
    recoding = Recoding(short_side, 90 if quality is None else quality, check or skip_bad)
    settings = Settings(seed if shuffle else None, bytes_of(shard_size), recoding, skip_bad, workers)
    described = Described(source, recognise(source, layout), split, Columns(image_column, label_column, root))
    with console_reporter("packing") as reporter:
        if short_side is not None:
            reporter.say(
                f"LOSSY: images whose short side is above {short_side} pixels are encoded anew, JPEG quality "
                f"{recoding.quality}. Keep the originals."
            )
        packed = pack_source(described, target, settings, reporter)
        for line in _summary(packed, target):
            reporter.say(line)


def bytes_of(text: str) -> int:
    from restrain.errors import UserError

    found = re.fullmatch(r"(\d{1,15}(?:\.\d{1,6})?)\s*([A-Za-z]*)", text.strip())
    if found is None or found[2].upper() not in UNITS:
        raise UserError(f"--shard-size {text} is no size. Write 128MB, 1GiB or a number of bytes.")
    size = int(float(found[1]) * UNITS[found[2].upper()])
    if not SMALLEST <= size <= LARGEST:
        raise UserError(f"--shard-size {text} is not between 10kB and 1TiB. 64MB to 256MB read well.")
    return size


def _summary(packed, target: Path) -> list[str]:
    from restrain.data.packing.packing import gigabytes

    made = packed.record
    lines = [f"{target} is finished, nothing is to be done:"] if packed.before else []
    lines += [
        f"{split}: {found['samples']:,} samples, {found['shards']} shard(s), {gigabytes(found['bytes'])}"
        for split, found in made["splits"].items()
    ]
    if made["encoded_anew"]:
        stored = sum(found["bytes"] for found in made["splits"].values())
        lines.append(
            f"{made['encoded_anew']:,} images were encoded anew (lossy): {gigabytes(made['bytes_read'])} became "
            f"{gigabytes(stored)}"
        )
    if made["skipped"]:
        shard, key, reason = made["skipped"][0]
        lines.append(
            f"{len(made['skipped'])} bad image(s) left out, listed in {target / 'restrain-pack.json'}; the first: "
            f"{key} ({shard}): {reason}"
        )
    if made["classes"] is not None:
        lines.append(f"{made['classes']} classes, in the order of their numbers: {target / 'classes.txt'}")
    return [*lines, f"Next: {_next(made, target)}"]


def _next(made: dict, target: Path) -> str:
    import shlex

    root, classes, source = shlex.quote(str(target)), made["classes"], made["options"]["from"]
    if source == "imagenet" and classes == 1000:
        return f"restrain train imagenet_resnet50 data.root={root}"
    if source == "cifar" and classes == 10:
        return f"restrain train cifar10_resnet20 data.root={root}"
    known = "N" if classes is None else classes
    return f"restrain train RECIPE data.name=webdataset data.root={root} model.classes={known}"
