r"""Loads `mail_jax.serve` with parallel clients, and compares every answer with `Segmenter`'s.

  python -m benchmarks.serve_load --clients 50 --minutes 5 --json load.json

Starts the server of the demo's model in a process of its own. Clients send images of several sizes,
with and without instance masks, as JSON, batches and uploads, and get run lengths and PNGs. A mask
must equal `Segmenter`'s, but for pixels whose probability is within 1e-4 of 0.5. Once per second a
request is too large (413), and the last server has a short queue (429). Memory is sampled every
second. It needs FastAPI, pycocotools and psutil: `make app`.
"""

import argparse
import base64
import dataclasses
import http.client
import io
import itertools
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import psutil
from PIL import Image
from pycocotools import mask as coco_mask

from input_pipeline.common.errors import run_command
from input_pipeline.masks.segmentation import encode_segmentation
from mail_jax.predict.auto_masks import AUTO
from mail_jax.predict.inputs import draw_scene
from mail_jax.predict.segmenter import Segmentation, Segmenter

_NEAR = 1e-4
_SIZES = ((384, 384), (240, 320), (480, 640), (123, 457), (720, 540), (96, 96))
_SCENES = 12
_MEGABYTES = 4


@dataclasses.dataclass(frozen=True)
class Request:
  """A request, and what its answer must be.

  Attributes:
    path, kind, accept: address and headers.
    body: as it is sent.
    expected: predictions in the order of the answer.
  """

  path: str
  kind: str
  accept: str
  body: bytes
  expected: Sequence[Segmentation]


def make_requests() -> list[Request]:
  """Returns requests about drawn scenes, with the answers of `Segmenter`."""
  segmenter = Segmenter.load("demo")
  made, requests = [], []
  for number, (height, width) in zip(range(_SCENES), itertools.cycle(_SIZES), strict=False):
    scene, size = draw_scene(number), (width, height)
    pixels = np.array(Image.fromarray(scene.image).resize(size))
    masks = [
      Image.fromarray(mask).resize(size, Image.Resampling.NEAREST) for mask in scene.instances
    ]
    given = np.stack([np.array(mask) for mask in masks]) if number % 3 else AUTO
    texts = [scene.expression, "the large star"]
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    item: dict[str, Any] = {"expressions": texts}
    if not isinstance(given, str):
      item["instances"] = [
        {"rle": encode_segmentation(mask), "score": 1 - k / 100} for k, mask in enumerate(given)
      ]
    expected = segmenter(pixels, texts, given)
    made.append((item | {"image": base64.b64encode(buffer.getvalue()).decode()}, expected))
    kind, body = _upload(buffer.getvalue(), item)
    requests.append(Request("/segment/upload", kind, "*/*", body, expected))
  for item, expected in made:
    requests.append(_json("/segment", item, expected))
    one = item | {"expressions": item["expressions"][:1]}
    requests.append(_json("/segment", one, expected[:1], "image/png"))
  for first in range(0, len(made) - 2, 2):
    few = made[first : first + 3]
    body = {"images": [item for item, _ in few], "mask_format": "png"}
    requests.append(_json("/segment/batch", body, [one for _, several in few for one in several]))
  return requests


def _json(path: str, body: Any, expected: Sequence[Segmentation], accept: str = "*/*") -> Request:
  return Request(path, "application/json", accept, json.dumps(body).encode(), expected)


def _upload(image: bytes, item: dict[str, Any]) -> tuple[str, bytes]:
  fields = [("expressions", text.encode()) for text in item["expressions"]]
  if "instances" in item:
    fields.append(("instances", json.dumps(item["instances"]).encode()))
  head = b'--x\r\nContent-Disposition: form-data; name="%s"%s\r\n\r\n'
  parts = [head % (name.encode(), b"") + value for name, value in fields]
  parts.append(head % (b"image", b'; filename="photo.png"') + image)
  return "multipart/form-data; boundary=x", b"\r\n".join([*parts, b"--x--\r\n"])


def is_right(request: Request, kind: str, answer: bytes) -> bool:
  """Returns whether an answer has the expected masks, instances and probabilities."""
  if kind == "image/png":
    return _same_mask(_from_png(answer), request.expected[0])
  result = json.loads(answer)
  predictions = [one for image in result.get("images", [result]) for one in image["predictions"]]
  if len(predictions) != len(request.expected):
    return False
  for one, expected in zip(predictions, request.expected, strict=True):
    mask = one["mask"]
    if isinstance(mask, str):
      mask = _from_png(base64.b64decode(mask))
    else:
      mask = coco_mask.decode(mask | {"counts": mask["counts"].encode()}).astype(bool)
    if not _same_mask(mask, expected) or one["selected"] != expected.selected:
      return False
    if not np.allclose(one["instance_probability"], expected.instance_probability, atol=1e-4):
      return False
  return True


def _from_png(data: bytes) -> np.ndarray:
  with Image.open(io.BytesIO(data)) as image:
    return np.asarray(image) == 255


def _same_mask(mask: np.ndarray, expected: Segmentation) -> bool:
  if mask.shape != expected.mask.shape:
    return False
  return not ((mask != expected.mask) & (abs(expected.probability - 0.5) > _NEAR)).any()


@dataclasses.dataclass
class Load:
  """Counts what clients get.

  Attributes:
    statuses: number of answers, by status.
    wrong: answers with status 200 that are not the expected ones.
    seconds: until each of them.
    errors: of connections.
  """

  statuses: dict[int, int] = dataclasses.field(default_factory=dict)
  wrong: int = 0
  seconds: list[float] = dataclasses.field(default_factory=list)
  errors: list[str] = dataclasses.field(default_factory=list)
  lock: threading.Lock = dataclasses.field(default_factory=threading.Lock)

  def client(self, port: int, requests: Sequence[Request], first: int, end: float) -> None:
    """Sends requests over one connection, one after the other."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    for request in itertools.islice(itertools.cycle(requests), first, None):
      if time.monotonic() > end:
        break
      began = time.monotonic()
      try:
        headers = {"Content-Type": request.kind, "Accept": request.accept}
        connection.request("POST", request.path, request.body, headers)
        response = connection.getresponse()
        answer = response.read()
      except OSError as error:
        with self.lock:
          self.errors.append(repr(error))
        connection.close()
        continue
      took = time.monotonic() - began
      kind, status = response.headers.get("content-type", ""), response.status
      right = status != 200 or is_right(request, kind, answer)
      if status == 429 and not response.headers.get("retry-after"):
        right = False
      with self.lock:
        self.statuses[status] = self.statuses.get(status, 0) + 1
        self.wrong += not right
        if status == 200:
          self.seconds.append(took)
    connection.close()


def send_too_large(port: int, end: float) -> dict[str, int]:
  """Sends a request that is too large every second; returns the number of answers by status."""
  statuses: dict[str, int] = {}
  while time.monotonic() < end:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    connection.putrequest("POST", "/segment")
    connection.putheader("Content-Type", "application/json")
    connection.putheader("Content-Length", str(_MEGABYTES * 2_000_000))
    connection.endheaders()
    status = str(connection.getresponse().status)
    statuses[status] = statuses.get(status, 0) + 1
    connection.close()
    time.sleep(1)
  return statuses


@contextmanager
def serving(folder: pathlib.Path, *arguments: str) -> Iterator[tuple[int, psutil.Process]]:
  """Starts the server of the demo's model on a free port, and ends it by SIGTERM."""
  log = folder / "server.log"
  command = [sys.executable, "-m", "mail_jax.serve", "--demo", "--port", "0", *arguments]
  with open(log, "w") as output:
    process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
  try:
    while not (match := re.search(r"at http://127\.0\.0\.1:(\d+)", log.read_text())):
      if process.poll() is not None:
        raise SystemExit(log.read_text())
      time.sleep(0.1)
    port = int(match[1])
    while not _is_ready(port):
      time.sleep(0.2)
    yield port, psutil.Process(process.pid)
  finally:
    process.terminate()
    print(f"server: exit code {process.wait(120)}")


def _is_ready(port: int) -> bool:
  connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
  try:
    connection.request("GET", "/health")
    return connection.getresponse().status == 200
  except OSError:
    return False


def _run(
  port: int, requests: Sequence[Request], clients: int, end: float, each: Callable[[], object]
) -> Load:
  load = Load()
  threads = [
    threading.Thread(target=load.client, args=(port, requests, k * 7 % len(requests), end))
    for k in range(clients)
  ]
  for thread in threads:
    thread.start()
  while time.monotonic() < end:
    each()
    time.sleep(1)
  for thread in threads:
    thread.join()
  return load


def measure(clients: int, minutes: float) -> dict[str, Any]:
  """Runs the load and returns its numbers."""
  requests = make_requests()
  memory: list[float] = []
  with tempfile.TemporaryDirectory() as home:
    folder = pathlib.Path(home)
    body = ("--max_body_mb", str(_MEGABYTES), "--log_level", "warning")
    with serving(folder, *body) as (port, process):
      end = time.monotonic() + 60 * minutes
      too_large: dict[str, int] = {}
      other = threading.Thread(target=lambda: too_large.update(send_too_large(port, end)))
      other.start()
      load = _run(
        port, requests, clients, end, lambda: memory.append(process.memory_info().rss / 1e6)
      )
      other.join()
    with serving(folder, *body, "--max_queue", "4") as (port, _):
      short = _run(port, requests, clients, time.monotonic() + 10, lambda: None)
  seconds = np.array(load.seconds)
  tenth = max(1, len(memory) // 10)
  return {
    "cores": os.cpu_count(),
    "clients": clients,
    "minutes": minutes,
    "statuses": load.statuses,
    "wrong": load.wrong + short.wrong,
    "errors": load.errors[:5],
    "requests_per_second": len(seconds) / minutes / 60,
    "milliseconds": {f"p{q}": round(1e3 * float(np.percentile(seconds, q))) for q in (50, 95, 99)},
    "too_large": too_large,
    "short_queue": short.statuses,
    "memory_mb": {
      "first tenth": round(float(np.median(memory[:tenth]))),
      "middle": round(float(np.median(memory[len(memory) // 2 :][:tenth]))),
      "last tenth": round(float(np.median(memory[-tenth:]))),
      "most": round(max(memory)),
    },
  }


def main(argv: Sequence[str] | None = None) -> None:
  """Runs the command."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--clients", type=int, default=50)
  parser.add_argument("--minutes", type=float, default=5.0)
  parser.add_argument("--json", metavar="FILE", help="where the numbers are written")
  args = parser.parse_args(argv)
  result = measure(args.clients, args.minutes)
  text = json.dumps(result, indent=1)
  print(text)
  if args.json:
    pathlib.Path(args.json).write_text(text + "\n")
  allowed = set(result["statuses"]) == {200} and set(result["too_large"]) == {"413"}
  if result["wrong"] or result["errors"] or not allowed or not result["short_queue"].get(429):
    sys.exit(1)


if __name__ == "__main__":
  run_command(main)
