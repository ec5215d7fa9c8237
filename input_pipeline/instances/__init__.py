"""Where instance masks come from: one protocol, and the providers by name."""

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8

from input_pipeline import records
from input_pipeline.errors import InputError

MAX_INSTANCES = 16
"""Instances kept of an image, unless someone says otherwise: one bit plane."""


@runtime_checkable
class InstanceProvider(Protocol):
  """Proposes instance masks for photos."""

  def propose(
    self, images: Sequence[UInt8[np.ndarray, "_ _ 3"]], image_ids: Sequence[int]
  ) -> list[records.Instances]:
    """Returns the instances of each image, best first, at most as many as the provider was told.

    Args:
      images: RGB, each of its own size.
      image_ids: what the dataset calls them.
    """
    ...


class NoInstances:
  """The provider for those who have no detector: the model works from image and text alone."""

  def propose(
    self, images: Sequence[UInt8[np.ndarray, "_ _ 3"]], image_ids: Sequence[int]
  ) -> list[records.Instances]:
    """Returns no instance for any image."""
    del image_ids
    return [records.no_instances(*image.shape[:2]) for image in images]


def open_provider(spec: str, max_instances: int) -> InstanceProvider:
  """Opens a provider by its name on the command line.

  Args:
    spec: `NAME` or `NAME:ARGUMENT`, such as `coco:instances.json`.
    max_instances: how many instances of an image to keep, best first.

  Raises:
    InputError: there is no such provider, or its argument is wrong.
  """
  name, _, argument = spec.partition(":")
  if name not in PROVIDERS:
    known = ", ".join(sorted(PROVIDERS))
    raise InputError(f"--instances {spec}: no provider of that name; the known ones are {known}")
  return PROVIDERS[name](argument, max_instances)


def _open_coco(argument: str, max_instances: int) -> InstanceProvider:
  from input_pipeline.instances import coco  # Its module imports this package.

  if not argument:
    raise InputError("--instances coco: which file? Write --instances coco:instances.json")
  return coco.CocoInstances(argument, max_instances)


def _open_none(argument: str, max_instances: int) -> InstanceProvider:
  del max_instances
  if argument:
    raise InputError(f"--instances none:{argument}: none takes no argument")
  return NoInstances()


PROVIDERS: dict[str, Callable[[str, int], InstanceProvider]] = {
  "coco": _open_coco,
  "none": _open_none,
}
