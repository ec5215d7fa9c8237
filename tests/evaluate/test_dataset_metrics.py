"""gRefCOCO's and PhraseCut's metrics, by hand, and against a loop after ReLA's description."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mail_jax.evaluate import dataset_metrics
from mail_jax.evaluate.dataset_metrics import (
  predict_no_target,
  summarise,
  summarise_gres,
  summarise_phrasecut,
  with_own,
)
from mail_jax.evaluate.segmentation import SegmentationEvaluator, count
from mail_jax.evaluate.segmentation import summarise as summarise_common
from mail_jax.models.mail import Output


def rows(*sentences: tuple[int, int, int], no_target: list[float] | None = None, **more) -> dict:
  """Makes columns from (intersection, union, area), with the probability of no target."""
  columns = dict(zip(("intersection", "union", "area"), np.array(sentences).T, strict=True))
  more = {name: np.array(values) for name, values in more.items()}
  return (
    columns | more | ({} if no_target is None else {"no_target_probability": np.array(no_target)})
  )


def test_a_correct_no_target_counts_one_and_a_wrong_one_zero():
  right = rows((0, 0, 0), (5, 10, 8), no_target=[0.9, 0.1])
  assert dict(summarise_gres(right))["gIoU"] == (1 + 0.5) / 2
  # No target, and the prediction has 6 pixels.
  wrong = rows((0, 6, 0), (5, 10, 8), no_target=[0.1, 0.1])
  assert dict(summarise_gres(wrong))["gIoU"] == (0 + 0.5) / 2
  # The mask happens to be empty, but it did not say so.
  silent = rows((0, 0, 0), (5, 10, 8), no_target=[0.5, 0.1])
  assert dict(summarise_gres(silent))["gIoU"] == (0 + 0.5) / 2


def test_a_denied_target_counts_zero():
  # It would have drawn 4 of the 8 pixels, and 2 others.
  denied = rows((0, 8, 8), (6, 8, 8), no_target=[0.8, 0.2], raw_union=[10, 8])
  metrics = dict(summarise_gres(denied))
  assert metrics["gIoU"] == (0 + 0.75) / 2
  assert metrics["cIoU"] == 6 / (10 + 8)
  assert metrics["Pr@0.7"] == 0.5
  assert dict(summarise_gres(denied | {"raw_union": denied["union"]}))["cIoU"] == 6 / 16


def test_the_union_of_cumulative_iou_includes_masks_without_a_target():
  actual = rows((4, 8, 6), (0, 12, 0), (0, 0, 0), no_target=[0.0, 0.3, 0.9], raw_union=[8, 12, 50])
  # The third is rightly said to mean nothing: what it would have drawn does not count.
  assert dict(summarise_gres(actual))["cIoU"] == 4 / (8 + 12)


def test_n_acc_is_the_share_among_those_without_and_t_acc_among_those_with_a_target():
  sentences = [(0, 0, 0)] * 4 + [(3, 4, 4)] * 5
  no_target = [0.9, 0.6, 0.51, 0.5, 0.8, 0.2, 0.1, 0.0, 0.5]
  metrics = dict(summarise_gres(rows(*sentences, no_target=no_target)))
  assert metrics["N-acc"] == 3 / 4
  assert metrics["T-acc"] == 4 / 5
  assert metrics["no_targets"] == 4


def test_precision_is_among_those_with_a_target():
  sentences = [(0, 0, 0), (7, 10, 9), (8, 10, 9), (9, 10, 9), (69, 100, 90)]
  metrics = dict(summarise_gres(rows(*sentences, no_target=[0.9, 0, 0, 0, 0])))
  assert [metrics[f"Pr@{x}"] for x in (0.7, 0.8, 0.9)] == [3 / 4, 2 / 4, 1 / 4]


def test_a_model_without_that_output_is_scored_by_its_empty_masks():
  # Nothing drawn; 30 pixels drawn; 30 pixels of which 20 are right; nothing drawn of 25.
  silent = rows((0, 0, 0), (0, 30, 0), (20, 35, 25), (0, 25, 25))
  assert predict_no_target(silent).tolist() == [True, False, False, True]
  assert predict_no_target(silent, least_pixels=31).tolist() == [True] * 4
  metrics = dict(summarise_gres(silent))
  assert (metrics["N-acc"], metrics["T-acc"]) == (1 / 2, 1 / 2)
  assert metrics["gIoU"] == pytest.approx((1 + 0 + 20 / 35 + 0) / 4)
  assert metrics["cIoU"] == 20 / (30 + 35 + 25)
  cleared = dict(summarise_gres(silent, least_pixels=31))
  assert (cleared["N-acc"], cleared["T-acc"]) == (1, 0)
  assert cleared["gIoU"] == 2 / 4
  assert cleared["cIoU"] == 0


def test_shares_of_no_expressions_are_zero():
  assert dict(summarise_gres(rows((0, 0, 0), no_target=[0.9])))["T-acc"] == 0
  assert dict(summarise_gres(rows((0, 0, 0), no_target=[0.9])))["Pr@0.7"] == 0
  assert dict(summarise_gres(rows((1, 2, 1), no_target=[0.1])))["N-acc"] == 0
  assert dict(summarise_gres(rows((0, 0, 0), no_target=[0.9])))["cIoU"] == 1


def test_random_rows_score_as_a_loop_over_masks():
  """Computes the columns and the definition separately from true and predicted masks."""
  rng = np.random.default_rng(0)
  targets, drawn, no_target = [], [], rng.random(400)
  for index in range(400):
    target = rng.random((6, 7)) < 0.5 if rng.random() < 0.7 else np.zeros((6, 7), bool)
    targets.append(target)
    drawn.append(target ^ (rng.random((6, 7)) < rng.choice([0.02, 0.1, 0.3])))
    no_target[index] = rng.choice([0.1, 0.9], p=[0.8, 0.2] if target.any() else [0.3, 0.7])

  total, inter, union, tp, fn, fp, tn = 0.0, 0, 0, 0, 0, 0, 0
  precise = dict.fromkeys((0.7, 0.8, 0.9), 0)
  for target, mask, probability in zip(targets, drawn, no_target, strict=True):
    denies = probability > 0.5
    both, either = int((target & mask).sum()), int((target | mask).sum())
    if not target.any():
      tp, fn = tp + denies, fn + (not denies)
      total += 1.0 if denies else 0.0
      union += 0 if denies else either
      continue
    fp, tn = fp + denies, tn + (not denies)
    both = 0 if denies else both
    inter, union, total = inter + both, union + either, total + both / either
    for threshold in precise:
      precise[threshold] += both / either >= threshold

  masks = [mask & (not p > 0.5) for mask, p in zip(drawn, no_target, strict=True)]
  actual = dict(
    summarise_gres({
      "intersection": np.array([(t & m).sum() for t, m in zip(targets, masks, strict=True)]),
      "union": np.array([(t | m).sum() for t, m in zip(targets, masks, strict=True)]),
      "area": np.array([t.sum() for t in targets]),
      "raw_union": np.array([(t | m).sum() for t, m in zip(targets, drawn, strict=True)]),
      "no_target_probability": no_target,
    })
  )  # fmt: skip
  assert min(tp, fn, fp, tn) > 10
  assert actual["gIoU"] == pytest.approx(total / 400)
  assert actual["cIoU"] == inter / union
  assert actual["N-acc"] == tp / (tp + fn)
  assert actual["T-acc"] == tn / (tn + fp)
  for threshold, number in precise.items():
    assert actual[f"Pr@{threshold}"] == pytest.approx(number / (fp + tn))


def test_phrasecut_counts_above_a_threshold_and_not_at_it():
  metrics = dict(summarise_phrasecut(rows((5, 10, 8), (6, 10, 8), (0, 4, 4), (91, 100, 95))))
  assert metrics == pytest.approx(
    {
      "mIoU": (0.5 + 0.6 + 0 + 0.91) / 4,
      "cIoU": 102 / 124,
      "P@0.5": 2 / 4,
      "P@0.7": 1 / 4,
      "P@0.9": 1 / 4,
    }
  )


def test_each_data_set_has_its_own_metrics():
  actual = rows((5, 10, 8))
  assert "gIoU" in summarise("grefcoco_unc", actual)
  assert "cIoU" in summarise("phrasecut", actual)
  assert summarise("refcoco_unc", actual) == {}
  assert set(dataset_metrics.SUMMARIES) == {"grefcoco_unc", "phrasecut"}
  ours = {"mIoU": 0.25, "P@0.5": 0.0, "P@0.6": 0.0}
  assert with_own(ours, "refcoco_unc", actual) == ours
  assert set(ours) < set(with_own(ours, "grefcoco_unc", actual))
  assert "P@0.6" not in with_own(ours, "phrasecut", actual)  # its thresholds are strict


@jax.jit
def measure(variables, batch):
  """Counts for a model whose output is in the batch."""
  del variables
  rho, choice, planes = jnp.zeros((2, 1)), jnp.zeros((2, 2)), jnp.zeros((2, 1, 8, 8), jnp.uint16)
  output = Output(batch["logits"][..., None], rho, choice, planes, batch["no_target"])
  return count(output, batch, 1)


def test_the_evaluator_empties_masks_that_are_predicted_to_have_no_target():
  target = np.zeros((2, 8, 8), bool)
  target[0, :4] = True
  batch = {
    "logits": np.full((2, 8, 8), 3, np.float32),
    "no_target": np.array([-2, 2], np.float32),
    "target": target,
    "original_target": target,
    "original_size": np.full((2, 2), 8, np.int32),
    "index": np.arange(2, dtype=np.int32),
    "meta": [{"row": 0}, {"row": 1}],
  }
  evaluator = SegmentationEvaluator(measure, lambda: [batch])
  metrics = with_own(dict(evaluator.run({})), "grefcoco_unc", evaluator.rows)
  assert metrics["mIoU"] == metrics["gIoU"]
  assert (metrics["gIoU"], metrics["N-acc"], metrics["T-acc"]) == ((0.5 + 1) / 2, 1, 1)
  assert metrics["cIoU"] == 0.5
  assert evaluator.rows["area"].tolist() == [32, 0]
  assert evaluator.rows["union"].tolist() == [64, 0]
  assert evaluator.rows["raw_union"].tolist() == [64, 64]
  assert [known["row"] for known in evaluator.meta] == [0, 1]
  expected = 1 / (1 + np.exp([2.0, -2.0]))
  np.testing.assert_allclose(evaluator.rows["no_target_probability"], expected, rtol=1e-6)


def test_the_miou_of_refcoco_m_is_the_mean_over_its_pairs_of_an_image_and_a_sentence():
  """As on its card; two objects, one with three sentences, of which two are the same."""
  random = np.random.default_rng(0)
  objects = [random.random((8, 9)) < 0.5 for _ in range(2)]
  pairs = [(objects[n], random.random((8, 9)) < 0.5) for n in (0, 0, 0, 1)]
  columns = rows(*(((a & b).sum(), (a | b).sum(), a.sum()) for a, b in pairs))
  metrics = with_own(dict(summarise_common(columns)), "refcoco_m", columns)
  assert metrics["mIoU"] == pytest.approx(sum((a & b).sum() / (a | b).sum() for a, b in pairs) / 4)
  assert "gIoU" not in metrics
