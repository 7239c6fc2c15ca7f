"""A stand-in for the Hugging Face Hub: what it takes to create a repository, to upload a folder, and to download files."""

import base64
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "1" * 40


class Hub(BaseHTTPRequestHandler):
    """Repositories are folders below ``root``; whoever has ``TOKEN`` may write, and hears what does not exist."""

    TOKEN = "hf_standin"
    root: Path

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path).strip("/")
        if path.startswith("api/models/"):
            _, _, owner, name, *question = path.split("/")
            repo = f"{owner}/{name}"
            if not self._exists(repo):
                return
            files = [self._entry(repo, file) for file in sorted((self.root / repo).rglob("*")) if file.is_file()]
            commit = {"id": repo, "sha": COMMIT, "siblings": [{"rfilename": file["path"]} for file in files]}
            self._answer(200, files if question[:1] == ["tree"] else commit)
        else:
            repo, _, file_path = path.partition("/resolve/")
            file = self.root / repo / file_path.partition("/")[2]
            if not self._exists(repo):
                return
            if not file.is_file():
                self._answer(404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound"})
                return
            content = file.read_bytes()
            self._answer(200, content, {"ETag": f'"{hashlib.sha1(content).hexdigest()}"'})

    do_HEAD = do_GET

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = unquote(urlsplit(self.path).path).strip("/")
        if path == "api/validate-yaml":
            self._answer(200, {"errors": [], "warnings": []})
        elif not self._may_write():
            self._answer(401, {"error": "Invalid username or password."})
        elif path == "api/repos/create":
            asked = json.loads(body)
            repo = f"{asked['organization']}/{asked['name']}"
            existed = (self.root / repo).is_dir()
            (self.root / repo).mkdir(parents=True, exist_ok=True)
            (self.root / repo / ".gitattributes").touch()
            self._answer(409 if existed else 200, {"url": f"http://{self.headers['Host']}/{repo}"})
        elif "/preupload/" in path:
            asked = json.loads(body)["files"]
            modes = [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in asked]
            self._answer(200, {"files": modes})
        elif "/commit/" in path:
            repo = path.removeprefix("api/models/").partition("/commit/")[0]
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    file = self.root / repo / line["value"]["path"]
                    file.parent.mkdir(parents=True, exist_ok=True)
                    file.write_bytes(base64.b64decode(line["value"]["content"]))
            url = f"http://{self.headers['Host']}/{repo}/commit/{COMMIT}"
            self._answer(200, {"commitUrl": url, "commitOid": COMMIT, "pullRequestUrl": None})
        else:
            self._answer(501, {"error": f"The stand-in has no {path}"})

    def _may_write(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {self.TOKEN}"

    def _exists(self, repo: str) -> bool:
        exists = (self.root / repo).is_dir()
        if not exists:
            # The Hub leaves out the code of a 401, which huggingface_hub infers from an address that begins with https.
            status = 404 if self._may_write() else 401
            self._answer(status, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
        return exists

    def _entry(self, repo: str, file: Path) -> dict[str, Any]:
        content = file.read_bytes()
        path = file.relative_to(self.root / repo).as_posix()
        return {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}

    def _answer(self, status: int, content: Any, headers: dict[str, str] | None = None) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {**(headers or {}), "X-Repo-Commit": COMMIT, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def stand_in_hub(root: Path) -> Iterator[dict[str, str]]:
    """
    Serve it, and give the environment variables with which a process uses it.

    :param root: folder for its repositories and for what its users cache
    """
    handler = type("HubHere", (Hub,), {"root": root / "repositories"})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield variables(root, f"http://127.0.0.1:{server.server_port}", Hub.TOKEN)
        server.shutdown()


def variables(root: Path, endpoint: str, token: str = "") -> dict[str, str]:
    """Those of a process that uses the Hub at ``endpoint``, with the token and a cache of its own, and no proxy."""
    return {
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(root / "cache"),
        "HF_TOKEN": token,
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "NO_PROXY": "127.0.0.1",
    }
