"""Masks of any segmentation model that was exported as ONNX, run by onnxruntime.

A model has one input, an image, and outputs class maps, class logits, or instance masks with
scores; docs/guides/proposals.md has the table.
"""

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
from jaxtyping import Bool, Float32, Int, Shaped, UInt8
from PIL import Image
from scipy import ndimage

from input_pipeline import preprocess, records
from input_pipeline.common import places
from input_pipeline.common.errors import InputError

try:
  import onnxruntime  # pyright: ignore[reportMissingImports]
except ImportError as error:
  raise InputError('--instances onnx needs onnxruntime: pip install "mail_jax[onnx]"') from error

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
MIN_AREA = 0.0001
"""Minimum area of a component, as a fraction of the image: noisy maps have thousands of them."""
MAX_COMPONENTS = 256
"""Components kept per image, the largest ones; four times as many as a record can hold."""
MASK_THRESHOLD = 0.5


class OnnxProposer:
  """Proposes the instances that a model outputs, or the connected components of its classes.

  Images are processed one by one, so that masks do not depend on the batch.
  """

  def __init__(self, argument: str):
    """Loads the model, onto a GPU if onnxruntime supports it.

    Args:
      argument: path of the model.

    Raises:
      InputError: the file is missing or not a model, or its inputs or outputs are not supported.
    """
    if not argument:
      raise InputError("--instances onnx: missing file; use --instances onnx:model.onnx")
    if not places.is_file(argument):
      raise InputError(f"--instances onnx:{argument}: no such file")
    self._path = argument
    model = places.local_copy(argument)
    available = onnxruntime.get_available_providers()
    wanted = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    try:
      self._session: Any = onnxruntime.InferenceSession(
        model, providers=[name for name in wanted if name in available]
      )
    except Exception as error:  # onnxruntime's errors share no base class.
      raise InputError(
        f"--instances onnx:{argument}: onnxruntime cannot load this model ({error})"
      ) from error
    self._outputs = {output.name.lower(): output.name for output in self._session.get_outputs()}
    self._read_input()

  def propose(
    self, images: Sequence[UInt8[np.ndarray, "_ _ 3"]], image_ids: Sequence[int]
  ) -> list[records.Instances]:
    """Returns the masks of each image.

    Raises:
      InputError: the model fails on an image, or its output is not supported.
    """
    return [
      self._propose(image, image_id) for image, image_id in zip(images, image_ids, strict=True)
    ]

  def _propose(self, image: UInt8[np.ndarray, "h w 3"], image_id: int) -> records.Instances:
    height, width = image.shape[:2]
    model_input = self._prepare(image)
    try:
      values = self._session.run(None, {self._input: model_input})
    except Exception as error:
      raise InputError(
        f"ONNX model {self._path} fails on image {image_id} of {width} x {height} ({error})"
      ) from error
    outputs = dict(zip(self._outputs, values, strict=True))
    if len(outputs) == 1:
      (output,) = outputs.values()
      masks, scores, categories = self._from_classes(output, height, width)
    else:
      rows, columns = np.delete(model_input.shape, self._channels)[-2:]
      input_size = (int(rows), int(columns))
      masks, scores, categories = self._from_instances(outputs, input_size, height, width)
    return records.Instances(
      masks=masks,
      scores=scores.astype(np.float32),
      categories=categories.astype(np.int32),
      source="onnx",
    )

  def _read_input(self) -> None:
    inputs = self._session.get_inputs()
    if len(inputs) != 1 or inputs[0].type not in ("tensor(uint8)", "tensor(float)"):
      raise self._unusable("expected a single input, an image in uint8 or float32")
    if len(self._outputs) > 1 and not {"masks", "scores"} <= set(self._outputs):
      raise self._unusable("several outputs must be masks, scores and optionally labels")
    shape = inputs[0].shape
    batched = len(shape) == 4
    fixed_batch = shape[0] if batched and isinstance(shape[0], int) else 1
    if len(shape) not in (3, 4) or fixed_batch != 1:
      raise self._unusable("the input must be one image, or a batch of variable size")
    sides = shape[batched:]
    channel_axes = [axis for axis in (0, 2) if sides[axis] == 3]
    if len(channel_axes) != 1:
      raise self._unusable("the first or last axis of the input must be 3 channels")
    self._input = inputs[0].name
    self._is_float = inputs[0].type == "tensor(float)"
    self._batched = batched
    self._channels = channel_axes[0] + batched
    self._size = [side for axis, side in enumerate(sides) if axis != channel_axes[0]]
    # torchvision's detectors, whose input has no batch axis, normalise it themselves.
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
        f"ONNX model {self._path}: {key} in its metadata is {text!r}, expected three "
        "comma-separated numbers"
      ) from error

  def _prepare(self, image: UInt8[np.ndarray, "h w 3"]) -> Shaped[np.ndarray, "..."]:
    """Returns the model's input, at the image's own size if the model does not fix it."""
    height, width = (
      side if isinstance(side, int) else own
      for side, own in zip(self._size, image.shape[:2], strict=True)
    )
    if (height, width) != image.shape[:2]:
      image = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))
    pixels = (image / np.float32(255) - self._mean) / self._std if self._is_float else image
    if self._batched:
      pixels = pixels[None]
    return np.ascontiguousarray(np.moveaxis(pixels, -1, self._channels))

  def _from_classes(self, output: np.ndarray, height: int, width: int):
    probability = None
    if np.issubdtype(output.dtype, np.integer) and (class_map := _squeeze(output)) is not None:
      classes = _nearest(class_map, height, width).astype(np.int64)
    elif np.issubdtype(output.dtype, np.floating) and output.ndim == 4 and output.shape[1] > 1:
      logits = np.stack([_bilinear(channel, height, width) for channel in output[0]])
      probabilities = _probabilities(logits)
      classes, probability = probabilities.argmax(0), probabilities.max(0)
    else:
      raise self._unusable(
        f"its output is {output.dtype} {list(output.shape)}; a single output must be a class map "
        "(integers, [N, H, W]) or logits (float, [N, C, H, W])"
      )
    return components(classes, probability)

  def _from_instances(
    self, outputs: dict[str, np.ndarray], size: tuple[int, int], height: int, width: int
  ):
    masks = _squeeze_masks(outputs["masks"])
    scores = outputs["scores"].reshape(-1)
    labels = outputs.get("labels", np.zeros(len(scores), np.int32)).reshape(-1)
    if masks is None or not len(masks) == len(scores) == len(labels):
      shapes = ", ".join(f"{name} {list(value.shape)}" for name, value in outputs.items())
      raise self._unusable(f"its masks, scores and labels differ in number: {shapes}")
    rows, columns = masks.shape[1:]
    if abs(rows * size[1] - columns * size[0]) > max(rows, columns) * max(size) / 10:
      raise self._unusable(
        f"its masks are {columns} x {rows} for an image of {size[1]} x {size[0]}; masks cropped to "
        "their boxes must be pasted into the image by the model"
      )
    if masks.dtype == bool:
      resized = [_nearest(mask, height, width) for mask in masks]
    else:
      resized = [_bilinear(mask, height, width) >= MASK_THRESHOLD for mask in masks]
    stacked = np.stack(resized) if resized else np.zeros((0, height, width), bool)
    return stacked, scores, labels

  def _unusable(self, problem: str) -> InputError:
    inputs, outputs = (
      "; ".join(f"{value.name} {value.type} {value.shape}" for value in values)
      for values in (self._session.get_inputs(), self._session.get_outputs())
    )
    return InputError(
      f"ONNX model {self._path} cannot be used: {problem}. Inputs: {inputs}. Outputs: {outputs}"
    )


def components(
  classes: Int[np.ndarray, "h w"], probability: Float32[np.ndarray, "h w"] | None = None
) -> tuple[Bool[np.ndarray, "k h w"], Float32[np.ndarray, "k"], Int[np.ndarray, "k"]]:
  """Splits a class map into connected components, largest first.

  Pixels are connected by their sides, not by their corners.

  Args:
    classes: class of each pixel.
    probability: its probability; 1 by default.

  Returns:
    Masks of up to MAX_COMPONENTS components of at least MIN_AREA, their mean probabilities, and
    their classes.
  """
  labels = np.zeros(classes.shape, np.int32)
  count = 0
  for value in np.unique(classes):
    inside = classes == value
    class_labels, class_count = cast(tuple[np.ndarray, int], ndimage.label(inside))
    labels[inside] = class_labels[inside] + count - 1
    count += class_count
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


def _squeeze(output: np.ndarray) -> np.ndarray | None:
  """Returns the first image's class map [H, W] of [N, H, W], [N, 1, H, W] or [N, H, W, 1]."""
  if output.ndim == 3:
    return output[0]
  if output.ndim == 4 and 1 in (output.shape[1], output.shape[3]):
    return output[0, 0] if output.shape[1] == 1 else output[0, ..., 0]
  return None


def _squeeze_masks(masks: np.ndarray) -> np.ndarray | None:
  """Returns [K, H, W] from [K, H, W], [K, 1, H, W] or [1, K, H, W]."""
  if masks.ndim == 4 and 1 in masks.shape[:2]:
    return masks[:, 0] if masks.shape[1] == 1 else masks[0]
  return masks if masks.ndim == 3 else None


def _probabilities(logits: Float32[np.ndarray, "c h w"]) -> Float32[np.ndarray, "c h w"]:
  """Applies softmax over classes, unless the values are probabilities already."""
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
