"""Runs `mail_jax.app` in a process, and sends requests to it."""

import contextlib
import io
import os
import pathlib
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator

import numpy as np
import psutil
from PIL import Image
from pycocotools import mask as coco_mask

CHECKOUT = pathlib.Path(__file__).parents[2]
_START = 180  # seconds


class Server:
  """A running page."""

  def __init__(self, port: int, process: subprocess.Popen, printed: str = ""):
    self.url = f"http://127.0.0.1:{port}"
    self.process = process
    self.printed = printed

  def ask(self, path: str, data: bytes | None = None, **headers: str) -> tuple[int, bytes]:
    """Returns status and body of any response."""
    request = urllib.request.Request(self.url + path, data=data, headers=headers)
    try:
      with urllib.request.urlopen(request, timeout=60) as answer:
        return answer.status, answer.read()
    except urllib.error.HTTPError as error:
      return error.code, error.read()

  def upload(self, path: pathlib.Path) -> bytes:
    """Uploads a file; the answer is a JSON list with its path on the server."""
    head = f'--x\r\nContent-Disposition: form-data; name="files"; filename="{path.name}"\r\n\r\n'
    body = head.encode() + path.read_bytes() + b"\r\n--x--\r\n"
    kind = {"Content-Type": "multipart/form-data; boundary=x"}
    status, answer = self.ask("/gradio_api/upload", body, **kind)
    assert status == 200, answer
    return answer

  def memory(self) -> float:
    """Resident memory of the server and what it started, in MB."""
    process = psutil.Process(self.process.pid)
    return sum(p.memory_info().rss for p in (process, *process.children(True))) / 1e6


@contextlib.contextmanager
def running(
  checkpoint: pathlib.Path, temporary: pathlib.Path, *more: str, **environment: str
) -> Iterator[Server]:
  """Starts the page on a free port, its temporary files in a folder, and ends it by SIGTERM."""
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
  log = temporary / "server.log"
  command = [sys.executable, "-m", "mail_jax.app", "--checkpoint", str(checkpoint)]
  with open(log, "w") as output:
    process = subprocess.Popen(
      [*command, "--port", str(port), *more],
      cwd=CHECKOUT,
      env={**os.environ, "TMPDIR": str(temporary), **environment},
      stdout=output,
      stderr=subprocess.STDOUT,
    )
  try:
    end = time.monotonic() + _START
    while "The app is at" not in log.read_text():
      assert process.poll() is None and time.monotonic() < end, log.read_text()
      time.sleep(0.1)
    yield Server(port, process, log.read_text())
  finally:
    process.terminate()
    process.wait(30)


def put_first(marked: np.ndarray, proposed: np.ndarray) -> np.ndarray:
  """Marked instances and then the proposed ones that repeat none of them, by COCO's own IoU."""
  runs = [
    [coco_mask.encode(np.asfortranarray(mask.astype(np.uint8))) for mask in masks]
    for masks in (proposed, marked)
  ]
  repeats = np.array(coco_mask.iou(*runs, [0] * len(marked))).max(1) >= 0.9
  return np.concatenate([marked, proposed[~repeats]])


def png(pixels: np.ndarray) -> bytes:
  buffer = io.BytesIO()
  Image.fromarray(pixels).save(buffer, "PNG")
  return buffer.getvalue()


def bad_inputs(
  folder: pathlib.Path, photo: pathlib.Path
) -> list[tuple[pathlib.Path | None, str, str]]:
  """Photo, text and a part of the message that each must give."""
  text, bomb, cut = (folder / name for name in ("text.jpg", "large.png", "cut.jpg"))
  text.write_text("this is no picture\n" * 20)
  Image.new("1", (8000, 5000)).save(bomb)
  whole = io.BytesIO()
  Image.open(photo).convert("RGB").resize((300, 300)).save(whole, "JPEG")
  cut.write_bytes(whole.getvalue()[: len(whole.getvalue()) // 2])
  return [
    (text, "the star", "text.jpg cannot be opened as an image"),
    (bomb, "the star", "large.png has 40 megapixels; the limit is 20"),
    (cut, "the star", "cut.jpg"),
    (None, "the star", "No photo yet"),
    (photo, "", "No expression yet"),
    (photo, " \n\t\n", "No expression yet"),
    (photo, "star " * 500, "This expression has 500 words"),
    (photo, "a" * 1001, "1001 characters"),
    (photo, "the star\n" * 9, "9 lines; the limit is 8"),
  ]
