"""Which layout a source has, by looking at it, and its listing."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from restrain.data.packing import cifar, folder, imagenet, shards, table
from restrain.data.packing.items import SPLITS, Listing, Spool, check_unique
from restrain.data.packing.table import Columns
from restrain.errors import UserError, nearest

LAYOUTS = ("folder", "list", "imagefolder", "shards", "imagenet", "cifar")
ORIGINALS = (imagenet.TRAIN, imagenet.VAL)


@dataclass(frozen=True)
class Source:
    """What to pack. layout: of LAYOUTS; split: what a source without splits of its own is called."""

    path: Path
    layout: str
    split: str = "train"
    columns: Columns = field(default_factory=Columns)


def recognise(path: Path, named: str | None) -> str:
    """The layout of SRC. Raises UserError where it is none of LAYOUTS, or another than the one named can be."""
    if not path.exists():
        raise UserError(f"{path} does not exist. Name the folder or file of the images to pack.")
    if named is not None and named not in LAYOUTS:
        raise UserError(f"--from {named}: unknown layout.{nearest(named, LAYOUTS)} Allowed: {', '.join(LAYOUTS)}.")
    found = [layout for layout in LAYOUTS if _is(layout, path)]
    if named is not None:
        if named not in found:
            raise UserError(f"{path} is no source of the kind {named!r}: {WANTED[named]}.")
        return named
    if not found:
        raise UserError(
            f"{path} holds nothing that can be packed: folders of images, one a class; a list (.csv, .jsonl, "
            f".parquet); metadata.csv beside images; tar shards; ImageNet's archives; CIFAR's."
        )
    # Of several the most particular: ImageNet's archives are tars too, and images beside a list are folders.
    return next(
        layout for layout in ("imagenet", "cifar", "imagefolder", "list", "shards", "folder") if layout in found
    )


WANTED = {
    "folder": "it needs class/image.jpg, also below train/ and val/",
    "list": "it needs a .csv, .jsonl or .parquet file, or a folder with train.csv, val.csv and so on",
    "imagefolder": "it needs metadata.csv, .jsonl or .parquet in the folder or in its split folders",
    "shards": "it needs .tar files, in the folder or in its split folders",
    "imagenet": f"it needs {imagenet.TRAIN} or {imagenet.VAL} in the folder",
    "cifar": "it needs cifar-10-python.tar.gz, cifar-100-python.tar.gz or the folder that was in it",
}


def _is(layout: str, path: Path) -> bool:
    if layout == "cifar":
        return cifar.is_cifar(path)
    if layout == "list":
        return bool(table.list_files(path))
    if layout == "shards":
        return bool(shards.shard_files(path)) and not _is("imagenet", path) and not cifar.is_cifar(path)
    if not path.is_dir():
        return False
    if layout == "imagenet":
        return any((path / name).is_file() for name in ORIGINALS)
    if layout == "imagefolder":
        return bool(table.metadata_files(path))
    return any(one.is_dir() and one.name[0] != "." for one in path.iterdir())


def list_source(source: Source, spool: Spool) -> Listing:
    """All samples, checked: keys are unique in a split, labels are there. Raises UserError and WorldError by name."""
    if source.split not in SPLITS.values():
        raise UserError(f"--split {source.split}: unknown split. Allowed: {', '.join(dict.fromkeys(SPLITS.values()))}.")
    listing = _list(source, spool)
    listing.splits = {name: items for name, items in listing.splits.items() if items}
    for split, items in listing.splits.items():
        check_unique(split, items)
    return listing


def _list(source: Source, spool: Spool) -> Listing:
    path = source.path
    if source.layout == "imagenet":
        return imagenet.list_imagenet(path)
    if source.layout == "cifar":
        return cifar.list_cifar(path, spool)
    if source.layout == "shards":
        return shards.list_shards(path, source.split, spool)
    if source.layout == "folder":
        return folder.list_folder(path, source.split)
    files = table.metadata_files(path) if source.layout == "imagefolder" else table.list_files(path)
    return table.list_rows(files, path, source.split, source.columns, spool)
