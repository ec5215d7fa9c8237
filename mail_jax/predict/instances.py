"""Instance masks of an image: from arrays, COCO annotations or a proposer."""

import collections
import os
import threading
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Bool, UInt8

from input_pipeline import preprocess
from input_pipeline.common.errors import InputError
from input_pipeline.proposers import registry
from input_pipeline.proposers.selection import Selection

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
  """Finds the instance masks of images; thread-safe."""

  def __init__(self):
    self._open: collections.OrderedDict[Any, registry.SelectingProposer] = collections.OrderedDict()
    # Detectors need not be thread-safe.
    self._lock = threading.RLock()

  def find(
    self, given: Any, pixels: UInt8[np.ndarray, "h w 3"], file_name: str | None
  ) -> Bool[np.ndarray, "k h w"]:
    """Returns the masks of an image, best score first; empty if nothing is given.

    Args:
      given: one of `InstancesLike`: masks, bool [k, h, w] or of 0 and 1; COCO annotations, a path
        or a dictionary, in which the image is found by its file name or is the only one;
        `NAME:ARGUMENT` as `--instances` takes it; or a proposer.
      pixels: the image.
      file_name: of the image, or None.

    Raises:
      InputError: these are not masks, not masks of this image, or the proposer fails.
    """
    height, width = pixels.shape[:2]
    if given is None or isinstance(given, np.ndarray):
      return preprocess.check_instances(_as_bool(given), height, width)
    # A file of annotations may be of this image alone; `coco:FILE` is for many images.
    for_this = isinstance(given, Mapping) or (_is_path(given) and not _is_spec(given))
    with self._lock:
      proposer = self._proposer(given)
      found = proposer.propose([pixels], [_image_id(proposer.proposer, file_name, for_this)])[0]
    return preprocess.check_instances(found.masks, height, width)

  def _proposer(self, given: Any) -> registry.SelectingProposer:
    if isinstance(given, registry.SelectingProposer):
      return given
    if isinstance(given, Mapping):
      # pycocotools may not be installed.
      from input_pipeline.proposers.coco import CocoProposer

      return registry.SelectingProposer(CocoProposer(given), Selection())
    if _is_path(given):
      name = os.fspath(given)
      return self._named(name if _is_spec(name) else f"coco:{name}")
    if isinstance(given, registry.Proposer):
      return registry.SelectingProposer(given, Selection())
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


def _is_path(given: Any) -> bool:
  return isinstance(given, str | os.PathLike)


def _is_spec(given: Any) -> bool:
  """Returns whether this is `NAME` or `NAME:ARGUMENT` rather than a path."""
  if not isinstance(given, str):
    return False
  return given.partition(":")[0] in registry.PROPOSERS or not given.endswith(".json")


def _image_id(proposer: Any, file_name: str | None, for_this: bool) -> int:
  """Returns the proposer's id of the image; used only by those that look up masks in a file."""
  if not hasattr(proposer, "image_id"):
    return 0
  only = proposer.only_image() if for_this else None
  if only is not None:
    return only
  if file_name is None:
    raise InputError(
      "instances: the image is found by its file name, and it has none; pass the path of the "
      "image, or masks of this image alone"
    )
  return proposer.image_id(os.path.basename(file_name))


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
