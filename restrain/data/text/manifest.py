"""The manifest of a token set: what its raw files mean. ``restrain-tokens.json``. No torch here.

A shard ``train-000000.bin`` is little-endian u16 or u32 tokens and nothing else, ``train-000000.idx`` the u64 places at
which its documents begin.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from restrain.data.index import replace
from restrain.errors import UserError, WorldError

VERSION = 1
MANIFEST = "restrain-tokens.json"
DTYPES = {"u16": np.dtype("<u2"), "u32": np.dtype("<u4")}
LARGEST_U16 = 1 << 16  # a vocabulary up to this size is stored in two bytes a token


@dataclass(frozen=True)
class Shard:
    """One raw file. documents: that begin in it. sha256: of the tokens; idx_sha256: of the places of documents."""

    name: str
    tokens: int
    documents: int
    sha256: str
    idx_sha256: str


@dataclass(frozen=True)
class Manifest:
    """What the files of a folder mean.

    tokenizer: ``name`` (bytes, chars, file or raw), ``sha256`` of its definition, of chars also ``vocabulary`` (token i
    is the i-th character), of a file its ``file`` beside the manifest. document_end: the token after each document, or
    None. packing: the settings and the listing that the set was made from; nothing reads them but a second packing.
    """

    dtype: str
    vocab_size: int
    tokenizer: dict[str, str]
    document_end: int | None
    shards: Sequence[Shard]
    packing: dict[str, Any]

    @property
    def stored(self) -> np.dtype:
        return DTYPES[self.dtype]


def dtype_for(vocab_size: int) -> str:
    """The narrower of the two types that holds the vocabulary."""
    return "u16" if vocab_size <= LARGEST_U16 else "u32"


def index_name(shard: str) -> str:
    """The file with the places of a shard's documents."""
    return shard.removesuffix(".bin") + ".idx"


def save(root: Path, manifest: Manifest) -> None:
    """Write the manifest: last of all, since it vouches for the rest."""
    record = {"version": VERSION, **asdict(manifest)}
    replace(root / MANIFEST, (json.dumps(record, indent=1, ensure_ascii=False) + "\n").encode())


def load(root: str | Path) -> Manifest | None:
    """The manifest of a folder, None where there is none. Raises WorldError for one that cannot be used."""
    path = Path(root) / MANIFEST
    try:
        record = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise WorldError(f"{path} cannot be read: {error}. Restore it, or pack the text again.") from error
    try:
        version = record.pop("version")
        if version != VERSION:
            raise WorldError(f"{path} is of version {version!r}; this Restrain reads {VERSION}. Pack the text again.")
        record["shards"] = [Shard(**shard) for shard in record["shards"]]
        manifest = Manifest(**record)
        _check_types(manifest)
        if manifest.dtype not in DTYPES or manifest.vocab_size > 1 << (8 * manifest.stored.itemsize):
            raise WorldError(
                f"{path} says dtype {manifest.dtype!r} and {manifest.vocab_size} tokens, which do not fit together "
                f"(u16 holds {LARGEST_U16:,}, u32 the rest). Restore it, or pack the text again."
            )
        return manifest
    except (KeyError, TypeError, AttributeError) as error:
        raise WorldError(f"{path} is no manifest of a token set ({error}). Restore it, or pack again.") from error


def _check_types(manifest: Manifest) -> None:
    """Raises TypeError for what is not of the kind that was written: somebody may have changed it."""
    end = manifest.document_end
    numbers = [manifest.vocab_size, *(n for shard in manifest.shards for n in (shard.tokens, shard.documents))]
    if not all(type(n) is int and 0 <= n < 1 << 62 for n in [*numbers, *([] if end is None else [end])]):
        raise TypeError("a number in it is none, or cannot be")
    texts = [t for shard in manifest.shards for t in (shard.name, shard.sha256, shard.idx_sha256)]
    if not all(isinstance(text, str) and "\0" not in text for text in texts) or manifest.vocab_size == 0:
        raise TypeError("a name in it is none")
    if any("/" in shard.name or not isinstance(manifest.tokenizer, dict) for shard in manifest.shards):
        raise TypeError("it names files outside its folder")


def raw_files(root: Path) -> list[Path]:
    """The .bin files of a folder that may hold tokens: indexes of windows do not."""
    return sorted(path for path in root.glob("*.bin") if not path.name.startswith("restrain-"))


def require(root: str | Path) -> Manifest:
    """The manifest of a folder. Raises UserError that says how to make one."""
    found = load(root)
    if found is None:
        raw = [path.name for path in raw_files(Path(root))]
        told = (
            f"{Path(root)} holds no {MANIFEST}: it is no token set. Make one of text: restrain data tokens TEXT {root}"
        )
        if raw:
            told = (
                f"{Path(root)} holds {raw[0]} but no {MANIFEST}: nothing says how wide its tokens are, nor how many "
                f"there can be. Write a manifest beside it: restrain data tokens {root} {root} --raw u16 --vocab-size N"
            )
        raise UserError(told)
    return found
