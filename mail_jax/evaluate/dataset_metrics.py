"""Metrics of data sets whose expressions mean several objects, or none: gRefCOCO's and PhraseCut's own definitions.

Pure functions of the rows that `segmentation.count` gives, one a sentence: `intersection`, `union`, `area` of the
target, `no_target_probability` of a model that has it. docs/guides/evaluate.md says what follows whose code.
"""

from collections.abc import Callable, Iterator, Mapping

import numpy as np
from jaxtyping import Bool, Int64

from input_pipeline import storage

Rows = Mapping[str, np.ndarray]
Metrics = dict[str, int | float]
Summary = Callable[[Rows], Iterator[tuple[str, int | float]]]

GRES_THRESHOLDS = (0.7, 0.8, 0.9)
PHRASECUT_THRESHOLDS = (0.5, 0.7, 0.9)


def predict_no_target(rows: Rows, least_pixels: int = 1) -> Bool[np.ndarray, "n"]:
  """Which sentences the model says to mean nothing.

  Those whose `no_target_probability` exceeds 0.5; of a model without that output, those whose mask has fewer than
  `least_pixels` pixels. With the default that is an empty mask. ReLA's paper takes 50 for models without the output.
  """
  if "no_target_probability" in rows:
    return rows["no_target_probability"] > 0.5
  intersection, union, area = _pixels(rows)
  return union - area + intersection < least_pixels


def summarise_gres(rows: Rows, least_pixels: int = 1) -> Iterator[tuple[str, int | float]]:
  """gIoU, cIoU, N-acc, T-acc and Pr@X as in ReLA (arXiv 2306.00968), as fractions.

  Args:
    rows: one a sentence.
    least_pixels: see `predict_no_target`.

  Yields:
    `no_targets`, how many sentences mean nothing; `gIoU`, the mean over sentences of their IoU, which is
    1 where nothing is meant and the model says so, and 0 where it is wrong about that; `cIoU`, sum of intersections /
    sum of unions; `N-acc` and `T-acc`, the shares of the sentences without and with a target that are taken for such, 0
    where there is none; `Pr@X`, the share of the sentences with a target whose IoU is at least X.
  """
  intersection, union, area = _pixels(rows)
  said = predict_no_target(rows, least_pixels)
  empty = area == 0
  intersection = np.where(said, 0, intersection)
  # A target that is denied counts with all that would have been drawn, as there; without, with its own area.
  union = np.where(said, np.where(empty, 0, rows.get("raw_union", area)), union)
  iou = np.where(empty, said.astype(float), intersection / np.maximum(union, 1))
  yield "no_targets", int(empty.sum())
  yield "gIoU", float(iou.mean())
  yield "cIoU", _ratio(intersection, union)
  yield "N-acc", _share(said, empty)
  yield "T-acc", _share(~said, ~empty)
  for threshold in GRES_THRESHOLDS:
    yield f"Pr@{threshold}", _share(iou >= threshold, ~empty)


def summarise_phrasecut(rows: Rows) -> Iterator[tuple[str, int | float]]:
  """Mean and cumulative IoU and P@X as in PhraseCut's toolkit (arXiv 2008.01187), as fractions.

  Yields:
    `mIoU`, the mean over phrases; `cIoU`, sum of intersections / sum of unions; `P@X`, the share of
    phrases whose IoU is above X, not at X.
  """
  intersection, union, _ = _pixels(rows)
  iou = intersection / np.maximum(union, 1)  # 0 without an intersection, as there
  yield "mIoU", float(iou.mean())
  yield "cIoU", _ratio(intersection, union)
  for threshold in PHRASECUT_THRESHOLDS:
    yield f"P@{threshold}", float((iou > threshold).mean())


SUMMARIES: dict[str, Summary] = {
  "grefcoco_unc": summarise_gres,
  "phrasecut": summarise_phrasecut,
}
"""The metrics that a data set has besides those of `segmentation.summarise`."""


def summarise(dataset: str, rows: Rows) -> dict[str, int | float]:
  """The metrics of masks that a data set has of its own, by name; empty for all others.

  A user's own data has those of gRefCOCO where some of its expressions mean nothing.
  """
  if dataset in SUMMARIES:
    return dict(SUMMARIES[dataset](rows))
  # Data of a user's own may have expressions that mean nothing, which the other metrics do not speak of.
  own = dataset not in storage.CONFIGS and bool((rows["area"] == 0).any())
  return dict(summarise_gres(rows)) if own else {}


def with_own(metrics: Metrics, dataset: str, rows: Rows) -> Metrics:
  """The metrics that every data set has, and after them a data set's own, which replace what counts by another rule.

  Args:
    metrics: of `segmentation.summarise`.
    dataset: which one.
    rows: that they are from.
  """
  own = summarise(dataset, rows)
  replaced = any(name.startswith("P@") for name in own)
  kept = {k: v for k, v in metrics.items() if not (replaced and k.startswith("P@"))}
  return kept | own


def _pixels(
  rows: Rows,
) -> tuple[Int64[np.ndarray, "n"], Int64[np.ndarray, "n"], Int64[np.ndarray, "n"]]:
  intersection, union, area = (
    rows[key].astype(np.int64) for key in ("intersection", "union", "area")
  )
  return intersection, union, area


def _ratio(part: Int64[np.ndarray, "n"], whole: Int64[np.ndarray, "n"]) -> float:
  """1 where there is nothing to find and nothing was found."""
  return float(part.sum() / whole.sum()) if whole.sum() else 1.0


def _share(right: Bool[np.ndarray, "n"], among: Bool[np.ndarray, "n"]) -> float:
  return float(right[among].mean()) if among.any() else 0.0
