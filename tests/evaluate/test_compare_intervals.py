"""Intervals of the difference of two models, against a plain loop and a known truth."""

import numpy as np
import pytest

from mail_jax.evaluate import compare, protocols

ORIGINAL = protocols.ORIGINAL


def draw(rng: np.random.Generator, cluster: np.ndarray, better: float) -> dict[str, np.ndarray]:
  """Draws scores of a model; expressions of one image have similar ones."""
  skill = rng.normal(size=cluster.max() + 1)[cluster] + rng.normal(size=len(cluster)) + better
  union = rng.integers(50, 500, len(cluster))
  return {
    "intersection": (union / (1 + np.exp(-skill))).astype(int),
    "union": union,
    "boundary_iou": rng.random(len(cluster)),
    "selected_iou": rng.random(len(cluster)),
    "oracle_iou": rng.random(len(cluster)),
  }


def metrics_by_hand(columns: dict[str, np.ndarray], numbers: list[int]) -> dict[str, float]:
  """Returns the metrics of the expressions with these numbers, which may repeat."""
  pairs = [(int(columns["intersection"][i]), int(columns["union"][i])) for i in numbers]
  found = {"oIoU": sum(i for i, _ in pairs) / sum(u for _, u in pairs)}
  found["mIoU"] = sum(i / u for i, u in pairs) / len(pairs)
  found["boundary_mIoU"] = sum(columns["boundary_iou"][i] for i in numbers) / len(numbers)
  for threshold in (0.5, 0.6, 0.7, 0.8, 0.9):
    found[f"P@{threshold}"] = sum(i / u >= threshold for i, u in pairs) / len(pairs)
  can = [i for i in numbers if columns["oracle_iou"][i] > 0.5]
  found["selection_accuracy"] = sum(columns["selected_iou"][i] > 0.5 for i in can) / len(can)
  return found


def test_intervals_equal_those_of_a_plain_loop():
  rng = np.random.default_rng(0)
  cluster = np.sort(np.append(rng.integers(0, 12, 48), np.arange(12)))
  sides = [draw(rng, cluster, better) for better in (0.0, 0.7)]
  actual = compare.intervals(
    *(compare.ratios(side, ORIGINAL) for side in sides), cluster, resamples=200, seed=3
  )
  differences: dict[str, list[float]] = {}
  for images in np.concatenate(list(compare.draws(12, 200, seed=3))):
    numbers = [i for image in images for i in range(len(cluster)) if cluster[i] == image]
    a, b = (metrics_by_hand(side, numbers) for side in sides)
    for name in a:
      differences.setdefault(name, []).append(b[name] - a[name])
  assert actual.keys() == differences.keys()
  for name, values in differences.items():
    np.testing.assert_allclose(actual[name], np.quantile(values, [0.025, 0.975]), atol=1e-12)


def test_intervals_of_a_mean_equal_those_of_a_plain_loop():
  rng = np.random.default_rng(1)
  cluster = np.sort(np.append(rng.integers(0, 12, 48), np.arange(12)))
  sides = [draw(rng, cluster, better) for better in (0.0, 0.7, 0.2)]
  actual = compare.intervals_of_mean(
    [compare.ratios(side, ORIGINAL) for side in sides], cluster, resamples=200, seed=3
  )
  means: dict[str, list[float]] = {}
  for images in np.concatenate(list(compare.draws(12, 200, seed=3))):
    numbers = [i for image in images for i in range(len(cluster)) if cluster[i] == image]
    by_side = [metrics_by_hand(side, numbers) for side in sides]
    for name in by_side[0]:
      means.setdefault(name, []).append(sum(found[name] for found in by_side) / 3)
  assert actual.keys() == means.keys()
  for name, values in means.items():
    np.testing.assert_allclose(actual[name], np.quantile(values, [0.025, 0.975]), atol=1e-12)


def test_the_number_drawn_at_a_time_changes_nothing(monkeypatch):
  whole = np.concatenate(list(compare.draws(7, 101)))
  monkeypatch.setattr(compare, "_AT_A_TIME", 50)
  parts = list(compare.draws(7, 101))
  assert len(parts) == 15
  np.testing.assert_array_equal(np.concatenate(parts), whole)
  assert whole.shape == (101, 7) and set(whole.ravel().tolist()) == set(range(7))


@pytest.mark.parametrize("metric", ["mIoU", "oIoU", "P@0.5"])
def test_intervals_hold_the_true_difference_in_95_of_100_cases(metric):
  """Uses clusters of 1 to 6 similar expressions; without clusters, intervals are too narrow."""
  rng = np.random.default_rng(1)

  def sample(clusters: int) -> tuple[np.ndarray, list[dict[str, np.ndarray]]]:
    cluster = np.repeat(np.arange(clusters), rng.integers(1, 7, clusters))
    gain = rng.normal(size=clusters)[cluster] + 0.3  # common to the sentences of an image
    a = draw(rng, cluster, 0.0)
    odds = a["intersection"] / np.maximum(a["union"] - a["intersection"], 1) * np.exp(gain)
    b = a | {"intersection": (a["union"] * odds / (1 + odds)).astype(int)}
    return cluster, [compare.ratios(side, ORIGINAL) for side in (a, b)]

  def difference(sides: list[dict[str, np.ndarray]]) -> float:
    a, b = (side[metric].sum(1) for side in sides)
    return b[0] / b[1] - a[0] / a[1]

  true = difference(sample(200_000)[1])
  covered, narrow, cases = 0, 0, 300
  for case in range(cases):
    cluster, (a, b) = sample(80)
    a, b = {metric: a[metric]}, {metric: b[metric]}
    low, high = compare.intervals(a, b, cluster, resamples=400, seed=case)[metric]
    covered += low <= true <= high
    alone = np.arange(len(cluster))
    low, high = compare.intervals(a, b, alone, resamples=400, seed=case)[metric]
    narrow += low <= true <= high
  # Three standard deviations of a binomial of 300 at 95 % are 3.8 %; percentile intervals of few
  # clusters are narrow.
  assert 0.90 <= covered / cases <= 0.99, covered / cases
  assert narrow / cases < covered / cases - 0.05


def test_a_model_does_not_differ_from_itself():
  rng = np.random.default_rng(2)
  cluster = np.arange(40) // 4
  ratios = compare.ratios(draw(rng, cluster, 0), ORIGINAL)
  actual = compare.intervals(ratios, ratios, cluster)
  assert set(actual.values()) == {(0.0, 0.0)}


def test_a_metric_without_values_has_no_interval():
  rng = np.random.default_rng(3)
  cluster = np.arange(40) // 4
  blind = draw(rng, cluster, 0) | {"oracle_iou": np.zeros(40)}
  ratios = compare.ratios(blind, ORIGINAL)
  actual = compare.intervals(ratios, ratios, cluster, resamples=20)
  assert np.isnan(actual["selection_accuracy"]).all() and not np.isnan(actual["mIoU"]).any()
