"""A stand-in for the Hugging Face Hub: the few requests of its HTTP API that huggingface_hub makes for us."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlparse

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """What the stand-in has. `repositories` maps ids to files by name; `writable` is the one owner we may be."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.writable = "me"
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        self.asked: list[str] = []
        self.gated: set[str] = set()


@contextmanager
def stand_in() -> Iterator[Hub]:
    """Run a stand-in on a free port of this machine."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.hub = Hub(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.hub
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Nothing."""

    @property
    def hub(self) -> Hub:
        return self.server.hub

    def answer(self, status: int, content: object = b"", **headers: str) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def refuse(self, status: int, code: str, message: str) -> None:
        self.answer(status, {"error": message}, X_Error_Code=code, X_Error_Message=message)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlparse(self.path).path)
        self.hub.asked.append(f"{self.command} {path}")
        parts = path.strip("/").split("/")
        name = "/".join(parts[2:4] if parts[0] == "api" else parts[:2])
        if name in self.hub.gated:
            return self.refuse(403, "GatedRepo", "it is gated")
        if name not in self.hub.repositories:
            return self.refuse(404, "RepoNotFound", "no such repository")
        files = self.hub.repositories[name]
        if parts[0] == "api":
            if "revision" in parts and parts[-1] not in ("main", COMMIT):
                return self.refuse(404, "RevisionNotFound", "no such revision")
            siblings = [{"rfilename": file} for file in files]
            if "tree" in parts:
                return self.answer(
                    200,
                    [
                        {"type": "file", "path": f, "size": len(b), "oid": COMMIT}
                        for f, b in files.items()
                    ],
                    Content_Type="application/json",
                )
            info = {"id": name, "sha": COMMIT, "siblings": siblings, "private": False, "tags": []}
            return self.answer(200, info, Content_Type="application/json")
        revision, file = parts[3], "/".join(parts[4:])
        if revision not in ("main", COMMIT):
            return self.refuse(404, "RevisionNotFound", "no such revision")
        if file not in files:
            return self.refuse(404, "EntryNotFound", "no such file")
        etag = hashlib.sha1(files[file]).hexdigest()
        return self.answer(200, files[file], ETag=f'"{etag}"', X_Repo_Commit=COMMIT)

    def do_POST(self) -> None:
        path = unquote(urlparse(self.path).path)
        self.hub.asked.append(f"POST {path}")
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if path == "/api/repos/create":
            return self.create(json.loads(body))
        if path == "/api/validate-yaml":
            return self.answer(200, {"errors": [], "warnings": []}, Content_Type="application/json")
        owner, name, action = path.split("/")[3:6]
        files = self.hub.repositories[f"{owner}/{name}"]
        if action == "preupload":
            found = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False}
                for f in json.loads(body)["files"]
            ]
            return self.answer(200, {"files": found}, Content_Type="application/json")
        assert action == "commit", path
        for line in body.splitlines():
            entry = json.loads(line)
            if entry["key"] == "file":
                files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
        address = f"{self.hub.url}/{owner}/{name}/commit/{COMMIT}"
        done = {"commitUrl": address, "commitOid": COMMIT, "success": True}
        return self.answer(200, done, Content_Type="application/json")

    def create(self, asked: dict) -> None:
        name = f"{asked.get('organization') or self.hub.writable}/{asked['name']}"
        if name.split("/")[0] != self.hub.writable:
            return self.refuse(403, "", "You don't have the rights to create a model there")
        if name in self.hub.repositories:
            return self.answer(
                409, {"url": f"{self.hub.url}/{name}"}, Content_Type="application/json"
            )
        self.hub.repositories[name] = {}
        self.hub.private[name] = asked.get("visibility") == "private" or bool(asked.get("private"))
        address = {"url": f"{self.hub.url}/{name}"}
        return self.answer(200, address, Content_Type="application/json")
