"""Lists of images: CSV, JSON lines or Parquet, with a path or the bytes of the image and a label a row.

Also the metadata files of Hugging Face's ``imagefolder``, whose paths are relative to their own folder.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from restrain.data.packing.folder import file_span
from restrain.data.packing.items import SPLITS, Item, Listing, Span, Spool, image_part, label_part, number_classes
from restrain.data.packing.items import safe_key as key_of
from restrain.errors import UserError, WorldError

KINDS = (".csv", ".jsonl", ".parquet")
METADATA = tuple(f"metadata{kind}" for kind in KINDS)
IMAGE = ("file_name", "path", "image_path", "file", "filename", "image", "jpg", "png", "bytes")
LABEL = ("label", "class", "cls", "fine_label", "target", "category")


@dataclass(frozen=True)
class Columns:
    """What a person named, else looked for. root: what paths are relative to and may not leave."""

    image: str | None = None
    label: str | None = None
    root: Path | None = None


@dataclass(frozen=True)
class Row:
    """A line of a list: where the image is, its name, its label as it stands there; line: what messages call it."""

    split: str
    name: str
    where: Span | bytes
    label: Any
    line: str


def list_files(source: Path) -> list[Path]:
    """The list itself, or those of a folder: of each split (``train.csv``, ``val-00000-of-00002.parquet``)."""
    if source.is_file():
        return [source] if source.suffix.lower() in KINDS else []
    named = [p for p in source.iterdir() if p.suffix.lower() in KINDS and _split(p.stem)]
    return sorted((p for p in named if p.is_file()), key=os.fsencode)


def metadata_files(source: Path) -> list[Path]:
    """Metadata of the folder itself and of the split folders in it."""
    folders = [source, *sorted(p for p in source.iterdir() if p.is_dir() and p.name.lower() in SPLITS)]
    return [folder / name for folder in folders for name in METADATA if (folder / name).is_file()]


def list_rows(files: list[Path], source: Path, split: str, columns: Columns, spool: Spool) -> Listing:
    """split: of a list whose name, folder and rows name none (a column ``split`` does)."""
    rows = [row for path in files for row in _rows(path, source, split, columns, spool)]
    spool.flush()
    if not rows:
        raise UserError(f"{files[0]} lists no images.")
    numbers, classes = _numbering(rows)
    splits: dict[str, list[Item]] = {}
    for row, number in zip(rows, numbers, strict=True):
        parts = (image_part(row.name, row.where), label_part(number))
        stem = os.path.splitext(row.name)[0]
        splits.setdefault(row.split, []).append(Item(key_of(stem), parts, row.line))
    return Listing(splits, classes)


def _rows(path: Path, source: Path, split: str, columns: Columns, spool: Spool) -> Iterator[Row]:
    root = (columns.root or path.parent).resolve()
    own = _split(path.stem) or (SPLITS.get(path.parent.name.lower()) if path.parent != source else None)
    for number, record in _records(path):
        line = f"{path}, row {number}"
        image = _column(record, columns.image, IMAGE, "--image-column", line)
        label = _column(record, columns.label, LABEL, "--label-column", line)
        where, name = _image(image, root, f"{path.stem}/{number:08d}", line, spool)
        yield Row(_row_split(record, own, name, split, path.name), name, where, label, line)


def _row_split(record: dict, own: str | None, name: str, default: str, file: str) -> str:
    if (said := record.get("split")) is not None:
        if (split := SPLITS.get(str(said).lower())) is None:
            raise UserError(f"{file}: the split {said!r} is none of {', '.join(SPLITS)}. Correct the column.")
        return split
    first = PurePosixPath(name).parts[0].lower() if file in METADATA and "/" in name else ""
    return own or SPLITS.get(first) or default


def _image(image: Any, root: Path, fallback: str, line: str, spool: Spool) -> tuple[Span | bytes, str]:
    """(place, name) of what a row has: a path; bytes; or both, as Hugging Face's image column does."""
    if isinstance(image, dict):
        data, name = image.get("bytes"), image.get("path")
        image = data if data is not None else name
        fallback += os.path.splitext(name)[1] if isinstance(name, str) else ""
    if isinstance(image, bytes | memoryview):
        return spool.add(bytes(image)), fallback
    if not isinstance(image, str) or not image:
        raise UserError(f"{line}: {image!r} is neither a path nor the bytes of an image.")
    path = Path(os.path.normpath(root / image))
    if root != path and root not in path.parents:
        raise UserError(
            f"{line}: {image!r} leads out of {root}. Paths are relative to the list's own folder, or to that of "
            f"--root FOLDER; name one that holds all images."
        )
    return file_span(path), os.path.relpath(path, root)


def _column(record: dict, named: str | None, known: tuple[str, ...], option: str, line: str) -> Any:
    name = named if named is not None else next((one for one in known if one in record), None)
    if name is None or name not in record:
        wanted = f"no column {named!r}" if named is not None else f"none of the columns {', '.join(known)}"
        have = ", ".join(str(one) for one in record)
        raise UserError(f"{line} has {wanted}, but {have or 'no column at all'}. Say which it is with {option}.")
    if record[name] is None or record[name] == "":
        raise UserError(f"{line}: {name} is empty. Complete the row, or take it out.")
    return record[name]


def _numbering(rows: list[Row]) -> tuple[list[int], list[str] | None]:
    """(number of each row, classes): whole numbers stay, names are numbered in byte order over all splits."""
    numbers = [_number(row.label) for row in rows]
    known = [number for number in numbers if number is not None]
    if len(known) == len(rows):
        return known, None
    if odd := next((row for row in rows if not isinstance(row.label, str)), None):
        raise UserError(f"{odd.line}: the label {odd.label!r} is neither a whole number nor a class name.")
    if bad := next((row for row in rows if "\n" in row.label or "\r" in row.label), None):
        raise UserError(f"{bad.line}: the class name {bad.label!r} has a line break in it.")
    classes = number_classes(row.label for row in rows)
    return [classes[row.label] for row in rows], list(classes)


def _number(label: Any) -> int | None:
    if isinstance(label, bool):
        return None
    if isinstance(label, str) and label.isascii() and label.isdigit() and len(label) < 10:
        label = int(label)
    return label if isinstance(label, int) and 0 <= label < 1 << 31 else None


def _split(stem: str) -> str | None:
    """Of ``train``, ``train-00000-of-00002``, ``val_list`` by the first word."""
    word = "".join(c if c.isalpha() else " " for c in stem.lower()).split(" ")[0]
    return SPLITS.get(word)


def _records(path: Path) -> Iterator[tuple[int, dict]]:
    """(number from 1, column -> value) of each row."""
    try:
        if path.suffix.lower() == ".parquet":
            yield from enumerate(_parquet(path), 1)
        elif path.suffix.lower() == ".jsonl":
            yield from enumerate(_json_lines(path), 1)
        else:
            with open(path, newline="", encoding="utf-8-sig") as file:
                yield from enumerate(csv.DictReader(file), 1)
    except (OSError, UnicodeDecodeError, csv.Error, json.JSONDecodeError) as error:
        raise WorldError(f"{path} cannot be read as {path.suffix[1:]} ({error}). Restore it.") from error


def _json_lines(path: Path) -> Iterator[dict]:
    with open(path, encoding="utf-8") as file:
        for line in file:
            if line.strip():
                record = json.loads(line)
                yield record if isinstance(record, dict) else {}


def _parquet(path: Path) -> Iterator[dict]:
    """Rows a batch at a time: a file of images is larger than the memory."""
    try:
        import pyarrow
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise UserError(f"{path} needs pyarrow, which is not installed. Run: pip install 'restrain[parquet]'") from None
    try:
        with ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=256):
                yield from batch.to_pylist()
    except pyarrow.ArrowException as error:
        raise WorldError(f"{path} is no readable Parquet file ({error}). Restore it.") from error
