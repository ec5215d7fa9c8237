"""Requests to `mail_jax.serve`, in this process or in one of its own, and what they must return."""

import base64
import contextlib
import io
import os
import pathlib
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from mail_jax.predict.auto_masks import AUTO
from mail_jax.predict.inputs import draw_scene
from mail_jax.predict.segmenter import Segmentation

CHECKOUT = pathlib.Path(__file__).parents[2]
# Two implementations may round a pixel differently whose probability is this close to 0.5.
NEAR = 1e-4
_START = 180  # seconds
COCO = {
  "images": [{"id": 1, "file_name": "other.jpg", "height": 4, "width": 4}],
  "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 2, 2], "area": 4,
                   "iscrowd": 0, "segmentation": [[0, 0, 2, 0, 2, 2, 0, 2]]}],
  "categories": [{"id": 1, "name": "thing"}],
}  # fmt: skip
"""Annotations of one image."""


def encode_image(pixels: np.ndarray, form: str = "PNG") -> bytes:
  buffer = io.BytesIO()
  Image.fromarray(pixels).save(buffer, form)
  return buffer.getvalue()


def encode_masks(masks: np.ndarray) -> list[dict[str, Any]]:
  """Instances of a request, the best first."""
  instances = []
  for k, mask in enumerate(masks):
    rle = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    rle = {"size": list(mask.shape), "counts": rle["counts"].decode()}
    instances.append({"rle": rle, "score": 1 - k / 100})
  return instances


def make_item(
  number: int, size: tuple[int, int] | None = None, masks: str = "given"
) -> tuple[dict[str, Any], np.ndarray, Any]:
  """An item of a request about a drawn scene, perhaps resized, with its pixels and masks.

  The masks are `given`, `none`, or `auto`: left to the server.
  """
  scene = draw_scene(number)
  pixels, instances = scene.image, scene.instances
  if size is not None:
    pixels = np.array(Image.fromarray(pixels).resize(size[::-1]))
    instances = np.stack(
      [np.array(Image.fromarray(mask).resize(size[::-1], 0)) for mask in instances]
    )
  item = {
    "image": base64.b64encode(encode_image(pixels)).decode(),
    "expressions": [scene.expression, "the large star"],
  }
  if masks == "auto":
    return item, pixels, AUTO
  instances = instances if masks == "given" else instances[:0]
  return item | {"instances": encode_masks(instances)}, pixels, instances


def decode(mask: Any) -> np.ndarray:
  """The mask of a response: run lengths, a PNG in base64, or a PNG."""
  if isinstance(mask, dict):
    return coco_mask.decode(mask | {"counts": mask["counts"].encode()}).astype(bool)
  data = base64.b64decode(mask) if isinstance(mask, str) else mask
  with Image.open(io.BytesIO(data)) as image:
    assert image.mode == "L"
    return np.asarray(image) == 255


def find_difference(prediction: dict[str, Any], expected: Segmentation) -> str:
  """What differs between a prediction of a response and a `Segmenter`'s; empty if nothing does."""
  mask = decode(prediction["mask"])
  if mask.shape != expected.mask.shape:
    return f"size {mask.shape}"
  wrong = (mask != expected.mask) & (np.abs(expected.probability - 0.5) > NEAR)
  if wrong.any():
    return f"{wrong.sum()} pixels"
  if prediction["area"] != mask.sum() or prediction["expression"] != expected.expression:
    return "area or expression"
  inside = expected.probability[expected.mask]
  close = [
    (prediction["confidence"], inside.mean() if len(inside) else 0.0),
    (prediction["instance_probability"], expected.instance_probability),
  ]
  if not all(np.shape(a) == np.shape(b) and np.allclose(a, b, atol=1e-4) for a, b in close):
    return "probabilities"
  same = ("selected", "was_cut", "no_target_probability")
  return next((name for name in same if prediction[name] != getattr(expected, name)), "")


class Server:
  """A running server."""

  def __init__(self, port: int, process: subprocess.Popen):
    self.port, self.process = port, process
    self.url = f"http://127.0.0.1:{port}"

  def is_ready(self) -> bool:
    try:
      return urllib.request.urlopen(f"{self.url}/health", timeout=10).status == 200
    except OSError:
      return False


@contextlib.contextmanager
def running(log: pathlib.Path, *arguments: str) -> Iterator[Server]:
  """Starts the server of the demo's model on a free port, and ends it by SIGTERM.

  What it prints is in a file.
  """
  command = [sys.executable, "-m", "mail_jax.serve", "--demo", "--port", "0", *arguments]
  with open(log, "w") as output:
    process = subprocess.Popen(
      command, cwd=CHECKOUT, env=dict(os.environ), stdout=output, stderr=subprocess.STDOUT
    )
  try:
    end = time.monotonic() + _START
    while not (match := re.search(r"at http://127\.0\.0\.1:(\d+)", log.read_text())):
      assert process.poll() is None and time.monotonic() < end, log.read_text()
      time.sleep(0.1)
    server = Server(int(match[1]), process)
    while not server.is_ready():
      assert process.poll() is None and time.monotonic() < end, log.read_text()
      time.sleep(0.1)
    yield server
  finally:
    process.terminate()
    process.wait(60)
