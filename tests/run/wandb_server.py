"""As much of wandb's server as its client needs: runs are created and resumed, history is streamed into memory."""

from __future__ import annotations

import gzip
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Server(ThreadingHTTPServer):
    """``history``: run id -> the lines of its history as they lie in the stream, by offset."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.history: dict[str, dict[int, str]] = {}
        self.buckets: dict[str, dict[str, Any]] = {}
        self.authorised = True

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def lines(self, run_id: str) -> list[dict[str, Any]]:
        stored = self.history.get(run_id, {})
        return [json.loads(stored[offset]) for offset in sorted(stored)]


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *arguments: Any) -> None:
        pass

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        if not self.server.authorised:
            self.reply({"errors": [{"message": "permission denied"}]}, 401)
        elif self.path.endswith("/graphql"):
            asked = json.loads(body)
            self.reply({"data": self.answer(asked["query"], asked.get("variables") or {})})
        elif self.path.endswith("/file_stream"):
            self.store(self.path.split("/")[-2], json.loads(body))
            self.reply({"exitcode": None, "limits": {}})
        else:
            self.reply({})

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.reply({})

    def store(self, run_id: str, streamed: dict[str, Any]) -> None:
        chunk = (streamed.get("files") or {}).get("wandb-history.jsonl")
        if chunk:
            stored = self.server.history.setdefault(run_id, {})
            for number, line in enumerate(chunk["content"]):
                stored[chunk["offset"] + number] = line

    def answer(self, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        name = variables.get("name") or variables.get("run")
        if "RunResumeStatus" in query:
            return {"model": {"id": "p", "name": "p", "entity": {"id": "e", "name": "e"}, "bucket": self.resume(name)}}
        if "mutation UpsertBucket" in query:
            new = name not in self.server.buckets
            bucket = self.server.buckets.setdefault(name, {"id": f"id-{name}", "name": name, "config": "{}"})
            bucket.update({key: variables[key] for key in ("config", "displayName", "tags") if variables.get(key)})
            project = {"id": "p", "name": variables.get("project") or "p", "entity": {"id": "e", "name": "e"}}
            count = len(self.server.history.get(name, {}))
            return {
                "upsertBucket": {"bucket": {**bucket, "project": project, "historyLineCount": count}, "inserted": new}
            }
        if "CreateRunFiles" in query:
            files = [{"name": file, "uploadUrl": f"{self.server.url}/upload/{file}"} for file in variables["files"]]
            return {"createRunFiles": {"runID": name, "uploadHeaders": [], "files": files}}
        return {}

    def resume(self, run_id: str) -> dict[str, Any] | None:
        if run_id not in self.server.buckets:
            return None
        stored = self.server.history.get(run_id, {})
        last = stored[max(stored)] if stored else "{}"
        return {
            **self.server.buckets[run_id],
            "displayName": run_id,
            "summaryMetrics": last,
            "logLineCount": 0,
            "historyLineCount": len(stored),
            "eventsLineCount": 0,
            "historyTail": json.dumps([last]),
            "eventsTail": "[]",
            "config": "{}",
            "tags": [],
            "wandbConfig": '{"t": 1}',  # by it the client tells that the run had begun
        }

    def reply(self, content: dict[str, Any], status: int = 200) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@contextmanager
def serving():
    """A server on a port of its own, while the block lasts."""
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
