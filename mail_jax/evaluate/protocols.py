"""Definitions of how a prediction is compared with its target: ours, and those of two papers.

The papers' definitions allow a comparison with their numbers; docs/guides/evaluate.md has details.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from input_pipeline.common.errors import InputError
from mail_jax.models.resize import resize_cubic, resize_logits, squash_masks

Masks = tuple[Bool[Array, "b rows cols"], Bool[Array, "b rows cols"]]
# The side of LAVT's input, to which it also resizes targets (arXiv 2112.02244; test.py and
# transforms.py of its code).
LAVT_SIDE = 480
# CRIS takes pixels above this probability (arXiv 2111.15174; engine/engine.py of its code).
CRIS_THRESHOLD = 0.35


@dataclasses.dataclass(frozen=True)
class Protocol:
  """A definition of the metrics.

  Attributes:
    name: as on the command line.
    masks: (logits, targets on a common canvas, their sizes) -> predicted and true masks, of one
      size; both are empty outside the image.
    strict: P@X counts an IoU above X; otherwise, of at least X.
    empty: the IoU of an empty prediction with an empty target.
    boundary: whether boundaries are compared as well.
  """

  name: str
  masks: Callable[[jax.Array, jax.Array, jax.Array], Masks]
  strict: bool = False
  empty: float = 1.0
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
  logits: Float[Array, "b h w"], truth: Bool[Array, "b y x"], size: Int[Array, "b 2"]
) -> Masks:
  # Outside the image the resized logits are 0, so not positive.
  return resize_logits(logits, size, (truth.shape[1], truth.shape[2])) > 0, truth


def _lavt(
  logits: Float[Array, "b h w"], truth: Bool[Array, "b y x"], size: Int[Array, "b 2"]
) -> Masks:
  square = jnp.full_like(size, LAVT_SIDE)
  predicted = resize_logits(logits, square, (LAVT_SIDE, LAVT_SIDE)) > 0
  return predicted, squash_masks(truth, size, LAVT_SIDE)


def _cris(
  logits: Float[Array, "b h w"], truth: Bool[Array, "b y x"], size: Int[Array, "b 2"]
) -> Masks:
  probability = resize_cubic(jax.nn.sigmoid(logits), size, (truth.shape[1], truth.shape[2]))
  return probability > CRIS_THRESHOLD, truth


ORIGINAL = Protocol("original", _original, boundary=True)
PROTOCOLS = {
  protocol.name: protocol
  for protocol in (
    ORIGINAL,
    Protocol("lavt", _lavt, empty=0.0),
    Protocol("cris", _cris, strict=True, empty=0.0),
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
