"""A web server on this machine that breaks off, lies about sizes, redirects and refuses to resume.

It also answers as the Hugging Face Hub does for data sets; hub_server.py does so for models.
"""

import contextlib
import dataclasses
import hashlib
import http.server
import json
import re
import threading
import urllib.parse
from collections.abc import Iterator
from typing import Any, TypeVar

_HUB_FILE = re.compile(r"/datasets/(?P<repository>[^/]+/[^/]+)/resolve/[^/]+/(?P<name>.+)")
_HUB_INFO = re.compile(r"/api/datasets/(?P<repository>[^/]+/[^/]+)/(?P<verb>revision|tree)/[^/]+")
COMMIT = "0" * 40


@dataclasses.dataclass
class AwkwardServer:
  """What is served, and how badly; tests change the fields."""

  files: dict[str, bytes] = dataclasses.field(default_factory=dict)
  """By path, such as `/a/photos.zip`."""
  hub: dict[str, dict[str, bytes]] = dataclasses.field(default_factory=dict)
  """Files of data sets on the Hub, by repository and name."""
  redirects: dict[str, str] = dataclasses.field(default_factory=dict)
  """Path -> path."""
  break_after: int | None = None
  """Bytes of a file after which the connection is closed."""
  ranges: bool = True
  """Whether parts of files are served; otherwise a whole file is."""
  told: dict[str, int] = dataclasses.field(default_factory=dict)
  """Path -> size in the headers instead of the true one."""
  versions: bool = True
  """Whether an ETag is sent."""
  asked: list[tuple[str, str, str]] = dataclasses.field(default_factory=list)
  """Method, path and Range of each request."""
  address: str = ""

  def requests_for(self, path: str) -> list[str]:
    """Returns the ranges of the GETs for a path."""
    return [ranges for method, asked, ranges in self.asked if (method, asked) == ("GET", path)]


Server = TypeVar("Server", bound=AwkwardServer)


@contextlib.contextmanager
def running() -> Iterator[AwkwardServer]:
  """Runs a server in threads of this process."""
  with run(AwkwardServer(), Handler) as server:
    yield server


@contextlib.contextmanager
def run(server: Server, handler: type["Handler"]) -> Iterator[Server]:
  """Runs a server with a class that answers its requests, in threads of this process."""
  bound = type("Bound", (handler,), {"served": server})
  with http.server.ThreadingHTTPServer(("127.0.0.1", 0), bound) as listening:
    server.address = f"http://127.0.0.1:{listening.server_address[1]}"
    thread = threading.Thread(target=listening.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
      yield server
    finally:
      listening.shutdown()
      thread.join()


class Handler(http.server.BaseHTTPRequestHandler):
  """Answers the requests to a server."""

  served: Any

  def log_message(self, format: str, *args) -> None:
    """Prints nothing."""

  def do_HEAD(self) -> None:
    """Answers without the file."""
    self._answer(whole=False)

  def do_GET(self) -> None:
    """Answers with a file."""
    self._answer(whole=True)

  def _answer(self, *, whole: bool) -> None:
    path = urllib.parse.unquote(self.path.partition("?")[0])
    self.served.asked.append((self.command, path, self.headers.get("Range", "")))
    if path in self.served.redirects:
      self.send_response(302)
      self.send_header("Location", self.served.redirects[path])
      self.send_header("Content-Length", "0")
      self.end_headers()
      return
    if match := _HUB_INFO.fullmatch(path):
      self._describe(match["repository"], match["verb"])
      return
    data, more = self._find(path)
    if data is None:
      self.send_error(404)
      return
    self.send_file(path, data, more, whole)

  def _find(self, path: str) -> tuple[bytes | None, dict[str, str]]:
    if match := _HUB_FILE.fullmatch(path):
      data = self.served.hub.get(match["repository"], {}).get(match["name"])
      return data, {"X-Repo-Commit": COMMIT}
    return self.served.files.get(path), {}

  def _describe(self, repository: str, verb: str) -> None:
    files = self.served.hub.get(repository)
    if files is None:
      self.send_error(404)
      return
    if verb == "tree":  # of huggingface_hub 1.0 and later
      oids = {name: hashlib.sha1(data).hexdigest() for name, data in files.items()}
      self.send_json(
        [
          {"type": "file", "path": name, "size": len(data), "oid": oids[name]}
          for name, data in files.items()
        ]
      )
      return
    siblings = [{"rfilename": name, "size": len(data)} for name, data in files.items()]
    self.send_json({"id": repository, "sha": COMMIT, "siblings": siblings})

  def send_json(self, content: Any, status: int = 200, **headers: str) -> None:
    """Answers with JSON; underscores in names of headers stand for dashes."""
    answer = json.dumps(content).encode()
    self.send_response(status)
    self.send_header("Content-Type", "application/json")
    self.send_header("Content-Length", str(len(answer)))
    for name, value in headers.items():
      self.send_header(name.replace("_", "-"), value)
    self.end_headers()
    if self.command != "HEAD":
      self.wfile.write(answer)

  def send_file(self, path: str, data: bytes, more: dict[str, str], whole: bool) -> None:
    """Answers with a file, or the part that is asked for, and with more headers."""
    told = self.served.told.get(path, len(data))
    asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
    start, end = 0, told
    if asked and self.served.ranges:
      start, end = int(asked[1]), min(int(asked[2] or told) + 1, told) if asked[2] else told
      if start >= told:
        self.send_error(416)
        return
      self.send_response(206)
      self.send_header("Content-Range", f"bytes {start}-{end - 1}/{told}")
    else:
      self.send_response(200)
    self.send_header("Content-Length", str(end - start))
    if self.served.versions:
      self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
    for name, value in more.items():
      self.send_header(name, value)
    self.end_headers()
    if not whole:
      return
    part = data[start:end]
    if self.served.break_after is not None:
      part = part[: self.served.break_after]
    with contextlib.suppress(OSError):  # the client has seen enough
      self.wfile.write(part)
    self.close_connection = True
