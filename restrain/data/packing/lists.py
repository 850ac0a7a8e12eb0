"""Lists of images: CSV, JSON lines and Parquet, with a column that says where an image is, or holds it, and a label."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from restrain.data.packing.items import Item, Listing, check_unique, key_of, numbered, split_name
from restrain.errors import UserError, WorldError

LISTS = (".csv", ".tsv", ".jsonl", ".parquet")
METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")  # Hugging Face's imagefolder
PLACES = ("file_name", "path", "filename", "file", "image")  # names of the column that says where an image is
LABELS = ("label", "cls", "class", "target", "class_name")
ABSENT = "restrain[parquet]"


class Spool:
    """A file for images that lie in no file of their own, so that they can be read at random like all others."""

    def __init__(self, path: Path):
        self.path, self._at = path, 0
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(path, "wb")  # noqa: SIM115  # closed by close()

    def item(self, key: str, label: int, data: bytes) -> Item:
        self._file.write(data)
        self._at += len(data)
        return Item(key, label, str(self.path), self._at - len(data), len(data))

    def close(self) -> None:
        """All is written."""
        self._file.close()

    def remove(self) -> None:
        self.close()
        self.path.unlink(missing_ok=True)
        with suppress(OSError):  # others' things are in it, or it is not ours
            self.path.parent.rmdir()
            self.path.parent.parent.rmdir()


def read_list(path: Path, root: Path, split: str, spool: Spool) -> Listing:
    """The images of one list, whose relative paths are below ``root``. Raises UserError, WorldError."""
    rows = list(_rows(path))
    if not rows:
        raise UserError(f"{path} lists no images.")
    place = _column(path, rows[0], PLACES, "where an image is")
    label = _column(path, rows[0], LABELS, "labels")
    numbers, classes = numbered([_label(path, i, row, label) for i, row in enumerate(rows)])
    items = [_item(path, root, i, row[place], numbers[i], spool) for i, row in enumerate(rows)]
    check_unique(items, str(path))
    return Listing(split, items, classes)


def list_file(path: Path, split: str, spool: Spool) -> list[Listing]:
    """A list as the source itself; a column ``split`` cuts it."""
    rows = iter(_rows(path))
    first = next(rows, None)
    if first is None or "split" not in first:
        return [read_list(path, path.parent, split, spool)]
    whole = read_list(path, path.parent, split, spool)
    named: dict[str, list[Item]] = {}
    for item, row in zip(whole.items, _rows(path), strict=True):
        named.setdefault(split_name(str(row["split"])), []).append(item)
    return [Listing(name, items, whole.classes) for name, items in named.items()]


def _rows(path: Path) -> Iterator[Mapping[str, Any]]:
    try:
        if path.suffix == ".parquet":
            yield from _parquet(path)
        elif path.suffix == ".jsonl":
            for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
                if line.strip():
                    row = json.loads(line)
                    if not isinstance(row, dict):
                        raise UserError(f"{path}, line {number}: no object in braces. Correct it.")
                    yield row
        else:
            with open(path, newline="", encoding="utf-8-sig") as file:
                yield from csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ",")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 (at byte {error.start}). Write it as UTF-8.") from None
    except (ValueError, csv.Error) as error:
        raise UserError(f"{path} cannot be read as {path.suffix[1:]}: {error}.") from None
    except OSError as error:
        raise WorldError(f"{path} cannot be read: {error.strerror or error}.") from None


def _parquet(path: Path) -> Iterator[Mapping[str, Any]]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise UserError(f"{path}: reading Parquet needs pyarrow. Install it: pip install '{ABSENT}'") from None
    try:
        for batch in parquet.ParquetFile(path).iter_batches(batch_size=256):
            yield from batch.to_pylist()
    except ArrowException as error:
        raise UserError(f"{path} cannot be read as Parquet: {str(error).splitlines()[0]}") from None


def _column(path: Path, row: Mapping[str, Any], names: tuple[str, ...], what: str) -> str:
    lower = {str(name).lower(): name for name in row}
    for name in names:
        if name in lower:
            return lower[name]
    raise UserError(
        f"{path} has no column for {what}: it has {', '.join(map(str, row)) or 'none'}. Name one of them "
        f"{' or '.join(names[:3])}."
    )


def _label(path: Path, number: int, row: Mapping[str, Any], column: str) -> object:
    value = row.get(column)
    if value is None or str(value).strip() == "":
        raise UserError(f"{path}: image {number + 1} has no {column}. Give it one, or take the row out.")
    return value


def _item(path: Path, root: Path, number: int, place: Any, label: int, spool: Spool) -> Item:
    if isinstance(place, Mapping):  # Hugging Face's image column: {"bytes": ..., "path": ...}
        data, name = place.get("bytes"), place.get("path") or f"{number:09d}"
        if data is not None:
            return spool.item(f"{number:09d}", label, bytes(data))
        place = name
    if isinstance(place, bytes):
        return spool.item(f"{number:09d}", label, place)
    file = root / str(place)
    inside = Path(str(place))
    key = key_of(str(place)) if not inside.is_absolute() and ".." not in inside.parts else f"{number:09d}"
    try:
        size = file.stat().st_size
    except (OSError, ValueError):
        raise UserError(
            f"{path}: image {number + 1}, {place}, is not there ({file}). Restore it, or correct the list."
        ) from None
    return Item(key, label, str(file), 0, size)
