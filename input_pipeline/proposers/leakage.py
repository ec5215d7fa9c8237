"""What a detector was trained on, and whether a split is evaluated on images that it has seen.

Every image of RefCOCO, RefCOCO+, RefCOCOg and gRefCOCO is in COCO train2014, including those of
validation and test splits. A stock COCO detector was trained on all of train2014, with the very
masks that are the targets. COCO 2017 only redistributes the same images and keeps their ids, so
lists of either year can be compared with the ids of refs. PhraseCut uses Visual Genome's images;
some are COCO's, and its list of images has their COCO ids.
"""

import dataclasses
import itertools
import os
import re
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, BinaryIO

from input_pipeline import image_hashes
from input_pipeline.common import (
  fingerprint,
  image_names,
  json_rows,
  untrusted_files,
  untrusted_json,
)
from input_pipeline.common.errors import InputError
from input_pipeline.common.terminal import counted
from input_pipeline.image_hashes import ImageSet

TRAINED_ON = {
  "unknown": "not declared",
  "nothing": "no training: classical segmentation, no masks, generated scenes",
  "ground-truth": "the masks are the annotations themselves",
  "coco": "COCO of any year, or LVIS, which uses COCO's images: every stock detector",
  "other": "no COCO images: ADE20K, SA-1B and so on",
}
"""What a detector may have been trained on, if it is not a list of images."""

_TRAIN = "train"
_CLEAN = (
  "`python -m input_pipeline.proposals clean-split` writes annotations without them, to train a "
  "new detector"
)
# The lists of a file that are read; rows of `annotations` are ignored.
_SECTIONS = ("images", "refs", "annotations")
_WHOLE = re.compile(r"\d{1,18}(\.0*)?", re.ASCII)
# Size limit of a list of ids or names in bytes.
_MAX_LIST = 256 << 20
_DECLARE = "declare it with `prepare --trained_on` (docs/guides/proposals.md)"
_FORMATS = (
  "a COCO file with `images`; a JSON list of ids, of names, or of rows with `image_id` (at the top "
  "level or under `refs`); or text with one id or file name per line"
)


@dataclasses.dataclass(frozen=True)
class TrainedOn:
  """What a detector was trained on."""

  text: str
  """As in the field `instances_trained_on` of records: a key of TRAINED_ON, or the name, size and
  fingerprint of a list."""
  image_ids: frozenset[int] | None = None
  """COCO ids of the training images, if they are known."""


@dataclasses.dataclass(frozen=True)
class Finding:
  """How many images of a split the detector has seen."""

  images: int
  """Number of images in the split."""
  seen: int | None
  """How many of them the masks were learned from; None if unknown."""
  warning: str | None
  """A sentence to print with every metric of an evaluation split; None if there is no leakage."""

  @property
  def leaks(self) -> bool | None:
    """Whether the split is evaluated with masks learned from its targets; None if unknown."""
    if self.warning is None:
      return False
    return None if self.seen is None else True


def parse(value: str) -> TrainedOn:
  """Parses the value of `--trained_on`, or a proposer's own declaration.

  Args:
    value: a key of TRAINED_ON, or a file for `read_ids`.

  Raises:
    InputError: it is neither, or the file is not a list of images.
  """
  if value in TRAINED_ON:
    return TrainedOn(value)
  if not os.path.isfile(value):
    words = "; ".join(f"{word} ({meaning})" for word, meaning in TRAINED_ON.items())
    raise InputError(
      f"--trained_on {value}: neither a file nor one of {words}. A file lists the images that the "
      "detector was trained on: its COCO annotations, or image ids"
    )
  ids = read_ids(value)
  name, count = os.path.basename(value), counted(len(ids), "image")
  return TrainedOn(f"{name}, {count} (sha256 {fingerprint.of_file(value)})", ids)


def of_proposer(proposer: Any, declared: TrainedOn | None) -> TrainedOn:
  """Returns the training data of a proposer.

  Args:
    proposer: a `Proposer`, which may have the attribute `trained_on`.
    declared: the user's declaration, if any. It takes precedence, except for proposers that are
      known not to be detectors: a list of images is then ignored with a warning.

  Raises:
    InputError: the user declares training data for annotations or for masks without training; or
      the proposer's attribute is not a key of TRAINED_ON.
  """
  own = getattr(proposer, "trained_on", "unknown")
  if declared is None and own not in TRAINED_ON:
    raise InputError(
      f"{type(proposer).__name__}.trained_on is {own!r}, not one of {', '.join(TRAINED_ON)}; "
      "declare the training data with --trained_on"
    )
  if declared is not None and declared.image_ids is not None and own == "nothing":
    print(
      f"warning: --trained_on {declared.text}: ignored, since these instances are not from a "
      "detector",
      file=sys.stderr,
    )
    return TrainedOn(own)
  if declared is not None and declared.text != own and own in ("ground-truth", "nothing"):
    raise InputError(
      f"--trained_on {declared.text}: these instances are not from a detector but `{own}` "
      f"({TRAINED_ON[own]}); remove the option"
    )
  return declared or TrainedOn(own)


def check(
  trained_on: TrainedOn,
  split: str,
  image_ids: Collection[int],
  coco_ids: Collection[int] | None = None,
) -> Finding:
  """Compares a split with the training data of a detector.

  Args:
    trained_on: the training data.
    split: name of the split; for `train`, seen images are expected and cause no warning.
    image_ids: of its images.
    coco_ids: the COCO ids of its images that are COCO's; by default `image_ids`.
  """
  images, of_coco = len(image_ids), image_ids if coco_ids is None else coco_ids
  if trained_on.image_ids is not None:
    # A tool may have derived several images from one COCO image.
    common = [i for i in of_coco if i in trained_on.image_ids]
    seen, warning = len(common), _warn_list(trained_on.text, common, images) if common else None
  else:
    seen, warning = {
      "unknown": (None, _warn_unknown(len(of_coco), images)),
      "nothing": (0, None),
      "ground-truth": (images, _warn_ground_truth()),
      "coco": (len(of_coco), _warn_coco(len(of_coco), images)),
      "other": (0, None),
    }[trained_on.text]
  return Finding(images, seen, warning if split != _TRAIN else None)


def _warn_unknown(of_coco: int, images: int) -> str:
  if images and not of_coco:
    return f"the training data of the instance masks is unknown; {_DECLARE}"
  scope = (
    "exactly these images (COCO train2014)"
    if of_coco == images
    else f"COCO, which contains {of_coco:,} of its images"
  )
  return (
    "the training data of the detector behind the instance masks is unknown, and stock detectors "
    f"were trained on {scope}; {_DECLARE}"
  )


def _warn_ground_truth() -> str:
  return (
    "the instance masks are the annotations themselves, an oracle: the metrics are an upper bound "
    "and not comparable with methods that must find the objects"
  )


def _warn_coco(of_coco: int, images: int) -> str | None:
  if not images or of_coco == images:
    return (
      "the detector behind the instance masks was trained on COCO, which contains all of its "
      f"images and their targets; {_CLEAN}"
    )
  if not of_coco:
    return None
  return (
    "the detector behind the instance masks was trained on COCO, which contains "
    f"{of_coco:,} of its {counted(images, 'image')}"
  )


def _warn_list(text: str, common: Collection[int], images: int) -> str:
  ids = sorted(set(common))
  few = ", ".join(map(str, ids[:3])) + " and others" * (len(ids) > 3)
  names = f"image{'s' * (len(ids) != 1)} {few}"
  return (
    f"the detector behind the instance masks was trained on {len(common):,} of its "
    f"{counted(images, 'image')} ({names}) according to {text}; {_CLEAN}"
  )


def provenance(
  proposer: str,
  trained_on: TrainedOn,
  splits: Mapping[str, Collection[int]],
  coco_ids: Mapping[str, Mapping[int, int]] | None = None,
) -> dict[str, Any]:
  """Returns the metadata of a data set about its instance masks.

  Args:
    proposer: its name on the command line.
    trained_on: the training data.
    splits: image ids per split.
    coco_ids: per split, image id -> COCO id of the images that are COCO's; by default of all.
  """
  findings = {
    split: check(trained_on, split, ids, None if coco_ids is None else coco_ids[split].values())
    for split, ids in splits.items()
  }
  return {
    "instances": {"from": proposer, "trained_on": trained_on.text},
    "leakage": {split: dataclasses.asdict(finding) for split, finding in findings.items()},
  }


def of_scenes(splits: Mapping[str, int]) -> dict[str, Any]:
  """Returns the provenance of generated scenes, given the number of scenes per split."""
  return provenance("shapes", TrainedOn("nothing"), {name: range(n) for name, n in splits.items()})


def of_split(metadata: Mapping[str, Any], dataset: str, split: str) -> dict[str, Any]:
  """Returns what to report about the instance masks of a split.

  Args:
    metadata: of the prepared data set; without an entry the answer is `unknown`.
    dataset: its name; masks of generated scenes were not learned.
    split: one of its splits.

  Returns:
    `from`, `trained_on`, `seen` and `warning`; the last two as in `Finding`.
  """
  source = metadata.get("instances", {})
  finding = metadata.get("leakage", {}).get(split)
  if finding is None:
    trained_on = TrainedOn("nothing" if dataset == "shapes" else "unknown")
    # The result does not depend on the images for either word.
    finding = dataclasses.asdict(check(trained_on, split, ()))
    source = {"from": "unknown", "trained_on": trained_on.text}
  return dict(source) | {key: finding[key] for key in ("seen", "warning")}


def of_model(
  trained_on: Mapping[str, ImageSet] | None, images: ImageSet | None, split: str
) -> dict[str, Any]:
  """Compares the images of a split with the model's own training images.

  Args:
    trained_on: by DATASET/SPLIT; None if unknown.
    images: of the split; None if unknown.
    split: its name; for `train`, seen images are expected and cause no warning.

  Returns:
    The result of `image_hashes.find_seen`, with counts None if unknown, and a `warning` or None.
  """
  if trained_on is None or images is None:
    unknown = (
      "the model does not record its training images"
      if trained_on is None
      else "the records have no hashes of the images; prepare them again with --overwrite"
    )
    finding = {"images": None, "seen": None, "similar": None, "from": []}
    warning = f"the model may have seen these images: {unknown}"
  else:
    finding = image_hashes.find_seen(trained_on, images)
    warning = _warn_seen(finding)
  return finding | {"warning": None if split == _TRAIN else warning}


def _warn_seen(finding: Mapping[str, Any]) -> str | None:
  seen, similar, images = finding["seen"], finding["similar"], finding["images"]
  if not seen and not similar:
    return None
  counts = [f"{seen:,} of {counted(images, 'image')} {'was' if seen == 1 else 'were'} in"] * (
    seen > 0
  )
  counts += [f"{similar:,} of {counted(images, 'image')} look the same as images in"] * (
    similar > 0
  )
  return (
    f"{' and '.join(counts)} the training data of this model ({', '.join(finding['from'])}); train "
    "without them, or do not compare these metrics with those of models trained without them"
  )


def warnings(findings: Mapping[str, Mapping[str, Any]]) -> list[str]:
  """Returns one line per distinct warning, with the names of the splits it applies to.

  Args:
    findings: by the name of a split; only `warning` is read.
  """
  splits: dict[str, list[str]] = {}
  for name, finding in findings.items():
    if finding["warning"] is not None:
      splits.setdefault(finding["warning"], []).append(name)
  return [f"warning: {', '.join(names)}: {warning}" for warning, names in splits.items()]


class CocoImages:
  """The images of a file and their COCO ids.

  Many tools renumber images, so a COCO number in the name takes precedence over the id. In a file
  with such names, images with other names are not COCO images.
  """

  def __init__(self, path: str):
    """Starts an empty list.

    Args:
      path: of the file, for messages.
    """
    self._path = path
    # Ids and COCO numbers in the names.
    self._images: dict[tuple[int, int | None], None] = {}
    # Images with other names: by id, and names without ids.
    self._others: dict[int, str] = {}
    self._other_names: dict[str, None] = {}
    # Ids that some row gives alone; they count even if another row has a name for them.
    self._nameless: set[int] = set()
    self._renumbered: dict[int, str] = {}

  def add(self, image_id: Any, name: str | None = None) -> int:
    """Adds an image and returns its id as an integer.

    Args:
      image_id: an integer, possibly as a float or text.
      name: of its file, if known.

    Raises:
      ValueError: not an id.
    """
    own = whole_number(image_id)
    if own is None:
      raise ValueError(f"{image_id!r} is not an image id")
    number = None if name is None else _coco_number(name)
    self._images[own, number] = None
    if name is None:
      self._nameless.add(own)
    if number is None and name is not None:
      self._others.setdefault(own, name)
    elif number is not None and number != own:
      self._renumbered.setdefault(own, str(name))
    return own

  def add_text(self, text: str) -> None:
    """Adds an image given by its id or by its file's name."""
    if (own := whole_number(text)) is not None:
      self._images[own, None] = None
    elif (number := _coco_number(text)) is not None:
      self._images[number, number] = None
    else:
      self._other_names[text] = None

  def by_id(self) -> dict[int, int | None]:
    """Returns the COCO id of each image by its id in the file; None if not a COCO image.

    Raises:
      InputError: several images share an id.
    """
    has_names = self._has_names()
    found: dict[int, int | None] = {}
    for own, number in self._images:
      if number is None and not (has_names and self._is_other(own)):
        number = own
      if found.setdefault(own, number) != number:
        raise InputError(
          f"{self._path}: image id {own} is used for two images, COCO {found[own]} and {number}; "
          "if files were merged, renumber the ids"
        )
    return found

  def coco_ids(self) -> frozenset[int]:
    """Returns the COCO ids of the images.

    Raises:
      ValueError: there are only names, none of them COCO's.
    """
    if self._other_names and not self._has_names():
      raise ValueError(f"{next(iter(self._other_names))!r} is neither an image id nor a COCO name")
    numbers = {number for _, number in self._images if number is not None}
    own = (i for i, number in self._images if number is None)
    return frozenset(numbers.union(i for i in own if not (numbers and self._is_other(i))))

  def notes(self) -> Iterator[str]:
    """Yields a line for each way in which ids were reinterpreted."""
    total = counted(len(self._images) + len(self._other_names), "image")
    if self._renumbered:
      own, name = next(iter(self._renumbered.items()))
      yield (
        f"{self._path}: {len(self._renumbered):,} of {total} have an id other than COCO's ({own} "
        f"is {name}); the COCO number in the name is used"
      )
    if others := [*self._others.values(), *self._other_names]:
      yield f"{self._path}: {len(others):,} of {total} " + (
        f"do not have a COCO name ({others[0]}) and are not counted as COCO images"
        if self._has_names()
        else f"do not have a COCO name ({others[0]}); their ids are read as COCO ids. If no image "
        "is from COCO, declare `--trained_on other`"
      )

  def _is_other(self, image_id: int) -> bool:
    return image_id in self._others and image_id not in self._nameless

  def _has_names(self) -> bool:
    return any(number is not None for _, number in self._images)


def _coco_number(name: str) -> int | None:
  """Returns COCO's number in a name with or without an extension."""
  number = image_names.coco_number(name)
  return image_names.coco_number(f"{name}.jpg") if number is None else number


def whole_number(value: Any) -> int | None:
  """Returns an id, possibly written as 101.0 or "101", as an integer; None for other values.

  Ids are never rounded, and booleans are not ids.
  """
  if isinstance(value, str) and _WHOLE.fullmatch(value.strip()):
    value = float(value) if "." in value else int(value)
  if isinstance(value, float) and value.is_integer():
    value = int(value)
  return value if type(value) is int and value >= 0 else None


def read_ids(path: str) -> frozenset[int]:
  """Reads the COCO ids of the images that a file lists; prints how other ids were interpreted.

  The file may be gzipped, and of any size.

  Args:
    path: a COCO file (all its images count, annotated or not), a JSON list of ids, of names or of
      rows with `image_id`, such rows under `refs`, or text with one id or file name per line.

  Raises:
    InputError: the file cannot be read, has another format, or is empty.
  """
  images = CocoImages(path)
  try:
    with untrusted_files.open_text(path, path) as file:
      _read_list(file, path, images)
    ids = images.coco_ids()
  except OSError as error:
    raise InputError(f"{path}: {error.strerror or error}") from error
  except (KeyError, TypeError, ValueError) as error:
    if str(error).startswith(path):
      raise
    reason = str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"
    raise InputError(f"{path}: not a list of images ({reason}); it must be {_FORMATS}") from error
  if not ids:
    raise InputError(f"{path}: the list of images is empty; it must be {_FORMATS}")
  for note in images.notes():
    print(f"warning: {note}", file=sys.stderr)
  return ids


def _read_list(file: BinaryIO, path: str, images: CocoImages) -> None:
  text = json_rows.chunks(file)
  first = next(text, b"")
  text = itertools.chain([first], text)
  start = first.lstrip()[:1]
  if start == b"{" or re.match(rb"\s*\[\s*\{", first):
    _read_rows(json_rows.split(text, path, ("", *_SECTIONS)), path, images)
  elif start == b"[":
    for value in untrusted_json.loads(_join(text, path), "the file"):
      _add_value(images, value)
  else:
    if b"\0" in first:
      raise ValueError("not text")
    for line in _join(text, path).decode().splitlines():
      if line.strip():
        images.add_text(line.strip())


def _join(text: Iterable[bytes], path: str) -> bytes:
  data = bytearray()
  for chunk in text:
    data += chunk
    if len(data) > _MAX_LIST:
      raise InputError(f"{path}: exceeds the limit of {_MAX_LIST:,} bytes for a list")
  return bytes(data)


def _read_rows(parts: Iterable[json_rows.Row | bytes], path: str, images: CocoImages) -> None:
  """Adds the images of a COCO file, or the refs or rows of another file."""
  around = bytearray()
  for part in parts:
    if isinstance(part, bytes):
      around += part
    elif part.section == "images":
      row = part.loads(path)
      images.add(row["id"], image_names.name_of_row(row))
    elif part.section != "annotations":
      _add_value(images, part.loads(path))
  content = untrusted_json.loads(bytes(around), "the file", nan_as_none=True)
  lists = [content] if isinstance(content, list) else map(content.get, ("images", "refs"))
  if not any(isinstance(rows, list) for rows in lists):
    raise ValueError("it has no list of `images` or `refs`")


def _add_value(images: CocoImages, value: Any) -> None:
  if isinstance(value, str):
    images.add_text(value)
    return
  if not isinstance(value, dict):
    images.add(value)
    return
  name = image_names.name_of_row(value)
  image_id = value.get("image_id", value.get("id") if name else None)
  if image_id is None and name is None:
    raise KeyError("image_id")
  images.add(image_id, name)
