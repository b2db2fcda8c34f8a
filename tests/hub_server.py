"""A stand-in of the Hugging Face hub's HTTP interface on this machine: as much of it as models need, files in memory."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from http.server import ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

import pytest
from huggingface_hub import constants

from tests.servers import JsonHandler

TOKEN = "hf_of_the_owner"


class HubServer(ThreadingHTTPServer):
    """What it holds: repository → commits, each file → bytes; the last one is "main"."""

    commits: dict[str, list[tuple[str, dict[str, bytes]]]]
    private: dict[str, bool]
    objects: dict[str, bytes]


class HubHandler(JsonHandler):
    """Answers as the hub does, in the parts of its answers that huggingface_hub looks at."""

    server: HubServer

    def _refuse(self, status: int, code: str = "", message: str = "") -> None:
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", message or code or "no")
        self.send_header("content-length", "0")
        self.end_headers()

    def _may_write(self, repository: str) -> bool:
        if self.headers.get("authorization") != f"Bearer {TOKEN}":
            self._refuse(401, message="Invalid credentials")
            return False
        if not repository.startswith("owner/"):
            self._refuse(403, message="You don't have the rights to create a model under this namespace")
            return False
        return True

    def do_POST(self) -> None:
        path, content = unquote(self.path), self.body()
        if path == "/api/repos/create":
            asked = json.loads(content)
            repository = f"{asked.get('organization') or 'owner'}/{asked['name']}"
            if not self._may_write(repository):
                return
            if repository in self.server.commits:
                self.answer({"error": "You already created this model repo", "url": f"/{repository}"}, 409)
                return
            self.server.commits[repository], self.server.private[repository] = (
                [],
                asked.get("private") or asked.get("visibility") == "private",
            )
            self.answer({"url": f"http://{self.headers['host']}/{repository}", "name": repository})
        elif path == "/api/validate-yaml":
            self.answer({"errors": [], "warnings": []})
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/preupload/main", path):
            files = json.loads(content)["files"]
            self.answer(
                {
                    "files": [
                        {"path": file["path"], "shouldIgnore": False,
                         "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular"}
                        for file in files
                    ]
                }
            )  # fmt: skip
        elif found := re.fullmatch(r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", path):
            objects = [
                {**each, "actions": {"upload": {"href": f"http://{self.headers['host']}/objects/{each['oid']}"}}}
                for each in json.loads(content)["objects"]
            ]
            self.answer({"transfer": "basic", "objects": objects})
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/main", path):
            if not self._may_write(found[1]):
                return
            files: dict[str, bytes] = {}
            for line in map(json.loads, content.splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    files[value["path"]] = self.server.objects[value["oid"]]
            commit = hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()
            self.server.commits[found[1]].append((commit, files))
            self.answer({"success": True, "commitOid": commit, "commitUrl": f"http://{self.headers['host']}/{found[1]}/commit/{commit}"})  # fmt: skip
        else:
            self._refuse(404)

    def do_PUT(self) -> None:
        content = self.body()
        oid = self.path.rpartition("/")[2]
        if hashlib.sha256(content).hexdigest() != oid:
            self._refuse(400)
            return
        self.server.objects[oid] = content
        self.answer({})

    def do_GET(self) -> None:
        path = unquote(self.path)
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+?)(?:/revision/(.+))?", path):
            commit = self._commit(found[1], found[2] or "main")
            if commit:
                self.answer({"id": found[1], "sha": commit[0], "siblings": [{"rfilename": file} for file in commit[1]]})
        elif found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._file(found[1], found[2], found[3])
        else:
            self._refuse(404)

    do_HEAD = do_GET

    def _commit(self, repository: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        commits = self.server.commits.get(repository)
        if not commits:
            self._refuse(404, "RepoNotFound")
            return None
        found = [commit for commit in commits if commit[0] == revision] or (commits[-1:] if revision == "main" else [])
        if not found:
            self._refuse(404, "RevisionNotFound")
            return None
        return found[0]

    def _file(self, repository: str, revision: str, file: str) -> None:
        commit = self._commit(repository, revision)
        if commit is None:
            return
        if file not in commit[1]:
            self._refuse(404, "EntryNotFound")
            return
        content = commit[1][file]
        self.send_response(200)
        self.send_header("X-Repo-Commit", commit[0])
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)


def hub_server() -> HubServer:
    """An empty hub at a port of its own; start it with `serve_forever`."""
    server = HubServer(("127.0.0.1", 0), HubHandler)
    server.commits, server.private, server.objects = {}, {}, {}
    return server


def lead_there(patch: pytest.MonkeyPatch, address: str, home: Path, token: str | None) -> None:
    """Let huggingface_hub talk to an address, and keep what it fetches and knows in a folder of its own."""
    patch.setattr(constants, "ENDPOINT", address)
    template = f"{address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    patch.setattr(constants, "HF_HUB_CACHE", str(home))
    patch.setattr(constants, "HF_TOKEN_PATH", str(home / "token"))
    patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    patch.setattr(constants, "HF_HUB_OFFLINE", False)
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        patch.delenv(name, raising=False)
    if token:
        patch.setenv("HF_TOKEN", token)


def address_of(server: HubServer) -> str:
    host, port = server.server_address[:2]
    return f"http://{host!s}:{port}"
