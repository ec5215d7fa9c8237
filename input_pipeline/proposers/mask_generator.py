"""Every mask that SAM or one of its kin finds: it is asked at a grid of points, and sure answers are kept.

The steps and numbers are those of "Segment Anything", Kirillov et al., ICCV 2023, appendix B, on the whole image,
without its crops. torch alone does the work; transformers' own pipeline needs torchvision for it.
"""

from typing import Any

import numpy as np
import torch  # pyright: ignore[reportMissingImports]
from jaxtyping import Float, Float32, UInt8
from PIL import Image

from input_pipeline import records

POINTS_PER_SIDE = 32
POINTS_AT_A_TIME = 64
"""Three masks each at the image's size: some 250 MB at 640 x 480."""
MIN_PREDICTED_IOU = 0.88
MIN_STABILITY = 0.95
"""IoU of the masks cut at logits of 1 and -1."""
MAX_BOX_IOU = 0.7


class MaskGenerator:
  """A promptable model, asked everywhere."""

  def __init__(self, model: Any, processor: Any):
    """Args: both as transformers loads them, the model where it is to run."""
    self._model = model
    self._processor = processor

  def propose(self, image: UInt8[np.ndarray, "h w 3"]) -> records.Instances:
    """Returns the masks of an image, best first, with the IoU the model predicts as score and category 0."""
    height, width = image.shape[:2]
    points = _grid(height, width)
    inputs = self._processor(
      images=Image.fromarray(image),
      input_points=[[[point] for point in points.tolist()]],
      input_labels=[[[1]] * len(points)],
      return_tensors="pt",
    )
    device = next(self._model.parameters()).device
    masks, scores = [], []
    with torch.inference_mode():
      embeddings = self._model.get_image_embeddings(inputs["pixel_values"].to(device))
      known = {"image_embeddings": embeddings}
      if isinstance(embeddings, tuple):  # SAM-HQ
        known = dict(zip(("image_embeddings", "intermediate_embeddings"), embeddings, strict=True))
      for start in range(0, len(points), POINTS_AT_A_TIME):
        some = slice(start, start + POINTS_AT_A_TIME)
        outputs = self._model(
          **known,
          input_points=inputs["input_points"][:, some].to(device).float(),
          input_labels=inputs["input_labels"][:, some].to(device),
          multimask_output=True,
        )
        found = self._sure(outputs, inputs)
        masks += [np.packbits(mask) for mask in found[0]]
        scores.append(found[1])
    shape = (height, width)
    return _without_duplicates(masks, np.concatenate(scores), shape)

  def _sure(self, outputs: Any, inputs: Any) -> tuple[np.ndarray, Float32[np.ndarray, "k"]]:
    """Masks [k, h, w] at the image's size that the model rates high and that hardly depend on the threshold."""
    scores = outputs.iou_scores[0].flatten().float()
    sure = scores > MIN_PREDICTED_IOU
    low = outputs.pred_masks[0].flatten(0, 1)[sure].float()
    height, width = (int(side) for side in inputs["original_sizes"][0])
    if not len(low):
      return np.zeros((0, height, width), bool), np.zeros(0, np.float32)
    # SAM pads what it resizes, later ones do not; only its processor asks for the size before padding.
    sizes = {
      key: inputs[key] for key in ("original_sizes", "reshaped_input_sizes") if key in inputs
    }
    (logits,) = self._processor.post_process_masks(masks=[low[:, None]], binarize=False, **sizes)
    logits = logits[:, 0]
    stable = (logits > 1).sum((1, 2)) >= MIN_STABILITY * (logits > -1).sum((1, 2))
    stable &= (logits > 0).any(2).any(1)
    return (logits[stable] > 0).cpu().numpy(), scores[sure][stable].cpu().numpy()


def _grid(height: int, width: int) -> Float[np.ndarray, "n 2"]:
  """The middles of equal cells, as x and y in pixels."""
  middles = (np.arange(POINTS_PER_SIDE) + 0.5) / POINTS_PER_SIDE
  x, y = np.meshgrid(middles * width, middles * height)
  return np.stack([x.ravel(), y.ravel()], axis=1)


def _without_duplicates(
  packed: list[np.ndarray], scores: Float32[np.ndarray, "n"], shape: tuple[int, int]
) -> records.Instances:
  """Leaves out whatever has the box of a better one. The masks are packed to bits: there may be a thousand."""
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
