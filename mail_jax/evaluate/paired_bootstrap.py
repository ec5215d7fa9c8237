"""How sure the difference between two models is that answered the same sentences: a bootstrap over images.

Sentences of one image are no independent samples: they share its pixels, its instances, often the target. So images
are drawn with replacement, each with all of its sentences, and both models are judged on the same draw: percentile
intervals (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13), clusters as units.
"""

from collections.abc import Iterator, Mapping

import numpy as np
from jaxtyping import Float, Int

from mail_jax.evaluate.protocols import Protocol
from mail_jax.evaluate.segmentation import THRESHOLDS

Columns = Mapping[str, np.ndarray]
RESAMPLES = 5000
COVERAGE = 0.95
_AT_A_TIME = 2**22  # images drawn, over all resamples: 32 MB


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
  """Intervals that cover the true difference, b - a, of each metric in 95 % of all cases.

  Args:
    a, b: as `ratios` gives them, of the same sentences.
    cluster: of each sentence, numbered from 0 without gaps.
    resamples: how many are drawn.
    seed: of the draws.

  Returns:
    The lower and the upper bound; nan where no resample has a difference.
  """
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
