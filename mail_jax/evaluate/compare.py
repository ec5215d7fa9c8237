"""Two models on the same sentences, from what `evaluate --per_expression` wrote:

python -m mail_jax.evaluate --compare demo.jsonl other.jsonl --json difference.json
"""

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from input_pipeline.common import atomic_files
from input_pipeline.common.command_line import command_parser
from input_pipeline.common.errors import InputError
from mail_jax.evaluate import per_expression, table
from mail_jax.evaluate.per_expression import Row
from mail_jax.evaluate.protocols import PROTOCOLS, Protocol
from mail_jax.evaluate.segmentation import THRESHOLDS

SHOWN = 20
# Below so many images the intervals are too narrow.
_FEW = 30
RESAMPLES = 5000
COVERAGE = 0.95
# Images drawn at a time, over all resamples: 32 MB.
_AT_A_TIME = 2**22
_KEY = ("data", "image_id", "ref_id", "sentence_index")
_SAME = ("protocol", "sentence", "height", "width", "area")
Pair = tuple[Row, Row]
Columns = Mapping[str, np.ndarray]


def pair(a: Sequence[Row], b: Sequence[Row], names: tuple[str, str] = ("A", "B")) -> list[Pair]:
  """Pairs the rows of the same sentences, in the order of `a`.

  Args:
    a, b: rows of two evaluations.
    names: of the files that they come from.

  Raises:
    InputError: a sentence is in one of them alone, or twice in one, or is not the same in both.
  """
  in_a, in_b = (_by_key(rows, name) for rows, name in zip((a, b), names, strict=True))
  for these, others, name, other in ((in_a, in_b, *names), (in_b, in_a, *reversed(names))):
    if missing := [key for key in these if key not in others]:
      raise InputError(
        f"{other}: {len(missing)} of the {len(these)} sentences of {name} are missing, the first: {_say(missing[0])}; "
        "evaluate both on the same --data"
      )
  for key, row in in_a.items():
    for field in _SAME:
      if row[field] != in_b[key][field]:
        raise InputError(
          f"{_say(key)}: {field} is {row[field]!r} in {names[0]} and {in_b[key][field]!r} in {names[1]}; evaluate both "
          "on the same data and by the same --protocol"
        )
  return [(row, in_b[key]) for key, row in in_a.items()]


def _by_key(rows: Iterable[Row], name: str) -> dict[tuple, Row]:
  found: dict[tuple, Row] = {}
  for row in rows:
    key = tuple(row[field] for field in _KEY)
    if key in found:
      raise InputError(f"{name}: {_say(key)} comes more than once; write the file again")
    found[key] = row
  return found


def _say(key: tuple) -> str:
  return "{}, image {}, ref {}, sentence {}".format(*key)


def compare(pairs: Sequence[Pair], resamples: int = RESAMPLES) -> dict[str, Any]:
  """Compares two models on sentences of one split.

  Args:
    pairs: the rows of each sentence, of at least one.
    resamples: of the bootstrap.

  Returns:
    `sentences` and `images`; `metrics` that both have, each with `a`, `b`, `difference` (b - a) and the bounds of its
    95 % interval, `low` and `high`, as fractions, null where no sentence has any; `wins`, the sentences with the larger
    IoU in `a`, in `b`, or neither.
  """
  protocol = PROTOCOLS[pairs[0][0]["protocol"]]
  columns = [per_expression.columns(rows) for rows in zip(*pairs, strict=True)]
  a, b = (ratios(side, protocol) for side in columns)
  # Rows of before boundaries were counted can be compared by all else.
  a, b = ({name: side[name] for name in a if name in b} for side in (a, b))
  images, cluster = np.unique(columns[0]["image_id"], return_inverse=True)
  bounds = intervals(a, b, cluster, resamples)
  metrics = {}
  for name in a:
    values = [_ratio(side[name]) for side in (a, b)]
    numbers = dict(zip(("a", "b"), values, strict=True)) | {"difference": values[1] - values[0]}
    numbers |= dict(zip(("low", "high"), bounds[name], strict=True))
    metrics[name] = {key: None if math.isnan(value) else value for key, value in numbers.items()}
  iou_a, iou_b = (side["iou"] for side in columns)
  wins = {"a": iou_a > iou_b, "b": iou_b > iou_a, "neither": iou_a == iou_b}
  return {
    "sentences": len(pairs),
    "images": len(images),
    "metrics": metrics,
    "wins": {name: int(won.sum()) for name, won in wins.items()},
  }


def _ratio(pair: np.ndarray) -> float:
  numerator, denominator = pair.sum(1).tolist()
  return numerator / denominator if denominator else math.nan


def most_different(pairs: Sequence[Pair], count: int = SHOWN) -> list[dict[str, Any]]:
  """The sentences whose IoU differs most, the largest difference first, then in the order of the data."""
  differ = [i for i, (a, b) in enumerate(pairs) if a["iou"] != b["iou"]]
  order = sorted(differ, key=lambda i: -abs(pairs[i][1]["iou"] - pairs[i][0]["iou"]))
  about = (*_KEY, "file_name", "sentence")
  return [
    {field: a[field] for field in about} | {"iou_a": a["iou"], "iou_b": b["iou"]}
    for a, b in (pairs[i] for i in order[:count])
  ]


def report(a: Sequence[Row], b: Sequence[Row], names: tuple[str, str]) -> dict[str, Any]:
  """Compares all that two files hold, split by split."""
  pairs = pair(a, b, names)
  splits = list(dict.fromkeys(row["data"] for row, _ in pairs))
  of_split = {name: [p for p in pairs if p[0]["data"] == name] for name in splits}
  for name, found in of_split.items():
    if len({row["protocol"] for row, _ in found}) > 1:
      raise InputError(f"{names[0]}: the rows of {name} are of several protocols; keep them apart")
  return {
    "a": names[0],
    "b": names[1],
    "resamples": RESAMPLES,
    "coverage": COVERAGE,
    "data": {name: compare(found) for name, found in of_split.items()},
    "most_different": most_different(pairs),
  }


def text(found: dict[str, Any]) -> str:
  """A report for people, in percent."""
  lines = [
    f"A: {found['a']}\nB: {found['b']}\npercent; the interval covers 95 %, images drawn anew"
  ]
  for name, split in found["data"].items():
    wins = split["wins"]
    lines.append(
      f"\n{name}: {split['sentences']:,} sentences of {split['images']:,} images; the larger IoU has A in "
      f"{wins['a']:,}, B in {wins['b']:,}, neither in {wins['neither']:,}"
    )
    rows = [["", "A", "B", "B - A", "from", "to"]]
    for metric, numbers in split["metrics"].items():
      plain = [_percent(numbers[key]) for key in ("a", "b")]
      signed = [_percent(numbers[key], "+") for key in ("difference", "low", "high")]
      rows.append([metric, *plain, *signed])
    lines.append(table.text(rows))
    if split["images"] < _FEW:
      lines.append(
        f"warning: {name}: {split['images']} images are few; the intervals are too narrow"
      )
  if not found["most_different"]:
    return "\n".join([*lines, "\nEvery sentence has the same IoU in both."])
  lines.append(f"\nThe {len(found['most_different'])} sentences that differ most:")
  rows = [["A", "B", "", ""]]
  for row in found["most_different"]:
    where = f"{row['data']} {row['file_name']} ref {row['ref_id']}"
    quoted = json.dumps(row["sentence"], ensure_ascii=False)
    rows.append([_percent(row["iou_a"]), _percent(row["iou_b"]), where, quoted])
  return "\n".join([*lines, table.text(rows)])


def _percent(value: float | None, sign: str = "") -> str:
  return "-" if value is None else f"{100 * value:{sign}.2f}"


def ratios(columns: Columns, protocol: Protocol) -> dict[str, Float[np.ndarray, "2 n"]]:
  """What each metric is the ratio of: numerator and denominator of every sentence, whose sums are divided.

  Args:
    columns: a value a sentence, as `sentence_rows.columns` gives them.
    protocol: by which they were counted.
  """
  intersection, union = (columns[name].astype(float) for name in ("intersection", "union"))
  iou = protocol.iou(columns["intersection"], columns["union"])
  one = np.ones_like(iou)
  found = {"oIoU": (intersection, union), "mIoU": (iou, one)}
  if "boundary_iou" in columns:
    found["boundary_mIoU"] = (columns["boundary_iou"], one)
  found |= {f"P@{x}": (protocol.reaches(iou, x), one) for x in THRESHOLDS}
  findable = columns["oracle_iou"] > 0.5
  found["selection_accuracy"] = (findable & (columns["chosen_iou"] > 0.5), findable)
  return {name: np.stack(pair).astype(float) for name, pair in found.items()}


def draws(
  clusters: int, resamples: int, seed: int = 0
) -> Iterator[Int[np.ndarray, "r {clusters}"]]:
  """Yields which clusters each resample consists of, some resamples at a time; the seed decides them all."""
  rng = np.random.default_rng(seed)
  step = max(1, _AT_A_TIME // clusters)
  for start in range(0, resamples, step):
    yield rng.integers(clusters, size=(min(step, resamples - start), clusters))


def intervals(
  a: Mapping[str, Float[np.ndarray, "2 n"]],
  b: Mapping[str, Float[np.ndarray, "2 n"]],
  cluster: Int[np.ndarray, "n"],
  resamples: int = RESAMPLES,
  seed: int = 0,
) -> dict[str, tuple[float, float]]:
  """Returns 95 % intervals of the true difference, b - a, of each metric.

  Expressions of one image are not independent samples: they share its pixels, its instances, and
  often the target. So images are drawn with replacement, each with all of its expressions, and both
  models are compared on the same draw: percentile intervals (Efron and Tibshirani, An Introduction
  to the Bootstrap, 1993, chapter 13), clusters as units.

  Args:
    a, b: as `ratios` returns them, for the same expressions.
    cluster: of each expression, numbered from 0 without gaps.
    resamples: number of resamples.
    seed: of the draws.

  Returns:
    The lower and the upper bound; nan where no resample has a difference.
  """
  # Not `scipy.stats.bootstrap`: it returns nan if a single resample has no value (a draw without any
  # image on which an instance fits the target), and it would draw again for every metric.
  sums = np.stack([[_by_cluster(side[name], cluster) for name in a] for side in (a, b)])
  count = int(cluster.max()) + 1
  found = [_differences(sums, _times(drawn, count)) for drawn in draws(count, resamples, seed)]
  differences = np.concatenate(found, axis=-1)
  return {name: _interval(values) for name, values in zip(a, differences, strict=True)}


def _by_cluster(
  pair: Float[np.ndarray, "2 n"], cluster: Int[np.ndarray, "n"]
) -> Float[np.ndarray, "2 c"]:
  return np.stack([np.bincount(cluster, weights=values) for values in pair])


def _times(drawn: Int[np.ndarray, "r c"], count: int) -> Float[np.ndarray, "r c"]:
  """How many times each resample has each cluster."""
  numbers = drawn + count * np.arange(len(drawn))[:, None]
  return np.bincount(numbers.ravel(), minlength=drawn.size).reshape(drawn.shape).astype(float)


def _differences(
  sums: Float[np.ndarray, "2 m 2 c"], times: Float[np.ndarray, "r c"]
) -> Float[np.ndarray, "m r"]:
  """The difference of each metric in each resample; nan where one has none (0 / 0)."""
  drawn = sums @ times.T
  with np.errstate(invalid="ignore"):
    values = drawn[:, :, 0] / drawn[:, :, 1]
  return values[1] - values[0]


def _interval(differences: Float[np.ndarray, "r"]) -> tuple[float, float]:
  known = differences[~np.isnan(differences)]
  if not len(known):
    return np.nan, np.nan
  low, high = np.quantile(known, [(1 - COVERAGE) / 2, (1 + COVERAGE) / 2])
  return float(low), float(high)


def main(argv: Sequence[str]) -> None:
  """The command `evaluate --compare`."""
  parser = command_parser("mail_jax.evaluate", __doc__)
  parser.add_argument(
    "--compare",
    nargs=2,
    required=True,
    metavar=("A.jsonl", "B.jsonl"),
    help="two files of --per_expression, on the same sentences",
  )
  parser.add_argument("--json", metavar="OUT", help="write the differences as fractions")
  args = parser.parse_args(argv)
  a, b = args.compare
  found = report(per_expression.read(a), per_expression.read(b), (a, b))
  print(text(found))
  if args.json:
    atomic_files.write_whole(args.json, json.dumps(found, indent=2, ensure_ascii=False) + "\n")
    print(f"wrote {args.json}")
