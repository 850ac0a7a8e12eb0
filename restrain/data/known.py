"""How many training samples a recipe has, as far as that is known without reading a data set."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from restrain.data import index
from restrain.data.digits import TRAINED_ON
from restrain.data.indexing import match_shards
from restrain.data.remote.urls import is_remote
from restrain.data.text.manifest import require
from restrain.data.text.source import matching
from restrain.data.text.windows import count
from restrain.errors import RestrainError


def known_samples(data: Any) -> tuple[int | None, str]:
    """The number of training samples of a recipe's ``data`` section, or None; and why it is known, or not.

    A set's index says it; nothing is indexed here.
    """
    if data.name == "digits":
        return TRAINED_ON, "the digits set"
    if data.name == "sequences":
        return data.train, "data.train"
    if getattr(data, "mode", "") == "stream":
        return data.samples_per_epoch, "data.samples_per_epoch"
    if data.root is None:
        return None, "data.root is not set"
    if is_remote(data.root):
        return None, "the index of a remote set is read when it is opened"
    root = Path(os.path.expanduser(data.root))
    if data.name == "tokens":
        return _known_windows(data, root)
    if data.name == "text":
        return _known_text(data, root)
    try:
        names = None if data.name == "folder" else match_shards(root, data.train)
    except RestrainError as error:
        return None, str(error).rstrip(".")
    folder = root / data.train if names is None else root
    for place in index.places(folder, data.cache):
        found = index.load(place)
        if found is not None and (names is None or (names and set(names) <= set(found.names))):
            chosen = found if names is None else found.select(names)
            return int(chosen.counts.sum()), f"the index in {place}"
    return None, f"{folder} has no index yet (restrain data index {folder} makes one)"


def _known_windows(data: Any, root: Path) -> tuple[int | None, str]:
    try:
        manifest = require(root)
        names = set(matching(manifest, data.train))
    except RestrainError as error:
        return None, str(error).rstrip(".")
    windows = sum(count(shard.tokens, data.context) for shard in manifest.shards if shard.name in names)
    return windows, f"the manifest in {root}"


def _known_text(data: Any, root: Path) -> tuple[int | None, str]:
    from restrain.data.text.plain import open_text

    try:
        source = open_text(data, root, "train")
    except RestrainError as error:
        return None, str(error).rstrip(".")
    assert source is not None
    return int(source.counts.sum()), f"{source.length:,} tokens of {data.train}, {data.context} each"
