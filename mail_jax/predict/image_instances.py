"""Finds the instance masks of images, in any form in which they are given."""

import collections
import os
import sys
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, UInt8

from input_pipeline import preprocess
from input_pipeline.common.errors import InputError
from input_pipeline.proposers import registry
from input_pipeline.proposers.registry import SelectingProposer
from input_pipeline.proposers.selection import Selection
from mail_jax.predict import auto_masks
from mail_jax.predict.auto_masks import AUTO, AutoMasks, AutoProposer
from mail_jax.predict.inputs import PredictionInput
from mail_jax.predict.proposal_cache import ProposalCache

InstancesLike = (
  None
  | np.ndarray
  | str
  | os.PathLike
  | Mapping[str, Any]
  | registry.Proposer
  | registry.SelectingProposer
)
# Proposers given by name that are kept open.
_OPEN = 4


class ImageInstances:
  """Finds the instance masks of images; thread-safe.

  Attributes:
    notes: counts of masks of a file that were left out or changed, by kind.
  """

  def __init__(self, auto: AutoProposer | None = None):
    """Opens nothing yet.

    Args:
      auto: stands for `AUTO`; without one, that is an error.
    """
    self.notes: collections.Counter[str] = collections.Counter()
    self._auto, self._said = auto, False
    self._cache = ProposalCache()
    self._open: collections.OrderedDict[Any, registry.SelectingProposer] = collections.OrderedDict()
    # Detectors need not be thread-safe.
    self._lock = threading.RLock()

  def check_images(self, given: Any, items: Sequence[PredictionInput]) -> None:
    """Checks that a file does not assign the same masks to two images.

    Raises:
      InputError: it does.
    """
    with self._lock:
      images = {item.path: (item.path, None, item.image) for item in items}.values()
      registry.check_images(self._proposer(given)[0], images, any_known=False)

  def find(
    self, given: Any, pixels: UInt8[np.ndarray, "h w 3"], path: str | None, name: str = ""
  ) -> Bool[np.ndarray, "k h w"]:
    """Returns the masks of an image, best score first.

    There are none if nothing is given, or if a file has none for the image (counted in `notes`).

    Args:
      given: one of `InstancesLike`: `AUTO` for those that the model was trained with; masks, bool
        [k, h, w] or of 0 and 1; COCO annotations (a path or a dictionary), in which the image is
        found by its file name or is the only one; `NAME:ARGUMENT` as for `--instances`; or a
        proposer.
      pixels: the image.
      path: of the image, or None if it is not a file.
      name: path relative to the folder of images, if known.

    Raises:
      UnknownImage: `AUTO` is a file without masks of the image.
      InputError: not masks, not masks of this image, or the proposer fails.
    """
    height, width = pixels.shape[:2]
    with self._lock:
      looked_up = ""
      if _is_auto(given):
        auto = self.open_auto()
        given, looked_up = auto.proposer, auto.name if auto.looked_up else ""
      if given is None or isinstance(given, np.ndarray):
        return preprocess.check_instances(_as_bool(given), height, width)
      if looked_up:
        return self._look_up(given, looked_up, pixels, path, name)
      masks = self._propose(given, pixels, path, name)
    return preprocess.check_instances(masks, height, width)

  def prefetch(self, given: Any, images: Sequence[UInt8[np.ndarray, "_ _ 3"]]) -> None:
    """Makes the masks of images together, for calls of `find` that follow.

    Does nothing if they are given or read from a file.

    Args:
      given: as for `find`.
      images: the pixels of each.

    Raises:
      InputError: there is no such proposer.
    """
    with self._lock:
      if len(images) < 2:
        return
      given = self.open_auto().proposer if _is_auto(given) else given
      if given is None or isinstance(given, np.ndarray | Mapping):
        return
      proposer, owner = self._proposer(given)
      if not hasattr(proposer.proposer, "find_image"):
        self._cache.fill(proposer, owner, images)

  def open_auto(self) -> AutoMasks:
    """Opens what makes masks for `AUTO`; says once if that differs from training.

    Raises:
      InputError: it does not work here; the message says what to do.
    """
    if self._auto is None:
      raise InputError(f"instances: {AUTO} needs a model")
    with self._lock:
      found = self._auto()
      if found.note and not self._said:
        print(f"instances: {found.note}", file=sys.stderr, flush=True)
        self._said = True
    return found

  def find_auto(
    self, pixels: UInt8[np.ndarray, "h w 3"]
  ) -> tuple[Bool[np.ndarray, "k h w"] | None, str]:
    """Returns the masks of a new image, made as for training, and their source in words.

    None and an empty text for no masks: if training had none, or they are those of a file.

    Raises:
      InputError: what made them is not here, or fails.
    """
    found = self.open_auto()
    if found.proposer is None or found.looked_up:
      return None, ""
    return self.find(AUTO, pixels, None), f"from {found.name.partition(':')[0]}"

  def _look_up(
    self,
    proposer: SelectingProposer,
    file: str,
    pixels: UInt8[np.ndarray, "h w 3"],
    path: str | None,
    name: str,
  ) -> Bool[np.ndarray, "k h w"]:
    """Returns the masks that the file of the training data has of an image.

    Raises:
      UnknownImage: it has none.
    """
    try:
      masks = self._propose(proposer, pixels, path, name)
    except InputError as error:
      raise auto_masks.no_masks(file, str(error)) from error
    if masks is None:
      raise auto_masks.no_masks(file, registry.NO_MASKS)
    return masks

  def _propose(
    self, given: Any, pixels: UInt8[np.ndarray, "h w 3"], path: str | None, name: str
  ) -> Bool[np.ndarray, "k h w"] | None:
    """Returns the masks of a proposer; None if its file has none of the image."""
    # A file of annotations may be of this image alone; `coco:FILE` is for many images.
    for_this = isinstance(given, Mapping) or (_is_path(given) and not is_spec(given))
    proposer, owner = self._proposer(given)
    if not hasattr(proposer.proposer, "find_image"):
      proposals = self._cache.propose(proposer, owner, pixels)
      self.notes.update(proposals.notes)
      return proposals.masks
    try:
      if path is not None:
        registry.check_turn(proposer, path)
      proposals = proposer.propose([pixels], [_image_id(proposer, path, name, for_this)])[0]
    except registry.UnknownImage:
      self.notes[registry.NO_MASKS] += 1
      return None
    self.notes.update(proposals.notes)
    return proposals.masks

  def _proposer(self, given: Any) -> tuple[registry.SelectingProposer, Any]:
    """Returns a proposer, and the object that stands for it in the cache."""
    if isinstance(given, registry.SelectingProposer):
      return given, given
    if isinstance(given, Mapping):
      # pycocotools may not be installed.
      from input_pipeline.proposers.coco import CocoProposer

      return registry.SelectingProposer(CocoProposer(given), Selection()), given
    if _is_path(given):
      name = os.fspath(given)
      proposer = self._named(name if is_spec(name) else f"coco:{name}")
      return proposer, proposer
    if isinstance(given, registry.Proposer):
      return registry.SelectingProposer(given, Selection()), given
    raise InputError(
      "instances: expected masks (bool [k, height, width]), COCO annotations, NAME:ARGUMENT as "
      f"for --instances, or a proposer (docs/guides/proposals.md), got {type(given).__name__}"
    )

  def _named(self, spec: str) -> registry.SelectingProposer:
    """Returns a proposer by its name, kept open for the next image; reopens a file that changed."""
    key: Any = spec
    path = spec.partition(":")[2]
    if os.path.isfile(path):
      status = os.stat(path)
      key = (spec, status.st_mtime_ns, status.st_size)
    if key in self._open:
      self._open.move_to_end(key)
    else:
      self._open[key] = registry.open_proposer(spec)
      while len(self._open) > _OPEN:
        self._open.popitem(last=False)
    return self._open[key]


def _is_auto(given: Any) -> bool:
  return isinstance(given, str) and given == AUTO


def _is_path(given: Any) -> bool:
  return isinstance(given, str | os.PathLike)


def is_spec(given: Any) -> bool:
  """Returns whether this is `NAME` or `NAME:ARGUMENT` rather than a path."""
  if not isinstance(given, str):
    return False
  return given.partition(":")[0] in registry.PROPOSERS or not given.endswith(".json")


def _image_id(
  proposer: registry.SelectingProposer, path: str | None, name: str, for_this: bool
) -> int | str:
  """Returns the proposer's id of the image; used only by those that look up masks in a file."""
  file: Any = proposer.proposer
  if not hasattr(file, "find_image"):
    return 0
  only = file.only_image() if for_this else None
  if only is not None:
    return only
  if path is None:
    raise InputError(
      "instances: the image has no file name to look it up; pass the path of the image, or masks "
      "of this image alone"
    )
  return proposer.find_image(path, None, name)


def _as_bool(masks: np.ndarray | None) -> Bool[np.ndarray, "k h w"] | None:
  if masks is None or (masks.dtype == bool and masks.ndim == 3):
    return masks
  if (
    masks.ndim != 3
    or masks.dtype.kind not in "iu"
    or (masks.size and not 0 <= masks.min() <= masks.max() <= 1)
  ):
    raise InputError(
      f"instances: expected masks, bool [k, height, width] or of 0 and 1, got {masks.dtype} "
      f"{list(masks.shape)}"
    )
  return masks != 0
