"""The same few sentences of the validation split, drawn at every evaluation: one sees the model learn them."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Array, Bool, UInt8
from PIL import Image

from input_pipeline.common import drawing
from mail_jax.distributed import processes, sharding
from mail_jax.models.build import apply_model
from mail_jax.models.mail import MaIL, find_mask

# Pixels of the longer side of a picture, at least: a model may see photos of 96.
_SIDE = 288
_READ = ("image", "instances", "num_instances", "tokens", "num_tokens")
_KEPT = (*_READ, "target", "original_size")


@dataclasses.dataclass(frozen=True)
class Picture:
  """A photo with what the model says of a sentence.

  Attributes:
    name: which of the samples it is, such as `val/0`.
    pixels: the prediction in blue, the outline of the target in white, that of the chosen instance in yellow.
    caption: the sentence and the IoU, at the model's resolution.
  """

  name: str
  pixels: UInt8[np.ndarray, "h w 3"]
  caption: str


class FixedSamples:
  """Keeps rows of the first evaluation as they pass, and draws them with any variables.

  With several processes every one of them takes part, whichever read the rows; all draw the same.
  """

  def __init__(
    self, predict: Callable[..., Any], mesh: jax.sharding.Mesh, split: str, count: int, seed: int
  ):
    """Takes what runs the model.

    Args:
      predict: of `make_predict`.
      mesh: of the devices.
      split: that is evaluated; for the names.
      count: of samples; fewer where the evaluation has no more.
      seed: chooses them.
    """
    self._predict, self._mesh, self._split = predict, mesh, split
    self._count, self._seed = count, seed
    self._seen: dict[int, dict[str, np.ndarray]] = {}
    self._sentences: dict[int, str] = {}
    self._rows: dict[str, np.ndarray] | None = None
    self._batch: Any = None

  def watch(self, batch: Mapping[str, Any]) -> None:
    """Keeps the rows of a batch that are among the samples; after the first evaluation it looks at none."""
    if self._rows is not None:
      return
    index = np.asarray(batch["index"])
    total = int(np.max(batch.get("total", self._count)))
    wanted = choose(total, self._count, self._seed)
    for row in np.flatnonzero(np.isin(index, wanted)):
      number = int(index[row])
      self._seen[number] = {name: np.array(batch[name][row]) for name in _KEPT}
      known = batch["meta"][row] if "meta" in batch else None
      self._sentences[number] = known["expression"] if known else f"sentence {number}"

  def draw(self, variables: Any) -> list[Picture]:
    """What the model says now; after a whole evaluation, on all processes.

    Args:
      variables: of the model, where the evaluation has them.
    """
    if self._rows is None:
      self._rows = self._gather()
      self._batch = sharding.on_every_device(self._mesh, {name: self._rows[name] for name in _READ})
    masks, chosen = jax.device_get(self._predict(variables, self._batch))
    numbers = sorted(self._sentences)
    return [
      Picture(
        f"{self._split}/{i}",
        render(self._rows["image"][i], masks[i], self._rows["target"][i], chosen[i], size),
        f"{self._sentences[number]}\nIoU {_iou(masks[i], self._rows['target'][i]):.2f}",
      )
      for i, (number, size) in enumerate(
        zip(numbers, self._rows["original_size"].tolist(), strict=True)
      )
    ]

  def _gather(self) -> dict[str, np.ndarray]:
    """The rows of all processes, in the order of their numbers."""
    said = processes.all_gather_object({str(n): text for n, text in self._sentences.items()})
    self._sentences = {int(n): text for one in said for n, text in one.items()}
    numbers = sorted(self._sentences)
    if jax.process_count() == 1:
      return {name: np.stack([self._seen[n][name] for n in numbers]) for name in _KEPT}
    # Everyone gives what it has at its place and zeros elsewhere, in shapes that it may have to learn from others.
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
    holder = [next(i for i, one in enumerate(said) if str(n) in one) for n in numbers]
    rows = multihost_utils.process_allgather(own)
    return {name: np.asarray(rows[name])[holder, np.arange(len(numbers))] for name in _KEPT}


def choose(total: int, count: int, seed: int) -> np.ndarray:
  """Numbers of the samples, of `total` sentences; ascending, the same for the same seed.

  One by chance of each of `count` stretches of the data: sentences of a photo stand together.
  """
  edges = np.linspace(0, total, min(count, total) + 1).astype(int)
  return np.random.default_rng(seed).integers(edges[:-1], edges[1:])


def make_predict(model: MaIL, mesh: jax.sharding.Mesh) -> Callable[..., Any]:
  """Makes (variables, batch) -> (mask, mask of the chosen instance, empty where none is), on every device.

  The batch is the same on all of them: it is small, and need not divide by how many there are.
  """

  def predict(
    variables: Any, batch: dict[str, Array]
  ) -> tuple[Bool[Array, "b s s"], Bool[Array, "b s s"]]:
    output = apply_model(model, variables, batch)
    masks = find_mask(output.logits, output.no_target)
    if not model.max_instances:
      return masks, jnp.zeros_like(masks)
    none = jnp.zeros_like(output.masks[:, :1])
    instances = jnp.concatenate([output.masks, none], 1)
    best = jnp.argmax(output.selection_logits, 1)
    return masks, jnp.take_along_axis(instances, best[:, None, None, None], 1)[:, 0]

  return jax.jit(sharding.traced_on(mesh, predict), out_shardings=sharding.replicated(mesh))


def render(
  image: UInt8[np.ndarray, "s s 3"],
  mask: Bool[np.ndarray, "s s"],
  target: Bool[np.ndarray, "s s"],
  chosen: Bool[np.ndarray, "s s"],
  size: tuple[int, int] | list[int],
) -> UInt8[np.ndarray, "h w 3"]:
  """Draws the masks over the photo, all of them as the model has them, in the shape that the photo had.

  Args:
    image: as the model sees it, a square.
    mask: predicted.
    target: the truth.
    chosen: the instance that is; empty for none.
    size: height and width of the photo.
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
