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
from mail_jax.models.build import Batch, HostBatch, Variables, apply_model
from mail_jax.models.mail import MaIL, Output, empty_without_target

THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)


def make_measure(
  model: MaIL,
  protocol: Protocol = ORIGINAL,
  apply: Callable[[Variables, Batch], Output] | None = None,
) -> Callable[[Variables, Batch], dict[str, jax.Array]]:
  """Returns a function, to be jitted, that runs the model on a batch and counts pixels.

  Args:
    model: the network.
    protocol: that pixels are counted by.
    apply: runs instead of the network, as `LoadedModel.apply` does.
  """
  apply = apply or functools.partial(apply_model, model)

  def measure(variables: Variables, batch: Batch) -> dict[str, jax.Array]:
    return count(apply(variables, batch), batch, model.max_instances, protocol)

  return measure


def jit_measure(
  model: MaIL,
  mesh: Mesh,
  placed: Any,
  protocol: Protocol = ORIGINAL,
  apply: Any = None,
  compiler_options: dict[str, Any] | None = None,
) -> Any:
  """Compiles `make_measure` for a mesh: (variables, batch) -> counts, on every device.

  Args:
    model: the network.
    mesh: of the devices that the batch is spread over.
    placed: sharding of the variables.
    protocol: that pixels are counted by.
    apply: runs instead of the network; see `make_measure`.
    compiler_options: of XLA.
  """
  return jax.jit(
    sharding.traced_on(mesh, make_measure(model, protocol, apply)),
    in_shardings=(placed, sharding.batch_sharding(mesh)),
    out_shardings=sharding.replicated(mesh),
    compiler_options=compiler_options,
  )


def count(
  output: Output, batch: Batch, max_instances: int, protocol: Protocol = ORIGINAL
) -> dict[str, jax.Array]:
  """Counts the pixels from which every metric follows.

  Args:
    output: of the model.
    batch: with `original_target` (bool [b, y, x], zero outside the image) and `original_size` (int
      [b, 2]); `index`, `total` and `cut` are copied to the result.
    max_instances: K.
    protocol: defines the pixels to compare.

  Returns:
    - `intersection` and `union` in pixels of the protocol.
    - `height`, `width` and `area` of the target, in pixels of the original image.
    - `selected`, the slot with the largest selection logit, K for none.
    - `selected_iou` and `oracle_iou`, of the selected and the best raw instance mask with the
      target, at the model's resolution (0 without instances).
    - If the model predicts whether there is a target: `no_target_probability`, and `raw_union`,
      the union with the mask before it was emptied.
    - If the protocol compares boundaries: `boundary_intersection` and `boundary_union`.
  """
  truth, size = batch["original_target"], batch["original_size"]
  drawn, true = protocol.masks(output.tiles, truth, size)
  predicted = empty_without_target(drawn, output.no_target)
  result = {name: batch[name] for name in ("index", "total", "cut") if name in batch}
  result |= _compare(predicted, true, size, protocol) | {
    "height": size[:, 0],
    "width": size[:, 1],
    "area": boundary.count_pixels(boundary.pack(truth)),
    "selected": jnp.argmax(output.selection_logits, 1).astype(jnp.int32),
  }
  if output.no_target is not None:
    result |= {
      "no_target_probability": jax.nn.sigmoid(output.no_target),
      "raw_union": boundary.count_pixels(boundary.pack(drawn | true)),
    }
  if not max_instances:
    zero = jnp.zeros(truth.shape[0])
    return result | {"selected_iou": zero, "oracle_iou": zero}
  iou = instances.instance_iou(output.planes, max_instances, batch["target"])
  selected_iou = jnp.take_along_axis(
    jnp.pad(iou, ((0, 0), (0, 1))), result["selected"][:, None], axis=1
  )[:, 0]
  return result | {"selected_iou": selected_iou, "oracle_iou": iou.max(1)}


def _compare(
  predicted: Bool[Array, "b y x"],
  true: Bool[Array, "b y x"],
  size: Int[Array, "b 2"],
  protocol: Protocol,
) -> dict[str, Int32[Array, "b"]]:
  """Counts the intersection and the union of the masks, and of their boundaries if compared."""
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
  """Yields the metrics of at least one expression, as fractions.

  Args:
    columns: as `count` returns them, one value per expression; refs are counted if `image_id` and
      `ref_id` are present, cut expressions if `cut` is, and instances if `oracle_iou` is.
    protocol: that the pixels were counted by.
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
  if "oracle_iou" in columns:
    selected_iou, oracle_iou = (
      columns[name].astype(float) for name in ("selected_iou", "oracle_iou")
    )
    findable = oracle_iou > 0.5
    right = float((selected_iou[findable] > 0.5).mean()) if findable.any() else 0.0
    yield "selection_accuracy", right
    yield "selected_mIoU", float(selected_iou.mean())
    yield "oracle_mIoU", float(oracle_iou.mean())
  if "cut" in columns:
    yield "text_cut", float(columns["cut"].mean())


class SegmentationEvaluator:
  """Overall IoU, mean IoU and precision@X, and the scores of the raw instance masks.

  `selection_accuracy` is the share of expressions whose selected instance has an IoU > 0.5 with the
  target, among those for which some instance has. `selected_mIoU` and `oracle_mIoU` are the mean
  IoU of the selected and of the best raw instance mask: the oracle is the upper limit of any method
  that only selects a mask.
  """

  def __init__(
    self,
    measure: Callable[[Variables, HostBatch], dict[str, jax.Array]],
    batches: Callable[[], Iterable[HostBatch]],
    protocol: Protocol = ORIGINAL,
  ):
    """Stores the function that runs the model and the source of batches.

    Args:
      measure: as `make_measure` returns it, jitted; if a batch is spread over several processes,
        all of them get the results of all rows.
      batches: starts one pass over the expressions, as `loader.eval_batches` does, with the number
        of each row's expression in `index`.
      protocol: that `measure` counts by.
    """
    self._measure = measure
    self._batches = batches
    self._protocol = protocol
    self.rows: dict[str, np.ndarray] = {}
    self.meta: list[dict[str, Any]] = []

  def run(self, variables: Variables) -> Iterator[tuple[str, int | float]]:
    """Yields (name, value).

    Afterwards `rows` holds one row per expression, in the order of the data, regardless of the
    batches and the number of processes; `meta` describes the expressions that this process read,
    each with its `index`.

    Raises:
      InputError: there are no expressions.
      RuntimeError: an expression is missing or duplicate.
    """
    results: list[dict[str, Any]] = []
    self.meta = []
    for batch in self._batches():
      self.meta.extend(_numbered(batch))
      arrays = {name: value for name, value in batch.items() if name != "meta"}
      results.append(self._measure(variables, arrays))
      # The device always has one more batch to work on.
      if len(results) > 1:
        results[-2] = jax.device_get(results[-2])
    self.rows = in_order(jax.device_get(results))
    yield from summarise(self.rows, self._protocol)


def _numbered(batch: HostBatch) -> Iterator[dict[str, Any]]:
  """Yields the description of each expression of a batch, with its number."""
  for row, index in zip(batch.get("meta", []), batch["index"], strict=False):
    if row is not None:
      yield {"index": int(index), **row}


def in_order(results: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
  """Returns the rows of all batches in the order of the data, without padding.

  Raises:
    InputError: there are no rows.
    RuntimeError: an expression is missing or duplicate.
  """
  if not any((result["index"] >= 0).any() for result in results):
    raise InputError("there are no expressions to evaluate")
  rows = {name: np.concatenate([result[name] for result in results]) for name in results[0]}
  order = np.argsort(rows["index"])
  order = order[rows["index"][order] >= 0]
  rows = {name: values[order] for name, values in rows.items()}
  index = rows.pop("index")
  total = int(rows.pop("total", index + 1).max())
  times = np.bincount(index, minlength=total)
  for problem, wrong in (("are missing", times == 0), ("are duplicate", times > 1)):
    if wrong.any():
      numbers = np.flatnonzero(wrong)
      shown = ", ".join(map(str, numbers[:5])) + (", ..." if len(numbers) > 5 else "")
      raise RuntimeError(
        f"evaluation: {len(numbers)} of {total} expressions {problem}: number {shown}"
      )
  return rows
