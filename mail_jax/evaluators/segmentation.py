"""Overall IoU, mean IoU and precision@X, one definition (docs/architecture.md, Evaluation)."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from input_pipeline.errors import InputError
from mail_jax import losses
from mail_jax.models.mail import MaIL, Output, find_mask
from mail_jax.resize import resize_logits
from mail_jax.train_step import apply_model

Batch = dict[str, Any]
Variables = Any  # {"params", "batch_stats"}
THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)


def make_measure(model: MaIL) -> Callable[[Variables, Batch], dict[str, jax.Array]]:
  """Makes the function that runs the model on a batch and counts pixels on the device (to be jitted)."""

  def measure(variables: Variables, batch: Batch) -> dict[str, jax.Array]:
    return count(apply_model(model, variables, batch), batch, model.max_instances)

  return measure


def count(output: Output, batch: Batch, max_instances: int) -> dict[str, jax.Array]:
  """Integers and choices from which every metric follows.

  Args:
    output: of the model.
    batch: with `original_target` (bool [b, y, x], zero beyond the image) and `original_size` (int [b, 2]); what it
      says of its rows, `index`, `total` and `cut`, is part of the result.
    max_instances: K.

  Returns:
    `intersection`, `union` and `area` (of the target) in pixels of the original image; `chosen`, the slot with the
    largest selection logit, k for none; `chosen_iou` and `best_iou` of the raw instance masks with the target, at the
    model's resolution (0 without instances). Of a model that says whether anything is meant, `no_target_probability`,
    and `raw_union`, with the mask that it would have drawn: `intersection` and `union` are of an empty one where it
    says no.
  """
  truth = batch["original_target"]
  size = batch["original_size"]
  # Outside the image the resized logits are 0, so never positive.
  logits = resize_logits(output.logits, size, truth.shape[1:])
  predicted = find_mask(logits, output.no_target)
  result = {name: batch[name] for name in ("index", "total", "cut") if name in batch}
  result |= {
    "intersection": (predicted & truth).sum((1, 2), dtype=jnp.int32),
    "union": (predicted | truth).sum((1, 2), dtype=jnp.int32),
    "area": truth.sum((1, 2), dtype=jnp.int32),
    "chosen": jnp.argmax(output.selection_logits, 1).astype(jnp.int32),
  }
  if output.no_target is not None:
    result |= {
      "no_target_probability": jax.nn.sigmoid(output.no_target),
      "raw_union": (find_mask(logits, None) | truth).sum((1, 2), dtype=jnp.int32),
    }
  if not max_instances:
    zero = jnp.zeros(truth.shape[0])
    return result | {"chosen_iou": zero, "best_iou": zero}
  iou = losses.instance_iou(output.masks, batch["target"])
  chosen_iou = jnp.take_along_axis(
    jnp.pad(iou, ((0, 0), (0, 1))), result["chosen"][:, None], axis=1
  )[:, 0]
  return result | {"chosen_iou": chosen_iou, "best_iou": iou.max(1)}


def summarise(rows: dict[str, np.ndarray]) -> Iterator[tuple[str, int | float]]:
  """Metrics from one row a sentence, as fractions; 0/0 counts 1, both being empty."""
  intersection, union = rows["intersection"].astype(np.int64), rows["union"].astype(np.int64)
  iou = np.where(union > 0, intersection / np.maximum(union, 1), 1.0)
  yield "sentences", len(iou)
  yield "oIoU", float(intersection.sum() / union.sum()) if union.sum() else 1.0
  yield "mIoU", float(iou.mean())
  for threshold in THRESHOLDS:
    yield f"P@{threshold}", float((iou >= threshold).mean())
  findable = rows["best_iou"] > 0.5
  yield (
    "selection_accuracy",
    float((rows["chosen_iou"][findable] > 0.5).mean()) if findable.any() else 0.0,
  )
  yield "picked_mIoU", float(rows["chosen_iou"].mean())
  yield "oracle_mIoU", float(rows["best_iou"].mean())


class SegmentationEvaluator:
  """Overall IoU, mean IoU and precision@X at original resolution; what the instance masks would score.

  `selection_accuracy` is the share of sentences whose chosen instance overlaps the target by IoU > 0.5, among
  those where some instance does. `picked_mIoU` and `oracle_mIoU` are the mean IoU of the chosen and of the best
  raw instance mask: the oracle is the ceiling of any method that only picks a mask.
  """

  def __init__(
    self,
    measure: Callable[[Variables, Batch], dict[str, jax.Array]],
    batches: Callable[[], Iterable[Batch]],
  ):
    """Takes what runs the model and what it runs on.

    Args:
      measure: as `make_measure` makes it, jitted; where a batch is spread over several processes its results are on
        all of them.
      batches: starts one pass over the sentences, as `loader.eval_batches` does: `index` says which one a row is.
    """
    self._measure = measure
    self._batches = batches
    self.rows: dict[str, np.ndarray] = {}
    self.meta: list[dict[str, Any]] = []

  def run(self, variables: Variables) -> Iterator[tuple[str, int | float]]:
    """Yields (name, value).

    Afterwards `rows` holds one row a sentence, in the order of the data, whatever the batches and however many
    processes read them; `meta` has what is known of the sentences that this process read.

    Raises:
      InputError: there is no sentence.
      RuntimeError: not every sentence came once.
    """
    results: list[dict[str, Any]] = []
    self.meta = []
    for batch in self._batches():
      self.meta.extend(row for row in batch.get("meta", []) if row is not None)
      arrays = {name: value for name, value in batch.items() if name != "meta"}
      results.append(self._measure(variables, arrays))
      if len(results) > 1:  # one batch ahead of the device
        results[-2] = jax.device_get(results[-2])
    self.rows = in_order(jax.device_get(results))
    yield from summarise(self.rows)


def in_order(results: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
  """Puts the rows of all batches into the order of the data, without padding.

  Raises:
    InputError: there is no row.
    RuntimeError: not every sentence came once.
  """
  if not any((result["index"] >= 0).any() for result in results):
    raise InputError("there is no sentence to evaluate")
  rows = {name: np.concatenate([result[name] for result in results]) for name in results[0]}
  order = np.argsort(rows["index"])
  order = order[rows["index"][order] >= 0]
  rows = {name: values[order] for name, values in rows.items()}
  index = rows.pop("index")
  total = int(rows.pop("total", index + 1).max())
  times = np.bincount(index, minlength=total)
  for what, wrong in (("did not come", times == 0), ("came more than once", times > 1)):
    if wrong.any():
      numbers = np.flatnonzero(wrong)
      shown = ", ".join(map(str, numbers[:5])) + (", ..." if len(numbers) > 5 else "")
      raise RuntimeError(f"evaluation: {len(numbers)} of {total} sentences {what}: number {shown}")
  return rows
