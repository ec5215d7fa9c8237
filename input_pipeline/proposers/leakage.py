"""What a detector was trained on, and whether a split is evaluated on images that it has seen.

Every image of RefCOCO, RefCOCO+, RefCOCOg and gRefCOCO is in COCO train2014, including those of
validation and test splits. A stock COCO detector was trained on all of train2014, with the very
masks that are the targets. COCO 2017 only redistributes the same images and keeps their ids, so
lists of either year can be compared with the ids of refs. PhraseCut uses Visual Genome's images;
some are COCO's, and its list of images has their COCO ids.
"""

import dataclasses
import os
import sys
from collections.abc import Collection, Mapping
from typing import Any

from input_pipeline import image_hashes
from input_pipeline.common import fingerprint, places
from input_pipeline.common.errors import InputError
from input_pipeline.common.terminal import counted
from input_pipeline.image_hashes import ImageSet
from input_pipeline.proposers import image_lists

TRAINED_ON = {
  "unknown": "not declared",
  "nothing": "no training: classical segmentation, no masks, generated scenes",
  "ground-truth": "the masks are the annotations themselves",
  "coco": "COCO of any year, or LVIS, which uses COCO's images: every stock detector",
  "other": "no COCO images: ADE20K, SA-1B and so on",
}
"""What a detector may have been trained on, if it is not a list of images."""

TRAIN = "train"
_CLEAN = (
  "`python -m input_pipeline.proposals clean-split` writes annotations without them, to train a "
  "new detector"
)
_DECLARE = "declare it with `prepare --trained_on` (docs/guides/proposals.md)"


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
    value: a key of TRAINED_ON, or a file for `image_lists.read_ids`.

  Raises:
    InputError: it is neither, or the file is not a list of images.
  """
  if value in TRAINED_ON:
    return TrainedOn(value)
  if not places.is_file(value):
    words = "; ".join(f"{word} ({meaning})" for word, meaning in TRAINED_ON.items())
    raise InputError(
      f"--trained_on {value}: neither a file nor one of {words}. A file lists the images that the "
      "detector was trained on: its COCO annotations, or image ids"
    )
  ids = image_lists.read_ids(value)
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
  return Finding(images, seen, warning if split != TRAIN else None)


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
  return finding | {"warning": None if split == TRAIN else warning}


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
