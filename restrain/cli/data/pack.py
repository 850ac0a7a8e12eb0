"""``restrain data pack``: images of any usual layout, written as shards with their index. No torch at the top."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from restrain.data.packing.pack import Packed

UNITS = {"kB": 10**3, "MB": 10**6, "GB": 10**9}


def pack(
    source: Annotated[Path, typer.Argument(metavar="SRC", help="Folders of images, a list, tars, or an archive.")],
    target: Annotated[Path, typer.Argument(metavar="DST", help="The folder for the shards.")],
    layout: Annotated[
        str | None, typer.Option("--from", help="folder, list, shards, imagenet, cifar.", show_default="by looking")
    ] = None,
    split: Annotated[str, typer.Option(help="Of a source that has no splits.")] = "train",
    shard_size: Annotated[str, typer.Option(help="What a shard is filled up to.")] = "128MB",
    shuffle: Annotated[bool, typer.Option(help="Mix the samples over all shards.")] = True,
    seed: Annotated[int, typer.Option(min=0, help="Of that mixing.")] = 0,
    short_side: Annotated[
        int | None, typer.Option(min=8, help="Make larger images smaller, as JPEGs: loses quality.")
    ] = None,
    quality: Annotated[int, typer.Option(min=1, max=100, help="Of these JPEGs.")] = 90,
    check: Annotated[bool, typer.Option("--check", help="Decode every image.")] = False,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave out what cannot be decoded; checks.")] = False,
    workers: Annotated[int | None, typer.Option(min=1, help="Threads.", show_default="the cores")] = None,
) -> None:
    """Write images as WebDataset shards with their index, mixed, the same bytes each time; goes on after a kill.

    SRC is a folder of images a class (also below train/ and val/), a Hugging Face imagefolder, a CSV, JSON lines or
    Parquet list, tar shards, or the archives of ImageNet or CIFAR as they are given out.
    """
    import os

    from restrain.data.packing.content import Encoding
    from restrain.data.packing.layouts import list_source
    from restrain.data.packing.lists import Spool
    from restrain.data.packing.pack import PROGRESS, Options
    from restrain.data.packing.pack import pack as write
    from restrain.data.progress import console_reporter
    from restrain.errors import UserError

    size = bytes_of(shard_size)
    if re.fullmatch(r"[a-z][a-z0-9_]*", split) is None:
        raise UserError(f"--split {split}: a word of small letters, such as train or val.")
    encoding = Encoding(short_side, quality, check or skip_bad)
    options = Options(size, shuffle, seed, encoding, skip_bad)
    if short_side is not None:
        typer.echo(
            f"Images with a short side above {short_side} pixels are stored smaller, as JPEGs of quality {quality}: "
            f"that loses quality for good. Keep the originals."
        )
    with console_reporter("packing") as reporter:
        spool = Spool(target / PROGRESS / f"spool-{os.getpid()}")
        try:
            found, listings = list_source(source, layout, split, spool)
            images = ", ".join(f"{len(one.items):,} {one.split}" for one in listings)
            reporter.say(f"{source}: {found}, {images} ({sum(one.bytes for one in listings) / 1e9:.2f} GB)")
            packed = write(listings, target, options, workers or len(os.sched_getaffinity(0)), reporter)
        finally:
            spool.remove()
    for one in packed:
        typer.echo(_line(one))
    classes = max((len(one.classes) for one in listings if one.classes), default=None)
    names = "" if classes is None else f" model.classes={classes}"
    evaluation = [one.split for one in listings if one.split != "train"]
    pattern = f" data.eval='{evaluation[0]}-*.tar'" if evaluation and evaluation[0] != "val" else ""
    typer.echo(f"next: restrain train NAME data.name=webdataset data.root={target}{pattern}{names}")


def bytes_of(text: str) -> int:
    """``128MB`` -> bytes. Raises UserError."""
    from restrain.errors import UserError

    size = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)(kB|MB|GB)", text)
    if size is None:
        raise UserError(f"--shard-size {text}: a number and kB, MB or GB, such as 128MB.")
    return int(float(size[1]) * UNITS[size[2]])


def _line(one: Packed) -> str:
    if one.already:
        return f"{one.split}: packed already, {one.samples:,} samples in {one.shards} shard(s)"
    left = f", {len(one.skipped)} left out (restrain-pack.json lists them)" if one.skipped else ""
    size = f"{one.bytes / 1e9:.2f} GB ({one.bytes / max(1, one.source_bytes):.2f} x)"
    return f"{one.split}: {one.samples:,} samples in {one.shards} shard(s), {size}{left}"
