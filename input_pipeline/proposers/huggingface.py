"""Masks of the segmenters that `transformers` knows, from the Hub or a folder, on a GPU where torch has one."""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image
from safetensors import SafetensorError

from input_pipeline import records
from input_pipeline.common.errors import InputError

# Before transformers is imported, which would otherwise load tensorflow wherever it is installed.
os.environ.setdefault("USE_TF", "0")
os.environ.setdefault("USE_FLAX", "0")
try:
  import torch  # pyright: ignore[reportMissingImports]
  import transformers  # pyright: ignore[reportMissingImports]
  from transformers.models.auto.modeling_auto import MODEL_FOR_MASK_GENERATION_MAPPING_NAMES  # pyright: ignore[reportMissingImports]
except ImportError as error:
  raise InputError(
    '--instances huggingface needs torch and transformers: pip install "mail_jax[huggingface]"'
  ) from error

from input_pipeline.proposers.mask_generator import MaskGenerator

SEGMENTERS = ("detr", "mask2former", "maskformer", "oneformer")
"""Kinds of model that answer with queries: a mask and a class each."""
MIN_CLASS = 0.05
"""A query is no proposal where each class is less likely; it says "no object", more or less."""
MAX_SEGMENTS = 100
"""Queries of an image that are looked at, the likeliest; a record holds 64."""
BATCH = 8
"""Images in the model at a time, at most: what bounds its memory."""

_UNUSABLE = (OSError, ValueError, KeyError, TypeError, RuntimeError, ImportError, SafetensorError)


class HuggingFaceInstances:
  """Instances and stuff of Mask2Former, MaskFormer, OneFormer and DETR; masks at a grid of points of SAM and its kin.

  Each image is prepared by itself and never padded for another's sake, so its masks are the same in any batch.
  """

  def __init__(self, argument: str):
    """Loads model and processor.

    Args:
      argument: a model of the Hub, `owner/name`, or a folder that `save_pretrained` wrote.

    Raises:
      InputError: there is no such model, or it is of another kind.
    """
    if not argument:
      raise InputError(
        "--instances huggingface: which model? Write --instances huggingface:owner/name or huggingface:FOLDER"
      )
    self._name = argument
    self._check_folder()
    self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind = self._load(transformers.AutoConfig).model_type
    if kind in MODEL_FOR_MASK_GENERATION_MAPPING_NAMES:
      model = self._load_model(transformers.AutoModelForMaskGeneration)
      self._generator = MaskGenerator(model, self._load(transformers.AutoProcessor))
    elif kind in SEGMENTERS:
      self._generator = None
      self._model = self._load_model(transformers.AutoModelForUniversalSegmentation)
      # OneFormer is told its task in words, so it has a tokenizer too.
      one = kind == "oneformer"
      self._task = {"task_inputs": ["panoptic"]} if one else {}
      self._processor = self._load(
        transformers.AutoProcessor if one else transformers.AutoImageProcessor
      )
    else:
      raise InputError(
        f"--instances huggingface:{argument}: a model of kind {kind}; {', '.join(SEGMENTERS)} give instances, "
        f"and {', '.join(MODEL_FOR_MASK_GENERATION_MAPPING_NAMES)} masks"
      )

  def propose(
    self, images: Sequence[UInt8[np.ndarray, "_ _ 3"]], image_ids: Sequence[int]
  ) -> list[records.Instances]:
    """Returns what the model finds in each image; categories are the label ids of its config.

    Raises:
      InputError: the processor refuses an image.
    """
    try:
      if self._generator is not None:
        return [self._generator.propose(image) for image in images]
      inputs = [self._prepare(image) for image in images]
    except ValueError as error:
      raise InputError(
        f"--instances huggingface:{self._name} cannot use an image of {list(image_ids)} ({_first_line(error)})"
      ) from error
    found: list[records.Instances | None] = [None] * len(images)
    for batch in _of_one_shape(inputs):
      stacked = {
        key: torch.cat([inputs[k][key] for k in batch]).to(self._device) for key in inputs[batch[0]]
      }
      with torch.inference_mode():
        outputs = self._model(**stacked)
      classes, masks = _queries(outputs)
      for row, k in enumerate(batch):
        whole = _without_padding(masks[row], inputs[k])
        found[k] = _segments(classes[row], whole, *images[k].shape[:2])
    return [each for each in found if each is not None]

  def _prepare(self, image: UInt8[np.ndarray, "h w 3"]) -> dict[str, torch.Tensor]:
    inputs = self._processor(images=[Image.fromarray(image)], return_tensors="pt", **self._task)
    return {key: value for key, value in inputs.items() if isinstance(value, torch.Tensor)}

  def _check_folder(self) -> None:
    name = self._name
    looks_like_a_path = name.startswith((".", "/", "~")) or name.count("/") > 1
    if os.path.isdir(name):
      if not os.path.isfile(os.path.join(name, "config.json")):
        raise InputError(
          f"--instances huggingface:{name}: no config.json there; a folder is one that save_pretrained wrote"
        )
    elif looks_like_a_path or os.path.exists(name):
      raise InputError(
        f"--instances huggingface:{name}: no such folder; a model of the Hub is owner/name"
      )

  def _load(self, kind: Any, **options: Any) -> Any:
    """What one of transformers' Auto classes makes of the name."""
    try:
      return kind.from_pretrained(self._name, **options)
    except _UNUSABLE as error:
      raise InputError(
        f"--instances huggingface:{self._name}: {kind.__name__} cannot load it ({_first_line(error)})"
      ) from error

  def _load_model(self, kind: Any) -> Any:
    model, info = self._load(kind, output_loading_info=True)
    missing = info["missing_keys"] if isinstance(info, dict) else info.missing_keys
    if missing:
      raise InputError(
        f"--instances huggingface:{self._name}: {len(missing)} weights of {type(model).__name__} are not there, "
        f"{sorted(missing)[0]} for one; was it trained for something else?"
      )
    return model.to(self._device).eval()


def _first_line(error: BaseException) -> str:
  return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _of_one_shape(inputs: Sequence[dict[str, torch.Tensor]]) -> list[list[int]]:
  """Indices of inputs that fit into one batch as they are."""
  by_shape: dict[Any, list[int]] = {}
  for k, each in enumerate(inputs):
    by_shape.setdefault(tuple(each["pixel_values"].shape), []).append(k)
  return [
    indices[start : start + BATCH]
    for indices in by_shape.values()
    for start in range(0, len(indices), BATCH)
  ]


def _queries(outputs: Any) -> tuple[torch.Tensor, torch.Tensor]:
  """Class logits [B, Q, C + 1], the last of which is "no object", and mask logits [B, Q, h, w]."""
  if "masks_queries_logits" in outputs:
    return outputs.class_queries_logits.float(), outputs.masks_queries_logits.float()
  return outputs.logits.float(), outputs.pred_masks.float()  # DETR's names.


def _without_padding(masks: torch.Tensor, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
  """Mask logits [Q, h, w] of the picture alone, where its processor pads to a size of its own."""
  if "pixel_mask" not in inputs or inputs["pixel_mask"].all():
    return masks
  size = tuple(inputs["pixel_values"].shape[-2:])
  height, width = (int(inputs["pixel_mask"][0].any(axis).sum()) for axis in (1, 0))
  return _resize(masks, size)[:, :height, :width]


def _segments(
  classes: torch.Tensor, masks: torch.Tensor, height: int, width: int
) -> records.Instances:
  """One proposal a query: its likeliest class, its mask, and the probability of both as its score.

  The processors' own functions differ from model to model: some resize hard masks of 384 x 384, some let the segments
  push each other aside. Here masks are cut at the image's own size and may overlap, whatever the model.
  """
  likely, labels = classes.softmax(-1)[:, :-1].max(-1)
  best = likely.topk(min(MAX_SEGMENTS, len(likely))).indices.sort().values
  best = best[likely[best] >= MIN_CLASS]
  logits = _resize(masks[best], (height, width))
  inside = logits > 0
  areas = inside.sum((1, 2))
  scores = likely[best] * (logits.sigmoid() * inside).sum((1, 2)) / areas.clamp(min=1)
  some = areas > 0
  return records.Instances(
    masks=inside[some].cpu().numpy(),
    scores=scores[some].cpu().numpy().astype(np.float32),
    categories=labels[best][some].cpu().numpy().astype(np.int32),
    source="huggingface",
  )


def _resize(masks: torch.Tensor, size: tuple[int, ...]) -> torch.Tensor:
  if not len(masks):
    return masks.new_zeros((0, *size))
  return torch.nn.functional.interpolate(
    masks[None], size=size, mode="bilinear", align_corners=False
  )[0]
