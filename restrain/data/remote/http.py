"""http and https, by urllib3: status, Retry-After and stalls are seen, which file-system layers hide."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from email.utils import parsedate_to_datetime
from typing import Any

from restrain.data.remote.fetching import Answer, Final, Transient
from restrain.errors import UserError

CHUNK = 1 << 18
NUMBER = re.compile(r"[0-9]{1,19}")


class HttpTransport:
    def __init__(self, connections: int = 16):
        try:
            import urllib3
        except ImportError as error:
            raise UserError(
                "Reading shards over http needs urllib3. Install it: pip install 'restrain[http]'"
            ) from error
        self._errors, self._timeout = urllib3.exceptions.HTTPError, urllib3.Timeout
        retries = urllib3.Retry(None, connect=0, read=0, redirect=5, status=0, other=0)
        self._make = lambda: urllib3.PoolManager(maxsize=connections, retries=retries)
        self._pool, self._process = self._make(), os.getpid()

    def get(self, url: str, first: int, last: int | None, tag: str | None, timeout: float) -> Answer:
        headers = {"Accept-Encoding": "identity"}
        if first or last is not None:
            headers["Range"] = f"bytes={first}-{'' if last is None else last - 1}"
            if tag:
                headers["If-Range"] = tag
        limits = self._timeout(connect=timeout, read=timeout)
        try:
            if self._process != os.getpid():  # forked: a connection answers one process
                self._pool, self._process = self._make(), os.getpid()
            response = self._pool.request("GET", url, headers=headers, preload_content=False, timeout=limits)
        except (self._errors, ValueError) as error:  # ValueError: of a redirection to no address
            raise Transient(_cause(error)) from None
        if response.status not in (200, 206):
            after = retry_after(response.headers.get("Retry-After"))
            response.drain_conn()
            response.release_conn()
            if response.status >= 500 or response.status in (408, 416, 425, 429):
                raise Transient(f"HTTP {response.status}", after)
            raise Final(f"HTTP {response.status}")
        begin, total = _extent(response.status, response.headers)
        tag = response.headers.get("ETag")
        strong = None if tag is None or tag.startswith("W/") else tag
        return Answer(begin, total, strong, _Body(response, self._errors))

    def close(self) -> None:
        self._pool.clear()


class _Body:
    """What a response still has to give. Closed in the middle, or before its beginning, it gives its connection up."""

    def __init__(self, response: Any, errors: type[Exception]):
        self._response, self._errors, self._whole = response, errors, False

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        try:
            data = b"" if self._whole else self._response.read1(CHUNK, decode_content=False)
        except (self._errors, OSError) as error:
            self.close()
            raise Transient(_cause(error)) from None
        if not data:
            self._whole = True
            self._response.release_conn()
            raise StopIteration
        return data

    def close(self) -> None:
        if not self._whole:
            self._response.close()
            self._response.release_conn()


def _extent(status: int, headers: Any) -> tuple[int, int | None]:
    """(offset of the body, size of the object)."""
    if status == 206:
        span, _, total = headers.get("Content-Range", "").removeprefix("bytes ").partition("/")
        begin = span.partition("-")[0]
        if not NUMBER.fullmatch(begin):
            raise Transient("HTTP 206 without a usable Content-Range")
        return int(begin), int(total) if NUMBER.fullmatch(total) else None
    length = headers.get("Content-Length", "")
    return 0, int(length) if NUMBER.fullmatch(length) else None


def retry_after(value: str | None) -> float:
    """Seconds to wait: a number, or a date."""
    if value is None:
        return 0.0
    try:
        if NUMBER.fullmatch(value.strip()):
            return float(value)
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError):
        return 0.0


def _cause(error: Exception) -> str:
    """What happened, without the URL that urllib3 writes into its messages."""
    name = type(error).__name__
    known = {
        "ReadTimeoutError": "stalled: no byte in time",
        "ConnectTimeoutError": "no connection in time",
        "NewConnectionError": "no connection",
        "NameResolutionError": "the host's name is unknown",
        "ProtocolError": "the connection broke",
        "IncompleteRead": "the connection ended early",
    }
    reason = getattr(error, "reason", None)
    if isinstance(reason, Exception) and reason is not error:
        return _cause(reason)
    return known.get(name, name)
