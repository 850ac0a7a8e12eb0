"""Names of remote places, and what may be shown of them."""

from __future__ import annotations

from urllib.parse import quote, urlsplit, urlunsplit

from restrain.errors import UserError

SCHEMES = ("http", "https", "s3", "gs")


def is_remote(root: str) -> bool:
    return "://" in root


def redact(url: str) -> str:
    """The URL without user, password, query and fragment: signatures and keys stand there."""
    if not is_remote(url):
        return url
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
    """The scheme of a root. Raises UserError for one that cannot be read, or that would run a program."""
    scheme = root.partition("://")[0].lower()
    if scheme not in SCHEMES:
        raise UserError(
            f"data.root={redact(root)}: {scheme}:// cannot be read. Shards are read from a folder or from "
            f"{', '.join(f'{name}://' for name in SCHEMES)}."
        )
    return scheme
