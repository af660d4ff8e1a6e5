"""A small server that speaks what huggingface_hub asks of the Hub: making repositories, commits, and downloads.

The client's own code runs against it, large files included. Nothing leaves this machine.
"""

import base64
import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import huggingface_hub
import pytest

TOKEN, OWNER = "hf_test", "somebody"
MAX_REGULAR = 2000  # bytes; larger files go as those of git LFS
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Commit:
    """One commit: what it says, and which paths it writes and deletes."""

    summary: str
    added: set[str] = field(default_factory=set)
    deleted: set[str] = field(default_factory=set)


@dataclass
class Repository:
    """A repository on the server; each branch has its files."""

    private: bool
    branches: dict[str, dict[str, bytes]] = field(default_factory=lambda: {"main": {}})
    commits: list[Commit] = field(default_factory=list)

    def write(self, folder: Path, branch: str = "main") -> Path:
        """Writes the files of a branch to a folder."""
        for name, content in self.branches[branch].items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
        return folder


class Hub(ThreadingHTTPServer):
    """The server and its repositories."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.repositories: dict[str, Repository] = {}
        self.large_files: dict[str, bytes] = {}
        self.requests: list[str] = []

    def commit(self, repo: str, branch: str, lines: list[dict[str, Any]]) -> None:
        repository = self.repositories[repo]
        files, commit = repository.branches[branch], Commit("")
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                commit.summary = value["summary"]
            elif line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
                commit.added.add(value["path"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.large_files[value["oid"]]
                commit.added.add(value["path"])
            elif line["key"] == "deletedFile":
                del files[value["path"]]
                commit.deleted.add(value["path"])
            else:
                raise ValueError(line)
        repository.commits.append(commit)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *_: object) -> None:
        """Says nothing."""

    def answer(self, content: Any, status: int = 200, **headers: str) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def read_body(self) -> bytes:
        """The body of a request, of a stated length or in chunks."""
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        chunks = []
        while size := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def handle_any(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.body = self.read_body()
        self.server.requests.append(f"{self.command} {path}")
        for method, pattern, respond in ROUTES:
            if self.command == method and (match := re.fullmatch(pattern, path)):
                needs_token = method == "POST" and not path.endswith("/batch")
                if needs_token and self.headers.get("Authorization") != f"Bearer {TOKEN}":
                    self.answer({"error": "Invalid username or password."}, 401)
                    return
                respond(self, *match.groups())
                return
        self.answer({"error": "Not found"}, 404, X_Error_Code="EntryNotFound")

    do_GET = do_HEAD = do_POST = do_PUT = handle_any  # noqa: N815

    def create(self) -> None:
        asked = json.loads(self.body)
        repo = f"{asked['organization'] or OWNER}/{asked['name']}"
        exists = repo in self.server.repositories
        if not exists:
            self.server.repositories[repo] = Repository(private=asked.get("visibility") == "private")
        self.answer({"url": f"{self.server.url}/{repo}"}, 409 if exists else 200)

    def branch(self, repo: str, name: str) -> None:
        branches = self.server.repositories[repo].branches
        exists = name in branches
        branches.setdefault(name, dict(branches["main"]))
        self.answer({}, 409 if exists else 200)

    def validate(self) -> None:
        content = json.loads(self.body)["content"]
        is_valid = content.startswith("---\n") and "\n---\n" in content
        errors = [] if is_valid else [{"message": "no header"}]
        self.answer({"errors": errors, "warnings": []}, 200 if is_valid else 400)

    def preupload(self, repo: str, branch: str) -> None:
        assert branch in self.server.repositories[repo].branches
        files = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["size"] > MAX_REGULAR else "regular",
                "shouldIgnore": False,
            }
            for file in json.loads(self.body)["files"]
        ]
        self.answer({"files": files})

    def batch(self, repo: str) -> None:
        assert repo in self.server.repositories
        objects = [
            {
                **large,
                "actions": {
                    "upload": {"href": f"{self.server.url}/large/{large['oid']}"},
                    "verify": {"href": f"{self.server.url}/verify"},
                },
            }
            for large in json.loads(self.body)["objects"]
        ]
        self.answer({"transfer": "basic", "objects": objects})

    def upload(self, digest: str) -> None:
        assert hashlib.sha256(self.body).hexdigest() == digest
        self.server.large_files[digest] = self.body
        self.answer({})

    def verify(self) -> None:
        asked = json.loads(self.body)
        self.answer({}, 200 if len(self.server.large_files.get(asked["oid"], b"")) == asked["size"] else 400)

    def commit(self, repo: str, branch: str) -> None:
        self.server.commit(repo, branch, [json.loads(line) for line in self.body.splitlines()])
        self.answer({"commitUrl": f"{self.server.url}/{repo}/commit/{COMMIT}", "commitOid": COMMIT})

    def info(self, repo: str, branch: str | None = None) -> None:
        if (repository := self.server.repositories.get(repo)) is None:
            return self.answer({"error": "Repository not found"}, 404, X_Error_Code="RepoNotFound")
        files = repository.branches[self._branch(branch)]
        siblings = [{"rfilename": name} for name in files]
        return self.answer({"id": repo, "sha": COMMIT, "siblings": siblings, "tags": [], "private": False})

    def tree(self, repo: str, branch: str) -> None:
        files = self.server.repositories[repo].branches[self._branch(branch)]
        entries = [
            {"type": "file", "path": name, "size": len(content), "oid": _etag(content)}
            for name, content in files.items()
        ]
        self.answer(entries)

    def resolve(self, repo: str, branch: str, path: str) -> None:
        if (repository := self.server.repositories.get(repo)) is None:
            return self.answer({"error": "Repository not found"}, 404, X_Error_Code="RepoNotFound")
        content = repository.branches[self._branch(branch)].get(path)
        if content is None:
            return self.answer({"error": "Entry not found"}, 404, X_Error_Code="EntryNotFound", X_Repo_Commit=COMMIT)
        return self.answer(content, ETag=f'"{_etag(content)}"', X_Repo_Commit=COMMIT)

    def _branch(self, name: str | None) -> str:
        """The one branch that a commit's hash stands for."""
        return "main" if name in (None, COMMIT) else str(name)


def _etag(content: bytes) -> str:
    return hashlib.sha1(content, usedforsecurity=False).hexdigest()


REPO, BRANCH = r"([\w.-]+/[\w.-]+)", r"([\w.-]+)"
ROUTES: list[tuple[str, str, Any]] = [
    ("POST", "/api/repos/create", _Handler.create),
    ("POST", "/api/validate-yaml", _Handler.validate),
    ("POST", f"/api/models/{REPO}/branch/{BRANCH}", _Handler.branch),
    ("POST", f"/api/models/{REPO}/preupload/{BRANCH}", _Handler.preupload),
    ("POST", f"/api/models/{REPO}/commit/{BRANCH}", _Handler.commit),
    ("POST", rf"/{REPO}\.git/info/lfs/objects/batch", _Handler.batch),
    ("PUT", "/large/([0-9a-f]+)", _Handler.upload),
    ("POST", "/verify", _Handler.verify),
    ("GET", f"/api/models/{REPO}", _Handler.info),
    ("GET", f"/api/models/{REPO}/revision/{BRANCH}", _Handler.info),
    ("GET", f"/api/models/{REPO}/tree/{BRANCH}", _Handler.tree),
    *((method, f"/{REPO}/resolve/{BRANCH}/(.+)", _Handler.resolve) for method in ("GET", "HEAD")),
]


@contextlib.contextmanager
def running_hub() -> Iterator[Hub]:
    """A server that runs inside the `with` block."""
    with Hub() as hub:
        thread = threading.Thread(target=hub.serve_forever, daemon=True)
        thread.start()
        try:
            yield hub
        finally:
            hub.shutdown()
            thread.join()


@contextlib.contextmanager
def in_place_of_the_hub(monkeypatch: pytest.MonkeyPatch, cache: Path) -> Iterator[Hub]:
    """A server that huggingface_hub takes for the Hub, with a token and an empty cache."""
    constants: Any = huggingface_hub.constants
    with running_hub() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        files = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", files)
        monkeypatch.setattr("huggingface_hub.hf_api.api.endpoint", server.url)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        yield server


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """The stand-in of the Hub, for one test."""
    with in_place_of_the_hub(monkeypatch, tmp_path / "cache") as server:
        yield server
