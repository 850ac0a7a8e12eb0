"""The data sets a recipe can name, behind one function."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from restrain import packages
from restrain.data.digits import DigitsSource
from restrain.data.indexing import (
    Reporter,
    check_none_missing,
    expand,
    index_folder,
    index_shards,
    list_classes,
    match_shards,
)
from restrain.data.reader import Source
from restrain.data.remote.urls import check, is_remote, redact
from restrain.data.sequences import SequenceSource
from restrain.data.sources import FolderSource, ShardSource
from restrain.data.wds.staged import StagedSource
from restrain.data.wds.stages import Stage, find_stages
from restrain.data.wds.stream import StreamSource
from restrain.errors import UserError, WorldError
from restrain.recipe.schema_data import Folder, Tokens, WebDataset

# What data.eval is where nobody says it.
EVAL = {one.__name__.lower(): one.model_fields["eval"].default for one in (Folder, WebDataset, Tokens)}


def open_source(
    data: Any,
    split: str,
    *,
    classes: int | None = None,
    reporter: Reporter | None = None,
    stages: Sequence[Stage] = (),
) -> Source | None:
    """The ``train`` or ``eval`` split of a recipe's ``data`` section; None where there is no evaluation set.

    classes: ``model.classes``, to check labels against. stages: those of a script, which ``data.stages`` names. A set
    without an index is indexed first, which ``reporter`` tells. Raises UserError for a root that is not such a set,
    WorldError for damaged or missing files.
    """
    if data.name == "digits":
        return DigitsSource(split, classes)
    if data.name == "sequences":
        count = data.train if split == "train" else data.eval
        return None if count is None else SequenceSource(data.task, split, data.length, count, data.seed)
    if data.name == "package":
        wanted = data.train if split == "train" else data.eval
        return None if wanted is None else packages.find("data.set", data.set)(data, wanted, classes)
    wrapped = find_stages(getattr(data, "stages", ()), stages)
    if split == "train" and getattr(data, "mode", "") == "stream":
        return StreamSource(data, wrapped, classes)
    source = _open_files(data, split, classes, reporter)
    # A set without what `eval` is by default has nothing to evaluate on; what somebody has named has to be there.
    if source is None and data.eval is not None and data.eval != EVAL.get(data.name):
        raise UserError(
            f"Nothing in {redact(str(data.root))} matches data.eval={data.eval!r}. Correct it, or set data.eval=null "
            f"to evaluate on nothing."
        )
    if source is not None and len(source.counts) and not source.counts.sum():
        raise WorldError(
            f"Every sample of data.{split} in {redact(str(data.root))} is excluded by its index. Restore the shards, "
            f"run restrain data index, or name others."
        )
    if not wrapped or source is None:
        return source
    assert isinstance(source, ShardSource)
    return StagedSource(source, wrapped, classes)


def _open_files(data: Any, split: str, classes: int | None, reporter: Reporter | None) -> Source | None:
    if data.root is None:
        raise UserError(
            f"data.root is not set: data.name={data.name} needs the folder of the data set. Give data.root=FOLDER on "
            f"the command line, or write it into the site file."
        )
    if is_remote(data.root):
        if data.name in ("tokens", "text"):
            how = "tokens are mapped into memory" if data.name == "tokens" else "a text is read"
            raise UserError(f"data.root={redact(data.root)}: {how} from local files. Copy them.")
        return _remote(data, split, classes)
    root = Path(os.path.expanduser(data.root))
    if not root.is_dir():
        found = " is a file" if root.is_file() else ": there is no such folder"
        raise UserError(f"data.root={data.root}{found}. Name the folder of the data set.")
    if data.name == "text":
        from restrain.data.text.plain import open_text

        return open_text(data, root, split)
    wanted = data.train if split == "train" else data.eval
    if wanted is None:
        return None
    if data.name == "folder":
        return _folder(data, root, split, classes, reporter)
    if data.name == "webdataset":
        return _shards(data, root, split, wanted, classes, reporter)
    if data.name == "tokens":
        return _tokens(data, root, split, wanted, reporter)
    raise UserError(f"data.name={data.name}: unknown data set.")


def _tokens(data: Any, root: Path, split: str, pattern: str, reporter: Reporter | None) -> Source | None:
    from restrain.data.text.manifest import require
    from restrain.data.text.source import TokenSource, matching

    if split == "eval" and not matching(require(root), pattern):
        return None
    return TokenSource(root, pattern, data.context, documents=data.documents, cache=data.cache, reporter=reporter)


def _folder(data: Any, root: Path, split: str, classes: int | None, reporter: Reporter | None) -> Source | None:
    train = root / data.train
    if split == "train":
        if not train.is_dir():
            raise UserError(
                f"{train} does not exist. A folder set is data.root/{data.train}/class/image.jpg; name the folder that "
                f"holds the classes with data.train (data.train=. for data.root itself)."
            )
        names, folder = list_classes(train), train
    else:
        folder = root / data.eval
        if not folder.is_dir():
            return None
        names = list_classes(folder)
        if list(names) != list(expected := list_classes(train)):
            odd = sorted(set(names) ^ set(expected))
            raise UserError(
                f"{folder} and {train} must have the same class folders, since a label is a folder's number: "
                f"{', '.join(odd[:5])}{' ...' if odd[5:] else ''} {'is' if len(odd) == 1 else 'are'} in one only."
            )
    if classes is not None and len(names) != classes:
        raise UserError(
            f"model.classes={classes}, but {folder} has {len(names)} class folders. Set model.classes={len(names)}."
        )
    index = index_folder(folder, cache=data.cache, reporter=reporter)
    return FolderSource(index, folder, classes)


def _remote(data: Any, split: str, classes: int | None) -> Source | None:
    from restrain.data.remote.opening import open_shards

    if data.name != "webdataset":
        raise UserError(
            f"data.root={redact(data.root)}: data.name={data.name} is read from a folder. Pack it into shards, and use "
            f"data.name=webdataset."
        )
    wanted = data.train if split == "train" else data.eval
    if wanted is None:
        check(data.root)
        return None
    index, store = open_shards(data, expand(wanted))
    if not index.names:
        store.close()
        if split == "eval":
            return None
        raise UserError(f"No shard in the index of {redact(data.root)} matches data.train={wanted!r}. Correct it.")
    return ShardSource(index, data.root, classes, store)


def _shards(
    data: Any, root: Path, split: str, pattern: str, classes: int | None, reporter: Reporter | None
) -> Source | None:
    names = match_shards(root, pattern)
    check_none_missing(root, pattern, names, data.cache)
    if not names and split == "eval":
        return None
    if not names:
        raise UserError(
            f"No file of {root} matches data.train={pattern!r}. Correct the pattern, or data.root; for a folder of "
            f"images a class use data.name=folder."
        )
    index = index_shards(root, names, cache=data.cache, reporter=reporter)
    return ShardSource(index, root, classes)
