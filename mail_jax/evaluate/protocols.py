"""Definitions of how a prediction is compared with its target: ours, and those of other papers.

The papers' definitions allow a comparison with their numbers; docs/guides/evaluate.md has details.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from input_pipeline.common.errors import InputError
from mail_jax.models.resize import (
  letterbox_masks,
  letterboxed_size,
  opencv_nearest,
  pillow_nearest,
  resize_cubic,
  resize_logits,
  squash_masks,
  torch_nearest,
)

Masks = tuple[Bool[Array, "b rows cols"], Bool[Array, "b rows cols"]]
# Sides of the papers' inputs, to which they also resize targets, with files of their code.
# LAVT, arXiv 2112.02244: test.py, transforms.py. C3VG, arXiv 2501.06710: configs/C3VG-Mix.py,
# c3vg/apis/test.py, c3vg/models/det_seg/mix_unimodel.py. DeRIS, arXiv 2507.01738: configs/refcoco/,
# deris/apis/test.py. OneRef, arXiv 2410.08021: train_and_eval_script/, datasets/transforms.py,
# utils/eval_utils.py.
LAVT_SIDE, C3VG_SIDE, DERIS_SIDE, ONEREF_SIDE = 480, 320, 384, 384
# CRIS takes pixels above this probability (arXiv 2111.15174; engine/engine.py of its code).
CRIS_THRESHOLD = 0.35


@dataclasses.dataclass(frozen=True)
class Protocol:
  """A definition of the metrics.

  Attributes:
    name: as on the command line.
    masks: (`Output.tiles`, targets on a common canvas, their sizes) -> predicted and true masks, of
      one size; both are empty outside the image.
    fit: resizes a mask of the image's size, on the host, to the pixels that are compared.
    side: of the square that is compared; None for the image's size.
    strict: P@X counts an IoU above X; otherwise, of at least X.
    empty: the IoU of an empty prediction with an empty target.
    boundary: whether boundaries are compared as well.
  """

  name: str
  masks: Callable[[jax.Array, jax.Array, jax.Array], Masks]
  fit: Callable[[Bool[np.ndarray, "h w"]], Bool[np.ndarray, "rows cols"]] = lambda mask: mask
  side: int | None = None
  strict: bool = False
  empty: float = 0.0
  boundary: bool = False

  def iou(
    self, intersection: Int[np.ndarray, "n"], union: Int[np.ndarray, "n"]
  ) -> Float[np.ndarray, "n"]:
    """Returns the intersection over union of each expression."""
    return np.where(union > 0, intersection / np.maximum(union, 1), self.empty)

  def reaches(self, iou: Float[np.ndarray, "n"], threshold: float) -> Bool[np.ndarray, "n"]:
    """Returns which expressions P@X counts, X being the threshold."""
    return iou > threshold if self.strict else iou >= threshold


def _original(
  tiles: Float[Array, "b r c d"], truth: Bool[Array, "b y x"], size: Int[Array, "b 2"]
) -> Masks:
  # Outside the image the resized logits are 0, so not positive.
  return resize_logits(tiles, size, (truth.shape[1], truth.shape[2])) > 0, truth


def _cris(
  tiles: Float[Array, "b r c d"], truth: Bool[Array, "b y x"], size: Int[Array, "b 2"]
) -> Masks:
  probability = resize_cubic(jax.nn.sigmoid(tiles), size, (truth.shape[1], truth.shape[2]))
  return probability > CRIS_THRESHOLD, truth


def _lavt(
  tiles: Float[Array, "b r c d"], truth: Bool[Array, "b y x"], size: Int[Array, "b 2"]
) -> Masks:
  predicted = _squash_logits(tiles, size, LAVT_SIDE) > 0
  return predicted, squash_masks(truth, size, LAVT_SIDE, pillow_nearest)


def _mmdetection(name: str, side: int) -> Protocol:
  """Returns the protocol of C3VG and of the models that share its code."""

  def masks(
    tiles: Float[Array, "b r c d"], truth: Bool[Array, "b y x"], size: Int[Array, "b 2"]
  ) -> Masks:
    predicted = _squash_logits(tiles, size, side) >= 0
    return predicted, squash_masks(truth, size, side, opencv_nearest)

  return Protocol(name, masks, functools.partial(_squash, opencv_nearest, side), side)


def _squash_logits(
  tiles: Float[Array, "b r c d"], size: Int[Array, "b 2"], side: int
) -> Float[Array, "b {side} {side}"]:
  return resize_logits(tiles, jnp.full_like(size, side), (side, side))


def _squash(
  nearest: Callable[[int, int], np.ndarray], side: int, mask: Bool[np.ndarray, "h w"]
) -> Bool[np.ndarray, "{side} {side}"]:
  rows, cols = (_indices(nearest, length, side) for length in mask.shape)
  return mask[rows][:, cols]


@functools.lru_cache(maxsize=1024)
def _indices(nearest: Callable[[int, int], np.ndarray], length: int, side: int) -> np.ndarray:
  return nearest(length, side)[length]


def _oneref(
  tiles: Float[Array, "b r c d"], truth: Bool[Array, "b y x"], size: Int[Array, "b 2"]
) -> Masks:
  # OneRef interpolates what exceeds one half, so that a pixel counts if any neighbour does.
  excess = jax.nn.relu(jax.nn.sigmoid(tiles) - 0.5)
  inner = letterboxed_size(size, ONEREF_SIDE)
  predicted = resize_logits(excess, inner, (ONEREF_SIDE, ONEREF_SIDE)) > 0
  return predicted, letterbox_masks(truth, size, ONEREF_SIDE)


def _letterbox(mask: Bool[np.ndarray, "h w"]) -> Bool[np.ndarray, "384 384"]:
  """Returns a mask in the middle of OneRef's square."""
  size = np.array(mask.shape, np.int32)
  inner = letterboxed_size(size[None], ONEREF_SIDE)[0]
  rows, cols = torch_nearest(size, inner, ONEREF_SIDE)
  top, left = (ONEREF_SIDE - inner) // 2
  square = np.zeros((ONEREF_SIDE, ONEREF_SIDE), bool)
  inside = mask[rows[: inner[0]]][:, cols[: inner[1]]]
  square[top : top + inner[0], left : left + inner[1]] = inside
  return square


ORIGINAL = Protocol("original", _original, empty=1.0, boundary=True)
PROTOCOLS = {
  protocol.name: protocol
  for protocol in (
    ORIGINAL,
    Protocol("lavt", _lavt, functools.partial(_squash, pillow_nearest, LAVT_SIDE), LAVT_SIDE),
    Protocol("cris", _cris, strict=True),
    _mmdetection("c3vg", C3VG_SIDE),
    _mmdetection("deris", DERIS_SIDE),
    Protocol("oneref", _oneref, _letterbox, ONEREF_SIDE),
  )
}


def find(name: str) -> Protocol:
  """Returns a protocol by its name.

  Raises:
    InputError: no such protocol.
  """
  if name not in PROTOCOLS:
    raise InputError(f"--protocol {name}: the protocols are {', '.join(PROTOCOLS)}")
  return PROTOCOLS[name]
