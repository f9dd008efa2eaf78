"""A stand-in for Hugging Face that serves the requests huggingface_hub makes to list and download a model."""

from __future__ import annotations

import hashlib
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "c0ffee" * 6 + "c0ff"


@dataclass
class Hub:
    """One repository `lab/tiny-GGUF`, and how the hub misbehaves."""

    files: dict[str, bytes]
    status: int = 200
    error_code: str = ""
    break_off_after: int = 0  # bytes of a file, once; later requests go through
    damage: bool = False
    requests: list[tuple[str, str, str]] = field(default_factory=list)  # method, path, Range

    def __enter__(self) -> Hub:
        hub = self

        class Handler(_Handler):
            model = hub

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, name="hub")
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Handler(BaseHTTPRequestHandler):
    model: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def log_message(self, *_: Any) -> None:
        pass

    def _answer(self, with_body: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        self.model.requests.append((self.command, path, self.headers.get("Range", "")))
        if self.model.status != 200:
            self._send(self.model.status, b"", {"X-Error-Code": self.model.error_code}, with_body)
        elif path == "/api/models/lab/tiny-GGUF":
            self._send(
                200, json.dumps(self._info()).encode(), {"Content-Type": "application/json"}, with_body
            )
        elif path.startswith(f"/lab/tiny-GGUF/resolve/{COMMIT}/"):
            self._send_file(path.split("/", 5)[5], with_body)
        else:
            self._send(404, b"", {"X-Error-Code": "RepoNotFound"}, with_body)

    def _info(self) -> dict[str, Any]:
        return {
            "id": "lab/tiny-GGUF",
            "sha": COMMIT,
            "siblings": [
                {
                    "rfilename": name,
                    "size": len(data),
                    "blobId": hashlib.sha1(data).hexdigest(),
                    "lfs": {
                        "size": len(data),
                        "sha256": hashlib.sha256(data).hexdigest(),
                        "pointerSize": 134,
                    },
                }
                for name, data in self.model.files.items()
            ],
        }

    def _send_file(self, name: str, with_body: bool) -> None:
        data = self.model.files[name]
        etag = hashlib.sha256(data).hexdigest()
        headers = {
            "ETag": f'"{etag}"',
            "X-Linked-Etag": f'"{etag}"',
            "X-Linked-Size": str(len(data)),
            "X-Repo-Commit": COMMIT,
            "Accept-Ranges": "bytes",
        }
        wanted = self.headers.get("Range", "")
        status, start = 200, 0
        if wanted.startswith("bytes="):
            status, start = 206, int(wanted[6:].split("-")[0])
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        if self.model.damage:
            data = data[:-1] + bytes([data[-1] ^ 1])
        self._send(status, data[start:], headers, with_body)

    def _send(self, status: int, body: bytes, headers: dict[str, str], with_body: bool) -> None:
        self.send_response(status)
        for key, value in headers.items():
            if value:
                self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if not with_body:
            return
        limit = self.model.break_off_after
        if limit and len(body) > limit:
            self.model.break_off_after = 0
            self.wfile.write(body[:limit])
            self.close_connection = True
        else:
            self.wfile.write(body)
