"""The protocol of proposers, their names, and the selection that all of them share.

To add a proposer, write a class with the methods of `Proposer` in a module of this folder, add a
line to `PROPOSERS`, and describe it in docs/guides/proposals.md. A class outside this project needs
no line: users name it as `package.module.Class`.
"""

import importlib
import os
from collections.abc import Iterable, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8

from input_pipeline import preprocess, records
from input_pipeline.common import buckets, untrusted_files
from input_pipeline.common.errors import InputError
from input_pipeline.proposers.selection import Selection, select

PROPOSERS = {
  "coco": "input_pipeline.proposers.coco.CocoProposer",
  "custom": "input_pipeline.proposers.custom.CustomProposer",
  "felzenszwalb": "input_pipeline.proposers.felzenszwalb.FelzenszwalbProposer",
  "huggingface": "input_pipeline.proposers.huggingface.HuggingFaceProposer",
  "none": "input_pipeline.proposers.registry.EmptyProposer",
  "onnx": "input_pipeline.proposers.onnx.OnnxProposer",
  "results": "input_pipeline.proposers.results.ResultsProposer",
}
"""Name on the command line -> class; its module is only imported when it is used."""

NO_MASKS = "image without masks in the file"
"""The note on an image without an entry in the proposer's file."""


class UnknownImage(InputError):
  """A proposer that reads masks from a file found no entry for an image."""


@runtime_checkable
class Proposer(Protocol):
  """Proposes instance masks for images.

  The constructor takes the text after the colon of `--instances NAME:ARGUMENT`. Two attributes are
  optional: `trained_on`, the training data, one of `leakage.TRAINED_ON`; and `parallel`, whether
  several processes may each have a proposer, as when it only reads files. A proposer that reads
  masks from a file may have the method `find_image(path, image_id, name)`, which returns the file's
  id of an image; see `SelectingProposer.find_image`.
  """

  def propose(
    self, images: Sequence[UInt8[np.ndarray, "_ _ 3"]], image_ids: Sequence[int]
  ) -> list[records.Instances]:
    """Returns all proposals for each image, in any order, at the image's own size.

    Args:
      images: RGB, each of its own size.
      image_ids: their ids in the data set.

    Raises:
      UnknownImage: the proposer reads masks from a file, which has no entry for an image.
    """
    ...


class SelectingProposer:
  """A proposer whose proposals are sorted and filtered by the same rules for all proposers.

  Attributes:
    proposer: the unfiltered proposer.
    trained_on: what its masks were learned from, as in `leakage.TrainedOn.text`.
  """

  def __init__(self, proposer: Proposer, selection: Selection, trained_on: str = ""):
    """Wraps a proposer.

    Args:
      proposer: the unfiltered proposer.
      selection: the rules that sort and filter its proposals.
      trained_on: the user's declaration; by default the proposer's own.
    """
    self.proposer = proposer
    self.trained_on = trained_on or getattr(proposer, "trained_on", "unknown")
    self._selection = selection

  def find_image(self, path: str, image_id: int | None = None, name: str = "") -> int | str:
    """Returns the proposer's id of an image.

    Args:
      path: of the image.
      image_id: its id in the data set, if known.
      name: path relative to the folder of images, if known.

    Raises:
      UnknownImage: the proposer reads masks from a file that has no entry for the image.
      InputError: several images match, or the id belongs to another image.
    """
    find = getattr(self.proposer, "find_image", None)
    if find is not None:
      return find(path, image_id, name)
    return 0 if image_id is None else image_id

  def propose(
    self, images: Sequence[UInt8[np.ndarray, "_ _ 3"]], image_ids: Sequence[int | str]
  ) -> list[records.Instances]:
    """Returns the selected instances of each image, best first.

    Raises:
      InputError: the proposer failed on an image, or returned masks of another size.
    """
    proposals = self.proposer.propose(images, image_ids)  # pyright: ignore[reportArgumentType]
    if len(proposals) != len(images):
      raise InputError(
        f"{type(self.proposer).__name__}.propose returned proposals for {len(proposals)} images, "
        f"expected {len(images)}"
      )
    for image, image_id, instances in zip(images, image_ids, proposals, strict=True):
      if instances.masks.shape[1:] != image.shape[:2]:
        height, width = instances.masks.shape[1:]
        raise InputError(
          f"proposals for image {image_id} are {width} x {height} pixels, but the image is "
          f"{image.shape[1]} x {image.shape[0]}; masks must have the size of their image"
        )
    return [select(instances, self._selection, self.trained_on) for instances in proposals]


def check_images(
  proposer: SelectingProposer, images: Iterable[tuple[str, int | None, str]], *, any_known: bool
) -> None:
  """Checks that a file has masks of these images, and no two images share an entry.

  Args:
    proposer: one that reads masks from a file; others pass.
    images: the arguments of `find_image` for each image.
    any_known: whether a file with masks must contain at least one of the images.

  Raises:
    InputError: a check fails.
  """
  if not hasattr(proposer.proposer, "find_image"):
    return
  found: dict[int | str, str] = {}
  errors: list[InputError] = []
  for path, image_id, name in images:
    try:
      entry = proposer.find_image(path, image_id, name)
    except InputError as error:
      errors.append(error)  # reported when the image itself is processed
      continue
    other = found.setdefault(entry, path)
    if other != path:
      raise InputError(
        f"{other} and {path} both match image {entry} and would get the same masks; rename one, or "
        "provide masks for each"
      )
  if any_known and errors and not found and not getattr(proposer.proposer, "is_empty", False):
    raise InputError(f"no masks for any of the {len(errors):,} images; {errors[0]}")


def check_turn(proposer: SelectingProposer, path: str) -> None:
  """Checks that the orientation of a file's masks is known if EXIF rotates the image.

  Some tools write masks for the stored pixels, others for the upright image. After a quarter turn
  the size distinguishes them; for mirrored, upside-down or square images nothing does.

  Args:
    proposer: one that reads masks from a file; others pass.
    path: of the image, which is used upright.

  Raises:
    InputError: the orientation is ambiguous.
  """
  if not hasattr(proposer.proposer, "find_image") or (
    not buckets.is_remote(path) and not os.path.isfile(path)
  ):
    return
  with untrusted_files.open_file(path, path) as file, preprocess.open_header(file) as image:
    orientation, (width, height) = preprocess.read_orientation(image), image.size
  if orientation in (2, 3, 4) or (orientation > 4 and width == height):
    raise InputError(
      f"image {path}: EXIF rotates it (orientation {orientation}), and its size does not tell "
      "whether the masks are for the stored or the upright pixels; remove the orientation if they "
      "are for the stored ones, save the image upright if not"
    )


def find_class(spec: str) -> type:
  """Returns the class of a proposer by its name on the command line.

  Raises:
    InputError: there is no such proposer, or it lacks a package.
  """
  name = spec.partition(":")[0]
  path = PROPOSERS.get(name, name)
  if "." not in path:
    raise InputError(
      f"--instances {spec}: unknown proposer; use one of {', '.join(sorted(PROPOSERS))}, or "
      "package.module.Class for a class of your own"
    )
  module, _, class_name = path.rpartition(".")
  try:
    return getattr(importlib.import_module(module), class_name)
  except (ImportError, AttributeError) as error:
    raise InputError(f"--instances {spec}: {path} cannot be used ({error})") from error


def open_proposer(
  spec: str, selection: Selection | None = None, trained_on: str = ""
) -> SelectingProposer:
  """Opens a proposer by its name on the command line.

  Args:
    spec: `NAME` or `NAME:ARGUMENT`, such as `coco:instances.json`; a name with a dot is a class
      that Python can import, such as `my_detector.MyDetector`.
    selection: which proposals are kept; `Selection()` by default.
    trained_on: what the masks were learned from, if the user declares it.

  Raises:
    InputError: there is no such proposer, or its argument is invalid.
  """
  name, _, argument = spec.partition(":")
  path, made_by = PROPOSERS.get(name, name), find_class(spec)
  try:
    proposer = made_by(argument)
  except (ImportError, AttributeError, TypeError) as error:
    raise InputError(f"--instances {spec}: {path} cannot be used ({error})") from error
  if not isinstance(proposer, Proposer):
    raise InputError(f"--instances {spec}: {path} has no method propose(images, image_ids)")
  return SelectingProposer(proposer, selection or Selection(), trained_on)


class EmptyProposer:
  """Proposes nothing."""

  trained_on = "nothing"
  parallel = True

  def __init__(self, argument: str = ""):
    """Takes no argument."""
    if argument:
      raise InputError(f"--instances none:{argument}: none does not take an argument")

  def propose(
    self, images: Sequence[UInt8[np.ndarray, "_ _ 3"]], image_ids: Sequence[int]
  ) -> list[records.Instances]:
    """Returns no proposals for each image."""
    del image_ids
    return [records.no_instances(*image.shape[:2]) for image in images]
