"""A stand-in for the Hugging Face Hub: the few requests of its HTTP API that huggingface_hub makes for us."""

import base64
import hashlib
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlparse

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """What the stand-in has. `repositories` maps ids to files by name; `writable` is the one owner we may be."""

    def __init__(self, url):
        self.url = url
        self.writable = "me"
        self.repositories = {}
        self.asked = []


@contextmanager
def stand_in():
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

    def log_message(self, *_):
        """Nothing."""

    @property
    def hub(self):
        return self.server.hub

    def answer(self, status, content=b"", **headers):
        if not isinstance(content, bytes):
            content, kind = json.dumps(content).encode(), {"Content_Type": "application/json"}
            headers = kind | headers
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def refuse(self, status, code, message):
        self.answer(status, {"error": message}, X_Error_Code=code, X_Error_Message=message)

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = unquote(urlparse(self.path).path)
        self.hub.asked.append(f"{self.command} {path}")
        parts = path.strip("/").split("/")
        name = "/".join(parts[2:4] if parts[0] == "api" else parts[:2])
        if name not in self.hub.repositories:
            return self.refuse(404, "RepoNotFound", "no such repository")
        files = self.hub.repositories[name]
        if parts[0] == "api":
            if "revision" in parts and parts[-1] not in ("main", COMMIT):
                return self.refuse(404, "RevisionNotFound", "no such revision")
            siblings = [{"rfilename": file} for file in files]
            if "tree" in parts:
                more = {"type": "file", "oid": COMMIT}
                tree = [more | {"path": f, "size": len(b)} for f, b in files.items()]
                return self.answer(200, tree)
            info = {"id": name, "sha": COMMIT, "siblings": siblings, "private": False, "tags": []}
            return self.answer(200, info)
        revision, file = parts[3], "/".join(parts[4:])
        if revision not in ("main", COMMIT):
            return self.refuse(404, "RevisionNotFound", "no such revision")
        if file not in files:
            return self.refuse(404, "EntryNotFound", "no such file")
        etag = hashlib.sha1(files[file]).hexdigest()
        return self.answer(200, files[file], ETag=f'"{etag}"', X_Repo_Commit=COMMIT)

    def do_POST(self):
        path = unquote(urlparse(self.path).path)
        self.hub.asked.append(f"POST {path}")
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if path == "/api/repos/create":
            return self.create(json.loads(body))
        if path == "/api/validate-yaml":
            return self.answer(200, {"errors": [], "warnings": []})
        owner, name, action = path.split("/")[3:6]
        files = self.hub.repositories[f"{owner}/{name}"]
        if action == "preupload":
            found = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False}
                for f in json.loads(body)["files"]
            ]
            return self.answer(200, {"files": found})
        assert action == "commit", path
        for line in body.splitlines():
            entry = json.loads(line)
            if entry["key"] == "file":
                files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
        address = f"{self.hub.url}/{owner}/{name}/commit/{COMMIT}"
        done = {"commitUrl": address, "commitOid": COMMIT, "success": True}
        return self.answer(200, done)

    def create(self, asked):
        name = f"{asked.get('organization') or self.hub.writable}/{asked['name']}"
        if name.split("/")[0] != self.hub.writable:
            return self.refuse(403, "", "You don't have the rights to create a model there")
        if name in self.hub.repositories:
            return self.answer(409, {"url": f"{self.hub.url}/{name}"})
        self.hub.repositories[name] = {}
        return self.answer(200, {"url": f"{self.hub.url}/{name}"})
