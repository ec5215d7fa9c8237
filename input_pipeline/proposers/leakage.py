"""What a detector was trained on, and whether a split is judged on photos that it has seen.

Every photo of RefCOCO, RefCOCO+, RefCOCOg and gRefCOCO is one of COCO train2014, those of val and test too, and a stock
detector was trained on all of train2014 with the very masks that are to be predicted. COCO 2017 only dealt the same
photos out anew: a photo has the same id in both years' files, so lists of either compare with the ids of refs. Of
PhraseCut's photos, which are Visual Genome's, a part is COCO's, and its list of images has their COCO ids.
"""

import dataclasses
import os
from collections.abc import Collection, Mapping
from typing import Any

from input_pipeline import storage
from input_pipeline.common.errors import InputError
from input_pipeline.proposers import image_lists

WORDS = {
  "unknown": "nobody says",
  "nothing": "no training: classical segmentation, no masks, generated scenes",
  "ground-truth": "the masks are the annotations themselves",
  "coco": "COCO of any year, or LVIS, whose photos are COCO's: every stock detector",
  "other": "no photo of COCO: ADE20K, SA-1B and so on",
}
"""What a detector may have been trained on, where it is not a list of images."""

_TRAIN = "train"
_CLEAN = "`python -m input_pipeline.proposals clean-split` writes annotations without them, to train another"
_SAY_SO = "say it with `prepare --trained_on` (docs/guides/proposals.md)"


@dataclasses.dataclass(frozen=True)
class TrainedOn:
  """What a detector was trained on."""

  text: str
  """As records carry it in `instances_trained_on`: one of WORDS, or a list's name, size and fingerprint."""
  image_ids: frozenset[int] | None = None
  """COCO ids of exactly the images that it was trained on, where they are known."""


@dataclasses.dataclass(frozen=True)
class Finding:
  """What is known of the images of one split."""

  images: int
  """How many the split has."""
  seen: int | None
  """How many of them the masks were learned from; None where nobody knows."""
  warning: str | None
  """One sentence to print beside every number of an evaluation split, None where there is nothing to warn of."""

  @property
  def leaks(self) -> bool | None:
    """Whether the split is judged with masks that know its answers; None where nobody knows."""
    if self.warning is None:
      return False
    return None if self.seen is None else True


def parse(what: str) -> TrainedOn:
  """Reads what stands behind `--trained_on`, or what a provider says of itself.

  Args:
    what: one of WORDS, or a file that `image_lists.read_ids` reads.

  Raises:
    InputError: it is neither, or the file is no list of images.
  """
  if what in WORDS:
    return TrainedOn(what)
  if not os.path.isfile(what):
    words = "; ".join(f"{word} ({meaning})" for word, meaning in WORDS.items())
    raise InputError(
      f"--trained_on {what}: neither a file nor one of the words: {words}. A file lists the images "
      "that the detector was trained on: the COCO annotations it was given, or their ids"
    )
  ids = image_lists.read_ids(what)
  name, count = os.path.basename(what), f"{len(ids):,} image{'s' * (len(ids) != 1)}"
  return TrainedOn(f"{name}, {count} (sha256 {storage.fingerprint(what)})", ids)


def of_provider(provider: Any, said: TrainedOn | None) -> TrainedOn:
  """Returns what the masks of a provider were learned from.

  Args:
    provider: an `InstanceProvider`, which may declare it itself.
    said: what the user says, None if nothing; it counts for more, but makes no detector of what is none.

  Raises:
    InputError: the user says of annotations, or of masks that nothing was trained for, that a detector made them; or
      the provider declares what is none of WORDS.
  """
  declared = getattr(provider, "trained_on", "unknown")
  if said is None and declared not in WORDS:
    raise InputError(
      f"{type(provider).__name__}.trained_on is {declared!r}, none of {', '.join(WORDS)}; say with "
      "--trained_on what it was trained on"
    )
  if said is not None and said.text != declared and declared in ("ground-truth", "nothing"):
    raise InputError(
      f"--trained_on {said.text}: no detector made these instances, they are `{declared}` "
      f"({WORDS[declared]}); leave the option out"
    )
  return said or TrainedOn(declared)


def check(
  trained_on: TrainedOn,
  split: str,
  image_ids: Collection[int],
  coco_ids: Collection[int] | None = None,
) -> Finding:
  """Compares a split with what a detector was trained on.

  Args:
    trained_on: what that was.
    split: its name; that the training images are among those of `train` is as it should be.
    image_ids: of its images.
    coco_ids: the COCO ids of those that are COCO's; without, `image_ids` are COCO's.
  """
  images, of_coco = len(image_ids), image_ids if coco_ids is None else coco_ids
  if trained_on.image_ids is not None:
    found = trained_on.image_ids.intersection(of_coco)
    seen, sentence = len(found), _of_list(trained_on.text, found, images) if found else None
  else:
    seen, sentence = {
      "unknown": (None, _of_unknown(len(of_coco), images)),
      "nothing": (0, None),
      "ground-truth": (images, _of_annotations()),
      "coco": (len(of_coco), _of_coco(len(of_coco), images)),
      "other": (0, None),
    }[trained_on.text]
  return Finding(images, seen, sentence if split != _TRAIN else None)


def _of_unknown(of_coco: int, images: int) -> str:
  if images and not of_coco:
    return (
      f"who made the instance masks, and from which photos it was learned, is unknown; {_SAY_SO}"
    )
  photos = (
    "these very photos (COCO train2014)"
    if of_coco == images
    else f"COCO, of which {of_coco:,} of these photos are"
  )
  return (
    "what the detector behind the instance masks was trained on is unknown, and stock detectors were "
    f"trained on {photos}; {_SAY_SO}"
  )


def _of_annotations() -> str:
  return (
    "the instance masks are the annotations themselves, an oracle: read the numbers as a bound, not "
    "beside those of methods that have to find the objects"
  )


def _of_coco(of_coco: int, images: int) -> str | None:
  if of_coco < images:
    return (
      f"the detector behind the instance masks was trained on COCO, and {of_coco:,} of these {images:,} photos are "
      "COCO's"
      if of_coco
      else None
    )
  return (
    "the detector behind the instance masks was trained on COCO, and that is on all of these photos and "
    f"their true masks; {_CLEAN}"
  )


def _of_list(text: str, found: frozenset[int], images: int) -> str:
  few = sorted(found)[:3]
  named = (
    f"image{'s' * (len(few) != 1)} {', '.join(map(str, few))}{' and others' * (found > set(few))}"
  )
  return (
    f"the detector behind the instance masks was trained on {len(found):,} of these {images:,} photos "
    f"({named}) according to {text}; {_CLEAN}"
  )


def provenance(
  provider: str,
  trained_on: TrainedOn,
  splits: Mapping[str, Collection[int]],
  coco_ids: Mapping[str, Collection[int]] | None = None,
) -> dict[str, Any]:
  """Returns what a data set's metadata keeps of its instance masks.

  Args:
    provider: who made them, by its name on the command line.
    trained_on: what they were learned from.
    splits: the ids of the images of each split.
    coco_ids: the COCO ids of those that are COCO's, for each split; without, all of `splits` are.
  """
  found = {
    split: check(trained_on, split, ids, None if coco_ids is None else coco_ids[split])
    for split, ids in splits.items()
  }
  return {
    "instances": {"from": provider, "trained_on": trained_on.text},
    "leakage": {split: dataclasses.asdict(finding) for split, finding in found.items()},
  }


def of_scenes(splits: Mapping[str, int]) -> dict[str, Any]:
  """Returns the provenance of generated scenes, whose instances nobody learned; `splits` has their numbers."""
  return provenance("shapes", TrainedOn("nothing"), {name: range(n) for name, n in splits.items()})


def recall(metadata: Mapping[str, Any], dataset: str, split: str) -> dict[str, Any]:
  """Returns what the numbers of a split have to say of its instance masks.

  Args:
    metadata: of the prepared data set; one that was prepared before this was kept is `unknown`.
    dataset: its name; masks of generated scenes were never learned.
    split: a split of it.

  Returns:
    `from`, `trained_on`, `seen` and `warning`; the last two as in `Finding`.
  """
  source = metadata.get("instances", {})
  there = metadata.get("leakage", {}).get(split)
  if there is None:
    trained_on = TrainedOn("nothing" if dataset == "shapes" else "unknown")
    # Neither word asks which images these are.
    there = dataclasses.asdict(check(trained_on, split, ()))
    source = {"from": "unknown", "trained_on": trained_on.text}
  return dict(source) | {key: there[key] for key in ("seen", "warning")}


def warnings(findings: Mapping[str, Mapping[str, Any]]) -> list[str]:
  """Returns one line for each thing to warn of, with the names of what it is about.

  Args:
    findings: by the name of a split; only their `warning` is read.
  """
  concerned: dict[str, list[str]] = {}
  for name, finding in findings.items():
    if finding["warning"] is not None:
      concerned.setdefault(finding["warning"], []).append(name)
  return [f"warning: {', '.join(names)}: {sentence}" for sentence, names in concerned.items()]
