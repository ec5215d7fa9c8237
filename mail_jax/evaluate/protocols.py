"""How a prediction is compared with its target: our definition, and those of two papers for comparison with theirs.

docs/guides/evaluate.md says what is taken from whom, and what of it is ours.
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
# LAVT's input, to which its targets are resized as well (arXiv 2112.02244; test.py, transforms.py of its code).
LAVT_SIDE = 480
# Above this probability CRIS says that a pixel is the referent's (arXiv 2111.15174; engine/engine.py of its code).
CRIS_THRESHOLD = 0.35


@dataclasses.dataclass(frozen=True)
class Protocol:
  """A definition of the metrics.

  Attributes:
    name: as on the command line.
    masks: (logits, targets on a common canvas, their sizes) -> what is predicted and what is true, of one size; both
      are empty beyond the image.
    strict: P@X counts an IoU above X; else, of X or more.
    empty: the IoU where nothing is predicted and nothing is true.
    boundary: whether outlines are compared as well.
  """

  name: str
  masks: Callable[[jax.Array, jax.Array, jax.Array], Masks]
  strict: bool = False
  empty: float = 1.0
  boundary: bool = False

  def iou(
    self, intersection: Int[np.ndarray, "n"], union: Int[np.ndarray, "n"]
  ) -> Float[np.ndarray, "n"]:
    """Intersection over union of each sentence."""
    return np.where(union > 0, intersection / np.maximum(union, 1), self.empty)

  def reaches(self, iou: Float[np.ndarray, "n"], threshold: float) -> Bool[np.ndarray, "n"]:
    """Which sentences P@X counts, X being the threshold."""
    return iou > threshold if self.strict else iou >= threshold


def _original(
  logits: Float[Array, "b h w"], truth: Bool[Array, "b y x"], size: Int[Array, "b 2"]
) -> Masks:
  # Outside the image the resized logits are 0, so never positive.
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
    InputError: there is none of that name.
  """
  if name not in PROTOCOLS:
    raise InputError(f"--protocol {name}: the protocols are {', '.join(PROTOCOLS)}")
  return PROTOCOLS[name]
