"""Photos of evaluation splits, which are left out of training: `config.exclude`.

A photo is found by its COCO id, by its bytes and by its looks (`image_hashes`).
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from input_pipeline import image_hashes, storage
from input_pipeline.common.errors import InputError
from input_pipeline.common.terminal import counted
from input_pipeline.image_hashes import ImageSet

AUTO = "auto"
"""Word of `config.exclude` for all evaluation splits of the data sets of a mixture; nothing for a
single data set, which is used as it was published."""

_TRAIN = "train"
_OFF = "config.exclude=()"


@dataclasses.dataclass(frozen=True)
class LeftOut:
  """What is left out of a train split.

  Attributes:
    image_ids: of the images, ascending.
    images: of the split, all of them.
    same: how many have the same COCO id or bytes as an evaluated image; the others look the same.
    kept: hashes of the rest.
  """

  image_ids: tuple[int, ...]
  images: int
  same: int
  kept: ImageSet


def evaluation_splits(
  data_dir: str, names: Sequence[str], exclude: Sequence[str]
) -> dict[str, ImageSet]:
  """Returns the evaluation splits whose images are left out, DATASET/SPLIT, and their hashes.

  Args:
    data_dir: the folder that `prepare` wrote to.
    names: of the data sets that are trained on.
    exclude: `config.exclude`: names of data sets, DATASET/SPLIT, or `auto`.

  Raises:
    InputError: a data set or a split does not exist, or has no hashes.
  """
  own = list(names) if len(names) > 1 else []
  words = dict.fromkeys(w for word in exclude for w in (own if word == AUTO else [word]))
  found: dict[str, ImageSet] = {}
  for word in words:
    dataset, slash, split = word.partition("/")
    hashes = _read(data_dir, dataset)
    if slash and split not in hashes:
      raise InputError(
        f"config.exclude: {dataset} has no split {split!r} with hashes of its images; it has "
        f"{', '.join(hashes)}"
      )
    splits = [split] if slash else [split for split in hashes if split != _TRAIN]
    found |= {f"{dataset}/{split}": hashes[split] for split in splits}
  return found


def find(
  data_dir: str, names: Sequence[str], evaluated: Mapping[str, ImageSet], split: str = _TRAIN
) -> dict[str, LeftOut]:
  """Finds the images to leave out of the train split of each data set, by its name.

  Args:
    data_dir: the folder that `prepare` wrote to.
    names: of the data sets that are trained on.
    evaluated: of `evaluation_splits`; nothing is left out without any.
    split: that is trained on.

  Raises:
    InputError: the images of a train split have no hashes, or all of them would be left out.
  """
  if not evaluated:
    return {}
  others = image_hashes.join(list(evaluated.values()))
  found = {}
  for name in names:
    images = _read(data_dir, name).get(split)
    if images is None or images.image_ids is None:
      raise _without_hashes(f"{name}/{split}")
    same, alike = image_hashes.find_copies(images, others)
    copies = same | alike
    if copies.all():
      raise InputError(
        f"config.dataset: all {counted(len(images), 'image')} of {name}/{split} are in "
        f"{', '.join(evaluated)} too; leave {name} out, or train on them with {_OFF}"
      )
    image_ids = tuple(np.sort(images.image_ids[copies]).tolist())
    found[name] = LeftOut(image_ids, len(images), int(same.sum()), images.take(~copies))
  return found


def _read(data_dir: str, name: str) -> dict[str, ImageSet]:
  hashes = storage.read_all_hashes(data_dir, name)
  if not hashes and storage.read_metadata(data_dir, name) is None:
    raise InputError(f"config.exclude: {storage.not_prepared(data_dir, name)}")
  if not hashes or not all(map(len, hashes.values())):
    raise _without_hashes(name)
  return hashes


def _without_hashes(name: str) -> InputError:
  return InputError(
    f"{name}: the records have no hashes of the images, by which those of evaluations are left "
    f"out; prepare it again with --overwrite, or train on all of them with {_OFF}"
  )


def note(
  exclude: Sequence[str],
  splits: Sequence[str],
  found: Mapping[str, LeftOut],
  refs: Mapping[str, tuple[int, int]],
) -> dict[str, Any]:
  """Returns what a checkpoint notes of what was left out, as JSON; see docs/reference/formats.md.

  Args:
    exclude: `config.exclude`.
    splits: DATASET/SPLIT that images were left out for.
    found: by data set.
    refs: by data set, those left out and all.
  """
  return {
    "exclude": list(exclude),
    "splits": list(splits),
    "datasets": {
      name: {
        "left_out": len(row.image_ids),
        "same": row.same,
        "images": row.images,
        "refs_left_out": refs[name][0],
        "refs": refs[name][1],
      }
      for name, row in found.items()
    },
  }


def from_json(data: Any, where: str) -> dict[str, Any] | None:
  """Returns what `note` returned, from a file.

  Args:
    data: from an untrusted file, so it can be of any type.
    where: the file, for errors.

  Raises:
    InputError: it is something else.
  """
  try:
    for _ in describe(data):
      pass
  except (AttributeError, KeyError, TypeError, ValueError) as error:
    raise InputError(
      f"{where}: what was left out of training cannot be read ({error!r}); the file is damaged"
    ) from error
  return data


def is_off(noted: Mapping[str, Any] | None) -> bool:
  """Returns whether a run chose to train on images of evaluation splits."""
  return noted is not None and not noted["exclude"]


def heading(noted: Mapping[str, Any] | None) -> str:
  """Returns what to say beside every number of a run, after a comma; empty for most."""
  return f", trained with images of evaluation splits ({_OFF})" if is_off(noted) else ""


def describe(noted: Mapping[str, Any] | None) -> Iterator[str]:
  """Yields lines about what a run left out; none for a single data set as it was published."""
  if noted is None:
    return
  if is_off(noted):
    yield (
      f"warning: {_OFF}: images of evaluation splits were not left out of the training data; these "
      "metrics do not compare with those of models trained without them"
    )
    return
  for name, row in noted["datasets"].items():
    yield (
      f"left out of {name}/{_TRAIN}: {row['left_out']:,} of {counted(row['images'], 'image')} "
      f"({row['refs_left_out']:,} of {counted(row['refs'], 'ref')}), which are in "
      f"{_names(noted['splits'])}"
    )


def _names(splits: Sequence[str]) -> str:
  """Returns DATASET/SPLIT,SPLIT and others, by data set."""
  by_name: dict[str, list[str]] = {}
  for split in splits:
    dataset, _, of_dataset = split.partition("/")
    by_name.setdefault(dataset, []).append(of_dataset)
  return ", ".join(f"{name}/{'|'.join(rows)}" for name, rows in by_name.items())
