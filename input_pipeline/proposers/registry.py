"""Where instance masks come from: one protocol, the providers by name, and what is kept of what they propose."""

import importlib
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8

from input_pipeline import records
from input_pipeline.common.errors import InputError
from input_pipeline.proposers.selection import Selection, select

PROVIDERS = {
  "coco": "input_pipeline.proposers.coco.CocoInstances",
  "felzenszwalb": "input_pipeline.proposers.felzenszwalb.FelzenszwalbInstances",
  "huggingface": "input_pipeline.proposers.huggingface.HuggingFaceInstances",
  "none": "input_pipeline.proposers.none.NoInstances",
  "onnx": "input_pipeline.proposers.onnx.OnnxInstances",
  "own": "input_pipeline.proposers.custom.OwnInstances",
  "results": "input_pipeline.proposers.results.DetectionResults",
}
"""The class of each provider; its module is imported when it is asked for."""


class UnknownImage(InputError):
  """A provider that looks masks up in a file does not find an image there."""


@runtime_checkable
class InstanceProvider(Protocol):
  """Proposes instance masks for photos.

  A provider is a class whose constructor takes what stands behind the colon of `--instances NAME:ARGUMENT`. It may say
  with an attribute `trained_on` what its masks were learned from: a name that `leakage.py` knows; and with an attribute
  `parallel` that every core may well have a process with one of its own, as when it only looks masks up.
  """

  def propose(
    self, images: Sequence[UInt8[np.ndarray, "_ _ 3"]], image_ids: Sequence[int]
  ) -> list[records.Instances]:
    """Returns the instances of each image: all that there are, in any order, at the image's own size.

    Args:
      images: RGB, each of its own size.
      image_ids: what the data set calls them.

    Raises:
      UnknownImage: it looks masks up, and has none for an image.
    """
    ...


class Selected:
  """A provider whose proposals are sorted and thinned out, the same way whoever made them.

  Attributes:
    provider: the provider itself.
    trained_on: what its masks were learned from, as `leakage.py` names it.
  """

  def __init__(self, provider: InstanceProvider, selection: Selection, trained_on: str = ""):
    """Args: trained_on is what the user says; without, what the provider says of itself."""
    self.provider = provider
    self.trained_on = trained_on or getattr(provider, "trained_on", "unknown")
    self._selection = selection

  def propose(
    self, images: Sequence[UInt8[np.ndarray, "_ _ 3"]], image_ids: Sequence[int]
  ) -> list[records.Instances]:
    """Returns the instances that are kept of each image, best first.

    Raises:
      InputError: the provider cannot make masks for an image, or made them in another size.
    """
    found = self.provider.propose(images, image_ids)
    if len(found) != len(images):
      raise InputError(
        f"{type(self.provider).__name__}.propose gave instances of {len(found)} images for {len(images)}"
      )
    for image, image_id, instances in zip(images, image_ids, found, strict=True):
      if instances.masks.shape[1:] != image.shape[:2]:
        height, width = instances.masks.shape[1:]
        raise InputError(
          f"instances of image {image_id} are {width} x {height} pixels, the image is "
          f"{image.shape[1]} x {image.shape[0]}; masks must have the image's own size"
        )
    return [select(instances, self._selection, self.trained_on) for instances in found]


def open_provider(spec: str, selection: Selection | None = None, trained_on: str = "") -> Selected:
  """Opens a provider by its name on the command line.

  Args:
    spec: `NAME` or `NAME:ARGUMENT`, such as `coco:instances.json`; a name with a dot in it is a class of one's own
      that Python can import, such as `my_detector.MyDetector`.
    selection: which of its proposals to keep; the defaults of `Selection`.
    trained_on: what the masks were learned from, where the user says so.

  Raises:
    InputError: there is no such provider, or its argument is wrong.
  """
  name, _, argument = spec.partition(":")
  path = PROVIDERS.get(name, name)
  if "." not in path:
    known = ", ".join(sorted(PROVIDERS))
    raise InputError(
      f"--instances {spec}: no provider of that name; the known ones are {known}, and a class of your own is "
      "package.module.Class"
    )
  module, _, class_name = path.rpartition(".")
  try:
    made = getattr(importlib.import_module(module), class_name)(argument)
  except (ImportError, AttributeError, TypeError) as error:
    raise InputError(f"--instances {spec}: {path} cannot be used ({error})") from error
  if not isinstance(made, InstanceProvider):
    raise InputError(f"--instances {spec}: {path} has no method propose(images, image_ids)")
  return Selected(made, selection or Selection(), trained_on)
