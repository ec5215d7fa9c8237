"""The data of a report's charts: counts of rows, curves of a log, axes, selected predictions."""

import fractions
import math

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from mail_jax.report import charts, curves, predictions, quality


def _rows(pairs: list[tuple[int, int]]) -> list[dict]:
  return [
    {"intersection": i, "union": u, "iou": i / u if u else 1.0, "area": u and 5} for i, u in pairs
  ]


_PAIRS = st.lists(
  st.integers(0, 60).flatmap(lambda u: st.tuples(st.integers(0, u), st.just(u))),
  min_size=1,
  max_size=60,
)


def _exact(intersection: int, union: int) -> fractions.Fraction:
  return fractions.Fraction(intersection, union) if union else fractions.Fraction(1)


@hypothesis.given(_PAIRS)
def test_the_precision_curve_counts_every_iou_that_reaches_x_exactly(pairs):
  curve = quality.precision_curve(_rows(pairs))
  assert len(curve) == 101
  for number, share in enumerate(curve):
    reached = sum(_exact(*pair) >= fractions.Fraction(number, 100) for pair in pairs)
    assert share == reached / len(pairs)


@hypothesis.given(_PAIRS)
def test_the_histogram_puts_every_iou_into_the_bin_that_it_is_in_exactly(pairs):
  expected = [0] * 20
  for pair in pairs:
    inside = [
      n for n in range(20)
      if fractions.Fraction(n, 20) <= _exact(*pair) < fractions.Fraction(n + 1, 20)
    ]  # fmt: skip
    expected[inside[0] if inside else 19] += 1
  assert quality.histogram(_rows(pairs)) == expected


@pytest.mark.parametrize(
  ("iou", "selected_iou", "oracle_iou", "reason"),
  [
    (0.5, 0.0, 0.0, "found"),
    (0.49, 0.51, 0.9, "poor outline"),
    (0.49, 0.5, 0.51, "wrong instance"),
    (0.0, 0.0, 0.9, "wrong instance"),
    (0.49, 0.3, 0.5, "no instance fits"),
    (0.0, 0.0, 0.0, "no instance fits"),
  ],
)
def test_an_expression_has_one_outcome(iou, selected_iou, oracle_iou, reason):
  row = {"iou": iou, "selected_iou": selected_iou, "oracle_iou": oracle_iou, "area": 10}
  counts = quality.count_outcomes([row, row | {"area": 0}])
  found = {r.name: count for r, count in zip(quality.OUTCOMES, counts, strict=True)}
  assert found == {r.name: int(r.name == reason) for r in quality.OUTCOMES}


def _expressions(count: int, images: int) -> list[dict]:
  rng = np.random.default_rng(1)
  return [
    {
      "image_id": int(rng.integers(images)),
      "iou": round(float(rng.random()), 1),
      "area": 1,
      "index": i,
    }
    for i in range(count)
  ]


def test_every_image_and_every_expression_can_be_drawn():
  rows = _expressions(400, 40)
  random = predictions.choose(rows, 10)["random"]
  assert len({row["image_id"] for row in random}) == len(random) == 10
  firsts = {
    next(i for i, r in enumerate(rows) if r["image_id"] == row["image_id"]) for row in random
  }
  assert firsts != {row["index"] for row in random}  # not always an image's first expression
  assert predictions.choose(rows, 10) == predictions.choose(rows, 10)
  everything = predictions.choose(rows, 100)
  assert {kind: len(found) for kind, found in everything.items()} == {
    "best": 40,
    "worst": 40,
    "random": 40,
  }


def test_ties_are_not_broken_by_order():
  rows = [row | {"iou": 0.0} for row in _expressions(400, 400)]
  worst = predictions.choose(rows, 10)["worst"]
  assert [row["index"] for row in worst] != sorted(row["index"] for row in worst)
  assert max(row["index"] for row in worst) > 100


def test_an_expression_without_a_target_is_not_among_the_best():
  rows = [{"image_id": 0, "iou": 1.0, "area": 0}, {"image_id": 1, "iou": 0.3, "area": 9}]
  chosen = predictions.choose(rows, 1)
  assert chosen["best"] == chosen["worst"] == [rows[1]]


def test_curves_are_in_the_order_of_steps_without_values_that_are_not_finite():
  rows = [
    {"step": 2, "loss": 2.0, "seconds": {"step": 5.0}},
    {"step": 1, "loss": 3, "lr": 0.5},
    {"step": 3, "loss": math.nan, "val/mIoU": 0.25, "note": "x", "flag": True},
  ]
  assert curves.read_curves(rows) == {
    "loss": [(1.0, 3.0), (2.0, 2.0)], "lr": [(1.0, 0.5)], "val/mIoU": [(3.0, 0.25)]
  }  # fmt: skip
  assert curves.time_spent(rows) == {"step": 5.0}


@hypothesis.given(st.integers(3, 60), st.integers(1, 500))
def test_thinning_keeps_the_ends_the_order_and_the_means(points, count):
  curve = [(float(i), float((i * 7919) % 101)) for i in range(count)]
  thin = curves.thin(curve, points)
  assert len(thin) == min(points, count)
  assert (thin[0], thin[-1]) == (curve[0], curve[-1])
  assert [x for x, _ in thin] == sorted({x for x, _ in thin})
  if count > points:
    parts = np.array_split(np.arange(1, count - 1), points - 2)
    sizes = [len(part) for part in parts]
    assert max(sizes) - min(sizes) <= 1
    low, high = min(y for _, y in curve), max(y for _, y in curve)
    assert all(low <= y <= high for _, y in thin)


@hypothesis.given(
  st.lists(st.floats(-1e12, 1e12).filter(lambda x: x == 0 or abs(x) > 1e-9), min_size=1, max_size=5)
)
def test_an_axis_covers_all_values_with_few_round_ticks(values):
  scale = charts.covering(values, "")
  rounding = 1e-8 * (scale.high - scale.low)
  assert scale.low <= min(values) + rounding
  assert scale.high >= max(values) - rounding
  assert scale.low <= 0 <= scale.high
  assert 2 <= len(scale.ticks) <= 8
  steps = np.diff(scale.ticks)
  np.testing.assert_allclose(steps, steps[0])
  mantissa = float(f"{steps[0]:.3e}".partition("e")[0])
  assert mantissa in (1, 2, 2.5, 5)
  assert all(0 <= scale.share(value) <= 1 for value in values)


@pytest.mark.parametrize(
  ("value", "text"),
  [
    (0.0, "0"),
    (0.001, "0.001"),
    (3e-4, "3.0e-4"),
    (12_000.0, "12k"),
    (1.5e6, "1.5M"),
    (0.75, "0.75"),
  ],
)
def test_numbers_on_axes_are_short(value, text):
  assert charts.plain(value) == text
