"""Object stores (s3, gs, and what else fsspec opens without a shell), each call bounded in time by us.

Trying again is `fetching.fetch`'s alone: what s3fs and botocore would do of it is switched off, as their waits are
unknown to our deadline. Credentials come from where those libraries look (environment, usual files, the machine's
role), and no text of theirs reaches a message: signed URLs and keys stand in it.
"""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from restrain.data.remote.fetching import Answer, Final, Transient
from restrain.errors import UserError

CHUNK = 1 << 20  # bytes of one request
EXTRAS = {"s3": "s3", "gs": "gcs"}
FORBIDDEN = {"AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken"}
THROTTLED = {"SlowDown", "Throttling", "ThrottlingException", "RequestLimitExceeded", "TooManyRequests"}
T = TypeVar("T")


class ObjectTransport:
    """The objects of one protocol. make: opens the file system, at the first use, in the process that uses it."""

    def __init__(self, protocol: str, make: Callable[[], Any] | None = None, chunk: int = CHUNK):
        self._make = make or (lambda: _file_system(protocol))
        self._chunk = chunk
        self._fs: Any = None
        self._process = 0
        self._lock = threading.Lock()

    def get(self, url: str, first: int, last: int | None, tag: str | None, timeout: float) -> Answer:
        """A range that is one request is asked for at once; else the object's size and tag are asked for before.

        A tag is read again after a transfer of several requests, which an object that is replaced would mix.
        """
        fs = self._opened()
        if tag is None and last is not None and last - first <= self._chunk:
            return Answer(first, None, None, iter([self._bytes(fs, url, first, last, timeout)]))
        total, now = self._facts(fs, url, timeout)
        begin = first if tag is None or tag == now else 0
        return Answer(begin, total, now, self._chunks(fs, url, begin, min(total, last or total), now, timeout))

    def listed(self, url: str, pattern: str, timeout: float = 60.0) -> list[str]:
        """Names below ``url`` that match a pattern. Raises Transient or Final."""
        fs, root = self._opened(), url.partition("://")[2].rstrip("/")
        found = _bounded(lambda: fs.glob(f"{root}/{pattern}"), timeout)
        return [str(path).lstrip("/").removeprefix(f"{root}/") for path in found]

    def put(self, url: str, data: bytes, timeout: float = 120.0) -> None:
        """Write an object. Raises Transient or Final."""
        fs = self._opened()
        _bounded(lambda: fs.pipe_file(url, data), timeout)

    def close(self) -> None:
        self._fs = None

    def _opened(self) -> Any:
        with self._lock:
            if self._fs is None or self._process != os.getpid():  # a forked process cannot use its parent's threads
                self._fs, self._process = self._make(), os.getpid()
            return self._fs

    def _facts(self, fs: Any, url: str, timeout: float) -> tuple[int, str | None]:
        def ask() -> dict[str, Any]:
            fs.invalidate_cache()
            return fs.info(url)

        found = _bounded(ask, timeout)
        if found.get("type") == "directory" or found.get("size") is None:
            raise Final("it is no object")
        tag = found.get("ETag") or found.get("etag") or found.get("generation") or found.get("md5Hash")
        return int(found["size"]), None if tag is None else str(tag)

    def _bytes(self, fs: Any, url: str, first: int, last: int, timeout: float) -> bytes:
        data = _bounded(lambda: fs.cat_file(url, start=first, end=last), timeout)
        if len(data) != last - first:
            raise Transient(f"the answer has {len(data)} of {last - first} bytes")
        return data

    def _chunks(self, fs: Any, url: str, first: int, last: int, tag: str | None, timeout: float) -> Iterator[bytes]:
        for at in range(first, last, self._chunk):
            data = self._bytes(fs, url, at, min(last, at + self._chunk), timeout)
            if at + self._chunk >= last and tag is not None and self._facts(fs, url, timeout)[1] != tag:
                raise Transient("the object changed while it was read")
            yield data


def _file_system(protocol: str) -> Any:
    try:
        import fsspec

        options: dict[str, Any] = {"skip_instance_cache": True, "use_listings_cache": False}
        if protocol == "s3":
            retries = {"total_max_attempts": 1, "mode": "standard"}
            options["config_kwargs"] = {"retries": retries, "connect_timeout": 20, "read_timeout": 30}
        fs = fsspec.filesystem(protocol, **options)
    except (ImportError, ValueError) as error:
        extra = EXTRAS.get(protocol, protocol)
        raise UserError(
            f"Reading shards over {protocol}:// needs a library. Install it: pip install 'restrain[{extra}]'"
        ) from error
    if protocol == "s3":
        fs.retries = 1
    return fs


def _bounded(call: Callable[[], T], timeout: float) -> T:
    """The call's result. Raises Transient after ``timeout`` seconds: its thread is left behind, and ends no process
    late, as it is a daemon."""
    answers: queue.SimpleQueue[tuple[bool, Any]] = queue.SimpleQueue()

    def work() -> None:
        try:
            answers.put((True, call()))
        except BaseException as error:
            answers.put((False, error))

    threading.Thread(target=work, daemon=True, name="restrain-object").start()
    try:
        good, answer = answers.get(timeout=max(0.001, timeout))
    except queue.Empty:
        raise Transient("stalled: no answer in time") from None
    if not good:
        raise _told(answer) from None
    return answer


def _told(error: BaseException) -> Exception:
    """Transient or Final, in words of ours."""
    chain = [error]
    while (below := chain[-1].__cause__ or chain[-1].__context__) is not None and below not in chain:
        chain.append(below)
    for one in chain:
        if isinstance(response := getattr(one, "response", None), dict):
            return _from_response(response)
    if isinstance(error, PermissionError) or type(error).__name__ in ("NoCredentialsError", "PartialCredentialsError"):
        return Final("access denied (credentials come from the environment or the store's usual files)")
    if isinstance(error, (FileNotFoundError, IsADirectoryError)):
        return Final("there is no such object")
    status = getattr(error, "status", None) or getattr(error, "code", None)
    if isinstance(status, int) and 400 <= status < 500 and status not in (408, 425, 429):
        return Final(f"HTTP {status}")
    if isinstance(error, (ValueError, TypeError, NotImplementedError)) and not isinstance(error, OSError):
        return Final(f"the store's library gave up ({type(error).__name__})")
    return Transient(f"the transfer broke ({type(error).__name__})")


def _from_response(response: dict[str, Any]) -> Exception:
    """What an S3 server said: its status and error code; a Retry-After is kept."""
    from restrain.data.remote.http import retry_after

    code = str(response.get("Error", {}).get("Code", ""))
    meta = response.get("ResponseMetadata", {})
    status = int(meta.get("HTTPStatusCode") or (code if code.isdigit() else 0))
    if code in FORBIDDEN:
        status = status or 403
    said = f"HTTP {status}" if status else "the server's answer is no error of S3"
    if code in FORBIDDEN | THROTTLED | {"NoSuchKey", "NoSuchBucket"}:
        said += f" {code}"
    if code in THROTTLED or not status or status >= 500 or status in (408, 416, 425, 429):
        return Transient(said, retry_after(meta.get("HTTPHeaders", {}).get("retry-after")))
    return Final(said)
