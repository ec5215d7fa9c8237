"""Checks of what the lines of a file share: ids, images, splits, expressions."""

import hashlib
import json
from collections.abc import Iterator
from typing import Any

from input_pipeline.custom import duplicates
from input_pipeline.custom.line_files import read_line
from input_pipeline.custom.line_table import LineTable
from input_pipeline.custom.schema import Problem

# Other names of the splits that training reads by default, in lower case.
_OTHER_SPLITS = {
  "train": ("train", "training"),
  "val": ("val", "valid", "validation", "dev", "eval"),
}
# Size of generated image ids: every JSON reader represents such integers exactly.
_ID_BITS = 53


def ref_id(given: int | None, number: int) -> int:
  """Returns the id of a line's ref: the line's `ref_id`, or else its number."""
  return number if given is None else given


def check_refs(lines: LineTable) -> Iterator[Problem]:
  """Yields a problem for each line whose ref's id an earlier line has."""
  ids = "SELECT number, ref_id, coalesce(ref_id, number) AS id FROM lines"
  twice = f"SELECT id, min(number) AS first FROM ({ids}) GROUP BY id HAVING count(*) > 1"
  query = (
    f"SELECT number, ref_id, id, first FROM ({ids}) JOIN ({twice}) USING (id) "
    "WHERE number > first ORDER BY number"
  )
  for number, given, same, owner in lines.query(query):
    default = "" if given is not None else " (the line number, since ref_id is missing)"
    message = f"ref_id {same}{default} is already used on line {owner}"
    yield Problem(number, "duplicate ref id", message)


def number_images(lines: LineTable) -> list[Problem]:
  """Gives each image its id: the `image_id` of its lines, or else a hash of its path.

  Returns:
    A problem for each line whose `image_id` differs from an earlier line's of its image, and for
    each image with the id of another one.
  """
  # SQLite takes the other columns from the row of the minimum.
  first = "SELECT image, image_id AS id, min(number) AS first FROM lines WHERE image_id NOTNULL"
  query = (
    f"SELECT number, image_id, id, first FROM lines JOIN ({first} GROUP BY image) USING (image) "
    "WHERE image_id NOTNULL AND image_id != id ORDER BY number"
  )
  problems = [
    Problem(n, "image with two ids", f"image_id {other}, but line {earlier} has {given}")
    for n, other, given, earlier in lines.query(query)
  ]
  images = lines.query(
    f"SELECT image, id FROM (SELECT DISTINCT image FROM lines) LEFT JOIN ({first} GROUP BY image) "
    "USING (image)"
  )
  lines.number((image, _hash(image) if given is None else given) for image, given in images)
  firsts = (
    "SELECT id, image, min(number) AS number FROM lines JOIN images USING (image) GROUP BY image"
  )
  owners = f"SELECT id, image AS owner, min(number) AS first FROM ({firsts}) GROUP BY id"
  query = (
    f"SELECT number, id, owner FROM ({firsts}) JOIN ({owners} HAVING count(*) > 1) USING (id) "
    "WHERE number > first ORDER BY number"
  )
  for number, same, owner in lines.query(query):
    message = (
      f"image_id {same} is already used for {owner}; if two exports start at the same number, "
      "remove image_id or convert them together"
    )
    problems.append(Problem(number, "duplicate image id", message))
  return problems


def _hash(path: str) -> int:
  digest = hashlib.sha256(path.encode("utf-8", "surrogatepass")).digest()
  return int.from_bytes(digest[:8]) >> (64 - _ID_BITS)


def check_instances(lines: LineTable) -> Iterator[Problem]:
  """Yields a problem for each line whose instances differ from an earlier line of its image."""
  first = (
    "SELECT image, instances_hash AS hash, min(number) AS first FROM lines "
    "WHERE instances_hash != '' GROUP BY image"
  )
  query = (
    f"SELECT number, first FROM lines JOIN ({first}) USING (image) "
    "WHERE instances_hash != '' AND instances_hash != hash ORDER BY number"
  )
  for number, earlier in lines.query(query):
    message = f"instances differ from those of line {earlier} for the same image"
    yield Problem(number, "conflicting instances", f"{message}; list them on one line only")


def check_splits(lines: LineTable) -> Iterator[Problem]:
  """Yields a warning for each image in two splits, which may be intended."""
  first = "SELECT image, split AS earlier, min(number) AS first FROM lines GROUP BY image"
  query = (
    f"SELECT min(number) AS number, image, split, earlier, first FROM lines JOIN ({first}) "
    "USING (image) WHERE split != earlier GROUP BY image, split ORDER BY number"
  )
  for number, image, split, earlier, line in lines.query(query):
    message = f"{image} is in {split} here, but in {earlier} on line {line}: leakage"
    yield Problem(number, duplicates.SAME_PATH, message, warning=True)
  splits = {split for (split,) in lines.query("SELECT DISTINCT split FROM lines")}
  for needed, others in _OTHER_SPLITS.items():
    for split in sorted(splits) if needed not in splits else ():
      if split.lower() in others:
        option = ", or train with --config.eval_split=" + split if needed == "val" else ""
        message = f"there is no split {needed}, but a split {split}; rename it{option}"
        yield Problem(0, f"no split {needed}", message, warning=True)


def check_coco_images(lines: LineTable) -> Iterator[Problem]:
  """Yields a problem for each line with annotations of another image.

  A COCO file may have several images with one name, and lines may have copies of an image.
  """
  image_of: dict[str, tuple[Any, int]] = {}
  owners: dict[Any, tuple[str, int]] = {}
  for line in lines.where("coco_images != '[]'"):
    for image_id in line.coco_images:
      other, number = image_of.setdefault(line.image, (image_id, line.number))
      owner, first = owners.setdefault(image_id, (line.image, line.number))
      if other != image_id:
        message = (
          f"{line.image} has annotations of both image {other} (line {number}) and image "
          f"{image_id}, which share a name; rename one of them"
        )
      elif owner != line.image:
        message = (
          f"{line.image} has annotations of image {image_id}, as does {owner} on line {first}; "
          "use the right image for both"
        )
      else:
        continue
      yield Problem(line.number, "annotations of several images", message)
      break


def check_expressions(path: str, lines: LineTable) -> Iterator[Problem]:
  """Yields a warning for each line with an expression that has another target in the same image."""
  expressions = (
    "SELECT number, image, target_hash AS target, key, value FROM lines, "
    "json_each(expression_hashes)"
  )
  first = (
    f"SELECT image, value, target AS earlier, min(number) AS first FROM ({expressions}) "
    "GROUP BY image, value HAVING count(*) > 1"
  )
  query = (
    f"SELECT number, min(key), image, first FROM ({expressions}) JOIN ({first}) "
    "USING (image, value) WHERE target != earlier GROUP BY number ORDER BY number"
  )
  for number, which, image, earlier in lines.query(query):
    (offset,) = next(lines.query("SELECT offset FROM lines WHERE number = ?", number))
    text = json.loads(read_line(path, offset))["sentences"][which]
    message = (
      f"{text!r:.60} has another target on line {earlier} for {image}; if it refers to both, list "
      "both masks in one target"
    )
    yield Problem(number, "ambiguous expression", message, warning=True)
