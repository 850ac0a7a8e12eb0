"""Names of remote places, and what may be shown of them."""

from __future__ import annotations

from urllib.parse import quote, urlsplit, urlunsplit

from restrain.errors import UserError

SCHEMES = ("http", "https", "s3", "gs")


def is_remote(root: str | None) -> bool:
    """Whether a root is a URL, a chain of them (``a::b``) or a command (``pipe:``), not a folder."""
    return root is not None and ("://" in root or "::" in root or root.startswith("pipe:"))


def redact(url: str) -> str:
    """The URL without user, password, query and fragment: signatures and keys stand there."""
    if not is_remote(url):
        return url
    if url.startswith("pipe:"):
        return "pipe:..."  # a command may hold anything
    if "::" in url.partition("://")[0]:
        return f"{url.partition('::')[0]}::..."
    try:
        parts = urlsplit(url)
        return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))
    except ValueError:  # brackets that are no address
        return f"{url.partition('://')[0]}://(unreadable)"


def join(root: str, name: str) -> str:
    """The URL of an object below ``root``, whose query (a signature for the whole folder) is kept."""
    parts = urlsplit(root)
    name = quote(name) if parts.scheme in ("http", "https") else name
    return urlunsplit((parts.scheme, parts.netloc, f"{parts.path.rstrip('/')}/{name}", parts.query, ""))


def check(root: str) -> str:
    """The root. Raises UserError for one that cannot be read, would run a program, or holds a secret."""
    scheme = root.partition(":")[0].lower()
    if scheme == "pipe":
        raise UserError(
            f"data.root={redact(root)}: commands are never run to read data. Name a folder, or a root that is read "
            f"from {', '.join(f'{name}://' for name in SCHEMES)}."
        )
    if "::" in root.partition("://")[0]:
        raise UserError(
            f"data.root={redact(root)}: chained file systems are not read. Restrain caches remote shards itself "
            f"(data.cache); unpack archives, and name the place of the shards alone."
        )
    if scheme == "file":
        raise UserError(f"data.root={redact(root)}: name a folder by its path, without file://.")
    if scheme not in SCHEMES:
        raise UserError(
            f"data.root={redact(root)}: {scheme}:// cannot be read. Shards are read from a folder or from "
            f"{', '.join(f'{name}://' for name in SCHEMES)}."
        )
    try:
        parts = urlsplit(root)
    except ValueError:
        raise UserError(f"data.root={redact(root)} is no URL.") from None
    if parts.query or parts.fragment or "@" in parts.netloc:
        raise UserError(
            f"data.root={redact(root)} is given with a password or a query, which would be written into the lock of "
            f"the run for all to read. Name a place that can be read without, such as a proxy that adds them."
        )
    return root
