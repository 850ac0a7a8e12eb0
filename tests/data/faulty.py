"""An HTTP server that fails on demand."""

import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class FaultyServer(ThreadingHTTPServer):
    """Serves a folder with ranges. ``faults[name]``: what befalls the next requests of an object, one each.

    A fault is a status (429, 503, 404, ...), ``reset`` or ``short`` (half of the body), ``stall``, ``wrong length``,
    or ``changed`` (half of the body, and the object has other bytes and another tag from then on).
    """

    daemon_threads = True

    def __init__(self, root: Path):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.root, self.faults, self.gets = root, {}, Counter()
        self.bytes, self.ranges, self.retry_after, self.delay = Counter(), True, None, 0.0
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request, client_address):
        pass  # clients hang up


class _Handler(BaseHTTPRequestHandler):
    server: FaultyServer

    def log_message(self, format, *args):
        pass

    def do_GET(self):
        server, name = self.server, self.path.partition("?")[0].lstrip("/")
        server.gets[name] += 1
        fault = (server.faults.get(name) or [None]).pop(0)
        if isinstance(fault, int) or not (server.root / name).is_file():
            self.send_response(fault or 404)
            if server.retry_after is not None:
                self.send_header("Retry-After", server.retry_after)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        data = (server.root / name).read_bytes()
        tag = f'"{hash(data)}"'
        first, last, status = 0, len(data), 200
        asked = self.headers.get("Range")
        if asked and server.ranges and self.headers.get("If-Range", tag) == tag:
            a, b = asked.removeprefix("bytes=").split("-")
            first, last, status = int(a), min(int(b) + 1 if b else len(data), len(data)), 206
        self.send_response(status)
        if status == 206:
            self.send_header("Content-Range", f"bytes {first}-{last - 1}/{len(data)}")
        length = last - first + (100 if fault == "wrong length" else 0)
        self.send_header("Content-Length", str(length))
        self.send_header("ETag", tag)
        self.end_headers()
        body = data[first:last]
        if fault in ("reset", "short", "stall", "changed", "wrong length"):
            body = body[: len(body) // 2]
        if fault == "changed":
            (server.root / name).write_bytes((server.root / name).with_suffix(".new").read_bytes())
        server.bytes[name] += len(body)
        time.sleep(server.delay)
        self.wfile.write(body)
        if fault == "stall":
            time.sleep(1)
        if fault == "reset":
            import socket
            import struct

            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
