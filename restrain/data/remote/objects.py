"""s3 and gs, by fsspec: in parts, each under our own clock, with our own tries.

Credentials and the endpoint come from where the store's own tools look for them (environment, files of the user), never
from a recipe. Tries of the libraries below are switched off, since theirs know no deadline.
"""

from __future__ import annotations

import concurrent.futures
import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from restrain.data.remote.fetching import Answer, Final, Transient
from restrain.errors import UserError

PART = 8 << 20  # bytes that are asked for at a time
EXTRAS = {"s3": "s3", "gs": "gcs"}
ABSENT = {"NoSuchKey", "NoSuchBucket", "404"}
FORBIDDEN = {"AccessDenied", "403", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken"}
T = TypeVar("T")


class ObjectTransport:
    """One fsspec file system for all objects of a scheme."""

    def __init__(self, scheme: str, timeout: float = 30.0, system: Any = None):
        """timeout: seconds for connecting and for each part. system: an fsspec file system, if not the scheme's own."""
        self.scheme, self._system = scheme, system or _open(scheme, timeout)
        # Calls run in threads of their own, so that one that hangs is left behind when its time is over.
        self._lock = threading.Lock()

    def get(self, url: str, first: int, last: int | None, tag: str | None, timeout: float) -> Answer:
        path = url.partition("://")[2]
        if last is not None and last <= first:
            return Answer(first, None, None, iter(()))
        total, found = None, None
        if last is None:
            info = self._timed(lambda: self._system.info(path, refresh=True), timeout, url)
            total, found = int(info["size"]), str(info.get("ETag") or info.get("etag") or "") or None
            if tag is not None and found != tag:
                first = 0  # another object by now: from its beginning
        end = total if last is None else last
        assert end is not None
        return Answer(first, total, found, self._parts(url, path, first, end, timeout))

    def listed(self, url: str, pattern: str) -> list[str]:
        """Names below ``url`` that match a pattern."""
        root = url.partition("://")[2].rstrip("/")
        found = self._timed(lambda: self._system.glob(f"{root}/{pattern}"), 60.0, url)
        return [str(path).removeprefix(f"{root}/") for path in found]

    def put(self, url: str, data: bytes) -> None:
        path = url.partition("://")[2]
        self._timed(lambda: self._system.pipe_file(path, data), 120.0, url)

    def close(self) -> None:
        pass

    def _parts(self, url: str, path: str, first: int, last: int, timeout: float) -> Iterator[bytes]:
        for begin in range(first, last, PART):
            end = min(begin + PART, last)
            data = self._timed(lambda: self._system.cat_file(path, start=begin, end=end), timeout, url)  # noqa: B023
            yield data
            if len(data) < end - begin:
                return  # shorter than it was said to be: the caller counts

    def _timed(self, call: Callable[[], T], timeout: float, url: str) -> T:
        done: concurrent.futures.Future[T] = concurrent.futures.Future()

        def work() -> None:
            try:
                done.set_result(call())
            except BaseException as error:
                done.set_exception(error)

        threading.Thread(target=work, daemon=True, name="restrain-object").start()
        try:
            return done.result(timeout)
        except concurrent.futures.TimeoutError:
            raise Transient("stalled: no answer in time") from None
        except Exception as error:
            raise _meaning(error) from None


def _meaning(error: Exception) -> Exception:
    """Whether another try is worth it. Only kinds and codes are told: messages may hold URLs with signatures."""
    code = _code(error)
    if isinstance(error, FileNotFoundError) or code in ABSENT:
        return Final("there is no such object")
    if isinstance(error, PermissionError) or code in FORBIDDEN:
        return Final(f"access is denied{f' ({code})' if code else ''}")
    if type(error).__name__ in ("NoCredentialsError", "PartialCredentialsError", "ProfileNotFound"):
        return Final("there are no credentials for it, neither in the environment nor in the user's files")
    return Transient(code or type(error).__name__)


def _code(error: BaseException | None) -> str:
    """The store's own code of an error, found in what it was caused by."""
    while error is not None:
        response = getattr(error, "response", None)
        if isinstance(response, dict):
            return str(response.get("Error", {}).get("Code", ""))
        error = error.__cause__ or error.__context__
    return ""


def _open(scheme: str, timeout: float) -> Any:
    import fsspec

    options: dict[str, Any] = {"use_listings_cache": False, "skip_instance_cache": True}
    if scheme == "s3":
        config = {"connect_timeout": timeout, "read_timeout": timeout, "retries": {"max_attempts": 0}}
        options |= {"config_kwargs": config}
    try:
        system = fsspec.filesystem(scheme, **options)
    except ImportError as error:
        raise UserError(
            f"Reading shards from {scheme}:// needs {'s3fs' if scheme == 's3' else 'gcsfs'}. Install it: "
            f"pip install 'restrain[{EXTRAS[scheme]}]'"
        ) from error
    if hasattr(system, "retries"):
        system.retries = 1
    return system
