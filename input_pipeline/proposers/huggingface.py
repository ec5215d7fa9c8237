"""Masks of segmentation models in `transformers`, from the Hub or a folder."""

import os
from collections.abc import Sequence
from typing import Any

import huggingface_hub
import numpy as np
from jaxtyping import Float, Float32, UInt8
from PIL import Image
from safetensors import SafetensorError

from input_pipeline import records
from input_pipeline.common.errors import InputError

# Set before transformers is imported, which would otherwise load an installed TensorFlow.
os.environ.setdefault("USE_TF", "0")
os.environ.setdefault("USE_FLAX", "0")
try:
  import torch  # pyright: ignore[reportMissingImports]
  import transformers  # pyright: ignore[reportMissingImports]
  from transformers.models.auto.modeling_auto import (  # pyright: ignore[reportMissingImports]
    MODEL_FOR_MASK_GENERATION_MAPPING_NAMES,
  )
except ImportError as error:
  raise InputError(
    '--instances huggingface needs torch and transformers: pip install "mail_jax[huggingface]"'
  ) from error

SEGMENTERS = ("detr", "mask2former", "maskformer", "oneformer")
"""Model types with queries, each of which predicts a mask and a class."""
_WEIGHTS = tuple(
  f"{name}{end}"
  for name in ("model.safetensors", "pytorch_model.bin")
  for end in ("", ".index.json")
)
MIN_CLASS = 0.05
"""A query is dropped if every class is less likely: it means "no object"."""
MAX_SEGMENTS = 100
"""Queries per image that are considered, the most likely ones; a record holds 64 instances."""
BATCH = 8
"""Maximum number of images per forward pass, which bounds memory."""

# Of mask generators, from "Segment Anything", Kirillov et al., ICCV 2023, appendix B.
POINTS_PER_SIDE = 32
POINTS_AT_A_TIME = 64
"""Each gives three masks at the image's size: 250 MB at 640 x 480."""
MIN_PREDICTED_IOU = 0.88
MIN_STABILITY = 0.95
"""IoU of the masks at logits of 1 and -1."""
MAX_BOX_IOU = 0.7

_UNUSABLE = (OSError, ValueError, KeyError, TypeError, RuntimeError, ImportError, SafetensorError)


class HuggingFaceProposer:
  """Proposes the queries of Mask2Former, MaskFormer, OneFormer and DETR, or the masks of SAM.

  Each image is prepared alone and never padded to another one's size, so that its masks do not
  depend on the batch.
  """

  def __init__(self, argument: str):
    """Loads model and processor, onto a GPU if torch has one.

    Args:
      argument: a model on the Hub, `owner/name`, or a folder written by `save_pretrained`.

    Raises:
      InputError: there is no such model, or its type is not supported.
    """
    if not argument:
      raise InputError(
        "--instances huggingface: missing model; use --instances huggingface:owner/name or "
        "huggingface:FOLDER"
      )
    self._name = argument
    self._check_folder()
    self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model_type = self._load(transformers.AutoConfig).model_type
    if model_type in MODEL_FOR_MASK_GENERATION_MAPPING_NAMES:
      model = self._load_model(transformers.AutoModelForMaskGeneration)
      self._generator = MaskGenerator(model, self._load(transformers.AutoProcessor))
    elif model_type in SEGMENTERS:
      self._generator = None
      self._model = self._load_model(transformers.AutoModelForUniversalSegmentation)
      # OneFormer takes its task as text, so its processor has a tokenizer.
      oneformer = model_type == "oneformer"
      self._task = {"task_inputs": ["panoptic"]} if oneformer else {}
      self._processor = self._load(
        transformers.AutoProcessor if oneformer else transformers.AutoImageProcessor
      )
    else:
      raise InputError(
        f"--instances huggingface:{argument}: unsupported model type {model_type}; supported are "
        f"{', '.join(SEGMENTERS)}, and mask generators: "
        f"{', '.join(MODEL_FOR_MASK_GENERATION_MAPPING_NAMES)}"
      )

  def propose(
    self, images: Sequence[UInt8[np.ndarray, "_ _ 3"]], image_ids: Sequence[int]
  ) -> list[records.Instances]:
    """Returns the masks of each image; categories are the label ids of the model's config.

    Raises:
      InputError: the processor rejects an image.
    """
    try:
      if self._generator is not None:
        return [self._generator.propose(image) for image in images]
      inputs = [self._prepare(image) for image in images]
    except ValueError as error:
      raise InputError(
        f"--instances huggingface:{self._name}: the processor rejects an image of "
        f"{list(image_ids)} ({_first_line(error)})"
      ) from error
    proposals: list[records.Instances | None] = [None] * len(images)
    for batch in _group_by_shape(inputs):
      stacked = {
        key: torch.cat([inputs[k][key] for k in batch]).to(self._device) for key in inputs[batch[0]]
      }
      with torch.inference_mode():
        outputs = self._model(**stacked)
      classes, masks = _queries(outputs)
      for row, k in enumerate(batch):
        unpadded = _without_padding(masks[row], inputs[k])
        proposals[k] = _segments(classes[row], unpadded, *images[k].shape[:2])
    return [instances for instances in proposals if instances is not None]

  @staticmethod
  def missing(argument: str) -> str:
    """Returns a line about what would have to be downloaded; empty if all is on this machine.

    Args:
      argument: as for the constructor.
    """
    if os.path.isdir(argument) or (
      _is_cached(argument, ("config.json",)) and _is_cached(argument, _WEIGHTS)
    ):
      return ""
    return (
      f"the weights of {argument} are not on this machine; --instances huggingface:{argument} "
      "downloads them"
    )

  def _prepare(self, image: UInt8[np.ndarray, "h w 3"]) -> dict[str, torch.Tensor]:
    inputs = self._processor(images=[Image.fromarray(image)], return_tensors="pt", **self._task)
    return {key: value for key, value in inputs.items() if isinstance(value, torch.Tensor)}

  def _check_folder(self) -> None:
    name = self._name
    looks_like_a_path = name.startswith((".", "/", "~")) or name.count("/") > 1
    if os.path.isdir(name):
      if not os.path.isfile(os.path.join(name, "config.json")):
        raise InputError(
          f"--instances huggingface:{name}: no config.json in this folder; use one that "
          "save_pretrained wrote"
        )
    elif looks_like_a_path or os.path.exists(name):
      raise InputError(
        f"--instances huggingface:{name}: no such folder; a model on the Hub is owner/name"
      )

  def _load(self, auto_class: Any, **options: Any) -> Any:
    """Loads the model or processor by one of transformers' Auto classes."""
    try:
      return auto_class.from_pretrained(self._name, **options)
    except _UNUSABLE as error:
      raise InputError(
        f"--instances huggingface:{self._name}: {auto_class.__name__} cannot load it "
        f"({_first_line(error)})"
      ) from error

  def _load_model(self, auto_class: Any) -> Any:
    model, info = self._load(auto_class, output_loading_info=True)
    missing = info["missing_keys"] if isinstance(info, dict) else info.missing_keys
    if missing:
      raise InputError(
        f"--instances huggingface:{self._name}: {len(missing)} weights of {type(model).__name__} "
        f"are missing, such as {sorted(missing)[0]}; was it trained for another task?"
      )
    return model.to(self._device).eval()


def _is_cached(model: str, names: Sequence[str]) -> bool:
  """Returns whether a file of a model on the Hub is on this machine."""
  try:
    found = [huggingface_hub.try_to_load_from_cache(model, name) for name in names]
  except ValueError:  # not a name on the Hub
    return False
  return any(isinstance(path, str) for path in found)


def _first_line(error: BaseException) -> str:
  return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _group_by_shape(inputs: Sequence[dict[str, torch.Tensor]]) -> list[list[int]]:
  """Groups the indices of inputs of the same shape into batches."""
  by_shape: dict[Any, list[int]] = {}
  for k, tensors in enumerate(inputs):
    by_shape.setdefault(tuple(tensors["pixel_values"].shape), []).append(k)
  return [
    indices[start : start + BATCH]
    for indices in by_shape.values()
    for start in range(0, len(indices), BATCH)
  ]


def _queries(outputs: Any) -> tuple[torch.Tensor, torch.Tensor]:
  """Returns class logits [B, Q, C + 1], the last for "no object", and mask logits [B, Q, h, w]."""
  if "masks_queries_logits" in outputs:
    return outputs.class_queries_logits.float(), outputs.masks_queries_logits.float()
  # DETR's names.
  return outputs.logits.float(), outputs.pred_masks.float()


def _without_padding(masks: torch.Tensor, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
  """Crops mask logits [Q, h, w] to the image if the processor pads to a fixed size."""
  if "pixel_mask" not in inputs or inputs["pixel_mask"].all():
    return masks
  size = tuple(inputs["pixel_values"].shape[-2:])
  height, width = (int(inputs["pixel_mask"][0].any(axis).sum()) for axis in (1, 0))
  return _resize(masks, size)[:, :height, :width]


def _segments(
  classes: torch.Tensor, masks: torch.Tensor, height: int, width: int
) -> records.Instances:
  """Returns one proposal per query: its most likely class, its mask, and their joint probability.

  The processors' own functions differ between models: some resize binary masks from 384 x 384, some
  assign each pixel to a single segment. Here, for every model, masks are thresholded at the image's
  size and may overlap.
  """
  likely, labels = classes.softmax(-1)[:, :-1].max(-1)
  best = likely.topk(min(MAX_SEGMENTS, len(likely))).indices.sort().values
  best = best[likely[best] >= MIN_CLASS]
  logits = _resize(masks[best], (height, width))
  inside = logits > 0
  areas = inside.sum((1, 2))
  scores = likely[best] * (logits.sigmoid() * inside).sum((1, 2)) / areas.clamp(min=1)
  nonempty = areas > 0
  return records.Instances(
    masks=inside[nonempty].cpu().numpy(),
    scores=scores[nonempty].cpu().numpy().astype(np.float32),
    categories=labels[best][nonempty].cpu().numpy().astype(np.int32),
    source="huggingface",
  )


def _resize(masks: torch.Tensor, size: tuple[int, ...]) -> torch.Tensor:
  if not len(masks):
    return masks.new_zeros((0, *size))
  return torch.nn.functional.interpolate(
    masks[None], size=size, mode="bilinear", align_corners=False
  )[0]


class MaskGenerator:
  """SAM or a similar model, prompted at a grid of points; only confident masks are kept.

  This follows "Segment Anything", appendix B, on the whole image without crops. It only needs
  torch; transformers' own pipeline also needs torchvision.
  """

  def __init__(self, model: Any, processor: Any):
    """Wraps a loaded model.

    Args:
      model: as loaded by transformers, on its device.
      processor: of the same checkpoint.
    """
    self._model = model
    self._processor = processor

  def propose(self, image: UInt8[np.ndarray, "h w 3"]) -> records.Instances:
    """Returns masks, best first; the score is the predicted IoU, the category 0."""
    height, width = image.shape[:2]
    points = _grid(height, width)
    inputs = self._processor(
      images=Image.fromarray(image),
      input_points=[[[point] for point in points.tolist()]],
      input_labels=[[[1]] * len(points)],
      return_tensors="pt",
    )
    device = next(self._model.parameters()).device
    packed, scores = [], []
    with torch.inference_mode():
      embeddings = self._model.get_image_embeddings(inputs["pixel_values"].to(device))
      image_inputs = {"image_embeddings": embeddings}
      if isinstance(embeddings, tuple):
        # SAM-HQ.
        image_inputs = dict(
          zip(("image_embeddings", "intermediate_embeddings"), embeddings, strict=True)
        )
      for start in range(0, len(points), POINTS_AT_A_TIME):
        chunk = slice(start, start + POINTS_AT_A_TIME)
        outputs = self._model(
          **image_inputs,
          input_points=inputs["input_points"][:, chunk].to(device).float(),
          input_labels=inputs["input_labels"][:, chunk].to(device),
          multimask_output=True,
        )
        chunk_masks, chunk_scores = self._confident(outputs, inputs)
        packed += [np.packbits(mask) for mask in chunk_masks]
        scores.append(chunk_scores)
    return _without_duplicates(packed, np.concatenate(scores), (height, width))

  def _confident(self, outputs: Any, inputs: Any) -> tuple[np.ndarray, Float32[np.ndarray, "k"]]:
    """Returns masks [k, h, w] with a high predicted IoU and stability, and their scores."""
    scores = outputs.iou_scores[0].flatten().float()
    confident = scores > MIN_PREDICTED_IOU
    low_resolution = outputs.pred_masks[0].flatten(0, 1)[confident].float()
    height, width = (int(side) for side in inputs["original_sizes"][0])
    if not len(low_resolution):
      return np.zeros((0, height, width), bool), np.zeros(0, np.float32)
    # SAM pads resized images, later models do not; only SAM's processor needs the unpadded size.
    sizes = {
      key: inputs[key] for key in ("original_sizes", "reshaped_input_sizes") if key in inputs
    }
    (logits,) = self._processor.post_process_masks(
      masks=[low_resolution[:, None]], binarize=False, **sizes
    )
    logits = logits[:, 0]
    stable = (logits > 1).sum((1, 2)) >= MIN_STABILITY * (logits > -1).sum((1, 2))
    stable &= (logits > 0).any(2).any(1)
    return (logits[stable] > 0).cpu().numpy(), scores[confident][stable].cpu().numpy()


def _grid(height: int, width: int) -> Float[np.ndarray, "n 2"]:
  """Returns the centres of equal cells, as x and y in pixels."""
  centres = (np.arange(POINTS_PER_SIDE) + 0.5) / POINTS_PER_SIDE
  x, y = np.meshgrid(centres * width, centres * height)
  return np.stack([x.ravel(), y.ravel()], axis=1)


def _without_duplicates(
  packed: list[np.ndarray], scores: Float32[np.ndarray, "n"], shape: tuple[int, int]
) -> records.Instances:
  """Applies box NMS. The masks are bit-packed, since there may be a thousand."""
  pixels = shape[0] * shape[1]
  kept: list[int] = []
  boxes: list[tuple[int, int, int, int]] = []
  masks: list[np.ndarray] = []
  for k in np.argsort(-scores, kind="stable").tolist():
    mask = np.unpackbits(packed[k], count=pixels).reshape(shape).astype(bool)
    box = _box(mask)
    if all(_box_iou(box, other) <= MAX_BOX_IOU for other in boxes):
      kept.append(k)
      boxes.append(box)
      masks.append(mask)
  return records.Instances(
    masks=np.stack(masks) if masks else np.zeros((0, *shape), bool),
    scores=scores[kept].astype(np.float32),
    categories=np.zeros(len(kept), np.int32),
    source="huggingface",
  )


def _box(mask: np.ndarray) -> tuple[int, int, int, int]:
  rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
  return int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1


def _box_iou(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> float:
  height = min(a[2], b[2]) - max(a[0], b[0])
  width = min(a[3], b[3]) - max(a[1], b[1])
  shared = max(height, 0) * max(width, 0)
  areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))
  return shared / (areas - shared)
