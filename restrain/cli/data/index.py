"""``restrain data index``: write or refresh the side index of a set. No torch here."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="Tar shards, or folders of images, one a class.")]
Pattern = Annotated[str, typer.Option(help="Which shards: * ? [] and {000..146}.")]
Workers = Annotated[int | None, typer.Option(min=1, help="Threads that read.", show_default="the cores, at most 8")]


def index(
    folder: Annotated[str, typer.Argument(metavar="DIR|URL", help="Tar shards, or folders of images, one a class.")],
    pattern: Pattern = "*.tar",
    workers: Workers = None,
    to: Annotated[Path | None, typer.Option(help="Of shards behind a URL: the folder for the index.")] = None,
    upload: Annotated[bool, typer.Option("--upload", help="Then put it beside the shards (s3, gs).")] = False,
) -> None:
    """Write or refresh the side index: where each sample is, and its checksum.

    Shards and files whose size and time are those of the index are not read again. The index goes beside the data, or
    into the cache ($XDG_CACHE_HOME/restrain/index) where that folder cannot be written.
    """
    from restrain.data.indexing import index_folder, index_shards, match_shards
    from restrain.data.progress import console_reporter
    from restrain.data.remote.urls import is_remote

    if is_remote(folder):
        _remote(folder, pattern, workers or 4, to, upload)
        return
    root = Path(folder)
    names = match_shards(root, pattern)
    sets = [] if names else _class_sets(root, pattern)
    with console_reporter() as reporter:
        if names:
            index_shards(root, names, refresh=True, workers=workers, reporter=reporter)
        for classes in sets:
            index_folder(classes, refresh=True, workers=workers, reporter=reporter)


def _remote(root: str, pattern: str, workers: int, to: Path | None, upload: bool) -> None:
    from restrain.data.progress import console_reporter
    from restrain.data.remote import indexing
    from restrain.data.remote.urls import redact
    from restrain.errors import UserError

    if to is None:
        raise UserError(f"{redact(root)}: name a folder for its index with --to FOLDER.")
    with console_reporter() as reporter:
        indexing.index_remote(root, pattern, to, workers=workers, reporter=reporter)
    if upload:
        indexing.upload(root, to)
        typer.echo(f"It is beside the shards now: data.root={redact(root)}")
    else:
        typer.echo(f"Put its files beside the shards, or name the folder: data.root={redact(root)} data.index={to}")


def _class_sets(folder: Path, pattern: str) -> list[Path]:
    """The folder itself where its sub-folders hold images; else those of them whose own sub-folders do (train, val)."""
    from restrain.data.indexing import IMAGES
    from restrain.errors import UserError

    below = sorted(path for path in folder.iterdir() if path.is_dir() and path.name[0] != ".")
    if any(file.suffix.lower() in IMAGES for path in below for file in path.iterdir()):
        return [folder]
    splits = [path for path in below if any(inner.is_dir() for inner in path.iterdir())]
    if not splits:
        raise UserError(
            f"{folder} holds no data set: no file matches {pattern!r}, and there are no folders of images, one a class."
        )
    return splits
