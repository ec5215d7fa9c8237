"""The same few validation samples, drawn at every evaluation to show what the model learns."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Array, Bool, UInt8
from PIL import Image

from input_pipeline.common import drawing
from mail_jax.distributed import processes, sharding
from mail_jax.models import instances
from mail_jax.models.build import INPUTS, apply_model
from mail_jax.models.mail import MaIL, find_mask

# Smallest longer side of a picture in pixels, for models that see small images.
_SIDE = 288
_KEPT = (*INPUTS, "target", "original_size")


@dataclasses.dataclass(frozen=True)
class Picture:
  """An image with the prediction for an expression.

  Attributes:
    name: of the sample, such as `val/0`.
    pixels: with the prediction in blue, the target's outline in white, the selected instance's
      outline in yellow.
    caption: the expression and the IoU at the model's resolution.
  """

  name: str
  pixels: UInt8[np.ndarray, "h w 3"]
  caption: str


@dataclasses.dataclass(frozen=True)
class Predicted:
  """Samples with their current predictions, at the model's resolution.

  Attributes:
    expressions: of the samples, in the order of the data.
    rows: fields of the batch.
    masks: the predictions.
    chosen: the selected instances; empty for none.
  """

  expressions: list[str]
  rows: dict[str, np.ndarray]
  masks: Bool[np.ndarray, "b s s"]
  chosen: Bool[np.ndarray, "b s s"]

  @property
  def ious(self) -> list[float]:
    """IoU of each prediction with its target; 1 if both are empty."""
    return [_iou(mask, true) for mask, true in zip(self.masks, self.rows["target"], strict=True)]

  @property
  def sizes(self) -> list[list[int]]:
    """Height and width of each original image."""
    return self.rows["original_size"].tolist()


class FixedSamples:
  """Collects samples from the first evaluation, or before it, and predicts and draws them.

  All processes take part and draw the same, no matter which of them read the samples.
  """

  def __init__(
    self, predict: Callable[..., Any], mesh: jax.sharding.Mesh, split: str, count: int, seed: int
  ):
    """Prepares the collection.

    Args:
      predict: of `make_predict`.
      mesh: of the devices.
      split: of the evaluation, for the names.
      count: number of samples; a smaller evaluation has fewer.
      seed: of the choice.
    """
    self._predict, self._mesh, self._split = predict, mesh, split
    self._count, self._seed = count, seed
    self._seen: dict[int, dict[str, np.ndarray]] = {}
    self._expressions: dict[int, str] = {}
    self._rows: dict[str, np.ndarray] | None = None
    self._batch: Any = None

  @property
  def is_complete(self) -> bool:
    """Whether the samples were collected."""
    return bool(self._seen)

  def watch(self, batch: Mapping[str, Any]) -> None:
    """Collects the samples in a batch, during the first evaluation."""
    if self._rows is not None:
      return
    index = np.asarray(batch["index"])
    total = int(np.max(batch.get("total", self._count)))
    wanted = choose(total, self._count, self._seed)
    for row in np.flatnonzero(np.isin(index, wanted)).tolist():
      self._keep(batch, row)

  def _keep(self, batch: Mapping[str, Any], row: int) -> None:
    number = int(batch["index"][row])
    self._seen[number] = {name: np.array(batch[name][row]) for name in _KEPT}
    known = batch["meta"][row] if "meta" in batch else None
    self._expressions[number] = known["expression"] if known else f"expression {number}"

  def take(self, batches: Iterable[Mapping[str, Any]]) -> None:
    """Collects an expression of each of the first images, in place of `watch`.

    Args:
      batches: of an evaluation, of which the first few are read; none on all processes but one.
    """
    rng = np.random.default_rng(self._seed)
    # By image: how many expressions it had, and the one that is kept.
    found: dict[Any, tuple[int, int]] = {}
    for batch in batches:
      for row in np.flatnonzero(np.asarray(batch["index"]) >= 0).tolist():
        number = int(batch["index"][row])
        image = batch["meta"][row]["image_id"] if "meta" in batch else number
        times, kept = found.get(image, (0, number))
        if not times and len(found) == self._count:
          return
        if not rng.integers(times + 1):
          self._seen.pop(kept, None)
          self._expressions.pop(kept, None)
          self._keep(batch, row)
          kept = number
        found[image] = times + 1, kept

  def predict(self, variables: Any) -> Predicted:
    """Predicts the samples; after they were collected, on all processes.

    Args:
      variables: of the model, placed as for the evaluation.
    """
    if self._rows is None:
      self._rows = self._gather()
      self._batch = sharding.on_every_device(
        self._mesh, {name: self._rows[name] for name in INPUTS}
      )
    masks, chosen = jax.device_get(self._predict(variables, self._batch))
    expressions = [self._expressions[number] for number in sorted(self._expressions)]
    return Predicted(expressions, self._rows, masks, chosen)

  def draw(self, variables: Any) -> list[Picture]:
    """Draws the current predictions; see `predict`."""
    now = self.predict(variables)
    return [
      Picture(
        f"{self._split}/{i}",
        render(now.rows["image"][i], now.masks[i], now.rows["target"][i], now.chosen[i], size),
        f"{expression}\nIoU {iou:.2f}",
      )
      for i, (expression, iou, size) in enumerate(
        zip(now.expressions, now.ious, now.sizes, strict=True)
      )
    ]

  def _gather(self) -> dict[str, np.ndarray]:
    """Gathers the samples of all processes, in the order of their numbers."""
    shares = processes.all_gather_object({str(n): text for n, text in self._expressions.items()})
    self._expressions = {int(n): text for share in shares for n, text in share.items()}
    numbers = sorted(self._expressions)
    if jax.process_count() == 1:
      return {name: np.stack([self._seen[n][name] for n in numbers]) for name in _KEPT}
    # Each process contributes its samples, and zeros for the others, whose shapes it may not know.
    shapes = processes.all_gather_object(
      {
        k: [list(v.shape), v.dtype.str]
        for row in list(self._seen.values())[:1]
        for k, v in row.items()
      }
    )
    known = next(shape for shape in shapes if shape)
    own = {name: np.zeros((len(numbers), *known[name][0]), known[name][1]) for name in _KEPT}
    for place, number in enumerate(numbers):
      for name, value in self._seen.get(number, {}).items():
        own[name][place] = value
    holder = [next(i for i, share in enumerate(shares) if str(n) in share) for n in numbers]
    rows = multihost_utils.process_allgather(own)
    return {name: np.asarray(rows[name])[holder, np.arange(len(numbers))] for name in _KEPT}


def choose(total: int, count: int, seed: int) -> np.ndarray:
  """Returns the numbers of the samples, ascending; a seed gives the same ones.

  A random one from each of `count` stretches, because expressions of an image are neighbours.
  """
  edges = np.linspace(0, total, min(count, total) + 1).astype(int)
  return np.random.default_rng(seed).integers(edges[:-1], edges[1:])


def make_predict(model: MaIL, mesh: jax.sharding.Mesh, quick: bool = False) -> Callable[..., Any]:
  """Makes (variables, batch) -> (mask, mask of the selected instance or empty), on every device.

  Every device has the whole batch, so its size need not be a multiple of the devices.

  Args:
    model: the network.
    mesh: of the devices.
    quick: compiles faster on CPUs, a program that is slower.
  """
  quick = quick and mesh.devices.flat[0].platform == "cpu"

  def predict(
    variables: Any, batch: dict[str, Array]
  ) -> tuple[Bool[Array, "b s s"], Bool[Array, "b s s"]]:
    output = apply_model(model, variables, batch)
    masks = find_mask(output.logits, output.no_target)
    best = jnp.argmax(output.selection_logits, 1)
    return masks, instances.take_slot(output.planes, best)

  return jax.jit(
    sharding.traced_on(mesh, predict),
    out_shardings=sharding.replicated(mesh),
    compiler_options={"xla_backend_optimization_level": 0} if quick else None,
  )


def render(
  image: UInt8[np.ndarray, "s s 3"],
  mask: Bool[np.ndarray, "s s"],
  target: Bool[np.ndarray, "s s"],
  chosen: Bool[np.ndarray, "s s"],
  size: tuple[int, int] | list[int],
) -> UInt8[np.ndarray, "h w 3"]:
  """Draws masks of the model's resolution over an image, in its original shape.

  Args:
    image: the model's input, a square.
    mask: the prediction.
    target: the ground truth.
    chosen: the selected instance; empty for none.
    size: height and width of the original image.
  """
  side = image.shape[0] * -(-_SIDE // image.shape[0])
  fitted = drawing.fitting_size(size[0], size[1], side)
  photo = np.asarray(Image.fromarray(image).resize(fitted, Image.Resampling.BICUBIC))
  return drawing.overlay(
    photo,
    drawing.stretch(mask, fitted),
    drawing.stretch(target, fitted),
    drawing.stretch(chosen, fitted) if chosen.any() else None,
  )


def _iou(mask: Bool[np.ndarray, "s s"], target: Bool[np.ndarray, "s s"]) -> float:
  union = int((mask | target).sum())
  return int((mask & target).sum()) / union if union else 1.0
