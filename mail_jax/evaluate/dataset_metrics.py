"""Metrics of data sets whose expressions have several targets, or none: of gRefCOCO and PhraseCut.

RefCOCO-M needs none of its own. Its card (huggingface.co/datasets/moondream/refcoco-m, "Evaluation
Protocol") defines mIoU as the mean over all pairs of an image and a sentence, which is the mIoU of
`segmentation.summarise`.

Pure functions of the columns that `segmentation.count` returns, one value per expression:
`intersection`, `union`, `area` of the target, and `no_target_probability` if the model has it.
docs/guides/evaluate.md names the code that each definition follows.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Int64

Rows = Mapping[str, np.ndarray]
Summary = Callable[[Rows], Iterator[tuple[str, int | float]]]

GRES_THRESHOLDS = (0.7, 0.8, 0.9)
PHRASECUT_THRESHOLDS = (0.5, 0.7, 0.9)


def predict_no_target(rows: Rows, least_pixels: int = 1) -> Bool[np.ndarray, "n"]:
  """Returns for which expressions the model predicts that there is no target.

  These are the expressions whose `no_target_probability` exceeds 0.5; of a model without that
  output, those whose mask has fewer than `least_pixels` pixels. With the default that is an empty
  mask. ReLA's paper takes 50 for models without the output.
  """
  if "no_target_probability" in rows:
    return rows["no_target_probability"] > 0.5
  intersection, union, area = _pixels(rows)
  return union - area + intersection < least_pixels


def summarise_gres(rows: Rows, least_pixels: int = 1) -> Iterator[tuple[str, int | float]]:
  """Yields gIoU, cIoU, N-acc, T-acc and Pr@X as in ReLA (arXiv 2306.00968), as fractions.

  Args:
    rows: columns with one value per expression.
    least_pixels: see `predict_no_target`.

  Yields:
    - `no_targets`, the number of expressions without a target.
    - `gIoU`, the mean over expressions of their IoU, which is 1 if there is no target and the model
      predicts so, and 0 if it is wrong about that.
    - `cIoU`, sum of intersections / sum of unions.
    - `N-acc` and `T-acc`, the shares of the expressions without and with a target that are
      predicted as such; 0 where there are none.
    - `Pr@X`, the share of the expressions with a target whose IoU is at least X.
  """
  intersection, union, area = _pixels(rows)
  denied = predict_no_target(rows, least_pixels)
  empty = area == 0
  intersection = np.where(denied, 0, intersection)
  # As in ReLA's code, a denied target counts with the mask before it was emptied; if that is not
  # known, with its own area.
  union = np.where(denied, np.where(empty, 0, rows.get("raw_union", area)), union)
  iou = np.where(empty, denied.astype(float), intersection / np.maximum(union, 1))
  yield "no_targets", int(empty.sum())
  yield "gIoU", float(iou.mean())
  yield "cIoU", _ratio(intersection, union)
  yield "N-acc", _share(denied, empty)
  yield "T-acc", _share(~denied, ~empty)
  for threshold in GRES_THRESHOLDS:
    yield f"Pr@{threshold}", _share(iou >= threshold, ~empty)


def summarise_phrasecut(rows: Rows) -> Iterator[tuple[str, int | float]]:
  """Yields mIoU, cIoU and P@X as in PhraseCut's toolkit (arXiv 2008.01187), as fractions.

  Yields:
    `mIoU`, the mean over phrases; `cIoU`, sum of intersections / sum of unions; `P@X`, the share of
    phrases whose IoU is above X, not at X.
  """
  intersection, union, _ = _pixels(rows)
  # 0 without an intersection, as in the toolkit.
  iou = intersection / np.maximum(union, 1)
  yield "mIoU", float(iou.mean())
  yield "cIoU", _ratio(intersection, union)
  for threshold in PHRASECUT_THRESHOLDS:
    yield f"P@{threshold}", float((iou > threshold).mean())


SUMMARIES: dict[str, Summary] = {
  "grefcoco_unc": summarise_gres,
  "phrasecut": summarise_phrasecut,
}
"""Metrics of a data set, in addition to those of `segmentation.summarise`."""


def summarise(dataset: str, rows: Rows) -> dict[str, int | float]:
  """Returns the metrics that are specific to a data set, by name; empty for most.

  Data with expressions without a target has those of gRefCOCO.
  """
  if dataset in SUMMARIES:
    return dict(SUMMARIES[dataset](rows))
  return dict(summarise_gres(rows)) if (rows["area"] == 0).any() else {}


def with_own(metrics: dict[str, int | float], dataset: str, rows: Rows) -> dict[str, int | float]:
  """Returns the metrics common to all data sets, followed by the data set's own.

  The data set's own metrics replace those that count by another rule.

  Args:
    metrics: of `segmentation.summarise`.
    dataset: name of the data set.
    rows: the columns that the metrics were computed from.
  """
  own = summarise(dataset, rows)
  replaced = any(name.startswith("P@") for name in own)
  kept = {k: v for k, v in metrics.items() if not (replaced and k.startswith("P@"))}
  return kept | own


def mean(results: Sequence[Mapping[str, int | float]]) -> dict[str, int | float]:
  """Returns the mean over splits of each metric that all of them have; counts are added.

  Args:
    results: the metrics of each split, of at least one.
  """
  first, *others = results
  columns = {
    name: [of_split[name] for of_split in results]
    for name in first
    if all(name in other for other in others)
  }
  return {
    name: sum(values) if isinstance(values[0], int) else sum(values) / len(values)
    for name, values in columns.items()
  }


def _pixels(
  rows: Rows,
) -> tuple[Int64[np.ndarray, "n"], Int64[np.ndarray, "n"], Int64[np.ndarray, "n"]]:
  intersection, union, area = (
    rows[key].astype(np.int64) for key in ("intersection", "union", "area")
  )
  return intersection, union, area


def _ratio(part: Int64[np.ndarray, "n"], whole: Int64[np.ndarray, "n"]) -> float:
  """Returns 1 if both the targets and the predictions are empty."""
  return float(part.sum() / whole.sum()) if whole.sum() else 1.0


def _share(right: Bool[np.ndarray, "n"], among: Bool[np.ndarray, "n"]) -> float:
  return float(right[among].mean()) if among.any() else 0.0
