"""A stand-in for the Hugging Face hub: what ``snapshot_download`` asks of its HTTP interface, on this machine."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import unquote, urlsplit


@dataclass
class Hub:
    """Repositories by name, each with its commits by branch or tag.

    Attributes:
        commits: Files by name, by repository and commit.
        references: Commits by repository and branch or tag.
        requests: What was asked, in order.
    """

    commits: dict[tuple[str, str], dict[str, bytes]] = field(default_factory=dict)
    references: dict[tuple[str, str], str] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    url: str = ""

    def push(self, repository: str, files: Mapping[str, bytes], *names: str) -> str:
        """Adds a commit, to which ``main`` and the names point from now on."""
        text = repr(sorted((name, hashlib.sha1(data).hexdigest()) for name, data in files.items()))
        commit = hashlib.sha1(text.encode()).hexdigest()
        self.commits[repository, commit] = dict(files)
        for name in ("main", commit, *names):
            self.references[repository, name] = commit
        return commit

    @contextmanager
    def serving(self) -> Iterator["Hub"]:
        """Answers requests for a while."""
        server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        thread = Thread(target=server.serve_forever, daemon=True)
        thread.start()
        self.url = f"http://127.0.0.1:{server.server_address[1]}"
        try:
            yield self
        finally:
            server.shutdown()
            server.server_close()
            thread.join()


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.answer()

        def do_GET(self) -> None:
            self.answer()

        def answer(self) -> None:
            path = unquote(urlsplit(self.path).path)
            hub.requests.append(f"{self.command} {path}")
            match path.strip("/").split("/"):
                case ["api", "models", owner, name]:
                    self.describe(f"{owner}/{name}", "main")
                case ["api", "models", owner, name, "revision", *revision]:
                    self.describe(f"{owner}/{name}", "/".join(revision))
                case ["api", "models", owner, name, "tree", revision, *_]:
                    self.list_files(f"{owner}/{name}", revision)
                case [owner, name, "resolve", revision, *file]:
                    self.give(f"{owner}/{name}", revision, "/".join(file))
                case _:
                    self.missing("EntryNotFound")

        def commit(self, repository: str, revision: str) -> str | None:
            if not any(known == repository for known, _ in hub.references):
                self.missing("RepoNotFound")
            elif (repository, revision) not in hub.references:
                self.missing("RevisionNotFound")
            return hub.references.get((repository, revision))

        def describe(self, repository: str, revision: str) -> None:
            commit = self.commit(repository, revision)
            if commit is not None:
                files = [{"rfilename": name} for name in hub.commits[repository, commit]]
                self.send_json({"id": repository, "modelId": repository, "sha": commit, "siblings": files, "tags": []})

        def list_files(self, repository: str, revision: str) -> None:
            commit = self.commit(repository, revision)
            if commit is not None:
                files = hub.commits[repository, commit]
                listed = [
                    {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                    for name, data in files.items()
                ]
                self.send_json(listed)

        def give(self, repository: str, revision: str, name: str) -> None:
            commit = self.commit(repository, revision)
            if commit is None:
                return
            data = hub.commits[repository, commit].get(name)
            if data is None:
                self.missing("EntryNotFound")
                return
            headers = {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": commit}
            self.send(200, data, {**headers, "Content-Type": "application/octet-stream"})

        def send_json(self, value: object) -> None:
            self.send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

        def missing(self, code: str) -> None:
            self.send(404, b"{}", {"X-Error-Code": code, "X-Error-Message": code, "Content-Type": "application/json"})

        def send(self, status: int, data: bytes, headers: Mapping[str, str]) -> None:
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(data))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    return Handler
