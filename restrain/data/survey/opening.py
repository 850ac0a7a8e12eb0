"""Any indexed set below a folder, for commands that look at it as it is stored."""

from __future__ import annotations

from pathlib import Path

from restrain.data import index
from restrain.data.index import Index
from restrain.data.indexing import expand, matches
from restrain.errors import UserError


def indexed(root: Path, pattern: str = "*.tar", cache: str | None = None) -> Index:
    """The index of a set: of the shards that match, or of class folders. Raises UserError where there is none."""
    if not root.is_dir():
        raise UserError(f"{root} is no folder. Name the folder of a data set.")
    for place in index.places(root, cache):
        found = index.load(place)
        if found is None:
            continue
        if found.kind == "folder":
            return found
        # Against the index and not the folder: a shard that is gone is to be told, not to be left out.
        chosen = [name for name in found.names if any(matches(name, one) for one in expand(pattern))]
        if chosen:
            return found.select(chosen)
    raise UserError(f"{root} has no index. Make one first: restrain data index {root}")
