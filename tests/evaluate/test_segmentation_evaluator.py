"""The metrics, against numpy and pycocotools: every integer equal on 200 random cases."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import pytest
from pycocotools import mask as coco_mask

from input_pipeline.common.errors import InputError
from input_pipeline.preprocess import bit_planes
from mail_jax.evaluate.segmentation import SegmentationEvaluator, count, summarise
from mail_jax.models.mail import Output

SIDE, SLOTS, CASES = 24, 3, 200
# Closer to the threshold than this, float32 and float64 may disagree: such cases are drawn again.
MARGIN = 1e-4


@dataclasses.dataclass
class Case:
  """Output of the model for one expression, and the target; `resized` are its logits in float64."""

  logits: np.ndarray
  resized: np.ndarray
  original_target: np.ndarray
  target: np.ndarray
  masks: np.ndarray
  selection_logits: np.ndarray


def interpolate(values: np.ndarray, size: int) -> np.ndarray:
  """Resizes the first axis bilinearly, sample by sample: half-pixel centres, edges repeated."""
  result = np.zeros((size, *values.shape[1:]))
  for i in range(size):
    at = min(max((i + 0.5) * len(values) / size - 0.5, 0), len(values) - 1)
    low = int(at)
    high = min(low + 1, len(values) - 1)
    result[i] = (low + 1 - at) * values[low] + (at - low) * values[high]
  return result


def resize(logits: np.ndarray, height: int, width: int) -> np.ndarray:
  return interpolate(interpolate(logits.astype(float), height).T, width).T


def draw_case(rng: np.random.Generator) -> Case:
  """Makes a random case; half of the targets resemble the prediction, a few are empty."""
  height, width = rng.integers(20, 81, 2)
  while True:
    logits = (rng.normal(size=(SIDE, SIDE)) + rng.uniform(-2, 1)).astype(np.float32)
    resized = resize(logits, height, width)
    if np.abs(resized).min() > MARGIN:
      break
  kind = rng.integers(8)
  noise = rng.random((height, width))
  truth = (resized > 0) ^ (noise < rng.uniform(0, 0.4)) if kind < 4 else noise < 0.4
  target = rng.random((SIDE, SIDE)) < 0.5
  masks = np.stack([target ^ (rng.random((SIDE, SIDE)) < share) for share in rng.random(SLOTS) / 2])
  choice = rng.normal(size=SLOTS + 1).astype(np.float32)
  return Case(logits, resized, truth & (kind < 7), target, masks, choice)


@pytest.fixture(scope="module")
def cases() -> list[Case]:
  rng = np.random.default_rng(0)
  drawn = [draw_case(rng) for _ in range(CASES)]
  assert len({case.resized.shape for case in drawn}) > 150
  return drawn


def make_batches(cases: list[Case], size: int) -> Iterator[dict[str, Any]]:
  """Yields batches, each with its own canvas; the last one is padded."""
  numbers = np.append(np.arange(len(cases)), np.full(size, -1)).astype(np.int32)
  for start in range(0, len(cases), size):
    rows = cases[start : start + size]
    padding = size - len(rows)
    canvas = [-(-max(case.resized.shape[axis] for case in rows) // 64) * 64 for axis in range(2)]
    truth = np.zeros((size, *canvas), bool)
    for row, case in zip(truth, rows, strict=False):
      row[: case.resized.shape[0], : case.resized.shape[1]] = case.original_target
    columns = {
      name: np.stack([getattr(case, name) for case in [*rows, *rows[:1] * padding]])
      for name in ("logits", "target", "masks", "selection_logits")
    }
    shapes = [case.resized.shape for case in rows]
    planes = np.stack([bit_planes.packbits(masks) for masks in columns.pop("masks")])
    yield columns | {
      "planes": planes,
      "original_target": truth,
      "original_size": np.array(shapes + [(1, 1)] * padding, np.int32),
      "weight": np.array([1] * len(rows) + [0] * padding, np.float32),
      "index": numbers[start : start + size],
      "total": np.full(size, len(cases), np.int32),
      "meta": [{"row": start + i} for i in range(len(rows))] + [None] * padding,
    }


@jax.jit
def measure(variables: Any, batch: dict[str, Any]) -> dict[str, jax.Array]:
  """Counts for a model whose output is in the batch."""
  del variables
  rho = batch["selection_logits"][:, :-1]
  output = Output(batch["logits"][..., None], rho, batch["selection_logits"], batch["planes"])
  return count(output, batch, SLOTS)


def evaluate(cases: list[Case], size: int) -> tuple[SegmentationEvaluator, dict[str, float]]:
  evaluator = SegmentationEvaluator(measure, lambda: make_batches(cases, size))
  return evaluator, dict(evaluator.run({}))


@pytest.fixture(scope="module")
def evaluated(cases) -> tuple[SegmentationEvaluator, dict[str, float]]:
  return evaluate(cases, 12)  # 16 full batches, and one of 8 rows and 4 that do not count


def encode(mask: np.ndarray) -> Any:
  return coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))


def areas(case: Case) -> tuple[int, int]:
  """Returns intersection and union by pycocotools."""
  pair = [encode(case.resized > 0), encode(case.original_target)]
  both = coco_mask.area(coco_mask.merge(pair, intersect=True))
  return int(both), int(coco_mask.area(coco_mask.merge(pair, intersect=False)))


def test_intersections_and_unions_equal_those_of_pycocotools(cases, evaluated):
  rows = evaluated[0].rows
  assert len(rows["intersection"]) == CASES
  actual = list(zip(rows["intersection"].tolist(), rows["union"].tolist(), strict=True))
  assert actual == [areas(case) for case in cases]
  assert actual == [
    (
      int(np.sum((case.resized > 0) & case.original_target)),
      int(np.sum((case.resized > 0) | case.original_target)),
    )
    for case in cases
  ]


def test_metrics_follow_from_the_integers(cases, evaluated):
  metrics = evaluated[1]
  pairs = [areas(case) for case in cases]
  iou = [i / u if u else 1.0 for i, u in pairs]
  assert metrics["expressions"] == CASES
  assert metrics["oIoU"] == sum(i for i, _ in pairs) / sum(u for _, u in pairs)
  np.testing.assert_allclose(metrics["mIoU"], sum(iou) / CASES, rtol=1e-12)
  for threshold in (0.5, 0.6, 0.7, 0.8, 0.9):
    assert metrics[f"P@{threshold}"] == sum(value >= threshold for value in iou) / CASES
  assert 0 < metrics["P@0.9"] < metrics["P@0.5"] < 1


def test_selections_are_scored_by_the_raw_masks(cases, evaluated):
  rows, metrics = evaluated[0].rows, evaluated[1]
  selected_iou, oracle_iou = [], []
  for case, chosen in zip(cases, rows["selected"], strict=True):
    iou = [coco_mask.iou([encode(m)], [encode(case.target)], [0])[0, 0] for m in case.masks]
    best = max(range(SLOTS + 1), key=lambda k, case=case: case.selection_logits[k])
    assert chosen == best
    selected_iou.append(iou[best] if best < SLOTS else 0)
    oracle_iou.append(max(iou))
  np.testing.assert_allclose(rows["selected_iou"], selected_iou, rtol=1e-6)
  np.testing.assert_allclose(rows["oracle_iou"], oracle_iou, rtol=1e-6)
  right = [c > 0.5 for c, b in zip(selected_iou, oracle_iou, strict=True) if b > 0.5]
  assert 0 < len(right) < CASES
  np.testing.assert_allclose(metrics["selection_accuracy"], sum(right) / len(right))
  np.testing.assert_allclose(metrics["selected_mIoU"], np.mean(selected_iou), rtol=1e-6)
  np.testing.assert_allclose(metrics["oracle_mIoU"], np.mean(oracle_iou), rtol=1e-6)


def test_batch_size_changes_nothing(cases, evaluated):
  evaluator, metrics = evaluate(cases, 7)
  assert metrics == evaluated[1]
  for name, values in evaluated[0].rows.items():
    np.testing.assert_array_equal(evaluator.rows[name], values)


def test_rows_and_meta_keep_the_order_of_the_data_without_padding(evaluated):
  assert [meta["row"] for meta in evaluated[0].meta] == list(range(CASES))


def alter(cases: list[Case], sign: int, target: bool | None = None) -> list[Case]:
  """Makes cases whose target is a block or empty, with logits of that sign inside it."""
  block = np.zeros((SIDE, SIDE), bool)
  block[6:18, 6:18] = True
  logits = np.where(block, sign, -sign).astype(np.float32)
  altered = []
  for case in cases:
    truth = resize(logits * sign, *case.resized.shape) > 0 if target is None else False
    altered.append(
      dataclasses.replace(
        case,
        logits=logits if target is None else np.full_like(logits, -1),
        original_target=np.broadcast_to(truth, case.resized.shape),
      )
    )
  return altered


def test_a_perfect_prediction_scores_one_and_its_opposite_zero(cases):
  good, bad = evaluate(alter(cases[:12], 1), 12)[1], evaluate(alter(cases[:12], -1), 12)[1]
  for name in ("oIoU", "mIoU", "P@0.5", "P@0.9"):
    assert good[name] == 1
    assert bad[name] == 0


def test_an_empty_prediction_of_an_empty_target_scores_one(cases):
  evaluator, metrics = evaluate(alter(cases[:12], 1, target=False), 12)
  assert not evaluator.rows["union"].any()
  assert metrics["oIoU"] == metrics["mIoU"] == metrics["P@0.9"] == 1


def test_an_empty_prediction_of_a_target_scores_zero(cases):
  silent = [
    dataclasses.replace(case, logits=np.full_like(case.logits, -1)) for case in alter(cases[:12], 1)
  ]
  assert {evaluate(silent, 12)[1][name] for name in ("oIoU", "mIoU", "P@0.5")} == {0}


def test_a_logit_of_zero_is_not_the_referent(cases):
  undecided = [dataclasses.replace(case, logits=0 * case.logits) for case in cases[:12]]
  assert not evaluate(undecided, 12)[0].rows["intersection"].any()


def test_summary_of_four_expressions_by_hand():
  rows = {
    "intersection": np.array([5, 0, 9, 0]),
    "union": np.array([10, 4, 10, 0]),
    # The second has no instance over 0.5, so it cannot be chosen rightly and is left out.
    "selected_iou": np.array([0.75, 0.25, 0.0, 0.5]),
    "oracle_iou": np.array([0.75, 0.5, 0.75, 1.0]),
    "selected": np.array([0, 1, 3, 2]),
  }
  metrics = dict(summarise(rows))
  expected = {"expressions": 4, "oIoU": 14 / 24, "mIoU": (0.5 + 0 + 0.9 + 1) / 4}
  expected |= {"P@0.5": 0.75, "P@0.6": 0.5, "P@0.7": 0.5, "P@0.8": 0.5, "P@0.9": 0.5}
  expected |= {"selection_accuracy": 1 / 3, "selected_mIoU": 0.375, "oracle_mIoU": 0.75}
  assert metrics == pytest.approx(expected, abs=1e-12)


def test_pixels_of_many_large_images_do_not_overflow():
  big = np.full(3, 2**31 - 1, np.int32)
  assert dict(summarise({
    "intersection": big, "union": big, "selected_iou": np.ones(3), "oracle_iou": np.ones(3)
  }))["oIoU"] == 1  # fmt: skip


def test_rows_are_in_the_order_of_the_data_for_any_distribution(cases, evaluated):
  """Distributes rows as several processes do: every batch has rows of all, with padding."""
  [whole] = make_batches(cases, CASES)
  order = np.random.default_rng(1).permutation(CASES + 20) - 20
  order = np.where(order < 0, -1, order)

  def dealt() -> Iterator[dict[str, Any]]:
    for rows in order.reshape(-1, 10):
      batch = {k: v[rows] for k, v in whole.items() if k not in ("meta", "index")}
      yield batch | {"index": rows.astype(np.int32)}

  evaluator = SegmentationEvaluator(measure, dealt)
  assert dict(evaluator.run({})) == evaluated[1]
  for name, values in evaluated[0].rows.items():
    np.testing.assert_array_equal(evaluator.rows[name], values)


@pytest.mark.parametrize(
  ("index", "message"),
  [
    ([0, 1, 2, 4, 5, -1], r"1 of 6 expressions are missing: number 3$"),
    ([0, 1, 2, 3, 4, -1], r"1 of 6 expressions are missing: number 5$"),
    ([0, 1, 2, 3, 4, 5, 5, 2], r"2 of 6 expressions are duplicate: number 2, 5$"),
    ([5, -1, -1], r"5 of 6 expressions are missing: number 0, 1, 2, 3, 4$"),
  ],
)
def test_a_missing_or_duplicate_expression_is_an_error(cases, index, message):
  [whole] = make_batches(cases[:6], 6)
  batch = {k: v[np.array(index)] for k, v in whole.items() if k not in ("meta", "index")}
  batch["index"] = np.array(index, np.int32)
  with pytest.raises(RuntimeError, match=message):
    dict(SegmentationEvaluator(measure, lambda: [batch]).run({}))


def test_no_expressions_is_an_error():
  with pytest.raises(InputError, match="no expressions to evaluate"):
    dict(SegmentationEvaluator(measure, list).run({}))
