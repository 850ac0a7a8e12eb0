"""Text to token shards: deterministic, parallel, and going on where it was killed. No torch here.

1. Parts of the text become files of tokens and document lengths, in ``DST/.packing``.
2. The documents are put in a keyed order, split and dealt out to shards: arithmetic on their lengths.
3. Each shard is gathered from the parts. The manifest comes last, and the parts go.

Every file is written beside its name and renamed, so that what is there is whole.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from restrain.data.index import replace as write
from restrain.data.indexing import Reporter
from restrain.data.text import codes, manifest
from restrain.data.text.dealing import Dealt, Lengths, deal
from restrain.data.text.documents import LINES, Part, Reading, cut_parts, list_files, read
from restrain.data.text.manifest import Manifest, Shard
from restrain.data.text.shards import write_shard
from restrain.errors import UserError, WorldError

WORK = ".packing"
TOGETHER = 512  # documents encoded at a time
T = TypeVar("T")
U = TypeVar("U")


@dataclass(frozen=True)
class Settings:
    """What defines a set, beside its text.

    end: token after each document; None: the tokenizer's own, ``none``: nothing. eval_share: of the characters.
    shard_size: tokens, a document being in one shard.
    """

    tokenizer: str = "bytes"
    end: str | None = None
    eval_share: Fraction | None = None
    shard_size: int = 100_000_000
    shuffle: bool = True
    seed: int = 0
    reading: Reading = field(default_factory=Reading)


def pack(
    source: Path,
    target: Path,
    settings: Settings,
    *,
    evaluation: Path | None = None,
    workers: int | None = None,
    reporter: Reporter | None = None,
) -> Manifest:
    """Pack a text, or a folder of text, into ``target``; a second call goes on where a first was killed.

    The same text and settings give the same bytes, whatever ``workers`` (threads; the cores, at most 8) and however
    often it was interrupted. Raises UserError for settings that cannot be and a target that holds another set,
    WorldError for damaged text and a full disk.
    """
    reporter = reporter or Reporter()
    tokenizer = codes.named(settings.tokenizer)
    codes.end_of(tokenizer, settings.end)  # refused before anything is read
    lists = {"train": list_files(source)} | ({"val": list_files(evaluation)} if evaluation else {})
    request = _request(settings, tokenizer, source, evaluation, lists)
    done = manifest.load(target) if target.is_dir() else None
    if done is not None:
        if done.packing != request:
            raise UserError(f"{target} holds another token set already. Choose another folder, or remove that one.")
        cut = [shard.name for shard in done.shards if _size(target / shard.name) != shard.tokens * done.stored.itemsize]
        if cut:
            raise WorldError(f"{target / cut[0]} is missing, cut short or changed. Remove {target}, and pack again.")
        shutil.rmtree(target / WORK, ignore_errors=True)  # killed between the manifest and the end
        reporter.say(f"{target} is packed already: {_summary(done)}")
        return done
    try:
        with _begun(target, request):
            parts = _parts(settings, lists)
            threads = workers or min(8, len(os.sched_getaffinity(0)))
            todo = [(i, split, part) for i, (split, part) in enumerate(parts)]
            _each(lambda one: _make_part(target, one[0], one[2], tokenizer, settings.reading), todo, threads, reporter)
            lengths = [_lengths(target, i, split) for i, split, _ in todo]
            made = _gather(target, settings, tokenizer, lengths, request, threads, reporter)
            shutil.rmtree(target / WORK)
    except OSError as error:
        raise WorldError(
            f"{target} cannot be written: {error.strerror or error}. What is packed stays; mend that and run the same "
            f"command again, which goes on."
        ) from error
    reporter.say(f"{target}: {_summary(made)}")
    return made


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return -1


def _summary(made: Manifest) -> str:
    tokens, documents = (sum(getattr(shard, of) for shard in made.shards) for of in ("tokens", "documents"))
    return f"{len(made.shards)} shard(s), {documents:,} document(s), {tokens:,} tokens of {made.vocab_size:,} kinds"


def _request(settings: Settings, tokenizer: Any, source: Path, evaluation: Path | None, lists: dict) -> dict[str, Any]:
    """Everything that the bytes depend on, as JSON; of the text its names and sizes, not its place."""
    digest = hashlib.sha256()
    for split, base in (("train", source), ("val", evaluation)):
        for path, size in lists.get(split, ()):
            digest.update(json.dumps([split, os.path.relpath(path, base), size]).encode())
    record = asdict(settings) | {"eval_share": str(settings.eval_share) if settings.eval_share else None}
    name = "sha256:" + tokenizer.sha256 if tokenizer.name == "file" else tokenizer.name
    return record | {"tokenizer": name, "text": digest.hexdigest()}


@contextmanager
def _begun(target: Path, request: dict[str, Any]) -> Iterator[None]:
    """The work folder, held against other processes. Raises UserError where it is another's, or somebody holds it."""
    work = target / WORK
    if target.is_dir() and not work.is_dir() and manifest.raw_files(target):
        raise UserError(f"{target} holds .bin files that this command did not write. Choose another folder.")
    work.mkdir(parents=True, exist_ok=True)
    with open(work / "lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{target} is being packed by another process. Wait for it, or end it.") from None
        plan = work / "request.json"
        text = json.dumps(request, indent=1)
        if plan.exists() and plan.read_text() != text and any(work.glob("*.len")):  # work that somebody may want
            raise UserError(
                f"{target} holds the beginnings of another packing (other settings, or the text has changed). Run the "
                f"command it was begun with, or remove {work} and the shards beside it."
            )
        write(plan, text.encode())
        yield


def _parts(settings: Settings, lists: dict[str, list[tuple[str, int]]]) -> list[tuple[str | None, Part]]:
    """(split, part) in order; split None: the share decides, document by document."""
    share, files = settings.eval_share, lists["train"]
    if share is not None and len(files) == 1 and _is_one_text(files[0][0], settings):
        part, cut = Part((files[0][0],)), 1 - share
        return [("train", replace(part, cut=(Fraction(0), cut))), ("val", replace(part, cut=(cut, Fraction(1))))]
    split = None if share is not None else "train"
    return [(split, part) for part in cut_parts(files)] + [("val", part) for part in cut_parts(lists.get("val", []))]


def _is_one_text(path: str, settings: Settings) -> bool:
    return settings.reading.separator is None and not path.endswith(LINES)


def _each(do: Callable[[T], U], over: Iterable[T], threads: int, reporter: Reporter) -> list[U]:
    """``do`` of each in threads, in order. The first error ends it, once those under way are done."""
    over = list(over)
    out = []
    with ThreadPoolExecutor(threads) as pool:
        try:
            for result in pool.map(do, over):
                out.append(result)
                reporter.progress(len(out), len(over))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return out


def _part_files(target: Path, number: int) -> tuple[Path, Path]:
    return tuple(target / WORK / f"part-{number:06d}.{end}" for end in ("tok", "len"))  # type: ignore[return-value]


def _make_part(target: Path, number: int, part: Part, tokenizer: codes.Tokenizer, reading: Reading) -> None:
    """Write the part's tokens, then its lengths, which vouch for them."""
    tokens, lengths = _part_files(target, number)
    if lengths.exists():
        return
    rows = []
    temporary = tokens.with_suffix(f".half{os.getpid()}")
    with open(temporary, "wb") as file:
        for texts in _runs(read(part, reading)):
            for text, found in zip(texts, tokenizer.encode(texts), strict=True):
                file.write(found.astype(tokenizer.width, copy=False).data)
                rows.append((len(found), len(text)))
    os.replace(temporary, tokens)
    write(lengths, np.array(rows, "<u8").reshape(-1, 2).tobytes())


def _runs(texts: Iterable[str]) -> Iterable[list[str]]:
    """Runs of documents, short where they are long."""
    run: list[str] = []
    held = 0
    for text in texts:
        run.append(text)
        held += len(text)
        if len(run) == TOGETHER or held > 1 << 22:
            yield run
            run, held = [], 0
    if run:
        yield run


def _lengths(target: Path, number: int, split: str | None) -> Lengths:
    rows = np.frombuffer(_part_files(target, number)[1].read_bytes(), "<u8").reshape(-1, 2).astype(np.int64)
    return Lengths(number, split, rows[:, 0], rows[:, 1])


def _gather(
    target: Path,
    settings: Settings,
    tokenizer: Any,
    lengths: list[Lengths],
    request: dict,
    threads: int,
    told: Reporter,
) -> Manifest:
    """Deal the documents out, write the shards and the manifest."""
    total = sum(len(part.tokens) for part in lengths)
    if total == 0:
        raise UserError("The text is empty: it has no document with a character in it.")
    ends = codes.end_of(tokenizer, settings.end) is not None
    shards = deal(lengths, settings.eval_share, settings.shuffle, settings.seed, settings.shard_size, int(ends))
    raw = {part.part: _mapped(target, part.part, tokenizer.width) for part in lengths}
    finish: Callable[[np.ndarray], np.ndarray] | None = None
    if isinstance(tokenizer, codes.Characters):
        tokenizer = codes.Characters(_vocabulary(shards, raw))
        finish = tokenizer.finish
    end = codes.end_of(tokenizer, settings.end)
    size = max(tokenizer.size, 0 if end is None else end + 1)
    dtype = manifest.dtype_for(size)
    stored = manifest.DTYPES[dtype]
    records: list[Shard] = _each(
        lambda shard: write_shard(target, target / WORK, shard, raw, stored, end, finish), shards, threads, told
    )
    known = {"name": tokenizer.name, "sha256": tokenizer.sha256}
    if isinstance(tokenizer, codes.Characters):
        known["vocabulary"] = tokenizer.vocabulary
    if isinstance(tokenizer, codes.FileTokenizer):
        write(target / codes.FILE, tokenizer.content)
        known["file"] = codes.FILE
    made = Manifest(dtype, size, known, end, records, request)
    manifest.save(target, made)
    return made


def _mapped(target: Path, number: int, width: np.dtype) -> np.ndarray:
    path = _part_files(target, number)[0]
    return np.memmap(path, width, "r") if path.stat().st_size else np.empty(0, width)


def _vocabulary(shards: list[Dealt], raw: dict[int, np.ndarray]) -> str:
    """The characters of the training text, sorted."""
    seen = np.zeros(codes.CODE_POINTS, bool)
    for shard in shards:
        if shard.name.startswith("train"):
            for part, first, count in zip(
                shard.part.tolist(), shard.first.tolist(), shard.tokens.tolist(), strict=True
            ):
                seen[raw[part][first : first + count]] = True
    return "".join(map(chr, np.flatnonzero(seen).tolist()))
