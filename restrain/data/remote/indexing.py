"""The index of shards that lie behind a URL: each is fetched once, read, and let go."""

from __future__ import annotations

import fnmatch
import json
import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from restrain.data import index, tars
from restrain.data.index import Entry, Index
from restrain.data.indexing import Reporter, expand
from restrain.data.remote import urls
from restrain.data.remote.fetching import Final, Patience, Transient, Transport, fetch
from restrain.data.remote.objects import ObjectTransport
from restrain.data.remote.opening import transport_of
from restrain.errors import UserError, WorldError

TAGS = "restrain-tags.json"  # beside the index: what the store said of each shard, so that it is not read again


def index_remote(
    root: str,
    pattern: str,
    target: Path,
    *,
    workers: int = 4,
    reporter: Reporter | None = None,
    patience: Patience | None = None,
) -> Index:
    """Index the shards below a URL into the folder ``target``. Those whose tag is that of an index in it are kept.

    Raises UserError for a pattern that a web server cannot answer, WorldError where a shard cannot be had or is
    damaged.
    """
    reporter, patience = reporter or Reporter(), patience or Patience()
    transport = transport_of(urls.check(root))
    names = list_remote(root, pattern, transport)
    known, tags = _known(target)
    reporter.say(f"Indexing {len(names)} shard(s) of {urls.redact(root)}")
    old = index.load(target)
    done, parts = 0, {name: part for name, part in known.items() if name not in names}

    def one(name: str) -> tuple[str, tuple[Entry, bytes], str | None]:
        url = urls.join(root, name)
        if name in known and tags.get(name) is not None and tags[name] == _tag(transport, url, patience):
            return name, known[name], tags[name]
        with tempfile.NamedTemporaryFile(prefix="restrain-", suffix=".tar", dir=target) as file:
            tag = fetch(transport, url, FileSink(file), patience)
            file.flush()
            found = tars.scan(file.name, urls.redact(url))
        entry = Entry(name, len(found.crcs), found.size, found.sha256, 0, 0, 0)
        return name, (entry, index.shard_part(found.offsets, found.crcs)), tag

    target.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(workers) as pool:
        for name, part, tag in pool.map(one, names):
            parts[name], tags[name] = part, tag
            done += 1
            reporter.progress(done, len(names))
    same = {name for name, (entry, _) in known.items() if name in parts and parts[name][0].sha256 == entry.sha256}
    excluded = [one for one in (old.excluded if old else []) if one[0] in same]
    made = index.save([target], "shards", [parts[name] for name in sorted(parts)], excluded)
    index.replace(target / TAGS, json.dumps({"tags": {n: tags.get(n) for n in parts}}).encode())
    reporter.say(f"The index is in {target}: {len(made.names)} shards, {int(made.counts.sum())} samples")
    return made


def upload(root: str, target: Path) -> None:
    """Put an index beside the shards. Raises UserError where that cannot be done from here."""
    transport = transport_of(urls.check(root))
    if not isinstance(transport, ObjectTransport):
        raise UserError(f"{urls.redact(root)} cannot be written to from here: put the index there by hand.")
    for path in (target / index.TABLE, *target.glob("restrain-index.json*")):
        if path.is_file():
            try:
                transport.put(urls.join(root, path.name), path.read_bytes())
            except (Final, Transient) as error:
                raise WorldError(f"{urls.redact(root)}: {path.name} cannot be written there: {error}.") from None


def list_remote(root: str, pattern: str, transport: Transport) -> list[str]:
    """Names below a URL, in byte order. Raises UserError where there are none, or a web server would have to know."""
    if isinstance(transport, ObjectTransport):
        try:
            names = [name for one in expand(pattern) for name in transport.listed(root, one)]
        except (Final, Transient) as error:
            raise WorldError(f"{urls.redact(root)} cannot be listed: {error}. Check it, and the right to.") from None
        names = [name for name in names if any(fnmatch.fnmatch(name, one) for one in expand(pattern))]
    elif any(mark in pattern for mark in "*?["):
        raise UserError(
            f"The pattern {pattern!r}: a web server does not list what it has. Name the shards by numbers, such as "
            f"train-{{000000..000146}}.tar."
        )
    else:
        names = expand(pattern)
    if not names:
        raise UserError(f"No object below {urls.redact(root)} matches {pattern!r}. Correct the pattern.")
    return sorted(set(names), key=os.fsencode)


def _tag(transport: Transport, url: str, patience: Patience) -> str | None:
    try:
        answer = transport.get(url, 0, None, None, patience.stall_seconds)
    except (Final, Transient):
        return None  # fetching it, with patience, will say what is wrong
    close = getattr(answer.chunks, "close", None)
    if close is not None:
        close()
    return answer.tag


def _known(target: Path) -> tuple[dict[str, tuple[Entry, bytes]], dict[str, str | None]]:
    found = index.load(target)
    if found is None:
        return {}, {}
    try:
        tags = dict(json.loads((target / TAGS).read_text())["tags"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}, {}
    return {entry.url: (entry, found.part(i).tobytes()) for i, entry in enumerate(found.entries)}, dict(tags)


class FileSink:
    """What a fetch writes, in a file that is open."""

    def __init__(self, file):
        self._file = file

    def write(self, data: bytes) -> None:
        self._file.write(data)

    def restart(self) -> None:
        self._file.seek(0)
        self._file.truncate()
