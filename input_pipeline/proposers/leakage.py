"""What a detector was trained on, and whether a split is evaluated on images that it has seen.

Every image of RefCOCO, RefCOCO+, RefCOCOg and gRefCOCO is in COCO train2014, including those of
validation and test splits. A stock COCO detector was trained on all of train2014, with the very
masks that are the targets. COCO 2017 only redistributes the same images and keeps their ids, so
lists of either year can be compared with the ids of refs. PhraseCut uses Visual Genome's images;
some are COCO's, and its list of images has their COCO ids.
"""

import dataclasses
import gzip
import io
import os
import zlib
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from input_pipeline.common import fingerprint, untrusted_files, untrusted_json
from input_pipeline.common.errors import InputError
from input_pipeline.common.terminal import counted

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
_DECLARE = "declare it with `prepare --trained_on` (docs/guides/proposals.md)"
_FORMATS = (
  "a COCO file with `images`; a JSON list of ids, or of rows with `image_id` (at the top level or "
  "under `refs`); or text with one id per line"
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
  """Returns what the masks of a proposer were learned from.

  Args:
    proposer: a `Proposer`, which may have the attribute `trained_on`.
    declared: the user's declaration, None without one. It takes precedence, except for proposers
      that are known not to be detectors.

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
    common = trained_on.image_ids.intersection(of_coco)
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
    return f"what the instance masks were learned from is unknown; {_DECLARE}"
  scope = (
    "these very images (COCO train2014)"
    if of_coco == images
    else f"COCO, which contains {of_coco:,} of these images"
  )
  return (
    "what the detector behind the instance masks was trained on is unknown, and stock detectors "
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
      "the detector behind the instance masks was trained on COCO, which contains all of these "
      f"images and their targets; {_CLEAN}"
    )
  if not of_coco:
    return None
  return (
    "the detector behind the instance masks was trained on COCO, which contains "
    f"{of_coco:,} of these {images:,} images"
  )


def _warn_list(text: str, common: frozenset[int], images: int) -> str:
  few = sorted(common)[:3]
  names = (
    f"image{'s' * (len(few) != 1)} {', '.join(map(str, few))}{' and others' * (common > set(few))}"
  )
  return (
    f"the detector behind the instance masks was trained on {len(common):,} of these {images:,} "
    f"images ({names}) according to {text}; {_CLEAN}"
  )


def provenance(
  proposer: str,
  trained_on: TrainedOn,
  splits: Mapping[str, Collection[int]],
  coco_ids: Mapping[str, Mapping[int, int]] | None = None,
) -> dict[str, Any]:
  """Returns what the metadata of a data set records about its instance masks.

  Args:
    proposer: its name on the command line.
    trained_on: what the masks were learned from.
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


def read_ids(path: str) -> frozenset[int]:
  """Reads a list of COCO image ids, gzipped or not.

  Args:
    path: a COCO file (all its images count, annotated or not), a JSON list of ids or of rows with
      `image_id`, such rows under `refs`, or text with one id per line.

  Raises:
    InputError: the file cannot be read, has another format, or is empty.
  """
  text = _read_text(path)
  try:
    is_json = text.lstrip().startswith(("[", "{"))
    values = _ids_in_json(untrusted_json.loads(text, "the file")) if is_json else _ids_in_text(text)
    ids = frozenset(map(_check_id, values))
  except (KeyError, TypeError, ValueError) as error:
    reason = str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"
    raise InputError(f"{path}: not a list of images ({reason}); it must be {_FORMATS}") from error
  if not ids:
    raise InputError(f"{path}: the list of images is empty; it must be {_FORMATS}")
  return ids


def _read_text(path: str) -> str:
  try:
    data = untrusted_files.read(path, path, untrusted_json.MAX_BYTES)
    # Recognised by its content, not by its name: browsers unpack or rename files.
    if data.startswith(b"\x1f\x8b"):
      with gzip.open(io.BytesIO(data)) as file:
        # The unpacked size may be a thousand times larger.
        data = file.read(untrusted_json.MAX_BYTES + 1)
      if len(data) > untrusted_json.MAX_BYTES:
        raise InputError(
          f"{path}: exceeds the limit of {untrusted_json.MAX_BYTES:,} bytes when unpacked"
        )
    return data.decode("utf-8-sig")
  except (EOFError, zlib.error, gzip.BadGzipFile) as error:
    raise InputError(f"{path}: the gzip file is damaged ({error}); is it complete?") from error
  except UnicodeDecodeError as error:
    raise InputError(f"{path}: not a text file ({error}); it must be {_FORMATS}") from error


def _ids_in_text(text: str) -> list[int]:
  return [int(line) for line in text.splitlines() if line.strip()]


def _ids_in_json(content: Any) -> Iterable[Any]:
  if isinstance(content, dict) and "images" in content:
    return [row["id"] for row in content["images"]]
  rows = content["refs"] if isinstance(content, dict) else content
  return [row["image_id"] if isinstance(row, dict) else row for row in rows]


def _check_id(image_id: Any) -> int:
  if type(image_id) is not int or image_id < 0:
    raise ValueError(f"{image_id!r} is not an image id")
  return image_id
