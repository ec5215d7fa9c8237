"""Answers requests: from the bytes of images and expressions to encoded masks."""

import asyncio
import base64
import binascii
import io
import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool
from PIL import Image

from input_pipeline import preprocess
from input_pipeline.common.errors import InputError, describe_shortage
from input_pipeline.masks import segmentation
from input_pipeline.preprocess.images import encode_png
from input_pipeline.proposers.registry import UnknownImage
from mail_jax.predict import batches
from mail_jax.predict.batches import BatchSegmenter, MaskPrediction, PreparedImage, RawPrediction
from mail_jax.predict.image_instances import InstancesLike
from mail_jax.serve.limits import Limits
from mail_jax.serve.worker import Worker

_DATA_URL = re.compile(r"data:[\w.+/-]*(;[\w=.+-]*)*,")


class Rejected(Exception):
  """A request that cannot be answered.

  Attributes:
    status: of the response.
    detail: one line.
  """

  def __init__(self, status: int, detail: str):
    """Stores what the response says."""
    super().__init__(detail)
    self.status, self.detail = status, detail


class Item(NamedTuple):
  """An image of a request.

  Attributes:
    image: the file, as bytes or in base64.
    expressions: at least one.
    instances: of `schemas.Instance`; None if the request has none.
    place: of its fields in the request, such as `images[0].`, for messages.
  """

  image: bytes | str
  expressions: Sequence[str]
  instances: Sequence[Any] | None
  place: str = ""


class Answer(NamedTuple):
  """The predictions for an image.

  Attributes:
    height, width: of the image, in pixels.
    expressions: as they were given.
    predictions: in their order, with the mask encoded.
  """

  height: int
  width: int
  expressions: Sequence[str]
  predictions: list[tuple[MaskPrediction, bytes | dict[str, Any]]]


class Service:
  """Decodes images and encodes masks in a few threads, around the one that runs the model."""

  def __init__(
    self,
    segmenter: BatchSegmenter,
    max_instances: int,
    limits: Limits,
    worker: Worker,
    instances: InstancesLike,
  ):
    """Stores what requests need.

    Args:
      segmenter: the model.
      max_instances: that the model selects from.
      limits: of a request.
      worker: runs the model.
      instances: of requests without any.
    """
    self._instances = instances
    self._segmenter, self._max_instances = segmenter, max_instances
    self._limits, self._worker = limits, worker
    # Few, because a decoded image takes memory.
    self._pool = ThreadPoolExecutor(min(4, os.cpu_count() or 1), "image")

  def close(self) -> None:
    """Ends the threads."""
    self._pool.shutdown()

  async def answer(self, items: Sequence[Item], png: bool) -> list[Answer]:
    """Returns the predictions for images.

    Args:
      items: the images and expressions.
      png: whether masks are encoded as PNG, and not as run lengths.

    Raises:
      Rejected: a field cannot be used; nothing has run then.
    """
    loop = asyncio.get_running_loop()
    for item in items:
      _check_expressions(item)
    prepared = [await loop.run_in_executor(self._pool, self._prepare, item) for item in items]
    pairs = [
      (image, expression)
      for image, item in zip(prepared, items, strict=True)
      for expression in item.expressions
    ]
    try:
      raw = await asyncio.gather(
        *(asyncio.wrap_future(self._worker.submit(image, text)) for image, text in pairs)
      )
    except Exception as error:
      if (shortage := describe_shortage(error)) is None:
        raise
      raise Rejected(503, f"{shortage}; try again later") from error
    results = iter(raw)
    return [
      await loop.run_in_executor(
        self._pool, _finish, image, item, [next(results) for _ in item.expressions], png
      )
      for image, item in zip(prepared, items, strict=True)
    ]

  def _prepare(self, item: Item) -> PreparedImage:
    field = f"{item.place}image"
    data = item.image if isinstance(item.image, bytes) else _decode_base64(item.image, field)
    try:
      height, width = self._check_image(data, field)
      masks = self._decode_instances(item, height, width)
      return self._segmenter.prepare(data, self._instances if masks is None else masks)
    except UnknownImage as error:
      raise Rejected(
        422,
        f"{item.place}instances: missing, and the model was trained with those of a file, which "
        "has none of other images; send them, or [] for none, which is less accurate",
      ) from error
    except InputError as error:
      reason = str(error).removeprefix("image from bytes ")
      raise Rejected(422, f"{field}: {reason}") from error
    except Exception as error:
      if (shortage := describe_shortage(error)) is None:
        raise
      raise Rejected(503, f"{field}: {shortage}; try a smaller image") from error

  def _check_image(self, data: bytes, field: str) -> tuple[int, int]:
    """Returns height and width of the upright image, by its header."""
    pixels = int(self._limits.megapixels * 1e6)
    try:
      with preprocess.open_header(
        io.BytesIO(data), pixels, formats=preprocess.WEB_FORMATS
      ) as image:
        turned = preprocess.read_orientation(image) >= 5
        return (image.width, image.height) if turned else (image.height, image.width)
    except preprocess.TooManyPixels as error:
      raise Rejected(413, f"{field}: it {error}") from error
    except Exception as error:  # Pillow raises all kinds of exceptions for damaged files.
      formats = ", ".join(preprocess.WEB_FORMATS)
      raise Rejected(422, f"{field}: not an intact image of {formats}") from error

  def _decode_instances(
    self, item: Item, height: int, width: int
  ) -> Bool[np.ndarray, "k h w"] | None:
    """Returns the masks that the model selects from, best score first; None if not given."""
    if item.instances is None:
      return None
    checked = []
    for k, instance in enumerate(item.instances):
      rle = {"size": list(instance.rle.size), "counts": instance.rle.counts}
      try:
        checked.append(segmentation.read_segmentation(rle, height, width))
      except ValueError as error:
        line = " ".join(str(error).split())
        raise Rejected(422, f"{item.place}instances[{k}].rle: {line}") from error
    scores = np.array([instance.score for instance in item.instances])
    best = np.argsort(-scores, kind="stable")[: self._max_instances]
    masks = [checked[k].mask() for k in best.tolist()]
    return np.stack(masks) if masks else np.zeros((0, height, width), bool)


def _check_expressions(item: Item) -> None:
  for k, expression in enumerate(item.expressions):
    try:
      preprocess.normalise_text(expression)
    except InputError as error:
      raise Rejected(422, f"{item.place}expressions[{k}]: it has no readable text") from error


def _decode_base64(text: str, field: str) -> bytes:
  """Decodes base64, perhaps in lines, or a data URL."""
  if match := _DATA_URL.match(text):
    text = text[match.end() :]
  try:
    return base64.b64decode("".join(text.split()), validate=True)
  except (binascii.Error, ValueError) as error:
    raise Rejected(422, f"{field}: not base64") from error


def _finish(image: PreparedImage, item: Item, raw: list[RawPrediction], png: bool) -> Answer:
  predictions = []
  for one in raw:
    prediction = batches.finish(image, one)
    encoded = (
      encode_png(Image.fromarray(prediction.mask.astype(np.uint8) * 255))
      if png
      else segmentation.encode_segmentation(prediction.mask)
    )
    predictions.append((prediction, encoded))
  return Answer(image.height, image.width, item.expressions, predictions)
