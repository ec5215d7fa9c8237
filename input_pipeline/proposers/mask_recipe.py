"""How the instance masks of a data set were made, kept so that new images get masks of that kind.

`prepare` notes it in the metadata of a data set; a run takes it from there.
"""

import dataclasses
import json
import os
import re
import reprlib
from collections.abc import Mapping, Sequence
from typing import Any

from input_pipeline import storage
from input_pipeline.common import fingerprint, places
from input_pipeline.common.errors import InputError
from input_pipeline.proposers import ranking, registry
from input_pipeline.proposers.selection import Selection

KEY = "mask_recipe"
"""Of the metadata of a data set."""
SCENES = "shapes"
"""The `spec` of generated scenes, whose masks a simulated detector makes from what was drawn."""

_LOOKED_UP = ("coco", "custom", "results")
_OF_FILES = ("onnx", *_LOOKED_UP)
# As `proposals propose` and `prepare` write an argument that is a file.
_WITH_SHA256 = re.compile(r"(.*) \(sha256 ([0-9a-f]+)\)", re.DOTALL)
_CONFIG = "config.json"
_MAX_TEXT = 4096


@dataclasses.dataclass(frozen=True)
class MaskRecipe:
  """How instance masks were made.

  Attributes:
    spec: `NAME` or `NAME:ARGUMENT`, as for `--instances`; or `SCENES`.
    content: the fingerprint of the file that the argument names, or of the `config.json` of the
      folder; empty if it names neither.
    selection: which proposals were kept.
  """

  spec: str
  content: str = ""
  selection: Selection = dataclasses.field(default_factory=Selection)

  @property
  def name(self) -> str:
    """The name of the proposer."""
    return self.spec.partition(":")[0]

  @property
  def argument(self) -> str:
    """What follows the name; empty without."""
    return self.spec.partition(":")[2]

  @property
  def looked_up(self) -> bool:
    """Whether the masks were read from a file, which has none of other images."""
    return self.name in _LOOKED_UP

  def open(self) -> registry.SelectingProposer:
    """Opens the proposer, without downloading anything.

    A recipe may come with a model of someone else, so that only this project's own proposers are
    opened: a class of another name could be any function of any package.

    Raises:
      InputError: a package, the weights or the file is missing; the message says what to do.
    """
    if self.name not in registry.PROPOSERS:
      raise InputError(
        f"{self.name} is a class of its own, which is imported only if you name it: --instances "
        f"{self.spec}"
      )
    if self.name == "custom":
      raise InputError("they came with the lines of its data set")
    proposer_class = registry.find_class(self.spec)
    if self.content or self.name in _OF_FILES:
      self._check_content()
    elif missing := getattr(proposer_class, "missing", lambda _: "")(self.argument):
      raise InputError(missing)
    return registry.open_proposer(self.spec, self.selection)

  def _check_content(self) -> None:
    found = _fingerprint(self.argument) if self.content else ""
    if not found or found != self.content:
      problem = "is another file here" if found else "is not here"
      raise InputError(
        f"{self.argument or 'the file'} {problem}; name the one of training: "
        f"--instances {self.name}:PATH"
      )

  def portable(self) -> "MaskRecipe":
    """Returns the recipe without folders of this machine, for a model that others load."""
    if not self.argument or not (self.content or self.name in _OF_FILES):
      return self
    names = (places.name_in(part.rstrip("/")) for part in self.argument.split(","))
    return dataclasses.replace(self, spec=f"{self.name}:{','.join(names)}")

  def to_json(self) -> dict[str, Any]:
    """Returns all fields, for JSON."""
    return dataclasses.asdict(self)


def of_spec(spec: str, selection: Selection) -> MaskRecipe:
  """Returns the recipe of a proposer named on the command line.

  Detection results that `proposals propose` wrote have the recipe of the proposer that made them.

  Args:
    spec: `NAME` or `NAME:ARGUMENT`.
    selection: which proposals are kept.
  """
  name, _, argument = spec.partition(":")
  if name == "results":
    made = [_of_results(path, selection) for path in argument.split(",")]
    if made[0] is not None and all(recipe == made[0] for recipe in made):
      return made[0]
  content = _fingerprint(argument)
  if content:
    spec = f"{name}:{places.absolute(argument)}"
  return MaskRecipe(spec, content, selection)


def _fingerprint(argument: str) -> str:
  """Returns the fingerprint of a file, or of the config in a folder; empty without either."""
  if not argument or "," in argument:  # several files
    return ""
  path = os.path.join(argument, _CONFIG) if os.path.isdir(argument) else argument
  return fingerprint.of_file(path) if places.is_file(path) else ""


def _of_results(path: str, selection: Selection) -> MaskRecipe | None:
  """Returns what `proposals propose` noted in a file of results; None if it did not write it."""
  about = read_about(path)
  try:
    options = dict((about or {})["options"])
    spec = options.pop("instances")
    count = min(int(options.pop("max_instances")), selection.max_instances)
    kept = Selection(max_instances=count, **options)
    match = _WITH_SHA256.fullmatch(spec)
  except (KeyError, TypeError, ValueError):
    return None
  if kept.rank not in ranking.RANKS:
    return None
  return MaskRecipe(match[1], match[2], kept) if match else MaskRecipe(spec, "", kept)


def read_about(path: str) -> dict[str, Any] | None:
  """Returns what `proposals propose` notes in its output; None if it is not there, or another."""
  if not os.path.isfile(path):
    return None
  with open(path, "rb") as file:
    first = file.readline(1 << 16)
  try:
    return json.loads(first.strip().rstrip(b",") + b"}")["info"]
  except (ValueError, KeyError, TypeError):
    return None


def of_metadata(metadata: Mapping[str, Any], dataset: str) -> MaskRecipe | None:
  """Returns the recipe of a prepared data set; None if it is unknown.

  Args:
    metadata: of the data set; before `KEY` was noted, its arguments tell most of it.
    dataset: its name.

  Raises:
    InputError: what is noted is not a recipe.
  """
  if KEY in metadata:
    return from_json(metadata[KEY], f"the metadata of {dataset}")
  if dataset == SCENES:
    return MaskRecipe(SCENES)
  arguments = metadata.get("arguments", {})
  spec = arguments.get("instances")
  if not isinstance(spec, str):
    return None
  match = _WITH_SHA256.fullmatch(spec)
  return MaskRecipe(match[1], match[2]) if match else MaskRecipe(spec)


def of_data_sets(data_dir: str, names: Sequence[str]) -> tuple[MaskRecipe, ...] | None:
  """Returns the different recipes of prepared data sets; None if one is unknown.

  Args:
    data_dir: the folder that `prepare` wrote to.
    names: of the data sets.

  Raises:
    InputError: the metadata of one cannot be read.
  """
  found = [of_metadata(storage.read_metadata(data_dir, name) or {}, name) for name in names]
  known = [recipe for recipe in found if recipe is not None]
  return tuple(dict.fromkeys(known)) if len(known) == len(found) else None


def from_json(data: Any, where: str) -> MaskRecipe:
  """Undoes `MaskRecipe.to_json`.

  Args:
    data: of a file that anyone may have written.
    where: it was read, for errors.

  Raises:
    InputError: it is not a recipe.
  """
  try:
    spec, content, chosen = data["spec"], data["content"], data["selection"]
    selection = Selection(
      max_instances=int(chosen["max_instances"]),
      min_area=float(chosen["min_area"]),
      nms_iou=float(chosen["nms_iou"]),
      rank=chosen["rank"],
    )
    texts = (spec, content, selection.rank)
    valid = all(isinstance(text, str) and len(text) <= _MAX_TEXT for text in texts)
    valid = valid and spec.isprintable() and selection.rank in ranking.RANKS
  except (KeyError, OverflowError, TypeError, ValueError) as error:
    raise _unreadable(where, error) from error
  if not valid:
    raise _unreadable(where, reprlib.repr(data))
  return MaskRecipe(spec, content, selection)


def _unreadable(where: str, reason: object) -> InputError:
  return InputError(f"{where}: how its instance masks were made cannot be read ({reason})")


def all_to_json(recipes: Sequence[MaskRecipe] | None) -> list[dict[str, Any]] | None:
  """Returns the recipes of a model, for JSON; None if they are unknown."""
  return None if recipes is None else [recipe.to_json() for recipe in recipes]


def all_from_json(rows: Any, where: str) -> tuple[MaskRecipe, ...] | None:
  """Reads the recipes of a model, of every data set that it was trained on; None if unknown.

  Args:
    rows: a list, or None.
    where: it was read, for errors.

  Raises:
    InputError: they are not recipes.
  """
  if rows is None:
    return None
  if not isinstance(rows, Sequence) or isinstance(rows, str):
    raise _unreadable(where, reprlib.repr(rows))
  return tuple(from_json(row, where) for row in rows)
