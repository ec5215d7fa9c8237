"""Instance masks of the kind that a model was trained with, for images that come without any."""

import threading
from collections.abc import Sequence
from typing import NamedTuple

from input_pipeline.common.errors import InputError
from input_pipeline.proposers import mask_recipe, registry
from input_pipeline.proposers.mask_recipe import MaskRecipe
from input_pipeline.proposers.registry import SelectingProposer

AUTO = "auto"
"""Stands for masks of that kind where a proposer is asked for."""

# Needs no weights, and finds what has a colour of its own, as drawn objects have.
_OF_SCENES = "felzenszwalb"
_WITHOUT = "answered without instance masks, less accurately"
_WAY_OUT = (
  "set --instances to a file with masks of the image, to another proposer, or to none, which is "
  "less accurate"
)


class AutoMasks(NamedTuple):
  """What makes the masks of a model.

  Attributes:
    proposer: None for no masks.
    name: of the proposer, with its argument; empty without.
    note: a line for the user; empty if there is nothing to say.
    looked_up: whether the masks are those of a file, which has none of other images.
  """

  proposer: SelectingProposer | None
  name: str = ""
  note: str = ""
  looked_up: bool = False


class AutoProposer:
  """Opens what makes the masks of a model when it is first needed; thread-safe."""

  def __init__(self, recipes: Sequence[MaskRecipe] | None, uses_masks: bool = True):
    """Stores how the masks were made.

    Args:
      recipes: of the data sets that the model was trained on; None if they are unknown.
      uses_masks: whether the model takes any.
    """
    self._recipes, self._uses_masks = recipes, uses_masks
    self._opened: AutoMasks | None = None
    self._lock = threading.Lock()

  def __call__(self) -> AutoMasks:
    """Returns the first proposer of the training data that works here.

    Raises:
      InputError: the model was trained with masks, and none works; the message says what to do.
    """
    with self._lock:
      if self._opened is None:
        self._opened = self._open()
      return self._opened

  def _open(self) -> AutoMasks:
    if not self._uses_masks:
      return AutoMasks(None)
    if self._recipes is None:
      note = f"the model does not say how its instance masks were made; {_WITHOUT}"
      return AutoMasks(None, note=f"{note}, unless --instances makes them")
    recipes = [recipe for recipe in self._recipes if recipe.spec != "none"]
    # Files have no masks of a new photo.
    recipes.sort(key=lambda recipe: (recipe.spec == mask_recipe.SCENES, recipe.looked_up))
    errors: list[str] = []
    for recipe in recipes:
      if recipe.spec == mask_recipe.SCENES:
        return _of_scenes() if not errors else _fail(recipes[0], errors[0])
      try:
        return AutoMasks(recipe.open(), recipe.spec, looked_up=recipe.looked_up)
      except InputError as error:
        errors.append(str(error))
    return _fail(recipes[0], errors[0]) if errors else AutoMasks(None)


def no_masks(name: str, reason: str) -> registry.UnknownImage:
  """Returns the error for an image of which the file of the training masks has none."""
  return registry.UnknownImage(
    f"the model was trained with the masks of {name}, which has none of this image ({reason}); "
    f"{_WAY_OUT}"
  )


def _of_scenes() -> AutoMasks:
  note = "the model knows drawn scenes only"
  try:
    proposer = registry.open_proposer(_OF_SCENES)
  except InputError as error:
    return AutoMasks(None, note=f"{note}; {_WITHOUT}: {error}")
  return AutoMasks(proposer, _OF_SCENES, f"{note}; {_OF_SCENES} proposes the instance masks")


def _fail(recipe: MaskRecipe, reason: str) -> AutoMasks:
  raise InputError(
    f"the model was trained with instance masks from {recipe.spec}: {reason}; or {_WAY_OUT}"
  )
