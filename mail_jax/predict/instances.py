"""Instance masks of one photo, from whatever a user has: arrays, COCO's annotations, a proposer."""

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

Given = (
  None | np.ndarray | str | os.PathLike | Mapping[str, Any] | registry.Proposer | registry.SelectingProposer
)  # fmt: skip
_OPEN = 4  # proposers that were named are kept open, so many of them


class PhotoInstances:
  """Finds the instance masks of photos; may be called by several threads."""

  def __init__(self):
    self._open: collections.OrderedDict[Any, registry.SelectingProposer] = collections.OrderedDict()
    self._one = threading.RLock()  # nobody promises that a detector can be called twice at a time

  def of(
    self, given: Any, pixels: UInt8[np.ndarray, "h w 3"], file_name: str | None
  ) -> Bool[np.ndarray, "k h w"]:
    """Returns the masks of a photo, best score first; none where nothing is given.

    Args:
      given: one of `Given`: masks, bool [k, h, w] or of 0 and 1; COCO's annotations, a file or what it holds: the
        photo is found in them by its file name, or is their only image; `NAME:ARGUMENT` as `--instances` takes it; or a
        proposer.
      pixels: the photo.
      file_name: of the photo, where it has one.

    Raises:
      InputError: these are no masks, none of this photo, or the proposer cannot make them.
    """
    height, width = pixels.shape[:2]
    if given is None or isinstance(given, np.ndarray):
      return preprocess.check_instances(_as_bool(given), height, width)
    # Whoever names a file of annotations for this photo means its only image; `coco:FILE` is for photos of any name.
    for_this = isinstance(given, Mapping) or (_is_path(given) and not _is_spec(given))
    with self._one:
      proposer = self._proposer(given)
      found = proposer.propose([pixels], [_image_id(proposer.proposer, file_name, for_this)])[0]
    return preprocess.check_instances(found.masks, height, width)

  def _proposer(self, given: Any) -> registry.SelectingProposer:
    if isinstance(given, registry.SelectingProposer):
      return given
    if isinstance(given, Mapping):
      from input_pipeline.proposers.coco import CocoProposer  # pycocotools is not on every machine

      return registry.SelectingProposer(CocoProposer(given), Selection())
    if _is_path(given):
      name = os.fspath(given)
      return self._named(name if _is_spec(name) else f"coco:{name}")
    if isinstance(given, registry.Proposer):
      return registry.SelectingProposer(given, Selection())
    raise InputError(
      f"instances: a {type(given).__name__} is no masks; give an array bool [k, height, width], COCO annotations, "
      "NAME:ARGUMENT as --instances takes it, or a proposer (docs/guides/proposals.md)"
    )

  def _named(self, spec: str) -> registry.SelectingProposer:
    """A proposer by its name, kept open for the next photo; a file that has changed is opened again."""
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
  """Whether it is `NAME` or `NAME:ARGUMENT`, and no path of a file."""
  if not isinstance(given, str):
    return False
  return given.partition(":")[0] in registry.PROPOSERS or not given.endswith(".json")


def _image_id(proposer: Any, file_name: str | None, for_this: bool) -> int:
  """What the proposer calls the photo; only those that look masks up in a file care."""
  if not hasattr(proposer, "image_id"):
    return 0
  only = proposer.only_image() if for_this else None
  if only is not None:
    return only
  if file_name is None:
    raise InputError(
      "instances: the photo is looked for by the name of its file, and it has none; give the path of the photo, or "
      "masks of this photo alone"
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
      f"instances: an array must be bool [k, height, width], or of 0 and 1, not {masks.dtype} {list(masks.shape)}"
    )  # fmt: skip
  return masks != 0
