"""ImageFolder: ``class/**/image``, also below ``train/``, ``val/`` and ``test/``."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from restrain.data.indexing import IMAGES, list_classes
from restrain.data.packing.items import (
    SPLITS,
    WHOLE,
    Item,
    Listing,
    Span,
    image_part,
    label_part,
    number_classes,
    safe_key,
)
from restrain.errors import UserError, WorldError


def split_folders(source: Path) -> dict[str, Path]:
    """Split -> folder, where the folders directly below are splits. Raises UserError where two are the same one."""
    found: dict[str, Path] = {}
    for path in sorted(source.iterdir()):
        split = SPLITS.get(path.name.lower())
        if split is None or not path.is_dir() or _holds_images(path):
            continue  # a class may be called train, too
        if split in found:
            raise UserError(f"{found[split]} and {path} are both the split {split!r}. Name one of them as SRC.")
        found[split] = path
    return found


def _holds_images(folder: Path) -> bool:
    return any(path.suffix.lower() in IMAGES and path.is_file() for path in folder.iterdir())


def list_folder(source: Path, split: str) -> Listing:
    """split: what a folder without splits below it is called.

    Links to files and folders are followed, as `restrain.data.indexing` does; a key is made of the link's own name.
    """
    folders = split_folders(source) or {split: source}
    files = {name: list_classes(folder) for name, folder in folders.items()}
    first = "train" if "train" in files else next(iter(files))
    numbers = number_classes(files[first])
    if odd := next((name for name in numbers if "\n" in name or "\r" in name), None):
        raise UserError(f"{folders[first]}: the class {odd!r} has a line break in its name. Rename the folder.")
    for name, classes in files.items():
        if unknown := sorted(set(classes) - set(numbers)):
            raise UserError(
                f"{folders[name] / unknown[0]} is a class that {folders[first]} has not"
                f"{f', as are {len(unknown) - 1} more' if unknown[1:] else ''}: a label is a class's number there. "
                f"Make the folders the same."
            )
    labels = [label_part(number) for number in range(len(numbers))]
    splits = {
        name: [
            _item(folders[name], cls, file, labels[numbers[cls]]) for cls, found in classes.items() for file in found
        ]
        for name, classes in files.items()
    }
    beside = sorted(p.name for p in source.iterdir() if p.is_dir() and p.name[0] != "." and p not in folders.values())
    left = [f"Left out, as no splits: {', '.join(beside[:5])}{' ...' if beside[5:] else ''}"] if beside else []
    return Listing(splits, list(numbers), left if source not in folders.values() else [])


def _item(folder: Path, cls: str, file: str, label) -> Item:
    path = folder / cls / file
    stem = os.path.splitext(f"{cls}/{file}")[0]
    return Item(safe_key(stem), (image_part(file, file_span(path)), label), str(path))


def file_span(path: Path) -> Span:
    """The whole of a file. Raises WorldError where it is none, or cannot be looked at."""
    try:
        status = os.stat(path)
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        reason = getattr(error, "strerror", None) or error
        raise WorldError(f"{path} cannot be read: {reason}. Restore it, or move it away.") from error
    if not stat.S_ISREG(status.st_mode):
        raise WorldError(f"{path} is named like an image and is no file. Move it away.")
    return Span(str(path), WHOLE, status.st_size)
