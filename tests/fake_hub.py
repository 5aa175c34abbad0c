"""A local fake of the Hugging Face hub that can serve one data set or model."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Literal

SHA = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class FakeHub:
    """One public or gated data set or model, served from a folder at one commit.

    `claimed` lists files that the API reports, with their sizes, but that do not exist.
    """

    repo_id: str
    folder: Path
    gated: bool = False
    kind: Literal["datasets", "models"] = "datasets"
    claimed: dict[str, int] = field(default_factory=dict)
    token_with_access: str = "hf_right"
    url: str = ""
    asked: list[str] = field(default_factory=list)
    tokens: set[str] = field(default_factory=set)

    def files(self) -> dict[str, bytes]:
        return {
            str(file.relative_to(self.folder)): file.read_bytes()
            for file in sorted(self.folder.rglob("*"))
            if file.is_file()
        }


def _handler(hub: FakeHub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self._answer()

        def do_GET(self) -> None:
            self._answer()

        def do_POST(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            self._answer(self.rfile.read(length))

        def log_message(self, *_: object) -> None:
            pass

        def _send(
            self, status: int, body: bytes, headers: dict[str, str], kind: str = "application/json"
        ) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def _refuse(self, status: int, code: str) -> None:
            body = json.dumps({"error": code}).encode()
            self._send(status, body, {"X-Error-Code": code, "X-Error-Message": code})

        def _answer(self, body: bytes = b"") -> None:
            hub.asked.append(f"{self.command} {self.path}")
            token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
            hub.tokens.add(token)
            path = self.path.split("?")[0]
            name = hub.repo_id
            api = f"/api/{hub.kind}/{name}"
            pages = f"/datasets/{name}" if hub.kind == "datasets" else f"/{name}"
            if not path.startswith((api, pages)):
                return self._refuse(401 if not token else 404, "RepoNotFound")
            if hub.gated and token != hub.token_with_access:
                return self._refuse(403 if token else 401, "GatedRepo")
            if match := re.fullmatch(rf"{pages}/resolve/([^/]+)/(.+)", path):
                return self._file(match[1], match[2])
            if match := re.fullmatch(rf"{api}(?:/revision/([^/]+))?", path):
                if match[1] not in (None, "main", SHA):
                    return self._refuse(404, "RevisionNotFound")
                sizes = {file: len(content) for file, content in hub.files().items()} | hub.claimed
                siblings = [{"rfilename": file, "size": size} for file, size in sizes.items()]
                return self._json({"id": name, "sha": SHA, "siblings": siblings, "tags": []})
            if match := re.fullmatch(rf"{api}/tree/([^/]+)(?:/(.*))?", path):
                return self._tree(match[2] or "")
            if re.fullmatch(rf"{api}/paths-info/[^/]+", path):
                wanted = _paths(body, self.headers.get("Content-Type") or "")
                return self._json([e for e in self._entries() if e["path"] in wanted])
            return self._refuse(404, "EntryNotFound")

        def _json(self, content: object) -> None:
            self._send(200, json.dumps(content).encode(), {})

        def _entries(self) -> list[dict[str, object]]:
            entries: dict[str, dict[str, object]] = {}
            for name, content in hub.files().items():
                for parent in Path(name).parents:
                    if str(parent) != ".":
                        entries[str(parent)] = {
                            "type": "directory",
                            "path": str(parent),
                            "oid": "d",
                            "size": 0,
                        }
                oid = hashlib.sha1(content).hexdigest()
                entries[name] = {"type": "file", "path": name, "oid": oid, "size": len(content)}
            return list(entries.values())

        def _tree(self, folder: str) -> None:
            recursive = "recursive=true" in self.path.lower()
            prefix = f"{folder}/" if folder else ""
            found = [
                entry
                for entry in self._entries()
                if str(entry["path"]).startswith(prefix)
                and (recursive or "/" not in str(entry["path"])[len(prefix) :])
            ]
            if folder and not found:
                return self._refuse(404, "EntryNotFound")
            return self._json(found)

        def _file(self, revision: str, name: str) -> None:
            if revision not in ("main", SHA):
                return self._refuse(404, "RevisionNotFound")
            content = hub.files().get(name)
            if content is None:
                return self._refuse(404, "EntryNotFound")
            headers = {
                "ETag": f'"{hashlib.sha1(content).hexdigest()}"',
                "X-Repo-Commit": SHA,
                "Accept-Ranges": "bytes",
            }
            return self._send(200, content, headers, "application/octet-stream")

    return Handler


def _paths(body: bytes, kind: str) -> list[str]:
    if "json" in kind:
        paths: list[str] = json.loads(body)["paths"]
        return paths
    from urllib.parse import parse_qs

    return parse_qs(body.decode())["paths"]


@contextmanager
def running(hub: FakeHub) -> Iterator[FakeHub]:
    """Serve `hub` on a free local port within the `with` block."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
