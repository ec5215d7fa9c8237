"""What the lines of a file share, found with dictionaries: the plain `across_lines`."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from input_pipeline.custom import across_lines, duplicates
from input_pipeline.custom.check import LineSummary
from input_pipeline.custom.schema import Problem


def number_refs(lines: Sequence[LineSummary]) -> tuple[dict[int, int], list[Problem]]:
  """Returns the id of each line's ref: the line's `ref_id`, or else its number."""
  ids = {line.number: line.number if line.ref_id is None else line.ref_id for line in lines}
  owners: dict[int, int] = {}
  problems = []
  for line in lines:
    ref_id = ids[line.number]
    if (owner := owners.setdefault(ref_id, line.number)) != line.number:
      default = "" if line.ref_id is not None else " (the line number, since ref_id is missing)"
      message = f"ref_id {ref_id}{default} is already used on line {owner}"
      problems.append(Problem(line.number, "duplicate ref id", message))
  return ids, problems


def number_images(lines: Sequence[LineSummary]) -> tuple[dict[str, int], list[Problem]]:
  """Returns the id of each image: the `image_id` of its lines, or else a hash of its path."""
  ids: dict[str, int] = {}
  first: dict[str, LineSummary] = {}
  problems = []
  for line in lines:
    if line.image_id is None:
      continue
    earlier = first.setdefault(line.image, line)
    if earlier.image_id != line.image_id:
      message = f"image_id {line.image_id}, but line {earlier.number} has {earlier.image_id}"
      problems.append(Problem(line.number, "image with two ids", message))
  owners: dict[int, str] = {}
  for line in lines:
    if line.image in ids:
      continue
    earlier = first.get(line.image)
    image_id = earlier.image_id if earlier is not None else None
    ids[line.image] = image_id = across_lines._hash(line.image) if image_id is None else image_id
    if (owner := owners.setdefault(image_id, line.image)) != line.image:
      message = (
        f"image_id {image_id} is already used for {owner}; if two exports start at the same "
        "number, remove image_id or convert them together"
      )
      problems.append(Problem(line.number, "duplicate image id", message))
  return ids, problems


def check_instances(lines: Sequence[LineSummary]) -> Iterator[Problem]:
  """Yields a problem for each line whose instances differ from an earlier line of its image."""
  first: dict[str, LineSummary] = {}
  for line in lines:
    if not line.instances_hash:
      continue
    earlier = first.setdefault(line.image, line)
    if earlier.instances_hash != line.instances_hash:
      message = f"instances differ from those of line {earlier.number} for the same image"
      yield Problem(line.number, "conflicting instances", f"{message}; list them on one line only")


def check_splits(lines: Sequence[LineSummary]) -> Iterator[Problem]:
  """Yields a warning for each image in two splits, which may be intended."""
  first: dict[str, LineSummary] = {}
  reported: set[tuple[str, str]] = set()
  for line in lines:
    earlier = first.setdefault(line.image, line)
    if earlier.split != line.split and (line.image, line.split) not in reported:
      reported.add((line.image, line.split))
      message = (
        f"{line.image} is in {line.split} here, but in {earlier.split} on line {earlier.number}"
      )
      yield Problem(line.number, duplicates.SAME_PATH, f"{message}: leakage", warning=True)
  splits = {line.split for line in lines}
  for needed, others in across_lines._OTHER_SPLITS.items():
    for split in sorted(splits) if needed not in splits else ():
      if split.lower() in others:
        option = ", or train with --config.eval_split=" + split if needed == "val" else ""
        message = f"there is no split {needed}, but a split {split}; rename it{option}"
        yield Problem(0, f"no split {needed}", message, warning=True)


def check_coco_images(lines: Sequence[LineSummary]) -> Iterator[Problem]:
  """Yields a problem for each line with annotations of another image.

  A COCO file may have several images with one name, and lines may have copies of an image.
  """
  image_of: dict[str, tuple[Any, int]] = {}
  owners: dict[Any, LineSummary] = {}
  for line in lines:
    for image_id in line.coco_images:
      other, number = image_of.setdefault(line.image, (image_id, line.number))
      owner = owners.setdefault(image_id, line)
      if other != image_id:
        message = (
          f"{line.image} has annotations of both image {other} (line {number}) and image "
          f"{image_id}, which share a name; rename one of them"
        )
      elif owner.image != line.image:
        message = (
          f"{line.image} has annotations of image {image_id}, as does {owner.image} on line "
          f"{owner.number}; use the right image for both"
        )
      else:
        continue
      yield Problem(line.number, "annotations of several images", message)
      break


def check_expressions(
  texts: Mapping[int, Sequence[str]], lines: Sequence[LineSummary]
) -> Iterator[Problem]:
  """Yields a warning for each line with an expression that has another target in the same image."""
  first: dict[tuple[str, int], LineSummary] = {}
  for line in lines:
    firsts = [first.setdefault((line.image, value), line) for value in line.expression_hashes]
    for number, earlier in enumerate(firsts):
      if earlier.target_hash != line.target_hash:
        message = (
          f"{texts[line.number][number]!r:.60} has another target on line {earlier.number} for "
          f"{line.image}; if it refers to both, list both masks in one target"
        )
        yield Problem(line.number, "ambiguous expression", message, warning=True)
        break
