"""The part of the Hugging Face Hub's HTTP interface that models need, on this machine.

Repositories have commits and branches; files are uploaded in commits, large ones by Git LFS. As
the real one, it hides private repositories from those without a token.
"""

import base64
import contextlib
import dataclasses
import hashlib
import json
import re
import urllib.parse
from collections.abc import Callable, Iterator
from typing import Any

import awkward_server
import pytest
from awkward_server import AwkwardServer

TOKEN = "hf_secret"
_RESOLVE = re.compile(r"/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<name>.+)")
_API = re.compile(r"/api/models/(?P<repo>[^/]+/[^/]+)(/(?P<verb>\w+)/(?P<revision>[^/]+))?")
_LFS = re.compile(r"/(?P<repo>[^/]+/[^/]+)\.git/info/lfs/objects/batch")


@dataclasses.dataclass
class Repository:
  """A repository of a model.

  Attributes:
    commits: the files of each commit.
    branches: the commit that each points to.
    private: shown only to those with the token.
    gated: files are refused to everybody.
  """

  commits: dict[str, dict[str, bytes]] = dataclasses.field(default_factory=dict)
  branches: dict[str, str] = dataclasses.field(default_factory=dict)
  private: bool = False
  gated: bool = False

  def commit(self, files: dict[str, bytes], branch: str = "main") -> str:
    """Adds a commit with these files; returns its hash."""
    content = json.dumps([[k, hashlib.sha1(v).hexdigest()] for k, v in sorted(files.items())])
    sha = hashlib.sha1(f"{len(self.commits)} {branch} {content}".encode()).hexdigest()
    self.commits[sha], self.branches[branch] = dict(files), sha
    return sha

  def find(self, revision: str) -> str | None:
    """Returns the commit of a branch or a commit; None if there is none."""
    revision = urllib.parse.unquote(revision)
    return revision if revision in self.commits else self.branches.get(revision)


@dataclasses.dataclass
class HubServer(AwkwardServer):
  """What is there; tests change the fields."""

  models: dict[str, Repository] = dataclasses.field(default_factory=dict)
  objects: dict[str, bytes] = dataclasses.field(default_factory=dict)
  """Of Git LFS, by their SHA-256."""
  broken: bool = False
  """Whether every answer is an error of the server."""

  def contents(self, repository: str, branch: str = "main") -> dict[str, bytes]:
    """Returns the files of a branch."""
    found = self.models[repository]
    return found.commits[found.branches[branch]]


@contextlib.contextmanager
def running(patch: pytest.MonkeyPatch, home: Any) -> Iterator[HubServer]:
  """Runs a Hub for huggingface_hub in this process, and in others that it starts.

  Args:
    patch: sets what huggingface_hub reads, until the test ends.
    home: a folder for its cache.
  """
  from huggingface_hub import constants, file_download

  patch.setattr("time.sleep", lambda seconds: None)  # between its attempts
  patch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
  patch.setattr(constants, "HF_TOKEN_PATH", str(home / "token"))
  patch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # a protocol and a server of its own
  patch.setenv("HF_HUB_DISABLE_XET", "1")
  patch.setenv("HF_HOME", str(home))
  patch.setenv("HF_TOKEN", TOKEN)
  for name in ("HF_HUB_CACHE", "HF_HUB_OFFLINE", "HF_TOKEN_PATH", "HUGGING_FACE_HUB_TOKEN"):
    patch.delenv(name, raising=False)
  with awkward_server.run(HubServer(), _Handler) as server:
    patch.setenv("HF_ENDPOINT", server.address)
    # As if huggingface_hub were imported now.
    patch.setattr(constants, "ENDPOINT", server.address)
    template = f"{server.address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    for module in (constants, file_download):
      patch.setattr(module, "HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
    yield server


class _Handler(awkward_server.Handler):
  served: HubServer

  def do_POST(self) -> None:
    """Answers what changes something."""
    self._respond(self._body())

  def do_PUT(self) -> None:
    """Takes an object of Git LFS."""
    data = self._body()
    self.served.objects[hashlib.sha256(data).hexdigest()] = data
    self.send_json({})

  def _answer(self, *, whole: bool) -> None:
    self._respond(b"")

  def _body(self) -> bytes:
    if self.headers.get("Transfer-Encoding") != "chunked":
      return self.rfile.read(int(self.headers.get("Content-Length", 0)))
    parts = []
    while size := int(self.rfile.readline(), 16):
      parts.append(self.rfile.read(size))
      self.rfile.readline()
    return b"".join(parts)

  def _respond(self, body: bytes) -> None:
    # Names of branches may have quoted slashes.
    path = self.path.partition("?")[0]
    self.served.asked.append((self.command, path, self.headers.get("Range", "")))
    if self.served.broken:
      self.send_json({"error": "out of order"}, 500)
    elif path == "/api/repos/create":
      self._create(json.loads(body))
    elif path == "/api/validate-yaml":
      self._validate(json.loads(body))
    elif match := _LFS.fullmatch(path):
      self._in(match["repo"], lambda repository: self._batch(json.loads(body)))
    elif match := _API.fullmatch(path):
      verb, revision = match["verb"] or "revision", match["revision"] or "main"
      self._in(match["repo"], lambda found: self._api(found, match["repo"], verb, revision, body))
    elif match := _RESOLVE.fullmatch(path):
      name = urllib.parse.unquote(match["name"])
      self._in(match["repo"], lambda found: self._resolve(found, match["revision"], name))
    else:
      self.send_json({"error": "Not Found"}, 404)

  def _may(self) -> bool:
    return self.headers.get("Authorization") == f"Bearer {TOKEN}"

  def _in(self, name: str, respond: Callable[[Repository], None]) -> None:
    found = self.served.models.get(name)
    if found is None or (found.private and not self._may()):
      status = 404 if self._may() else 401
      self.send_json({"error": "Repository not found"}, status, X_Error_Code="RepoNotFound")
    elif self.command == "POST" and not self._may():
      self.send_json({"error": "Invalid username or password."}, 401)
    else:
      respond(found)

  def _create(self, wanted: dict[str, Any]) -> None:
    owner, name = wanted.get("organization") or "me", wanted["name"]
    url = f"{self.served.address}/{owner}/{name}"
    if not self._may():
      self.send_json({"error": "Invalid username or password."}, 401)
    elif owner == "others":
      self.send_json({"error": "You have no rights in this namespace"}, 403)
    elif f"{owner}/{name}" in self.served.models:
      self.send_json({"error": "You already created this model repo", "url": url}, 409)
    else:
      private = bool(wanted.get("private")) or wanted.get("visibility") == "private"
      new = self.served.models[f"{owner}/{name}"] = Repository(private=private)
      new.commit({".gitattributes": b"*.safetensors filter=lfs\n"})
      self.send_json({"url": url})

  def _validate(self, content: dict[str, Any]) -> None:
    import yaml

    front = yaml.safe_load(content["content"].split("---")[1])
    errors = [] if front.get("license") else [{"message": "license is missing"}]
    self.send_json({"errors": errors, "warnings": []}, 400 if errors else 200)

  def _api(self, repository: Repository, name: str, verb: str, revision: str, body: bytes) -> None:
    if verb == "branch":
      if repository.find(revision):
        self.send_json({"error": "Reference already exists"}, 409)
      else:
        repository.branches[urllib.parse.unquote(revision)] = repository.branches["main"]
        self.send_json({})
      return
    sha = repository.find(revision)
    if sha is None:
      self.send_json({"error": "Invalid rev id"}, 404, X_Error_Code="RevisionNotFound")
      return
    files = repository.commits[sha]
    if verb == "revision":
      siblings = [{"rfilename": file} for file in files]
      self.send_json({"id": name, "sha": sha, "siblings": siblings, "private": repository.private})
    elif verb == "tree":
      rows = [{"type": "file", "path": k, "size": len(v), "oid": _oid(v)} for k, v in files.items()]
      self.send_json(rows)
    elif verb == "preupload":
      self._preupload(files, json.loads(body))
    elif verb == "commit":
      self._commit(repository, name, urllib.parse.unquote(revision), body)

  def _preupload(self, files: dict[str, bytes], wanted: dict[str, Any]) -> None:
    rows = []
    for file in wanted["files"]:
      large = file["path"].endswith((".safetensors", ".model"))
      row = {"path": file["path"], "uploadMode": "lfs" if large else "regular"}
      row["shouldIgnore"] = False
      if file["path"] in files:
        data = files[file["path"]]
        row["oid"] = hashlib.sha256(data).hexdigest() if large else _oid(data)
      rows.append(row)
    self.send_json({"files": rows})

  def _batch(self, wanted: dict[str, Any]) -> None:
    rows = []
    for item in wanted["objects"]:
      row = {"oid": item["oid"], "size": item["size"]}
      if item["oid"] not in self.served.objects:
        row["actions"] = {"upload": {"href": f"{self.served.address}/lfs/{item['oid']}"}}
      rows.append(row)
    self.send_json({"transfer": "basic", "objects": rows})

  def _commit(self, repository: Repository, name: str, branch: str, body: bytes) -> None:
    files = dict(self.served.contents(name, branch))
    for line in body.splitlines():
      row = json.loads(line)
      value = row["value"]
      if row["key"] == "file":
        files[value["path"]] = base64.b64decode(value["content"])
      elif row["key"] == "lfsFile":
        files[value["path"]] = self.served.objects[value["oid"]]
      elif row["key"] == "deletedFile":
        del files[value["path"]]
    sha = repository.commit(files, branch)
    self.send_json({"commitUrl": f"{self.served.address}/{name}/commit/{sha}", "commitOid": sha})

  def _resolve(self, repository: Repository, revision: str, name: str) -> None:
    sha = repository.find(revision)
    if sha is None:
      self.send_json({"error": "Invalid rev id"}, 404, X_Error_Code="RevisionNotFound")
    elif repository.gated:
      self.send_json({"error": "gated"}, 403, X_Error_Code="GatedRepo")
    elif name not in repository.commits[sha]:
      self.send_json({"error": "no such file"}, 404, X_Error_Code="EntryNotFound")
    else:
      data = repository.commits[sha][name]
      self.send_file(name, data, {"X-Repo-Commit": sha}, self.command == "GET")


def _oid(data: bytes) -> str:
  """Returns the name that Git gives to a file."""
  return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
