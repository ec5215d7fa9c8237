"""Cross-fitted masks: those of a training image come from a detector that was trained without it.

Detectors know the images that they were trained on, so their masks of these are better than any
that they make later, and a model trained with them trusts masks too much. With N folds there are
N + 1 detectors: number i is trained without the images of fold i and makes the masks of these, and
one trained on all of train makes those of the other splits. Its files and models have names in
which `{fold}` stands for the number, or for `all`.
"""

from collections.abc import Collection, Mapping

from input_pipeline.common.errors import InputError
from input_pipeline.proposers import leakage
from input_pipeline.proposers.leakage import Finding, TrainedOn

PLACE = "{fold}"
"""Stands for the name of a fold."""
ALL = "all"
"""Instead of a fold: the images of all splits but train."""


def names(folds: int | None) -> list[str]:
  """Returns what replaces `PLACE`: the numbers of the folds, and `all`; without folds, nothing."""
  return [*map(str, range(1, folds + 1)), ALL] if folds else [""]


def name_of(coco_id: int, folds: int | None) -> str:
  """Returns the fold of a training image; empty without folds."""
  return str(1 + coco_id % folds) if folds else ""


def fold_of(
  split: str, image_id: int, coco_ids: Mapping[str, Mapping[int, int]], folds: int | None
) -> str:
  """Returns the fold of an image, by its COCO id if it has one: the same in all data sets.

  Args:
    split: of the image; those of other splits than train are in `ALL`.
    image_id: its own id.
    coco_ids: for each split, image id -> COCO id.
    folds: their number, if any.
  """
  if folds and split != leakage.TRAIN:
    return ALL
  return name_of(coco_ids.get(split, {}).get(image_id, image_id), folds)


def fill(text: str, fold: str) -> str:
  """Returns an option with the name of a fold in its place."""
  return text.replace(PLACE, fold)


def check_number(folds: int | None, text: str, option: str) -> None:
  """Checks `--folds` against an option that names the files or models of the folds.

  Raises:
    InputError: too few folds, or one of both is missing.
  """
  if folds is not None and folds < 2:
    raise InputError(f"--folds {folds}: must be at least 2")
  if folds is None and PLACE in text:
    raise InputError(f"{option} {text}: {PLACE} needs --folds N")
  if folds is not None and PLACE not in text:
    raise InputError(
      f"--folds {folds}: {option} {text} must name a file for each fold, with {PLACE} for 1 to "
      f"{folds} and {ALL}, such as detections_{PLACE}.json"
    )


def check_unseen(
  trained_on: Mapping[str, TrainedOn],
  image_ids: Collection[int],
  coco_ids: Mapping[str, Mapping[int, int]],
) -> Finding:
  """Returns the finding about train, whose masks its own detectors must not have learned from.

  Args:
    trained_on: the training data of each fold's detector.
    image_ids: of the images of train.
    coco_ids: for each split, image id -> COCO id.

  Raises:
    InputError: a detector was trained on images that it makes masks of.
  """
  count, unknown = len(trained_on) - 1, False
  for fold, known in trained_on.items():
    ids = [i for i in image_ids if fold_of(leakage.TRAIN, i, coco_ids, count) == fold]
    of_coco = [known_id for i in ids if (known_id := coco_ids[leakage.TRAIN].get(i)) is not None]
    finding = leakage.check(known, leakage.TRAIN, ids, of_coco)
    if finding.seen:
      raise InputError(
        f"--folds {count}: the detector of fold {fold} was trained on {finding.seen:,} of the "
        f"{len(ids):,} images whose masks it makes, according to {known.text}; train it on what "
        "`python -m input_pipeline.proposals clean-split --folds` writes"
      )
    unknown |= finding.seen is None
  return Finding(len(image_ids), None if unknown else 0, None)
