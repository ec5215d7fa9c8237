"""The checked lines of a file, in a table on the disk: a file may have millions."""

import json
import sqlite3
from collections.abc import Collection, Iterable, Iterator
from typing import Any

from input_pipeline.custom.check import LineSummary

_COLUMNS = (
  *("number", "offset", "image", "height", "width", "split", "num_expressions", "ref_id"),
  *("image_id", "area", "instances_hash", "expression_hashes", "target_hash", "coco_images"),
)
_TEXT = "CAST(? AS TEXT)"


class LineTable:
  """Lines in the file's order; `query` looks them up.

  The table `lines` has the fields of `LineSummary`, tuples as JSON. `images` has, for each image of
  a line, its `id` once `across_lines.number_images` has chosen it.
  """

  def __init__(self):
    """Creates an empty table in a temporary file, which SQLite removes."""
    # Read by one thread at a time, such as that of a progress bar.
    self._rows = sqlite3.connect("", check_same_thread=False)
    # Names of images come from files and may hold half of a surrogate pair.
    self._rows.text_factory = lambda data: data.decode("utf-8", "surrogatepass")
    self._rows.execute("PRAGMA temp_store = FILE")
    self._rows.execute("PRAGMA journal_mode = OFF")
    self._rows.execute("PRAGMA synchronous = OFF")
    keys = ", ".join(_COLUMNS).replace("number,", "number INTEGER PRIMARY KEY,", 1)
    self._rows.execute(f"CREATE TABLE lines ({keys})")
    self._rows.execute("CREATE TABLE images (image PRIMARY KEY, id INTEGER) WITHOUT ROWID")

  def fill(self, lines: Iterable[LineSummary]) -> None:
    """Adds all lines, in the file's order."""
    values = ", ".join(_TEXT if name == "image" else "?" for name in _COLUMNS)
    self._rows.executemany(f"INSERT INTO lines VALUES ({values})", map(_to_row, lines))
    self._rows.execute("CREATE INDEX by_image ON lines (image, split)")
    self._rows.execute("CREATE INDEX by_split ON lines (split, image)")

  def number(self, images: Iterable[tuple[str, int]]) -> None:
    """Adds images with their ids."""
    rows = ((_encoded(image), image_id) for image, image_id in images)
    self._rows.executemany(f"INSERT INTO images VALUES ({_TEXT}, ?)", rows)
    self._rows.execute("CREATE INDEX by_id ON images (id)")

  def leave_out(self, numbers: Collection[int]) -> None:
    """Removes lines."""
    self._rows.executemany("DELETE FROM lines WHERE number = ?", ((n,) for n in numbers))

  def query(self, query: str, *values: Any) -> Iterator[tuple[Any, ...]]:
    """Yields the rows of a query in SQL."""
    return self._rows.execute(query, values)

  def one(self, query: str, *values: Any) -> Any:
    """Returns the first value of a query in SQL, None without any."""
    row = self._rows.execute(query, values).fetchone()
    return None if row is None else row[0]

  def where(self, condition: str, *values: Any) -> Iterator[LineSummary]:
    """Yields the lines that fulfil a condition in SQL, in the file's order."""
    query = f"SELECT {', '.join(_COLUMNS)} FROM lines WHERE {condition} ORDER BY number"
    return map(_to_line, self.query(query, *values))

  def __iter__(self) -> Iterator[LineSummary]:
    return self.where("1")

  def __len__(self) -> int:
    return self.one("SELECT count(*) FROM lines")


def _encoded(name: str) -> bytes:
  return name.encode("utf-8", "surrogatepass")


def _to_row(line: LineSummary) -> tuple[Any, ...]:
  height, width = line.size or (None, None)
  fields = {name: getattr(line, name) for name in _COLUMNS if name not in ("height", "width")}
  fields["expression_hashes"] = json.dumps(line.expression_hashes)
  fields["coco_images"] = json.dumps(line.coco_images)
  fields |= {"image": _encoded(line.image), "height": height, "width": width}
  return tuple(fields[name] for name in _COLUMNS)


def _to_line(row: tuple[Any, ...]) -> LineSummary:
  fields = dict(zip(_COLUMNS, row, strict=True))
  height, width = fields.pop("height"), fields.pop("width")
  for name in ("expression_hashes", "coco_images"):
    fields[name] = tuple(json.loads(fields[name]))
  return LineSummary(**fields, size=None if height is None else (height, width))
