"""A stand-in for the Hugging Face hub: its HTTP API for model repositories, kept in memory, on localhost."""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

Files = dict[str, bytes]
REPO = r"(?P<repo>[\w.-]+/[\w.-]+)"


class Hub(ThreadingHTTPServer):
    """Repositories by name, and the objects of Git LFS by their SHA-256."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories: dict[str, Files] = {}
        self.objects: Files = {}
        self.requests: list[str] = []

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def commit_id(self, repo: str) -> str:
        content = sorted((name, hashlib.sha1(data).hexdigest()) for name, data in self.repositories[repo].items())
        return hashlib.sha1(repr(content).encode()).hexdigest()


@contextmanager
def running_hub() -> Iterator[Hub]:
    hub = Hub()
    threading.Thread(target=hub.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Any

    def log_message(self, *unused: object) -> None:
        pass

    def reply(self, value: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        for name, text in (headers or {}).items():
            self.send_header(name, text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def missing(self, code: str) -> None:
        self.reply({"error": code}, 404, {"X-Error-Code": code})

    def route(self, routes: dict[str, Any]) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.requests.append(f"{self.command} {path}")
        size = self.headers.get("Content-Length")
        body = self.rfile.read(int(size)) if size else self._chunks() if self.headers.get("Transfer-Encoding") else b""
        if self.headers.get("Authorization") != "Bearer hf_stand_in" and not path.startswith("/lfs/"):
            self.reply({"error": "Unauthorized"}, 401)
            return
        for pattern, answer in routes.items():
            if match := re.fullmatch(pattern, path):
                repo = match.groupdict().get("repo")
                if repo is not None and repo not in self.server.repositories:
                    self.missing("RepoNotFound")
                else:
                    answer(body, **match.groupdict())
                return
        self.reply({"error": f"the stand-in does not know {path}"}, 404)

    def _chunks(self) -> bytes:
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def do_POST(self) -> None:
        self.route(
            {
                "/api/repos/create": self.create,
                "/api/validate-yaml": lambda body: self.reply({"errors": [], "warnings": []}),
                f"/api/models/{REPO}/preupload/main": self.preupload,
                f"/api/models/{REPO}/commit/main": self.commit,
                rf"/{REPO}\.git/info/lfs/objects/batch": self.lfs_batch,
            }
        )

    def do_PUT(self) -> None:
        self.route({r"/lfs/(?P<oid>\w+)": self.put})

    def do_GET(self) -> None:
        self.route(
            {
                f"/api/models/{REPO}(/revision/.+)?": self.info,
                f"/api/models/{REPO}/tree/[^/]+": self.tree,
                f"/{REPO}/resolve/[^/]+/(?P<name>.+)": self.file,
            }
        )

    def do_HEAD(self) -> None:
        self.do_GET()

    def create(self, body: bytes) -> None:
        asked = json.loads(body)
        repo = f"{asked.get('organization') or 'me'}/{asked['name']}"
        status = 409 if repo in self.server.repositories else 200
        self.server.repositories.setdefault(repo, {})
        self.reply({"url": f"{self.server.endpoint}/{repo}"}, status)

    def preupload(self, body: bytes, repo: str) -> None:
        files = json.loads(body)["files"]
        modes = [
            {"path": file["path"], "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular"}
            for file in files
        ]
        self.reply({"files": [{**mode, "shouldIgnore": False} for mode in modes]})

    def lfs_batch(self, body: bytes, repo: str) -> None:
        objects = [
            {**asked, "actions": {"upload": {"href": f"{self.server.endpoint}/lfs/{asked['oid']}", "header": {}}}}
            for asked in json.loads(body)["objects"]
        ]
        self.reply({"transfer": "basic", "objects": objects})

    def put(self, body: bytes, oid: str) -> None:
        assert hashlib.sha256(body).hexdigest() == oid
        self.server.objects[oid] = body
        self.reply({})

    def commit(self, body: bytes, repo: str) -> None:
        files = self.server.repositories[repo]
        for line in filter(None, body.split(b"\n")):
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile":
                files[value["path"]] = self.server.objects[value["oid"]]
        commit = self.server.commit_id(repo)
        self.reply(
            {"commitOid": commit, "commitUrl": f"{self.server.endpoint}/{repo}/commit/{commit}", "success": True}
        )

    def info(self, body: bytes, repo: str) -> None:
        siblings = [{"rfilename": name} for name in self.server.repositories[repo]]
        tags = {"tags": [], "pipeline_tag": "image-text-to-text", "private": False, "downloads": 0, "likes": 0}
        self.reply({"id": repo, "modelId": repo, "sha": self.server.commit_id(repo), "siblings": siblings, **tags})

    def tree(self, body: bytes, repo: str) -> None:
        files = self.server.repositories[repo].items()
        self.reply(
            [
                {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                for name, data in files
            ]
        )

    def file(self, body: bytes, repo: str, name: str) -> None:
        data = self.server.repositories[repo].get(name)
        if data is None:
            self.missing("EntryNotFound")
            return
        etag = f'"{hashlib.sha1(data).hexdigest()}"'
        self.reply(data, 200, {"ETag": etag, "X-Repo-Commit": self.server.commit_id(repo)})
