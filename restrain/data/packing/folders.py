"""Folders of images: a folder a class, and Hugging Face's ``imagefolder``, where a metadata file has the labels."""

from __future__ import annotations

import os
from pathlib import Path

from restrain.data.indexing import IMAGES, list_classes
from restrain.data.packing.items import Item, Listing, check_unique, key_of, split_name
from restrain.data.packing.lists import METADATA, Spool, read_list
from restrain.errors import UserError


def is_folder_set(root: Path) -> bool:
    return bool(_class_folders(root)) or _metadata(root) is not None or bool(_splits(root))


def list_folder(root: Path, split: str, spool: Spool) -> list[Listing]:
    """``root/class/**/image``, or splits below ``root`` that are such folders or have metadata. Classes are numbered in
    byte order, over all splits alike. Links are followed, as reading the set in place follows them.

    Raises UserError for splits with different classes.
    """
    splits = _splits(root)
    if not splits:
        return [_one(root, split, spool)]
    found = [_one(folder, name, spool) for name, folder in splits.items()]
    first = found[0]
    for other in found[1:]:
        if other.classes is not None and first.classes is not None and other.classes != first.classes:
            odd = sorted(set(other.classes) ^ set(first.classes))
            raise UserError(
                f"{root}: the splits {first.split} and {other.split} have different classes: {', '.join(odd[:5])} "
                f"{'is' if len(odd) == 1 else 'are'} in one only, so numbers would mean different classes."
            )
    return found


def _one(folder: Path, split: str, spool: Spool) -> Listing:
    if (metadata := _metadata(folder)) is not None:
        return read_list(metadata, folder, split, spool)
    classes = list_classes(folder)
    items = []
    for number, (name, files) in enumerate(classes.items()):
        for file in files:
            path = folder / name / file
            items.append(Item(key_of(f"{name}/{file}"), number, str(path), 0, path.stat().st_size))
    check_unique(items, str(folder))
    return Listing(split, items, list(classes))


def _splits(root: Path) -> dict[str, Path]:
    """Split -> folder, where ``root`` holds splits instead of classes."""
    below = sorted(path for path in root.iterdir() if path.is_dir() and path.name[0] != ".")
    if not below or _metadata(root) is not None:
        return {}
    if not all(_metadata(path) is not None or (_class_folders(path) and not _images(path)) for path in below):
        return {}
    names = [split_name(path.name) for path in below]
    if len(set(names)) < len(names):
        raise UserError(f"{root}: {', '.join(path.name for path in below)} would be the same split. Leave one.")
    return dict(zip(names, below, strict=True))


def _class_folders(root: Path) -> list[Path]:
    """Sub-folders with an image somewhere below."""
    below = [path for path in root.iterdir() if path.is_dir() and path.name[0] != "."]
    return [path for path in below if any(_images(Path(at)) for at, _, _ in os.walk(path, followlinks=True))]


def _images(folder: Path) -> bool:
    return any(name.lower().endswith(IMAGES) for name in os.listdir(folder))


def _metadata(folder: Path) -> Path | None:
    return next((folder / name for name in METADATA if (folder / name).is_file()), None)
