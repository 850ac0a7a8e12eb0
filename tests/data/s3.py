"""An S3 server (moto) behind a proxy that fails on demand."""

import contextlib
import http.client
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

KEY, SECRET = "AKIACANARYKEY", "canary-of-the-secret"


class FaultyS3(ThreadingHTTPServer):
    """Hands requests on. ``faults[name]``: what befalls the next reads (GET) of a key that ends so, one each: a status,
    ``reset``, ``short``, ``stall`` or ``wrong length``."""

    daemon_threads = True

    def __init__(self, behind: int):
        super().__init__(("127.0.0.1", 0), _Proxy)
        self.behind, self.faults, self.gets, self.retry_after = behind, {}, Counter(), None
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request, client_address):
        pass  # clients hang up

    def put(self, bucket: str, root: Path) -> None:
        """Upload the files of a folder."""
        import boto3

        keys = {"aws_access_key_id": KEY, "aws_secret_access_key": SECRET, "region_name": "us-east-1"}
        client = boto3.client("s3", endpoint_url=f"http://127.0.0.1:{self.behind}", **keys)
        client.create_bucket(Bucket=bucket)
        for path in root.iterdir():
            client.put_object(Bucket=bucket, Key=f"set/{path.name}", Body=path.read_bytes())


@contextlib.contextmanager
def faulty_s3() -> Iterator[FaultyS3]:
    from moto.server import ThreadedMotoServer

    moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    moto.start()
    server = FaultyS3(moto.get_host_and_port()[1])
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        moto.stop()


def environment(server: FaultyS3) -> dict[str, str]:
    """What a run reads its credentials and the server's place from."""
    keys = {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_DEFAULT_REGION": "us-east-1"}
    return {"AWS_ENDPOINT_URL": server.url, "AWS_EC2_METADATA_DISABLED": "true", **keys}


class _Proxy(BaseHTTPRequestHandler):
    server: FaultyS3

    def log_message(self, format, *args):
        pass

    def do_HEAD(self):
        self._hand_on(None)

    def do_GET(self):
        name = self.path.partition("?")[0].rpartition("/")[2]
        self.server.gets[name] += 1
        self._hand_on((self.server.faults.get(name) or [None]).pop(0))

    def _hand_on(self, fault):
        self.close_connection = True
        if isinstance(fault, int):
            self._refuse(fault)
            return
        behind = http.client.HTTPConnection("127.0.0.1", self.server.behind, timeout=10)
        behind.request(self.command, self.path, headers=dict(self.headers))
        answer = behind.getresponse()
        body = answer.read()
        behind.close()
        self.send_response(answer.status)
        for key, value in answer.getheaders():
            if key.lower() not in ("connection", "transfer-encoding", "content-length", "server", "date"):
                self.send_header(key, value)
        length = int(answer.getheader("Content-Length") or len(body))
        self.send_header("Content-Length", str(length + (100 if fault == "wrong length" else 0)))
        self.end_headers()
        if fault in ("reset", "short", "stall"):
            body = body[: len(body) // 2]
        self.wfile.write(body)
        if fault == "stall":
            time.sleep(1)
        if fault == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def _refuse(self, status):
        code = {503: "SlowDown", 429: "TooManyRequests", 403: "AccessDenied"}.get(status, "InternalError")
        signed = "https://h/k?X-Amz-Signature=canary-of-the-signature"
        body = f"<Error><Code>{code}</Code><Message>{KEY} {signed}</Message></Error>".encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        if self.server.retry_after is not None:
            self.send_header("Retry-After", self.server.retry_after)
        self.end_headers()
        self.wfile.write(body)
