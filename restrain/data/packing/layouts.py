"""Which layout a source has, and its listing."""

from __future__ import annotations

from pathlib import Path

from restrain.data.packing import archives, cifar, folders, lists
from restrain.data.packing.items import Listing
from restrain.data.packing.lists import Spool
from restrain.errors import UserError, nearest

LAYOUTS = ("imagenet", "cifar", "list", "shards", "folder")  # in the order in which they are looked for


def list_source(source: Path, layout: str | None, split: str, spool: Spool) -> tuple[str, list[Listing]]:
    """(layout, splits) of a source. split: what images are that the source puts into none.

    Raises UserError for a source that is none of the layouts, or not the one that is named.
    """
    if layout is not None and layout not in LAYOUTS:
        raise UserError(f"--from {layout}: unknown layout.{nearest(layout, LAYOUTS)} Known: {', '.join(LAYOUTS)}.")
    if not source.exists():
        raise UserError(f"{source} does not exist. Name a folder, an archive or a list.")
    found = layout or next((name for name in LAYOUTS if _is(name, source)), None)
    if found is None:
        raise UserError(
            f"{source} is nothing that can be packed: no folders of images, one a class; no metadata file or list "
            f"({', '.join(lists.LISTS)}); no tar shards; none of the archives of ImageNet and CIFAR."
        )
    if not _is(found, source):
        raise UserError(f"{source} is no source of --from {found}. Leave it out, and it is found by looking.")
    listings = _listed(found, source, split, spool)
    spool.close()
    empty = [listing.split for listing in listings if not listing.items]
    if empty or not listings:
        raise UserError(f"{source} has no images{f' in split {empty[0]}' if empty else ''}.")
    return found, listings


def _is(layout: str, source: Path) -> bool:
    if layout == "cifar":
        return cifar.is_cifar(source) is not None
    if layout == "list":
        return source.is_file() and source.suffix in lists.LISTS
    if layout == "shards":
        return archives.is_shards(source)
    if not source.is_dir():
        return False
    return archives.is_imagenet(source) if layout == "imagenet" else folders.is_folder_set(source)


def _listed(layout: str, source: Path, split: str, spool: Spool) -> list[Listing]:
    if layout == "imagenet":
        return archives.list_imagenet(source)
    if layout == "cifar":
        archive = cifar.is_cifar(source)
        assert archive is not None
        return cifar.list_cifar(archive, spool)
    if layout == "list":
        return lists.list_file(source, split, spool)
    if layout == "shards":
        return archives.list_shards(source, split)
    return folders.list_folder(source, split, spool)
