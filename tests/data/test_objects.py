"""Shards in s3: a real server's protocol, and a proxy before it that fails; exact bytes or a named error."""

import os
import socket
import threading
import urllib.request
from collections import Counter
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from restrain.data import sets
from restrain.data.indexing import index_shards, match_shards
from restrain.data.remote.cache import Cache
from restrain.data.remote.fetching import Patience
from restrain.data.remote.objects import ObjectTransport
from restrain.data.remote.opening import open_shards
from restrain.data.remote.store import RangeStore, RemoteStore
from restrain.errors import UserError, WorldError

from .making import contents, section, train_loader, write_shards
from .test_remote import SIZE, entries, noise

QUICK = Patience(tries=8, deadline=30, stall_seconds=0.5, first_wait=0.01, longest_wait=0.02)
SECRET = "canary-secret-key"


class Proxy(ThreadingHTTPServer):
    """Hands requests to an S3 server. faults[key]: what befalls the next GETs of an object, one each: a status, or
    ``reset``, ``short``, ``stall``."""

    daemon_threads = True

    def __init__(self, upstream: str):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.upstream, self.faults, self.gets = upstream, {}, Counter()
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request, client_address):
        pass


class _Handler(BaseHTTPRequestHandler):
    server: Proxy

    def log_message(self, format, *args):
        pass

    def do_GET(self):
        self._pass_on("GET")

    def do_HEAD(self):
        self._pass_on("HEAD")

    def do_PUT(self):
        self._pass_on("PUT")

    def _pass_on(self, method):
        server, key = self.server, self.path.partition("?")[0].rpartition("/")[2]
        fault = None
        if method == "GET":
            server.gets[key] += 1
            fault = (server.faults.get(key) or [None]).pop(0)
        if isinstance(fault, int):
            body = b"<Error><Code>SlowDown</Code><Message>Reduce your request rate</Message></Error>"
            self.send_response(fault)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
            return
        if fault == "stall":
            threading.Event().wait(1.5)
            return
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length) if length else None
        kept = {k: v for k, v in self.headers.items() if k.lower() not in ("host", "content-length", "connection")}
        request = urllib.request.Request(server.upstream + self.path, body, kept, method=method)
        try:
            with urllib.request.urlopen(request) as answer:
                status, headers, data = answer.status, answer.headers, answer.read()
        except urllib.error.HTTPError as error:
            status, headers, data = error.code, error.headers, error.read()
        self.send_response(status)
        for name, value in headers.items():
            if name.lower() not in ("transfer-encoding", "connection", "content-length", "date", "server"):
                self.send_header(name, value)
        length = headers.get("Content-Length", len(data)) if method == "HEAD" else len(data)
        self.send_header("Content-Length", str(length))
        self.end_headers()
        if fault in ("reset", "short"):
            self.wfile.write(data[: len(data) // 2])
            self.wfile.flush()
            if fault == "reset":
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            self.close_connection = True
            self.connection.close()
            return
        self.wfile.write(data)


@pytest.fixture(scope="module")
def moto():
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3(moto, monkeypatch):
    """A proxy, and an empty bucket ``shards`` behind it; the environment names both."""
    urllib.request.urlopen(urllib.request.Request(f"{moto}/moto-api/reset", method="POST")).close()
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    proxy = Proxy(moto)
    settings = {"ACCESS_KEY_ID": "AKIACANARY", "SECRET_ACCESS_KEY": SECRET, "DEFAULT_REGION": "us-east-1"}
    for name, value in {**settings, "ENDPOINT_URL": proxy.url, "EC2_METADATA_DISABLED": "true"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    urllib.request.urlopen(urllib.request.Request(f"{moto}/shards", method="PUT")).close()
    yield proxy
    proxy.shutdown()
    proxy.server_close()


def upload(proxy: Proxy, folder: Path, prefix: str = "set") -> str:
    kind = {"Content-Type": "application/octet-stream"}  # urllib's own would make the server look for a form
    for path in folder.iterdir():
        url = f"{proxy.upstream}/shards/{prefix}/{path.name}"
        urllib.request.urlopen(urllib.request.Request(url, path.read_bytes(), kind, method="PUT")).close()
    return f"s3://shards/{prefix}"


def made(tmp_path: Path, s3: Proxy, shards: int = 3):
    (tmp_path / "set").mkdir()
    found = entries(tmp_path / "set", shards)
    return upload(s3, tmp_path / "set"), found


FAULTS = [["reset"], ["short"], ["stall"], [503, 429], [500, "reset", "stall", "short", 502]]


@pytest.mark.parametrize("faults", FAULTS, ids=str)
def test_exact_bytes_through_faults(s3, tmp_path, faults):
    root, found = made(tmp_path, s3)
    reader = RemoteStore(root, found, Cache(tmp_path / "cache"), ObjectTransport("s3", 0.5), QUICK)
    s3.faults["1.tar"] = list(faults)
    assert reader.read(1, 1000, 5000) == noise(1)[1000:6000]
    assert not s3.faults["1.tar"]
    assert reader.read(1, 0, SIZE) == noise(1)
    reader.close()
    ranges = RangeStore(root, found, ObjectTransport("s3", 0.5), QUICK)
    s3.faults["2.tar"] = list(faults)
    assert ranges.read(2, 1000, 5000) == noise(2)[1000:6000]
    assert not s3.faults["2.tar"]


def test_final_errors_are_told_without_secrets(s3, tmp_path, monkeypatch):
    root, found = made(tmp_path, s3)
    absent = entries(tmp_path / "set", 4)[3]
    reader = RemoteStore(root, [*found[:2], absent], Cache(tmp_path / "cache"), ObjectTransport("s3", 0.5), QUICK)
    with pytest.raises(WorldError, match=r"s3://shards/set/3\.tar cannot be read: there is no such object"):
        reader.read(2, 0, 10)
    s3.faults["0.tar"] = [503] * 50
    with pytest.raises(WorldError, match=r"s3://shards/set/0\.tar cannot be read: SlowDown \(8 tries") as caught:
        reader.read(0, 0, 10)
    assert SECRET not in str(caught.value)
    assert "AKIA" not in str(caught.value)
    reader.entries = [replace(found[0], url="1.tar")]  # another object stands under the name
    with pytest.raises(WorldError, match=r"1\.tar is not what its index says"):
        reader.read(0, 0, 10)
    for name in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY"):
        monkeypatch.delenv(f"AWS_{name}")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    nobody = RemoteStore(root, found, Cache(tmp_path / "cache2"), ObjectTransport("s3", 0.5), QUICK)
    with pytest.raises(WorldError, match="there are no credentials for it"):
        nobody.read(0, 0, 10)


@pytest.mark.parametrize("mode", ["shards", "range"])
def test_batches_of_three_epochs_are_those_from_disk(s3, tmp_path, mode):
    root = write_shards(tmp_path / "set", 4, 8)
    index_shards(root, match_shards(root, "*.tar"))
    url = upload(s3, root)
    fields = {"cache": str(tmp_path / "cache"), "mode": mode, "cache_bytes": None}
    s3.faults = {f"train-00{i}.tar": ["reset", 503, "short"] for i in range(4)}
    remote = sets.open_source(_section(url, **fields), "train")
    local = sets.open_source(section("webdataset", root), "train")
    assert remote.fingerprint == local.fingerprint
    assert contents(train_loader(remote, stop=12)) == contents(train_loader(local, stop=12))
    remote.close()


def _section(url: str, **fields):
    found = section("webdataset", **fields)
    found.root = url
    return found


def test_a_set_without_index(s3, tmp_path):
    made(tmp_path, s3)
    with pytest.raises(UserError, match="s3://shards/set has no index"):
        open_shards(_section("s3://shards/set", cache=str(tmp_path / "cache")), ["*.tar"], QUICK)


def test_any_other_store_of_fsspec(tmp_path):
    """gs goes the same way; its own package needs Google's service, so the way is tried with a store in memory."""
    import fsspec

    system = fsspec.filesystem("memory")
    (tmp_path / "set").mkdir()
    found = entries(tmp_path / "set")
    for entry in found:
        system.pipe_file(f"bucket/set/{entry.url}", (tmp_path / "set" / entry.url).read_bytes())
    transport = ObjectTransport("gs", 0.5, system)
    reader = RemoteStore("gs://bucket/set", found, Cache(tmp_path / "cache"), transport, QUICK)
    assert reader.read(2, 7, 100) == noise(2)[7:107]
    ranges = RangeStore("gs://bucket/set", found, transport, QUICK)
    assert ranges.read(1, SIZE - 10, 10) == noise(1)[-10:]
    system.rm("bucket/set/0.tar")
    with pytest.raises(WorldError, match="there is no such object"):
        reader.read(0, 0, 10)
    reader.close()
