"""The masks that proposers made of the last images, so that a second expression costs no proposal.

Images are told apart by their pixels: a photo may come under any name, or without one.
"""

import collections
import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, UInt8

from input_pipeline.common.errors import InputError
from input_pipeline.proposers.registry import SelectingProposer

Image = UInt8[np.ndarray, "_ _ 3"]

_MAX_BYTES = 2**27
# Kept regardless of their size.
_FEW = 8


class Proposals(NamedTuple):
  """The masks of an image.

  Attributes:
    masks: best first.
    notes: kinds of masks that were left out or changed.
  """

  masks: Bool[np.ndarray, "k h w"]
  notes: tuple[str, ...]


class _Entry(NamedTuple):
  bits: UInt8[np.ndarray, "k n"]
  shape: tuple[int, ...]
  notes: tuple[str, ...]
  owner: Any
  """Keeps the `id` in the key from being another object's."""


class ProposalCache:
  """Runs proposers on images that are not known yet; callers take turns."""

  def __init__(self, max_bytes: int = _MAX_BYTES):
    """Creates an empty cache.

    Args:
      max_bytes: of masks, one bit per pixel; the ones that were not used for longest go first.
    """
    self._max_bytes, self._bytes = max_bytes, 0
    self._entries: collections.OrderedDict[Any, _Entry] = collections.OrderedDict()

  def propose(self, proposer: SelectingProposer, owner: Any, image: Image) -> Proposals:
    """Returns the masks of an image.

    Args:
      proposer: that makes them, from the pixels alone.
      owner: an object that stands for the proposer and its options.
      image: RGB.

    Raises:
      InputError: the proposer fails.
    """
    key = _key(owner, image)
    if key not in self._entries:
      self._add([key], proposer, owner, [image])
    self._entries.move_to_end(key)
    entry = self._entries[key]
    pixels = entry.shape[1] * entry.shape[2]
    masks = np.unpackbits(entry.bits, axis=1, count=pixels).astype(bool).reshape(entry.shape)
    return Proposals(masks, entry.notes)

  def fill(self, proposer: SelectingProposer, owner: Any, images: Sequence[Image]) -> None:
    """Makes the masks of images together, for calls of `propose` that follow.

    If the proposer fails on one of them, nothing is added: `propose` tells which.
    """
    new = {key: image for image in images if (key := _key(owner, image)) not in self._entries}
    try:
      self._add(list(new), proposer, owner, list(new.values()))
    except InputError:
      return

  def _add(
    self, keys: Sequence[Any], proposer: SelectingProposer, owner: Any, images: Sequence[Image]
  ) -> None:
    if not keys:
      return
    for key, found in zip(keys, proposer.propose(images, [0] * len(images)), strict=True):
      masks = found.masks
      bits = np.packbits(masks.reshape(len(masks), masks.shape[1] * masks.shape[2]), axis=1)
      self._entries[key] = _Entry(bits, masks.shape, tuple(found.notes), owner)
      self._bytes += bits.nbytes
    while self._bytes > self._max_bytes and len(self._entries) > max(_FEW, len(keys)):
      self._bytes -= self._entries.popitem(last=False)[1].bits.nbytes


def _key(owner: Any, image: Image) -> Any:
  digest = hashlib.blake2b(np.ascontiguousarray(image).data, digest_size=16).digest()
  return id(owner), image.shape, digest
