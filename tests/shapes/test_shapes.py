"""Generated scenes: images, expressions, and the simulated detector."""

import collections
import functools
import io
import math
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from input_pipeline.common import errors
from input_pipeline.shapes import drawing
from input_pipeline.shapes import scenes as shapes

SIDES = {"left": (-1, 0), "right": (1, 0), "top": (0, -1), "bottom": (0, 1)}
MOST = {"leftmost": "left", "rightmost": "right", "topmost": "top", "lowest": "bottom"}
WORDS = {
  "size": ("small", "large"),
  "texture": ("plain", "striped", "dotted"),
  "colour": ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink"),
  "shape": ("circle", "square", "triangle", "star", "cross", "ring", "diamond", "heart"),
}
RELATION = re.compile(r"(.+?) (?:to the )?(left of|right of|above|below) the (.+)")
ORDINAL = re.compile(r"(second|third) (.+) from the (left|right|top|bottom)")
SUPERLATIVE = re.compile(r"(leftmost|rightmost|topmost|lowest|largest|smallest) (.+)")
FURTHEST = re.compile(r"(.+) (?:furthest to|nearest) the (left|right|top|bottom)")


class Reader:
  """Interprets an expression word by word, from attributes and centres of visible masks.

  It knows nothing of margins: it takes the nearest, the first, the largest. So where it agrees with
  the generator, the sentence is true in the plainest sense.
  """

  def __init__(self, objects, masks):
    self.objects = objects
    size = masks.shape[-1]
    self.centres = [np.argwhere(mask)[:, ::-1].mean(0) / size for mask in masks]
    self.areas = [int(mask.sum()) for mask in masks]

  def described(self, words):
    """Returns the indices of the objects that all words fit."""
    matches = set(range(len(self.objects)))
    for word in words.split():
      if word != "object":
        [field] = [name for name, values in WORDS.items() if word in values]
        matches &= {i for i, o in enumerate(self.objects) if getattr(o, field) == word}
    return matches

  def in_order(self, matches, side):
    """Returns the indices, ordered from the given side to the other."""
    return sorted(matches, key=lambda i: -np.dot(self.centres[i], SIDES[side]))

  def understand(self, text):
    """Returns (kind, set of referents)."""
    text = text.removeprefix("the ")
    if match := RELATION.fullmatch(text):
      words, relation, anchor = match.groups()
      _, [anchor] = self.understand(anchor)
      side = {"left of": "left", "right of": "right", "above": "top", "below": "bottom"}[relation]
      referents = set()
      for i in self.described(words) - {anchor}:
        step = self.centres[i] - self.centres[anchor]
        # Within 45 degrees of the direction.
        if np.dot(step, SIDES[side]) > math.cos(math.pi / 4) * np.linalg.norm(step):
          referents.add(i)
      return "relation", referents
    if match := ORDINAL.fullmatch(text):
      rank, words, side = match.groups()
      order = self.in_order(self.described(words), side)
      return "ordinal", {order[1 if rank == "second" else 2]}
    if match := SUPERLATIVE.fullmatch(text):
      most, words = match.groups()
      if most in MOST:
        return "superlative", {self.in_order(self.described(words), MOST[most])[0]}
      ranking = sorted(self.described(words), key=lambda i: self.areas[i])
      return "superlative", {ranking[-1 if most == "largest" else 0]}
    if match := FURTHEST.fullmatch(text):
      words, side = match.groups()
      return "superlative", {self.in_order(self.described(words), side)[0]}
    return "attribute", self.described(text)


@functools.cache
def scenes(split):
  count = 200 if split == "val" else 80  # shares and rates need the larger sample
  return [shapes.make_scene(split, 0, index) for index in range(count)]


def expressions_of(scene):
  return [(i, e) for i, some in enumerate(scene.expressions) for e in some]


def iou(masks, target):
  return [(mask & target).sum() / (mask | target).sum() for mask in masks]


@pytest.mark.parametrize("split", shapes.SPLITS)
def test_every_expression_means_its_object_and_no_other(split):
  for scene in scenes(split):
    reader = Reader(scene.objects, scene.targets)
    for index, expression in expressions_of(scene):
      assert reader.understand(expression.text) == (expression.kind, {index}), expression.text


def test_expressions_stay_true_when_the_scene_and_left_and_right_are_mirrored():
  for scene in scenes("val"):
    reader = Reader(scene.objects, scene.targets[:, :, ::-1])
    for index, expression in expressions_of(scene):
      mirrored = re.sub(
        r"left|right", lambda m: {"left": "right", "right": "left"}[m[0]], expression.text
      )
      assert reader.understand(mirrored) == (expression.kind, {index}), mirrored


def test_positions_decide_by_a_clear_margin():
  for scene in scenes("testB"):
    reader = Reader(scene.objects, scene.targets)
    for index, expression in expressions_of(scene):
      match = re.fullmatch(r"(?:the )?(leftmost|rightmost|topmost|lowest) (.+)", expression.text)
      if match and expression.kind == "superlative":
        first, second, *_ = reader.in_order(reader.described(match[2]), MOST[match[1]])
        gap = np.dot(reader.centres[first] - reader.centres[second], SIDES[MOST[match[1]]])
        assert first == index and gap > 0.06, expression.text


def test_positions_and_not_attributes_decide_if_an_expression_names_a_position():
  for scene in scenes("testB"):
    reader = Reader(scene.objects, scene.targets)
    for _, expression in expressions_of(scene):
      text = re.sub(r"^the | from the .*| (furthest|nearest) .*", "", expression.text)
      text = re.sub(r" (to the left|to the right|left|right|above|below)( of)? the .*", "", text)
      text = re.sub(r"^(\w+most|lowest|\w+est|second|third) ", "", text)
      assert len(reader.described(text)) > 1, expression.text


def test_kinds_of_expressions_have_their_intended_shares():
  kinds = collections.Counter(e.kind for scene in scenes("val") for _, e in expressions_of(scene))
  share = {kind: count / kinds.total() for kind, count in kinds.items()}
  assert share["attribute"] >= 0.30
  assert share["superlative"] >= 0.25
  assert share["relation"] >= 0.18
  assert share["ordinal"] >= 0.14


def test_test_splits_keep_to_their_kinds():
  kinds = {
    split: {e.kind for scene in scenes(split) for _, e in expressions_of(scene)}
    for split in shapes.SPLITS
  }
  assert kinds["testA"] == {"attribute"}
  assert kinds["testB"] == {"superlative", "ordinal", "relation"}
  assert kinds["testC"] == kinds["val"] == kinds["testA"] | kinds["testB"]


def test_referents_of_test_c_have_colour_shape_pairs_that_no_other_split_shows():
  shown = {
    (thing.colour, thing.shape)
    for split in ("train", "val", "testA", "testB")
    for scene in scenes(split)
    for thing in scene.objects
  }
  referents = {
    (scene.objects[i].colour, scene.objects[i].shape)
    for scene in scenes("testC")
    for i, _ in expressions_of(scene)
  }
  assert len(shown) == 8 * 8 - 8
  assert len(referents) == 8 and not referents & shown
  assert {c for c, _ in shown} >= {c for c, _ in referents}
  assert {s for _, s in shown} >= {s for _, s in referents}


def test_the_default_detector_has_its_intended_quality():
  best, picked = [], []
  for scene in scenes("val"):
    for target, some in zip(scene.targets, scene.expressions, strict=True):
      if some:
        overlaps = iou(scene.instances.masks, target) or [0.0]
        best.append(max(overlaps))
        picked.append(np.mean(overlaps))
  assert 0.80 <= np.mean(best) <= 0.85
  assert 0.04 <= np.mean(np.array(best) <= 0.5) <= 0.07  # about one referent in twenty
  assert np.mean(picked) <= 0.20


def test_better_masks_tend_to_have_better_scores():
  quality, scores = [], []
  for scene in scenes("val"):
    for mask, score in zip(scene.instances.masks, scene.instances.scores, strict=True):
      quality.append(max(iou(scene.targets, mask)))
      scores.append(score)
  assert np.corrcoef(quality, scores)[0, 1] > 0.6


def test_detected_masks_are_connected_without_isolated_pixels():
  lonely = total = 0
  for scene in scenes("val"):
    masks = np.pad(scene.instances.masks, ((0, 0), (1, 1), (1, 1)))
    around = masks[:, :-2, 1:-1] | masks[:, 2:, 1:-1] | masks[:, 1:-1, :-2] | masks[:, 1:-1, 2:]
    lonely += (scene.instances.masks & ~around).sum()
    total += scene.instances.masks.sum()
  assert lonely < 1e-3 * total


def test_the_oracle_gives_exactly_the_visible_masks_and_changes_nothing_else():
  for index in range(20):
    scene = shapes.make_scene("val", 3, index)
    exact = shapes.make_scene("val", 3, index, noise=shapes.DetectorNoise.oracle())
    np.testing.assert_array_equal(exact.instances.masks, exact.targets)
    assert (exact.instances.scores == 1).all()
    names = [thing.shape for thing in exact.objects]
    assert [WORDS["shape"][k] for k in exact.instances.categories] == names
    np.testing.assert_array_equal(exact.image, scene.image)
    assert exact.expressions == scene.expressions


@pytest.mark.parametrize(
  ("field", "value"), [("miss_rate", 1.0), ("merge_rate", 1.0), ("spurious_rate", 50.0)]
)
def test_each_kind_of_detector_failure_does_what_its_name_says(field, value):
  silent = {"jitter": 0.0, "erosion": 0.0, "raggedness": 0.0, "score_noise": 0.0}
  none = {"miss_rate": 0.0, "merge_rate": 0.0, "spurious_rate": 0.0}
  noise = shapes.DetectorNoise(**silent, **none | {field: value})
  scene = shapes.make_scene("val", 0, 1, noise=noise)
  masks, targets = scene.instances.masks, scene.targets
  if field == "miss_rate":
    assert len(masks) == len(scene.instances.scores) == 0
  elif field == "merge_rate":
    # Each mask is the union of exactly two objects.
    covered = [sum(bool((mask & target).any()) for target in targets) for mask in masks]
    assert covered == [2] * len(targets)
  else:
    assert len(masks) == 12
    assert sum(max(iou(targets, mask)) == 1 for mask in masks) == len(targets)


def _mistakes(words: str) -> tuple[float, float]:
  """Returns mean IoU of each object's best mask, and the share of objects without one."""
  found = [
    max(iou(scene.instances.masks, target), default=0.0)
    for index in range(30)
    for scene in [shapes.make_scene("val", 0, index, noise=shapes.DetectorNoise.parse(words))]
    for target in scene.targets
  ]
  kept = [value for value in found if value > 0.3]
  return sum(kept) / max(len(kept), 1), 1 - len(kept) / len(found)


def test_the_values_of_noise_order_detectors_by_quality():
  quality = {words: _mistakes(words) for words in ("oracle", "x0.5", "default", "x1", "x2")}
  assert quality["oracle"] == (1.0, 0.0)
  assert quality["default"] == quality["x1"]
  ious = [quality[words][0] for words in ("oracle", "x0.5", "x1", "x2")]
  assert ious == sorted(ious, reverse=True) and ious[-1] < ious[0] - 0.1
  missed = [_mistakes(words)[1] for words in ("miss0", "miss0.2", "miss0.5", "nothing")]
  assert missed == pytest.approx([0, 0.2, 0.5, 1], abs=0.1) and missed[-1] == 1


@pytest.mark.parametrize(
  "words", ["", "x", "x-1", "xnan", "xinf", "miss1.5", "missx", "Oracle", "0.5"]
)
def test_invalid_values_of_noise_are_refused(words):
  with pytest.raises(errors.InputError, match=r"--noise .*x0\.5.*miss0\.2"):
    shapes.DetectorNoise.parse(words)


@settings(max_examples=15, deadline=None)
@given(
  split=st.sampled_from(shapes.SPLITS),
  seed=st.integers(0, 2**63),
  index=st.integers(0, 10**9),
  size=st.integers(48, 256),
)
def test_any_scene_is_repeatable_and_valid(split, seed, index, size):
  scene = shapes.make_scene(split, seed, index, size)
  again = shapes.make_scene(split, seed, index, size)
  np.testing.assert_array_equal(scene.image, again.image)
  np.testing.assert_array_equal(scene.instances.masks, again.instances.masks)
  np.testing.assert_array_equal(scene.instances.scores, again.instances.scores)
  assert scene.expressions == again.expressions and scene.objects == again.objects

  assert scene.image.shape == (size, size, 3)
  assert 3 <= len(scene.objects) <= 7
  assert scene.targets.sum(0).max() == 1, "visible masks overlap"
  assert (scene.targets.sum((1, 2)) >= 0.005 * size**2).all()
  assert len(scene.instances.masks) <= 12
  assert (np.diff(scene.instances.scores) <= 0).all()
  assert expressions_of(scene)
  reader = Reader(scene.objects, scene.targets)
  for i, expression in expressions_of(scene):
    assert reader.understand(expression.text) == (expression.kind, {i})


def test_objects_look_as_they_are_called():
  palette = np.array(list(drawing.COLOURS.values()), float)
  palette /= np.linalg.norm(palette, axis=1, keepdims=True)
  for scene in scenes("val"):
    for thing, target in zip(scene.objects, scene.targets, strict=True):
      if thing.texture == "plain":
        seen = np.median(scene.image[target].astype(float), axis=0)
        nearest = (palette @ (seen / np.linalg.norm(seen))).argmax()
        assert list(drawing.COLOURS)[nearest] == thing.colour


def test_seeds_splits_and_indices_give_different_images():
  variants = [("train", 0, 0), ("train", 0, 1), ("train", 1, 0), ("val", 0, 0)]
  assert len({shapes.make_scene(*which).image.tobytes() for which in variants}) == 4


def test_a_record_holds_the_scene():
  scene = shapes.make_scene("testA", 5, 8, size=80)
  record = shapes.make_record("testA", 5, 8, size=80)
  np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(record.image))), scene.image)
  assert (record.image_id, record.height, record.width) == (8, 80, 80)
  np.testing.assert_array_equal(record.instances.masks, scene.instances.masks)
  spoken = [i for i, some in enumerate(scene.expressions) if some]
  assert len(record.refs) == len(spoken)
  for ref, i in zip(record.refs, spoken, strict=True):
    np.testing.assert_array_equal(ref.target, scene.targets[i])
    assert ref.sentences == tuple(expression.text for expression in scene.expressions[i])


def test_ref_ids_are_unique_within_a_split():
  ids = [ref.ref_id for index in range(50) for ref in shapes.make_record("val", 0, index).refs]
  assert len(set(ids)) == len(ids)


@pytest.mark.parametrize(
  ("arguments", "names"),
  [
    (("dev", 0, 0), "'dev'.*testC"),
    (("val", 0, 0, 16), "16.*32"),
    (("val", -1, 0), "seed -1"),
  ],
)
def test_invalid_arguments_are_named(arguments, names):
  with pytest.raises(errors.InputError, match=names):
    shapes.make_scene(*arguments)
