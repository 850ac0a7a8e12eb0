"""YAML 1.2 text to a tree of untyped nodes that know where they were written.

No scalar is interpreted here: ``1e-4``, ``off`` and ``0123`` stay text until the type of the recipe's field says what
they are (``typed.py``). Built from the parser's events, because the loader on top of them still reads ``1_000``,
``0b11``, dates, ``<<`` and ``!!int`` in its 1.2 mode.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    Event,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
    StreamEndEvent,
    StreamStartEvent,
)

from restrain.errors import UserError

MAX_NODES = 10_000
MAX_DEPTH = 32
_COMMENT = re.compile(r"(^|\s)#.*")


@dataclass(frozen=True)
class Origin:
    """Where a value came from. ``layer`` is default, base, recipe, site or command line."""

    layer: str
    file: Path | None = None
    line: int | None = None
    text: str | None = None
    """An override as it was typed."""

    def __str__(self) -> str:
        if self.file is None:
            return self.layer
        return f"{relative(self.file)}:{self.line}" if self.line else relative(self.file)


def relative(path: Path) -> str:
    """``path`` as a person would type it: relative when it lies below the working directory."""
    try:
        return str(path.resolve().relative_to(Path.cwd().resolve()))
    except (ValueError, OSError):
        return str(path)


@dataclass(frozen=True)
class Scalar:
    text: str
    plain: bool
    """Written without quotes: only then may it be a number, a truth value or null."""
    origin: Origin
    size: int = 1


@dataclass(frozen=True)
class Items:
    """A YAML sequence."""

    items: tuple["Node", ...]
    origin: Origin
    size: int = 1


@dataclass(frozen=True)
class Mapping:
    entries: dict[str, "Node"]
    origin: Origin
    keys: dict[str, Origin] = field(default_factory=dict)
    """Where each key stands."""
    size: int = 1


Node = Scalar | Items | Mapping


def read_file(path: Path, layer: str) -> Mapping:
    """The mapping in a YAML file; UserError when it cannot be read or is not one."""
    try:
        text = path.read_bytes().decode("utf-8")
    except OSError as error:
        raise UserError(f"{relative(path)}: cannot be read ({error.strerror}).") from None
    except UnicodeDecodeError:
        raise UserError(f"{relative(path)}: is not UTF-8 text, so it is no recipe.") from None
    node = read(text, Origin(layer, path, 1))
    if not isinstance(node, Mapping):
        raise UserError(f"{relative(path)}: holds no 'key: value' lines.")
    return node


def read(text: str, origin: Origin) -> Node | None:
    """The one document in ``text`` as nodes, or None when it is empty. ``origin`` gives layer and file."""
    _refuse_tabs(text, origin)
    try:
        return _Builder(text, origin).document()
    except MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else None
        said = (error.problem or "is not YAML").strip()
        raise _refusal(f"this is not YAML: {said}", origin, line) from None
    except YAMLError as error:
        raise _refusal(f"this is not YAML: {str(error).splitlines()[0]}", origin, None) from None
    except ValueError:
        # The scanner's own arithmetic on an escape such as "\U11111111".
        raise _refusal("this is not YAML: an escape stands for no character", origin, None) from None


def _refuse_tabs(text: str, origin: Origin) -> None:
    for number, line in enumerate(text.split("\n"), 1):
        if "\t" in _COMMENT.sub("", line):
            raise _refusal("a tab; indent and separate with spaces", origin, number)


def _refusal(said: str, origin: Origin, line: int | None) -> UserError:
    return UserError(f"{Origin(origin.layer, origin.file, line)}: {said}.")


class _Builder:
    """Turns the parser's events into nodes, refusing what a recipe has no use for."""

    def __init__(self, text: str, origin: Origin) -> None:
        self.events: Iterator[Event] = iter(YAML(typ="safe", pure=True).parse(text))
        self.base = origin
        self.anchors: dict[str, Node] = {}

    def document(self) -> Node | None:
        node = None
        documents = 0
        for event in self.events:
            if isinstance(event, StreamStartEvent | StreamEndEvent):
                continue
            if isinstance(event, DocumentStartEvent):
                documents += 1
                if documents > 1:
                    raise self.refuse("a second document begins here; a recipe is one", event)
                if event.version or event.tags:
                    raise self.refuse("a % directive; a recipe is plain YAML 1.2", event)
                node = self.node(next(self.events), 0)
        return None if isinstance(node, Scalar) and node.plain and not node.text else node

    def node(self, event: Event, depth: int) -> Node:
        if depth > MAX_DEPTH:
            raise self.refuse(f"nested more than {MAX_DEPTH} deep", event)
        if isinstance(event, AliasEvent):
            known = self.anchors.get(event.anchor)
            if known is None:
                raise self.refuse(f"*{event.anchor} stands for nothing written above it", event)
            return known
        tag = getattr(event, "tag", None)
        if tag is not None:
            raise self.refuse(f"the tag {tag}; types come from the recipe's keys, so leave it out", event)
        if isinstance(event, ScalarEvent):
            node: Node = Scalar(event.value, event.style in (None, ""), self.at(event))
        elif isinstance(event, SequenceStartEvent):
            node = self.items(event, depth)
        elif isinstance(event, MappingStartEvent):
            node = self.mapping(event, depth)
        else:
            raise self.refuse("this is not YAML", event)
        if node.size > MAX_NODES:
            raise self.refuse(f"holds more than {MAX_NODES} values once its anchors are written out", event)
        if getattr(event, "anchor", None):
            self.anchors[event.anchor] = node
        return node

    def items(self, start: Event, depth: int) -> Items:
        items = []
        while not isinstance(event := next(self.events), SequenceEndEvent):
            items.append(self.node(event, depth + 1))
        return Items(tuple(items), self.at(start), 1 + sum(item.size for item in items))

    def mapping(self, start: Event, depth: int) -> Mapping:
        entries: dict[str, Node] = {}
        keys: dict[str, Origin] = {}
        while not isinstance(event := next(self.events), MappingEndEvent):
            key = self.node(event, depth + 1)
            if not isinstance(key, Scalar):
                raise self.refuse("a key must be a word", event)
            if key.text == "<<" and key.plain:
                raise self.refuse("merge keys (<<) are not YAML 1.2; use 'base:'", event)
            if key.text in entries:
                raise self.refuse(
                    f"the key {key.text!r} stands here again (first on line {keys[key.text].line})", event
                )
            keys[key.text] = key.origin
            entries[key.text] = self.node(next(self.events), depth + 1)
        return Mapping(entries, self.at(start), keys, 1 + sum(node.size for node in entries.values()))

    def at(self, event: Event) -> Origin:
        return Origin(self.base.layer, self.base.file, event.start_mark.line + 1, self.base.text)

    def refuse(self, said: str, event: Event) -> UserError:
        return _refusal(said, self.base, event.start_mark.line + 1)
