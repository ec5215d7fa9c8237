"""Compares two models on the same expressions, from two files of `evaluate --per_expression`:

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
from input_pipeline.common.terminal import announce, text_table
from mail_jax.evaluate import per_expression
from mail_jax.evaluate.per_expression import Columns, Row
from mail_jax.evaluate.protocols import PROTOCOLS, Protocol
from mail_jax.evaluate.segmentation import THRESHOLDS

SHOWN = 20
# Below so many images the intervals are too narrow.
_FEW = 30
RESAMPLES = 5000
COVERAGE = 0.95
# Images drawn at a time, over all resamples: 32 MB.
_AT_A_TIME = 2**22
_KEY = ("data", "image_id", "ref_id", "expression_index")
_SAME = ("protocol", "expression", "height", "width", "area")
Pair = tuple[Row, Row]


def pair(a: Sequence[Row], b: Sequence[Row], names: tuple[str, str] = ("A", "B")) -> list[Pair]:
  """Matches the rows of the same expressions, in the order of `a`.

  Args:
    a, b: rows of two evaluations.
    names: of the files that they come from.

  Raises:
    InputError: an expression is missing in one of them, is duplicate, or differs between the two.
  """
  in_a, in_b = (_by_key(rows, name) for rows, name in zip((a, b), names, strict=True))
  for these, others, name, other in ((in_a, in_b, *names), (in_b, in_a, *reversed(names))):
    if missing := [key for key in these if key not in others]:
      raise InputError(
        f"{other}: {len(missing)} of the {len(these)} expressions of {name} are missing, the "
        f"first: {_describe(missing[0])}; evaluate both on the same --data"
      )
  for key, row in in_a.items():
    for field in _SAME:
      if row[field] != in_b[key][field]:
        raise InputError(
          f"{_describe(key)}: {field} is {row[field]!r} in {names[0]} and {in_b[key][field]!r} in "
          f"{names[1]}; evaluate both on the same data with the same --protocol"
        )
  return [(row, in_b[key]) for key, row in in_a.items()]


def _by_key(rows: Iterable[Row], name: str) -> dict[tuple, Row]:
  by_key: dict[tuple, Row] = {}
  for row in rows:
    key = tuple(row[field] for field in _KEY)
    if key in by_key:
      raise InputError(f"{name}: duplicate row of {_describe(key)}; write the file again")
    by_key[key] = row
  return by_key


def _describe(key: tuple) -> str:
  return "{}, image {}, ref {}, expression {}".format(*key)


def compare(pairs: Sequence[Pair], resamples: int = RESAMPLES) -> dict[str, Any]:
  """Compares two models on expressions of one split.

  Args:
    pairs: the rows of each expression; at least one pair.
    resamples: of the bootstrap.

  Returns:
    `expressions` and `images`, their numbers; `metrics` that both have, each with `a`, `b`,
    `difference` (b - a) and the bounds of its 95 % interval, `low` and `high`, as fractions, null
    where no expression has a value; `wins`, the numbers of expressions whose IoU is larger in `a`,
    in `b`, or in `neither`.
  """
  protocol = PROTOCOLS[pairs[0][0]["protocol"]]
  columns = [per_expression.columns(rows) for rows in zip(*pairs, strict=True)]
  a, b = (ratios(side, protocol) for side in columns)
  # Rows of given masks have no instances; all other metrics can be compared.
  a, b = ({name: side[name] for name in a if name in b} for side in (a, b))
  images, cluster = np.unique(columns[0]["image_id"], return_inverse=True)
  with announce("resampling images for the intervals"):
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
    "expressions": len(pairs),
    "images": len(images),
    "metrics": metrics,
    "wins": {name: int(won.sum()) for name, won in wins.items()},
  }


def _ratio(pair: np.ndarray) -> float:
  numerator, denominator = pair.sum(1).tolist()
  return numerator / denominator if denominator else math.nan


def ratios(columns: Columns, protocol: Protocol) -> dict[str, Float[np.ndarray, "2 n"]]:
  """Returns the numerator and the denominator of each metric for each expression.

  A metric is the sum of the numerators divided by the sum of the denominators.

  Args:
    columns: as `per_expression.columns` returns them.
    protocol: that the pixels were counted by.
  """
  intersection, union = (columns[name].astype(float) for name in ("intersection", "union"))
  iou = protocol.iou(columns["intersection"], columns["union"])
  one = np.ones_like(iou)
  pairs = {"oIoU": (intersection, union), "mIoU": (iou, one)}
  if "boundary_iou" in columns:
    pairs["boundary_mIoU"] = (columns["boundary_iou"], one)
  pairs |= {f"P@{x}": (protocol.reaches(iou, x), one) for x in THRESHOLDS}
  if "oracle_iou" in columns:
    findable = columns["oracle_iou"] > 0.5
    pairs["selection_accuracy"] = (findable & (columns["selected_iou"] > 0.5), findable)
  return {name: np.stack(pair).astype(float) for name, pair in pairs.items()}


def draws(
  clusters: int, resamples: int, seed: int = 0
) -> Iterator[Int[np.ndarray, "r {clusters}"]]:
  """Yields the clusters that each resample consists of, several resamples at a time."""
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
  # Not `scipy.stats.bootstrap`: it returns nan if a single resample has no value (as in a draw in
  # which no instance fits a target), and it would draw again for every metric.
  sums = np.stack([[_by_cluster(side[name], cluster) for name in a] for side in (a, b)])
  count = int(cluster.max()) + 1
  parts = [_differences(sums, _times(drawn, count)) for drawn in draws(count, resamples, seed)]
  differences = np.concatenate(parts, axis=-1)
  return {name: _interval(values) for name, values in zip(a, differences, strict=True)}


def intervals_of_mean(
  sides: Sequence[Mapping[str, Float[np.ndarray, "2 n"]]],
  cluster: Int[np.ndarray, "n"],
  resamples: int = RESAMPLES,
  seed: int = 0,
) -> dict[str, tuple[float, float]]:
  """Returns 95 % intervals of each metric's mean over models, on the same draws of images.

  Args:
    sides: as `ratios` returns them for each model, for the same expressions.
    cluster: of each expression, numbered from 0 without gaps.
    resamples: number of resamples.
    seed: of the draws.

  Returns:
    The lower and the upper bound; nan where no resample has a value.
  """
  names = list(sides[0])
  sums = np.stack([[_by_cluster(side[name], cluster) for name in names] for side in sides])
  count = int(cluster.max()) + 1
  parts = [_values(sums, _times(drawn, count)).mean(0) for drawn in draws(count, resamples, seed)]
  return {
    name: _interval(values)
    for name, values in zip(names, np.concatenate(parts, axis=-1), strict=True)
  }


def _by_cluster(
  pair: Float[np.ndarray, "2 n"], cluster: Int[np.ndarray, "n"]
) -> Float[np.ndarray, "2 c"]:
  return np.stack([np.bincount(cluster, weights=values) for values in pair])


def _times(drawn: Int[np.ndarray, "r c"], count: int) -> Float[np.ndarray, "r c"]:
  """Counts how often each resample contains each cluster."""
  numbers = drawn + count * np.arange(len(drawn))[:, None]
  return np.bincount(numbers.ravel(), minlength=drawn.size).reshape(drawn.shape).astype(float)


def _differences(
  sums: Float[np.ndarray, "2 m 2 c"], times: Float[np.ndarray, "r c"]
) -> Float[np.ndarray, "m r"]:
  """Returns the difference of each metric in each resample; nan where it has none (0 / 0)."""
  values = _values(sums, times)
  return values[1] - values[0]


def _values(
  sums: Float[np.ndarray, "s m 2 c"], times: Float[np.ndarray, "r c"]
) -> Float[np.ndarray, "s m r"]:
  """Returns each metric of each model in each resample; nan where it has none (0 / 0)."""
  drawn = sums @ times.T
  with np.errstate(invalid="ignore"):
    return drawn[:, :, 0] / drawn[:, :, 1]


def _interval(differences: Float[np.ndarray, "r"]) -> tuple[float, float]:
  known = differences[~np.isnan(differences)]
  if not len(known):
    return np.nan, np.nan
  low, high = np.quantile(known, [(1 - COVERAGE) / 2, (1 + COVERAGE) / 2])
  return float(low), float(high)


def most_different(pairs: Sequence[Pair], count: int = SHOWN) -> list[dict[str, Any]]:
  """Returns the expressions whose IoU differs most, largest difference first."""
  differ = [i for i, (a, b) in enumerate(pairs) if a["iou"] != b["iou"]]
  order = sorted(differ, key=lambda i: -abs(pairs[i][1]["iou"] - pairs[i][0]["iou"]))
  fields = (*_KEY, "file_name", "expression")
  return [
    {field: a[field] for field in fields} | {"iou_a": a["iou"], "iou_b": b["iou"]}
    for a, b in (pairs[i] for i in order[:count])
  ]


def report(a: Sequence[Row], b: Sequence[Row], names: tuple[str, str]) -> dict[str, Any]:
  """Compares all rows of two files, split by split."""
  pairs = pair(a, b, names)
  splits = list(dict.fromkeys(row["data"] for row, _ in pairs))
  by_split = {name: [p for p in pairs if p[0]["data"] == name] for name in splits}
  for name, of_split in by_split.items():
    if len({row["protocol"] for row, _ in of_split}) > 1:
      raise InputError(
        f"{names[0]}: the rows of {name} have several protocols; write one file per protocol"
      )
  return {
    "a": names[0],
    "b": names[1],
    "resamples": RESAMPLES,
    "coverage": COVERAGE,
    "data": {name: compare(of_split) for name, of_split in by_split.items()},
    "most_different": most_different(pairs),
  }


def text(result: dict[str, Any]) -> str:
  """Formats a report as text, in percent."""
  lines = [
    f"A: {result['a']}\nB: {result['b']}\npercent; 95 % intervals from a bootstrap over images"
  ]
  for name, split in result["data"].items():
    wins = split["wins"]
    lines.append(
      f"\n{name}: {split['expressions']:,} expressions of {split['images']:,} images; larger IoU: "
      f"A in {wins['a']:,}, B in {wins['b']:,}, neither in {wins['neither']:,}"
    )
    rows = [["", "A", "B", "B - A", "from", "to"]]
    for metric, numbers in split["metrics"].items():
      plain = [_percent(numbers[key]) for key in ("a", "b")]
      signed = [_percent(numbers[key], "+") for key in ("difference", "low", "high")]
      rows.append([metric, *plain, *signed])
    lines.append(text_table(rows))
    if split["images"] < _FEW:
      lines.append(f"warning: {name}: only {split['images']} images; the intervals are too narrow")
  if not result["most_different"]:
    return "\n".join([*lines, "\nEvery expression has the same IoU in both."])
  lines.append(f"\nThe {len(result['most_different'])} expressions that differ most:")
  rows = [["A", "B", "", ""]]
  for row in result["most_different"]:
    where = f"{row['data']} {row['file_name']} ref {row['ref_id']}"
    quoted = json.dumps(row["expression"], ensure_ascii=False)
    rows.append([_percent(row["iou_a"]), _percent(row["iou_b"]), where, quoted])
  return "\n".join([*lines, text_table(rows)])


def _percent(value: float | None, sign: str = "") -> str:
  return "-" if value is None else f"{100 * value:{sign}.2f}"


def main(argv: Sequence[str]) -> None:
  """Runs the command `evaluate --compare`."""
  parser = command_parser("mail_jax.evaluate", __doc__)
  parser.add_argument(
    "--compare",
    nargs=2,
    required=True,
    metavar=("A.jsonl", "B.jsonl"),
    help="two files from --per_expression, on the same expressions",
  )
  parser.add_argument("--json", metavar="OUT", help="write the differences as fractions")
  args = parser.parse_args(argv)
  a, b = args.compare
  result = report(per_expression.read(a), per_expression.read(b), (a, b))
  print(text(result))
  if args.json:
    atomic_files.write_whole(args.json, json.dumps(result, indent=2, ensure_ascii=False) + "\n")
    print(f"wrote {args.json}")
