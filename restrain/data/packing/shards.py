"""Shards that exist: samples of other tar files, shuffled anew and cut to another size."""

from __future__ import annotations

import os
import re
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from restrain.data.indexing import IMAGES
from restrain.data.packing.archive import compression, members
from restrain.data.packing.items import SPLITS, Item, Listing, Part, Span, Spool, safe_key
from restrain.data.tars import split_name
from restrain.errors import UserError, WorldError

COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")


def shard_files(source: Path) -> list[Path]:
    """The tars of a folder and of split folders in it, in byte order; the file itself, if it is one."""
    if source.is_file():
        return [source] if source.name.endswith((".tar", *COMPRESSED)) else []
    below = [p for p in source.iterdir() if p.is_dir() and p.name.lower() in SPLITS]
    files = [p for folder in (source, *below) for p in folder.iterdir() if p.name.endswith((".tar", *COMPRESSED))]
    return sorted((p for p in files if p.is_file() and p.name[0] != "."), key=os.fsencode)


def list_shards(source: Path, split: str, spool: Spool) -> Listing:
    """Samples keep all their files and, where keys are unique in the split, their keys; else ``shard/key``.

    split: of shards whose name or folder begins with none. Compressed shards go through the spool.
    """
    shards: dict[str, list[Path]] = {}
    for path in shard_files(source):
        shards.setdefault(_split(path, source) or split, []).append(path)
    splits = {name: _split_items(paths, source, spool) for name, paths in shards.items()}
    spool.flush()
    names = (source if source.is_dir() else source.parent) / "classes.txt"
    return Listing(splits, _lines(names) if names.is_file() else None)


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8", errors="surrogateescape").splitlines()


def _split(path: Path, source: Path) -> str | None:
    if path.parent != source and source.is_dir():
        return SPLITS[path.parent.name.lower()]
    return SPLITS.get(re.split(r"[^a-z]", path.name.lower())[0])


def _split_items(paths: list[Path], source: Path, spool: Spool) -> list[Item]:
    found = [(path, _samples(path, _members(path, spool))) for path in paths]
    keys = [key for _, samples in found for key in samples]
    unique = len(set(keys)) == len(keys)
    items = []
    for path, samples in found:
        stem = "" if unique else f"{path.name.split('.')[0]}/"
        items += [Item(safe_key(stem + key), tuple(parts), f"{path}: {key}") for key, parts in samples.items()]
    if not items:
        raise UserError(f"{paths[0]} holds no samples (files named key.extension).")
    return items


def _samples(path: Path, found: Iterable[tuple[str, Span]]) -> dict[str, list[Part]]:
    samples: dict[str, list[Part]] = {}
    last = None
    for name, span in found:
        named = split_name(name)
        if named is None:
            continue
        key, extension = named
        if key != last and key in samples:
            raise WorldError(f"{path}: the members of sample {key!r} do not stand together. Write the shard again.")
        parts = samples.setdefault(key, [])
        if extension in (part.extension for part in parts):
            raise WorldError(f"{path}: member {name} stands twice in sample {key!r}. Write the shard again.")
        parts.append(Part(extension, span, f".{extension}" in IMAGES))
        last = key
    return samples


def _members(path: Path, spool: Spool) -> Iterator[tuple[str, Span]]:
    with open(path, "rb") as file:
        kind = compression(file.read(6))
    if kind is None:
        yield from members(path)
        return
    try:
        with tarfile.open(path, "r|*") as archive:
            for member in archive:
                if member.isreg() and not member.issparse():
                    yield member.name, spool.add(archive.extractfile(member).read())  # type: ignore[union-attr]
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        raise WorldError(f"{path} is no readable tar ({kind}): {error}. Restore it from its origin.") from error
