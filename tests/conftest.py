"""A hub on this machine, over HTTP; no test reaches another one, nor the user's own cache, nor a GPU unasked."""

import atexit
import hashlib
import json
import os
import re
import socket
import tempfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

# Both are read when the libraries are imported. Until the server runs its port refuses.
_SOCKET = socket.socket()
_SOCKET.bind(("127.0.0.1", 0))
_HOME = tempfile.TemporaryDirectory()
atexit.register(_HOME.cleanup)
atexit.register(_SOCKET.close)
os.environ |= {"HF_ENDPOINT": f"http://127.0.0.1:{_SOCKET.getsockname()[1]}", "HF_HOME": _HOME.name}
_ROUTE = re.compile(r"/api/(models|datasets|spaces)/(\w+/[\w.-]+|gpt2)(?:/([a-z-]+)/([\w.]+)(?:/(.*))?)?")
_FILE = re.compile(r"/(?:(datasets|spaces)/)?(\w+/[\w.-]+|gpt2)/resolve/([\w.]+)/(.+)")


def pytest_configure(config: pytest.Config) -> None:
    """What the tests promise holds on a CPU; a GPU is seen only by those that are about it (`-m gpu`)."""
    asked = config.getoption("markexpr")
    if "gpu" not in asked or "not gpu" in asked:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


@pytest.fixture(autouse=True)
def as_strict_as_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """No folder gets another name while a file in it is mapped: Windows refuses that."""
    mapped, rename = Path("/proc/self/maps"), os.rename
    if not mapped.exists():
        return

    def strict(source: Any, target: Any) -> None:
        assert f"{os.path.realpath(source)}/" not in mapped.read_text(), f"{source}: a file in it is mapped"
        rename(source, target)

    monkeypatch.setattr(os, "rename", strict)


class Hub:
    """Repositories, each with all its commits, `main` being the last; what was asked of them; how they behave."""

    def __init__(self) -> None:
        self.commits: dict[str, dict[str, dict[str, bytes]]] = {}
        self.facts: dict[str, dict[str, Any]] = {}
        self.asked: list[str] = []
        self.is_silent = threading.Event()  # while set, requests are taken and not answered

    def put(self, name: str, files: dict[str, bytes] | Path, kind: str = "models", **facts: Any) -> str:
        """Make a commit of all files, in memory or in a folder; its hash."""
        if isinstance(files, Path):
            files = {f.relative_to(files).as_posix(): f.read_bytes() for f in files.rglob("*") if f.is_file()}
        commit = hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()
        commits = self.commits.setdefault(f"{kind}/{name}", {})
        commits.pop("main", None)
        commits |= {commit: files, "main": files}
        self.facts[f"{kind}/{name}"] = facts
        return commit

    def downloads(self, name: str) -> list[str]:
        """The files of a repository that were fetched, in order of name."""
        return sorted(path.split("/", 5)[5] for path in set(self.asked) if path.startswith(f"GET /{name}/resolve/"))


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *arguments: Any) -> None:
        """Says nothing of those who did not wait for an answer."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *arguments: Any) -> None:
        pass

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.asked.append(f"{self.command} {path}")
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        while self.hub.is_silent.is_set():
            threading.Event().wait(0.05)
        api, file = _ROUTE.fullmatch(path), _FILE.fullmatch(path)
        kind, name, revision = (
            (api[1], api[2], api[4]) if api else (file[1], file[2], file[3]) if file else ("", "", "")
        )
        repository = f"{kind or 'models'}/{name}"
        commits = self.hub.commits.get(repository)
        if commits is None:
            return self._answer(401, b"Invalid username or password.")
        files = commits.get(revision or "main")
        commit = next(key for key, value in commits.items() if files in (None, value))
        if files is None:
            return self._answer(404, b"", {"X-Error-Code": "RevisionNotFound"})
        facts = self.hub.facts[repository]
        if file:
            if facts.get("gated"):
                return self._answer(401, b"", {"X-Error-Code": "GatedRepo"})
            return self._file(files.get(file[4]), commit)
        if api and api[3] == "tree":
            return self._answer(
                200, json.dumps(_entries(files, api[5] or "", "recursive=t" in self.path.lower())).encode()
            )
        if api and api[3] == "paths-info":
            wanted = [entry for path in _wanted(body) for entry in _entries(files, path, True, itself=True)]
            return self._answer(200, json.dumps(wanted).encode())
        siblings = [{"rfilename": path} for path in files]
        told = {"_id": "1", "id": name, "sha": commit, "private": False, "tags": [], "siblings": siblings}
        return self._answer(200, json.dumps(told | {"gated": False, "downloads": 0, "likes": 0} | facts).encode())

    do_HEAD = do_POST = do_GET

    def _file(self, content: bytes | None, commit: str) -> None:
        if content is None:
            return self._answer(404, b"", {"X-Error-Code": "EntryNotFound"})
        headers = {"ETag": f'"{_blob(content)}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("range") or "")
        if asked is None:
            return self._answer(200, content, headers)
        start, end = int(asked[1]), min(int(asked[2] or len(content)), len(content) - 1)
        headers["Content-Range"] = f"bytes {start}-{end}/{len(content)}"
        return self._answer(206 if start <= end else 416, content[start : end + 1], headers)

    def _answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _blob(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _wanted(body: bytes) -> list[str]:
    if body.startswith(b"{"):
        return list(json.loads(body)["paths"])
    return [
        unquote(part.removeprefix("paths=")).replace("+", " ") for part in body.decode().split("&") if "paths=" in part
    ]


def _entries(files: dict[str, bytes], folder: str, is_deep: bool, itself: bool = False) -> list[dict[str, Any]]:
    """What the API tells of the files and folders in a folder, or of a path itself."""
    folders = {"/".join(path.split("/")[:i]) for path in files for i in range(1, path.count("/") + 1)}
    told = [{"type": "file", "path": path, "size": len(c), "oid": _blob(c)} for path, c in files.items()]
    told += [{"type": "directory", "path": path, "size": 0, "oid": "0" * 40} for path in sorted(folders)]
    if itself:
        return [entry for entry in told if entry["path"] == folder]
    start = folder + "/" if folder else ""
    below = [entry for entry in told if entry["path"].startswith(start)]
    return [entry for entry in below if is_deep or "/" not in entry["path"][len(start) :]]


@pytest.fixture(scope="session")
def _server() -> Iterator[type[_Handler]]:
    server = _Server(_SOCKET.getsockname(), _Handler, bind_and_activate=False)
    server.socket.close()
    server.socket = _SOCKET
    server.server_activate()
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    yield _Handler
    server.shutdown()


@pytest.fixture
def hub_server(_server: type[_Handler], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """An empty hub beside an empty cache; nothing is known of it yet."""
    from huggingface_hub import constants

    from fledge import hub

    _server.hub = Hub()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub, "_known", {})
    monkeypatch.setenv("HF_HUB_OFFLINE", hub.OFFLINE)
    yield _server.hub
    _server.hub.is_silent.clear()
