"""Masks of any segmenter that somebody exported as ONNX, run by onnxruntime.

A model has one input, a picture, and gives class maps, class logits, or instance masks with scores:
`docs/guides/proposals.md` has the table.
"""

import os
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
from jaxtyping import Bool, Float32, Int, Shaped, UInt8
from PIL import Image
from scipy import ndimage

from input_pipeline import preprocess, records
from input_pipeline.common.errors import InputError

try:
  import onnxruntime  # pyright: ignore[reportMissingImports]
except ImportError as error:
  raise InputError('--instances onnx needs onnxruntime: pip install "mail_jax[onnx]"') from error

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
MIN_AREA = 0.0001
"""A share of the image; smaller components are dropped: of a noisy map of classes there are thousands."""
MAX_COMPONENTS = 256
"""The largest components of an image that are kept, four times what a record can hold."""
MASK_THRESHOLD = 0.5


class OnnxInstances:
  """What a model finds: its instances, or the connected parts of its classes.

  Images go through it one by one, so that nothing depends on how many there are.
  """

  def __init__(self, argument: str):
    """Loads the model, onto a GPU where this onnxruntime has one.

    Args:
      argument: path of the model.

    Raises:
      InputError: no such file, no model, or one whose inputs and outputs are of another kind.
    """
    if not argument:
      raise InputError("--instances onnx: which file? Write --instances onnx:model.onnx")
    if not os.path.isfile(argument):
      raise InputError(f"--instances onnx:{argument}: no such file")
    self._path = argument
    available = onnxruntime.get_available_providers()
    wanted = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    try:
      self._session: Any = onnxruntime.InferenceSession(
        argument, providers=[name for name in wanted if name in available]
      )
    except Exception as error:  # onnxruntime's errors have no base of their own.
      raise InputError(
        f"--instances onnx:{argument}: no model that onnxruntime can load ({error})"
      ) from error
    self._outputs = {output.name.lower(): output.name for output in self._session.get_outputs()}
    self._read_input()

  def propose(
    self, images: Sequence[UInt8[np.ndarray, "_ _ 3"]], image_ids: Sequence[int]
  ) -> list[records.Instances]:
    """Returns what the model finds in each image.

    Raises:
      InputError: the model fails on an image, or what it gives is of another kind.
    """
    return [
      self._propose(image, image_id) for image, image_id in zip(images, image_ids, strict=True)
    ]

  def _propose(self, image: UInt8[np.ndarray, "h w 3"], image_id: int) -> records.Instances:
    height, width = image.shape[:2]
    picture = self._prepare(image)
    try:
      values = self._session.run(None, {self._input: picture})
    except Exception as error:
      raise InputError(
        f"ONNX model {self._path} fails on image {image_id} of {width} x {height} ({error})"
      ) from error
    outputs = dict(zip(self._outputs, values, strict=True))
    if len(outputs) == 1:
      (output,) = outputs.values()
      found = self._from_classes(output, height, width)
    else:
      rows, columns = np.delete(picture.shape, self._channels)[-2:]
      found = self._from_instances(outputs, (int(rows), int(columns)), height, width)
    masks, scores, categories = found
    return records.Instances(
      masks=masks,
      scores=scores.astype(np.float32),
      categories=categories.astype(np.int32),
      source="onnx",
    )

  def _read_input(self) -> None:
    inputs = self._session.get_inputs()
    if len(inputs) != 1 or inputs[0].type not in ("tensor(uint8)", "tensor(float)"):
      raise self._unusable("one input is expected, a picture in uint8 or float32")
    if len(self._outputs) > 1 and not {"masks", "scores"} <= set(self._outputs):
      raise self._unusable(
        "several outputs are understood where they are masks, scores and maybe labels"
      )
    shape = inputs[0].shape
    batched = len(shape) == 4
    fixed_batch = shape[0] if batched and isinstance(shape[0], int) else 1
    if len(shape) not in (3, 4) or fixed_batch != 1:
      raise self._unusable("the input must be one picture, or a batch of any size")
    sides = shape[batched:]
    where = [axis for axis in (0, 2) if sides[axis] == 3]
    if len(where) != 1:
      raise self._unusable("of the input's channels, first or last, there must be 3")
    self._input = inputs[0].name
    self._is_float = inputs[0].type == "tensor(float)"
    self._batched = batched
    self._channels = where[0] + batched
    self._size = [side for axis, side in enumerate(sides) if axis != where[0]]
    # torchvision's detectors, which take one picture without a batch, normalise it themselves.
    self._mean = self._metadata("mean", IMAGENET_MEAN if batched else (0.0, 0.0, 0.0))
    self._std = self._metadata("std", IMAGENET_STD if batched else (1.0, 1.0, 1.0))

  def _metadata(self, key: str, default: Sequence[float]) -> Float32[np.ndarray, "3"]:
    text = self._session.get_modelmeta().custom_metadata_map.get(key)
    if text is None:
      return np.asarray(default, np.float32)
    try:
      values = np.asarray([float(value) for value in text.strip("[]() ").split(",")], np.float32)
      return np.broadcast_to(values, 3)
    except ValueError as error:
      raise InputError(
        f"ONNX model {self._path}: {key} {text!r} of its metadata is not three numbers with commas between"
      ) from error

  def _prepare(self, image: UInt8[np.ndarray, "h w 3"]) -> Shaped[np.ndarray, "..."]:
    """The image as the model takes it, at the image's own size where the model leaves that open."""
    height, width = (
      side if isinstance(side, int) else own
      for side, own in zip(self._size, image.shape[:2], strict=True)
    )
    if (height, width) != image.shape[:2]:
      image = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))
    picture = (image / np.float32(255) - self._mean) / self._std if self._is_float else image
    if self._batched:
      picture = picture[None]
    return np.ascontiguousarray(np.moveaxis(picture, -1, self._channels))

  def _from_classes(self, output: np.ndarray, height: int, width: int):
    probability = None
    if np.issubdtype(output.dtype, np.integer) and (map_ := _squeezed(output)) is not None:
      classes = _nearest(map_, height, width).astype(np.int64)
    elif np.issubdtype(output.dtype, np.floating) and output.ndim == 4 and output.shape[1] > 1:
      likely = _probabilities(np.stack([_bilinear(each, height, width) for each in output[0]]))
      classes, probability = likely.argmax(0), likely.max(0)
    else:
      raise self._unusable(
        f"its output was {output.dtype} {list(output.shape)}; of one output, a map of classes (integers, [N, H, W]) "
        "or logits (float, [N, C, H, W]) are understood"
      )
    return components(classes, probability)

  def _from_instances(
    self, outputs: dict[str, np.ndarray], size: tuple[int, int], height: int, width: int
  ):
    masks = _each_mask(outputs["masks"])
    scores = outputs["scores"].reshape(-1)
    labels = outputs.get("labels", np.zeros(len(scores), np.int32)).reshape(-1)
    if masks is None or not len(masks) == len(scores) == len(labels):
      shapes = ", ".join(f"{name} {list(value.shape)}" for name, value in outputs.items())
      raise self._unusable(f"its masks, scores and labels are not as many as each other: {shapes}")
    rows, columns = masks.shape[1:]
    if abs(rows * size[1] - columns * size[0]) > max(rows, columns) * max(size) / 10:
      raise self._unusable(
        f"its masks are {columns} x {rows} for a picture of {size[1]} x {size[0]}; masks that are cut to their "
        "boxes have to be put into the picture by the model"
      )
    if masks.dtype == bool:
      found = [_nearest(mask, height, width) for mask in masks]
    else:
      found = [_bilinear(mask, height, width) >= MASK_THRESHOLD for mask in masks]
    return np.stack(found) if found else np.zeros((0, height, width), bool), scores, labels

  def _unusable(self, problem: str) -> InputError:
    inputs, outputs = (
      "; ".join(f"{value.name} {value.type} {value.shape}" for value in values)
      for values in (self._session.get_inputs(), self._session.get_outputs())
    )
    return InputError(
      f"ONNX model {self._path} cannot be used: {problem}. Its inputs: {inputs}. Its outputs: {outputs}"
    )


def components(
  classes: Int[np.ndarray, "h w"], probability: Float32[np.ndarray, "h w"] | None = None
) -> tuple[Bool[np.ndarray, "k h w"], Float32[np.ndarray, "k"], Int[np.ndarray, "k"]]:
  """Splits a map of classes into connected parts, the largest first.

  Pixels are connected by their sides, not by their corners: two things that only touch at a corner stay two.

  Args:
    classes: every pixel's class.
    probability: every pixel's probability of that class; 1 where it is not given.

  Returns:
    The masks of the parts above MIN_AREA, MAX_COMPONENTS at most; the mean probability of each; the class of each.
  """
  labels = np.zeros(classes.shape, np.int32)
  count = 0
  for value in np.unique(classes):
    inside = classes == value
    found, number = cast(tuple[np.ndarray, int], ndimage.label(inside))
    labels[inside] = found[inside] + count - 1
    count += number
  areas = np.bincount(labels.ravel(), minlength=count)
  order = np.argsort(-areas, kind="stable")[:MAX_COMPONENTS]
  order = order[areas[order] >= MIN_AREA * classes.size]
  first = np.unique(labels, return_index=True)[1]
  scores = np.ones(len(order), np.float32)
  if probability is not None:
    sums = np.bincount(labels.ravel(), weights=probability.ravel(), minlength=count)
    scores = (sums / areas)[order].astype(np.float32)
  masks = np.zeros((len(order), *classes.shape), bool)
  for mask, k in zip(masks, order, strict=True):
    np.equal(labels, k, out=mask)
  return masks, scores, classes.ravel()[first[order]]


def _squeezed(output: np.ndarray) -> np.ndarray | None:
  """A class map [H, W] of the first image, out of [N, H, W], [N, 1, H, W] or [N, H, W, 1]."""
  if output.ndim == 3:
    return output[0]
  if output.ndim == 4 and 1 in (output.shape[1], output.shape[3]):
    return output[0, 0] if output.shape[1] == 1 else output[0, ..., 0]
  return None


def _each_mask(masks: np.ndarray) -> np.ndarray | None:
  """[K, H, W], out of that, [K, 1, H, W] or [1, K, H, W]."""
  if masks.ndim == 4 and 1 in masks.shape[:2]:
    return masks[:, 0] if masks.shape[1] == 1 else masks[0]
  return masks if masks.ndim == 3 else None


def _probabilities(logits: Float32[np.ndarray, "c h w"]) -> Float32[np.ndarray, "c h w"]:
  """The softmax over classes; what is one already is left as it is."""
  if logits.min() >= 0 and np.allclose(logits.sum(0), 1, atol=1e-3):
    return logits
  exponents = np.exp(logits - logits.max(0))
  return exponents / exponents.sum(0)


def _nearest(values: np.ndarray, height: int, width: int) -> np.ndarray:
  rows = preprocess.nearest_indices(values.shape[0], height)
  columns = preprocess.nearest_indices(values.shape[1], width)
  return values[rows[:, None], columns]


def _bilinear(values: np.ndarray, height: int, width: int) -> Float32[np.ndarray, "h w"]:
  plane = Image.fromarray(values.astype(np.float32))
  return np.asarray(plane.resize((width, height), Image.Resampling.BILINEAR))
