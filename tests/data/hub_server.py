"""A server on loopback that speaks the Hugging Face hub's endpoints, as the real client uses them,
and that fails when told to.
"""

import base64
import hashlib
import json
import re
import sys
import threading
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal, Self
from urllib.parse import unquote, urlsplit

Fault = Literal["429", "500", "cut", "length", "corrupt", "stall", "hold", "slow", "403"]

LFS = (".bin", ".safetensors", ".gguf", ".onnx", ".data")
"""The ends of names of files that the hub keeps apart from the others."""

PARQUET = "refs/convert/parquet"
"""The branch that has a dataset as Parquet; here it is the only commit, too."""

_CHUNK_BYTES = 8192
_MAX_REQUESTS = 2000
_STALL_S = 5.0


@dataclass
class Repo:
    """A repository with one commit, of a dataset or a model."""

    files: dict[str, bytes] = field(default_factory=dict)
    claimed_sizes: dict[str, int] = field(default_factory=dict)
    """What the listing says instead of a file's size."""
    commit: str = "c0ffee" + "0" * 34
    card: dict[str, Any] = field(default_factory=dict)
    """The metadata of its card."""

    def listing(self) -> list[dict[str, Any]]:
        entries = []
        for name, content in sorted(self.files.items()):
            size = self.claimed_sizes.get(name, len(content))
            blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
            entry: dict[str, Any] = {"rfilename": name, "size": size, "blobId": blob}
            if name.endswith(LFS):
                digest = hashlib.sha256(content).hexdigest()
                entry["lfs"] = {"sha256": digest, "size": size, "pointerSize": 130}
            entries.append(entry)
        return entries


@dataclass
class Request:
    method: str
    path: str
    headers: dict[str, str]
    time_s: float


class HubServer:
    """A context manager; the server stops with it.

    `faults` says, by name of a shard, or "*" for every shard, what goes wrong with its first, its
    second, .. download; after that they go well. "hold" sends half of a shard, and the rest when
    `released` is set. `listing_faults` says the same of the requests that list a repository, and
    `deny` a status and X-Error-Code with which every request for a repository is answered.
    `busy_headers` go with the answers 429 and 500; `slow_s` is the pause before each 8 KiB of a
    slow download; `sent` counts bytes of content that went out, by name of the file.
    """

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.faults: dict[str, list[Fault]] = {}
        self.listing_faults: list[Fault] = []
        self.deny: tuple[int, str] | None = None
        self.busy_headers: dict[str, str] = {}
        self.slow_s = 0.002
        self.writable = True
        self.released = threading.Event()
        self.sent: Counter[str] = Counter()
        self.requests: list[Request] = []
        self.lfs_objects: dict[str, bytes] = {}
        self.lock = threading.Lock()
        self._taken: defaultdict[str, int] = defaultdict(int)
        self._stopped = threading.Event()
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = _Server(("127.0.0.1", 0), handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))

    @property
    def port(self) -> int:
        return self._server.server_address[1]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stopped.set()
        self.released.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def fault_of(self, name: str) -> Fault | None:
        """What goes wrong with this download of a file."""
        faults = self.faults.get(name, self.faults.get("*", []))
        with self.lock:
            self._taken[name] += 1
            index = self._taken[name] - 1
        return faults[index] if index < len(faults) else None

    def pause(self, seconds: float) -> None:
        self._stopped.wait(seconds)

    def gets(self, name: str) -> list[Request]:
        """The requests for the content of a file, without the redirects that led there."""
        return [
            request
            for request in self.requests
            if request.method == "GET"
            and request.path.endswith("/" + name)
            and "/resolve/" not in request.path
        ]


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that goes away is what some tests are about."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        """Not on the tests' output."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def do_PUT(self) -> None:
        self._answer()

    def _answer(self) -> None:
        hub = self.hub
        length = int(self.headers.get("Content-Length") or 0)
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            self.body = self._chunked_body()
        else:
            self.body = self.rfile.read(length)
        path = unquote(urlsplit(self.path).path)
        headers = {name.lower(): value for name, value in self.headers.items()}
        with hub.lock:
            hub.requests.append(Request(self.command, path, headers, time.monotonic()))
            too_many = len(hub.requests) > _MAX_REQUESTS
        try:
            if too_many:
                self._json(410, {"error": "the test asks too much"})
            else:
                self._route(path)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def _chunked_body(self) -> bytes:
        body = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _route(self, path: str) -> None:
        repo, kinds = r"(?P<repo>[^/]+/[^/]+?)", "(datasets|models)"
        for pattern, answer in (
            (rf"/api/{kinds}/{repo}(/revision/(?P<revision>.+))?", self._repo_info),
            (rf"/(datasets/)?{repo}/resolve/(?P<revision>[^/]+)/(?P<name>.+)", self._resolve),
            (rf"/cdn/{repo}/(?P<name>.+)", self._content),
            (r"/api/repos/create", self._create),
            (r"/api/validate-yaml", self._validate_yaml),
            (rf"/api/{kinds}/{repo}/preupload/main", self._preupload),
            (rf"/(datasets/)?{repo}\.git/info/lfs/objects/batch", self._lfs_batch),
            (r"/lfs/(?P<oid>\w+)", self._lfs_upload),
            (rf"/api/{kinds}/{repo}/commit/main", self._commit),
        ):
            if match := re.fullmatch(pattern, path):
                answer(**match.groupdict())
                return
        self._json(404, {"error": f"the test server knows no {path}"})

    # Answers ------------------------------------------------------------------------------------

    def _json(self, status: int, content: object, headers: dict[str, str] | None = None) -> None:
        body = json.dumps(content).encode()
        self._head(status, {"Content-Type": "application/json", **(headers or {})}, len(body))
        if self.command != "HEAD":
            self.wfile.write(body)

    def _head(self, status: int, headers: dict[str, str], length: int) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(length)}.items():
            self.send_header(name, value)
        self.end_headers()

    def _busy(self, fault: str) -> None:
        self._json(int(fault), {"error": "as told"}, self.hub.busy_headers)

    def _denied(self, repo: str) -> bool:
        if self.hub.deny is not None:
            status, code = self.hub.deny
            self._json(status, {"error": "as told"}, {"X-Error-Code": code} if code else {})
        elif repo not in self.hub.repos:
            # What the hub answers whoever is not logged in.
            self._json(401, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
        else:
            return False
        return True

    # Reading ------------------------------------------------------------------------------------

    def _repo_info(self, repo: str, revision: str | None) -> None:
        if self._denied(repo):
            return
        if self.hub.listing_faults:
            self._busy(self.hub.listing_faults.pop(0))
            return
        found = self.hub.repos[repo]
        if revision not in (None, "main", found.commit, PARQUET):
            self._json(404, {"error": "no"}, {"X-Error-Code": "RevisionNotFound"})
            return
        info = {"_id": "1", "id": repo, "sha": found.commit, "siblings": found.listing()}
        self._json(200, {**info, "tags": [], "cardData": found.card})

    def _resolve(self, repo: str, revision: str, name: str) -> None:
        """As the hub: large files are elsewhere, small ones here."""
        if self._denied(repo):
            return
        found = self.hub.repos[repo]
        content = found.files.get(name)
        if content is None:
            self._json(404, {"error": "no"}, {"X-Error-Code": "EntryNotFound"})
            return
        digest = hashlib.sha256(content).hexdigest()
        headers = {"X-Repo-Commit": found.commit, "ETag": f'"{digest}"'}
        if name.endswith(LFS):
            headers |= {
                "X-Linked-Size": str(len(content)),
                "X-Linked-Etag": f'"{digest}"',
                # Another host name, so that the login must not be sent along.
                "Location": f"http://localhost:{self.hub.port}/cdn/{repo}/{name}",
            }
            self._head(302, headers, 0)
        else:
            self._head(200, headers, len(content))
            if self.command != "HEAD":
                self.wfile.write(content)

    def _content(self, repo: str, name: str) -> None:
        hub = self.hub
        content = hub.repos[repo].files[name]
        fault = hub.fault_of(name) if name.endswith(LFS) else None
        if fault in ("429", "500", "403"):
            self._busy(fault)
            return
        start = 0
        requested = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if requested:
            start = int(requested[1])
        body = content[start:]
        if fault == "length":
            body = body[: len(body) // 2]  # whole by its own header, and not the file
        if fault == "corrupt":
            middle = len(body) // 2
            body = body[:middle] + bytes([body[middle] ^ 1]) + body[middle + 1 :]
        if start:
            end = start + len(body)
            self._head(206, {"Content-Range": f"bytes {start}-{end - 1}/{end}"}, len(body))
        else:
            self._head(200, {}, len(body))
        half = len(body) // 2
        if fault == "hold":
            self._send(name, body[:half], slow=False)
            hub.released.wait()
            self._send(name, body[half:], slow=False)
        elif fault in ("cut", "stall"):
            self._send(name, body[:half], slow=False)
            if fault == "stall":
                hub.pause(_STALL_S)
            self.close_connection = True
        else:
            self._send(name, body, slow=fault == "slow")

    def _send(self, name: str, body: bytes, slow: bool) -> None:
        for first in range(0, len(body), _CHUNK_BYTES):
            if slow:
                self.hub.pause(self.hub.slow_s)
            chunk = body[first : first + _CHUNK_BYTES]
            self.wfile.write(chunk)
            with self.hub.lock:
                self.hub.sent[name] += len(chunk)

    # Writing ------------------------------------------------------------------------------------

    def _create(self) -> None:
        asked = json.loads(self.body)
        repo = f"{asked['organization']}/{asked['name']}"
        folder = "datasets/" if asked.get("type") == "dataset" else ""
        found = {"url": f"{self.hub.url}/{folder}{repo}", "name": repo}
        if not self.headers.get("Authorization"):
            self._json(401, {"error": "Invalid username or password."})
        elif not self.hub.writable:
            self._json(403, {"error": "You don't have the rights to create this repository"})
        elif repo in self.hub.repos:
            self._json(409, {"error": "You already created this dataset repo", **found})
        else:
            self.hub.repos[repo] = Repo()
            self._json(200, found)

    def _validate_yaml(self) -> None:
        assert json.loads(self.body)["content"].startswith("---\n")
        self._json(200, {"errors": [], "warnings": []})

    def _preupload(self, repo: str) -> None:
        files = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(LFS) else "regular",
                "shouldIgnore": False,
            }
            for file in json.loads(self.body)["files"]
        ]
        self._json(200, {"files": files})

    def _lfs_batch(self, repo: str) -> None:
        objects = json.loads(self.body)["objects"]
        for item in objects:
            if item["oid"] not in self.hub.lfs_objects:
                item["actions"] = {"upload": {"href": f"{self.hub.url}/lfs/{item['oid']}"}}
        self._json(200, {"objects": objects, "transfer": "basic"})

    def _lfs_upload(self, oid: str) -> None:
        if hashlib.sha256(self.body).hexdigest() != oid:
            self._json(400, {"error": "checksum"})
            return
        self.hub.lfs_objects[oid] = self.body
        self._json(200, {})

    def _commit(self, repo: str) -> None:
        found = self.hub.repos[repo]
        for line in self.body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "file":
                found.files[value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile":
                found.files[value["path"]] = self.hub.lfs_objects[value["oid"]]
        found.commit = hashlib.sha1(self.body).hexdigest()
        page = f"{self.hub.url}/datasets/{repo}/commit/{found.commit}"
        self._json(200, {"commitUrl": page, "commitOid": found.commit, "success": True})
