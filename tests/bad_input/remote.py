# ruff: noqa: E501  (a paragraph is longer than a line)
"""Roots that are no place to read shards from."""

from __future__ import annotations

from tests.bad_input.harness import Case


def _root(root: str):
    return lambda place: place.shards(f"data.root={root}")


READ_FROM = "http://, https://, s3://, gs://."
ROOTS = [
    Case(
        "data.root is a command",
        f"data.root=pipe:...: commands are never run to read data. Name a folder, or a root that is read from {READ_FROM}",
        2,
        "Name a folder or a URL.",
        _root("pipe:cat"),
    ),
    Case(
        "data.root is a chain of file systems",
        "data.root=filecache::...: chained file systems are not read. Restrain caches remote shards itself (data.cache); unpack archives, and name the place of the shards alone.",
        2,
        "Name the place of the shards.",
        _root("filecache::s3://bucket/set"),
    ),
    Case(
        "data.root is a remote shell",
        f"data.root=ssh://host/set: ssh:// cannot be read. Shards are read from a folder or from {READ_FROM}",
        2,
        "Name a folder or a URL that is read.",
        _root("ssh://host/set"),
    ),
    Case(
        "data.root is a folder as a URL",
        "data.root=file:///set: name a folder by its path, without file://.",
        2,
        "Leave file:// out.",
        _root("file:///set"),
    ),
    Case(
        "data.root holds a signature",
        "data.root=s3://bucket/set is given with a password or a query, which would be written into the lock of the run for all to read. Name a place that can be read without, such as a proxy that adds them.",
        2,
        "Give credentials through the environment.",
        _root("s3://bucket/set?X-Amz-Signature=canary"),
    ),
]
