"""``restrain data index``: write or refresh the side index of a set. No torch here."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="Tar shards, or folders of images, one a class.")]
Pattern = Annotated[str, typer.Option(help="Which shards: * ? [] and {000..146}.")]
Workers = Annotated[int | None, typer.Option(min=1, help="Threads that read.", show_default="the cores, at most 8")]


def index(folder: Folder, pattern: Pattern = "*.tar", workers: Workers = None) -> None:
    """Write or refresh the side index: where each sample is, and its checksum.

    Shards and files whose size and time are those of the index are not read again. The index goes beside the data, or
    into the cache ($XDG_CACHE_HOME/restrain/index) where that folder cannot be written.
    """
    from restrain.data.indexing import index_folder, index_shards, match_shards
    from restrain.data.progress import console_reporter

    names = match_shards(folder, pattern)
    sets = [] if names else _class_sets(folder, pattern)
    with console_reporter() as reporter:
        if names:
            index_shards(folder, names, refresh=True, workers=workers, reporter=reporter)
        for classes in sets:
            index_folder(classes, refresh=True, workers=workers, reporter=reporter)


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
