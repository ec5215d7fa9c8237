"""What OpenAPI cannot say, for Schemathesis: which strings are images, and which masks fit them.

Only requests that are meant to be valid are changed.
"""

import base64
import io

import schemathesis
from PIL import Image

_WIDTH, _HEIGHT = 30, 20


def _photo() -> bytes:
  buffer = io.BytesIO()
  Image.new("RGB", (_WIDTH, _HEIGHT), "orange").save(buffer, "PNG")
  return buffer.getvalue()


PHOTO = _photo()


def _is_valid(case) -> bool:
  return case.meta is None or case.meta.generation.mode.is_positive


def _complete(item) -> None:
  """Makes an item of a request one that has an image, and masks of its size."""
  if not isinstance(item, dict) or "image" not in item:
    return
  item["image"] = base64.b64encode(PHOTO).decode()
  item["expressions"] = [f"the star {text!r}" for text in item["expressions"]]
  for instance in item.get("instances") or ():
    instance["rle"] = {"size": [_HEIGHT, _WIDTH], "counts": [100, 50, _HEIGHT * _WIDTH - 150]}


@schemathesis.hook
def before_call(context, case, kwargs) -> None:
  del context, kwargs
  body = case.body
  if not _is_valid(case) or not isinstance(body, dict):
    return
  if case.operation.path == "/segment/upload":
    body["image"] = PHOTO
    body["expressions"] = ["the star"]
    body.pop("instances", None)
    return
  for item in body.get("images", [body]):
    _complete(item)
