"""Overall IoU, mean IoU and precision@X (docs/guides/evaluate.md)."""

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Int, Int32

from input_pipeline.common.errors import InputError
from mail_jax.distributed import sharding
from mail_jax.evaluate import boundary
from mail_jax.evaluate.protocols import ORIGINAL, Protocol
from mail_jax.models import instances
from mail_jax.models.build import apply_model
from mail_jax.models.mail import MaIL, Output, empty_where_nothing
from mail_jax.models.parameters import Variables

Batch = dict[str, Any]
THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)


def make_measure(
  model: MaIL,
  protocol: Protocol = ORIGINAL,
  apply: Callable[[Variables, Batch], Output] | None = None,
) -> Callable[[Variables, Batch], dict[str, jax.Array]]:
  """Makes the function that runs the model on a batch and counts pixels on the device (to be jitted).

  Args:
    model: the network.
    protocol: by which it counts.
    apply: runs in place of the network, as `LoadedModel.apply` does.
  """
  apply = apply or functools.partial(apply_model, model)

  def measure(variables: Variables, batch: Batch) -> dict[str, jax.Array]:
    return count(apply(variables, batch), batch, model.max_instances, protocol)

  return measure


def jit_measure(
  model: MaIL, mesh: Mesh, placed: Any, protocol: Protocol = ORIGINAL, apply: Any = None
) -> Any:
  """Compiles `make_measure` for a mesh: (variables, batch) -> counts, on every device.

  Args:
    model: the network.
    mesh: of the devices that the batch is spread over.
    placed: sharding of the variables.
    protocol: by which it counts.
    apply: runs in place of the network; see `make_measure`.
  """
  return jax.jit(
    sharding.traced_on(mesh, make_measure(model, protocol, apply)),
    in_shardings=(placed, sharding.batch_sharding(mesh)),
    out_shardings=sharding.replicated(mesh),
  )


def count(
  output: Output, batch: Batch, max_instances: int, protocol: Protocol = ORIGINAL
) -> dict[str, jax.Array]:
  """Integers and choices from which every metric follows.

  Args:
    output: of the model.
    batch: with `original_target` (bool [b, y, x], zero beyond the image) and `original_size` (int [b, 2]); what it
      says of its rows, `index`, `total` and `cut`, is part of the result.
    max_instances: K.
    protocol: which pixels are compared.

  Returns:
    `intersection` and `union` in pixels of the protocol; `height`, `width` and `area`, of the target, in pixels of the
    original image; `chosen`, the slot with the largest selection logit, k for none; `chosen_iou` and `oracle_iou`, of
    the chosen and of the best raw instance mask with the target, at the model's resolution (0 without instances).
    Of a model that says whether anything is meant, `no_target_probability`, and `raw_union`, with the mask that it
    would have drawn: all else is of an empty one where it says no. Of a protocol that compares boundaries,
    `boundary_intersection` and `boundary_union`.
  """
  truth, size = batch["original_target"], batch["original_size"]
  drawn, true = protocol.masks(output.logits, truth, size)
  predicted = empty_where_nothing(drawn, output.no_target)
  result = {name: batch[name] for name in ("index", "total", "cut") if name in batch}
  result |= _compare(predicted, true, size, protocol) | {
    "height": size[:, 0],
    "width": size[:, 1],
    "area": boundary.count_pixels(boundary.pack(truth)),
    "chosen": jnp.argmax(output.selection_logits, 1).astype(jnp.int32),
  }
  if output.no_target is not None:
    result |= {
      "no_target_probability": jax.nn.sigmoid(output.no_target),
      "raw_union": boundary.count_pixels(boundary.pack(drawn | true)),
    }
  if not max_instances:
    zero = jnp.zeros(truth.shape[0])
    return result | {"chosen_iou": zero, "oracle_iou": zero}
  iou = instances.instance_iou(output.masks, batch["target"])
  chosen_iou = jnp.take_along_axis(
    jnp.pad(iou, ((0, 0), (0, 1))), result["chosen"][:, None], axis=1
  )[:, 0]
  return result | {"chosen_iou": chosen_iou, "oracle_iou": iou.max(1)}


def _compare(
  predicted: Bool[Array, "b y x"],
  true: Bool[Array, "b y x"],
  size: Int[Array, "b 2"],
  protocol: Protocol,
) -> dict[str, Int32[Array, "b"]]:
  """Pixels of the masks, and of their boundaries where the protocol has them, that are in both and in at least one."""
  packed = jnp.stack([boundary.pack(masks) for masks in (predicted, true)], axis=1)
  compared = {"": packed}
  if protocol.boundary:
    compared["boundary_"] = boundary.take_boundaries(packed, size, true.shape[1], true.shape[2])
  result = {}
  for name, pair in compared.items():
    result[f"{name}intersection"] = boundary.count_pixels(pair[:, 0] & pair[:, 1])
    result[f"{name}union"] = boundary.count_pixels(pair[:, 0] | pair[:, 1])
  return result


def summarise(
  columns: Mapping[str, np.ndarray], protocol: Protocol = ORIGINAL
) -> Iterator[tuple[str, int | float]]:
  """Metrics of at least one sentence, as fractions.

  Args:
    columns: a value a sentence of what `count` returns; with `image_id` and `ref_id` the refs are counted, with `cut`
      the texts that were cut.
    protocol: by which they were counted.
  """
  intersection, union = (columns[name].astype(np.int64) for name in ("intersection", "union"))
  iou = protocol.iou(intersection, union)
  yield "expressions", len(iou)
  if "ref_id" in columns:
    yield (
      "refs",
      len(set(zip(columns["image_id"].tolist(), columns["ref_id"].tolist(), strict=True))),
    )
  yield "oIoU", float(intersection.sum() / union.sum()) if union.sum() else protocol.empty
  yield "mIoU", float(iou.mean())
  if "boundary_union" in columns:
    outlines = (columns[f"boundary_{name}"].astype(np.int64) for name in ("intersection", "union"))
    yield "boundary_mIoU", float(protocol.iou(*outlines).mean())
  for threshold in THRESHOLDS:
    yield f"P@{threshold}", float(protocol.reaches(iou, threshold).mean())
  chosen_iou, oracle_iou = (columns[name].astype(float) for name in ("chosen_iou", "oracle_iou"))
  findable = oracle_iou > 0.5
  right = float((chosen_iou[findable] > 0.5).mean()) if findable.any() else 0.0
  yield "selection_accuracy", right
  yield "picked_mIoU", float(chosen_iou.mean())
  yield "oracle_mIoU", float(oracle_iou.mean())
  if "cut" in columns:
    yield "text_cut", float(columns["cut"].mean())


class SegmentationEvaluator:
  """Overall IoU, mean IoU and precision@X; what the instance masks would score.

  `selection_accuracy` is the share of sentences whose chosen instance overlaps the target by IoU > 0.5, among
  those where some instance does. `picked_mIoU` and `oracle_mIoU` are the mean IoU of the chosen and of the best
  raw instance mask: the oracle is the ceiling of any method that only picks a mask.
  """

  def __init__(
    self,
    measure: Callable[[Variables, Batch], dict[str, jax.Array]],
    batches: Callable[[], Iterable[Batch]],
    protocol: Protocol = ORIGINAL,
  ):
    """Takes what runs the model and what it runs on.

    Args:
      measure: as `make_measure` makes it, jitted; where a batch is spread over several processes its results are on
        all of them.
      batches: starts one pass over the sentences, as `loader.eval_batches` does: `index` says which one a row is.
      protocol: by which `measure` counts.
    """
    self._measure = measure
    self._batches = batches
    self._protocol = protocol
    self.rows: dict[str, np.ndarray] = {}
    self.meta: list[dict[str, Any]] = []

  def run(self, variables: Variables) -> Iterator[tuple[str, int | float]]:
    """Yields (name, value).

    Afterwards `rows` holds one row a sentence, in the order of the data, whatever the batches and however many
    processes read them; `meta` has what is known of the sentences that this process read, `index` of each among it.

    Raises:
      InputError: there is no sentence.
      RuntimeError: not every sentence came once.
    """
    results: list[dict[str, Any]] = []
    self.meta = []
    for batch in self._batches():
      self.meta.extend(_known(batch))
      arrays = {name: value for name, value in batch.items() if name != "meta"}
      results.append(self._measure(variables, arrays))
      if len(results) > 1:  # one batch ahead of the device
        results[-2] = jax.device_get(results[-2])
    self.rows = in_order(jax.device_get(results))
    yield from summarise(self.rows, self._protocol)


def _known(batch: Batch) -> Iterator[dict[str, Any]]:
  """What is known of each sentence of a batch, with its number."""
  for row, index in zip(batch.get("meta", []), batch["index"], strict=False):
    if row is not None:
      yield {"index": int(index), **row}


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
