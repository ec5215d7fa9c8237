"""All counts of an evaluation of 500 expressions on disk, against pycocotools, Pillow and loops.

The model is a table of logits, one map per expression; records, loader, protocols and evaluator are
the real ones.
"""

import dataclasses
import math
from typing import Any

import jax
import numpy as np
import pytest
import read_batches
import refer_layout
from PIL import Image
from pycocotools import mask as coco_mask
from scipy import ndimage
from test_segmentation_evaluator import interpolate

from input_pipeline.common.errors import InputError
from input_pipeline.prepare import command as prepare
from input_pipeline.preprocess import bit_planes
from input_pipeline.preprocess.tokenizer import SentencePieceTokenizer
from mail_jax.evaluate import protocols
from mail_jax.evaluate.segmentation import SegmentationEvaluator, count, summarise
from mail_jax.models.mail import Output

SIDE, OBJECTS, SENTENCES = 24, 5, 5
# Height and width: portrait, landscape, square, above 640 pixels, and sides at which Pillow's
# rounding matters.
SIZES = ((90, 60), (60, 90), (64, 128), (33, 32), (7, 11), (96, 96), (75, 50), (100, 128))
SIZES = (*SIZES, *SIZES, (640, 64), (64, 320), (480, 704), (660, 500))
IMAGES = len(SIZES)
CASES = IMAGES * OBJECTS * SENTENCES
# Squares of 480 x 480 take their time.
FEWER = 175
# Where the probability, or the logit, is closer to the threshold, float32 and float64 may disagree.
MARGIN = 1e-5


def polygon(rng: np.random.Generator, height: int, width: int, corners: int) -> list[float]:
  """Returns random corners around a random centre, fractional, and partly outside the image."""
  centre, reach = rng.uniform(0, (width, height)), rng.uniform(1, (width / 2 + 1, height / 2 + 1))
  angles = np.sort(rng.uniform(0, 2 * np.pi, corners))
  points = centre + reach * np.stack([np.cos(angles), np.sin(angles)], 1)
  return np.clip(points, 0, (width, height)).round(2).ravel().tolist()


def segmentations(rng: np.random.Generator, height: int, width: int) -> list[Any]:
  """Returns overlapping polygons, run lengths, distant parts, a single pixel, a large polygon."""
  first = polygon(rng, height, width, 5)
  x, y = (int(n) for n in rng.integers(0, (width, height)))
  corner = refer_layout.rectangle
  pixels = rng.random((height, width)) < rng.uniform(0.1, 0.9)
  _, starts = np.unique(np.cumsum(np.diff(pixels.T.ravel(), prepend=0) != 0), return_counts=True)
  runs = starts.tolist() if not pixels.T.ravel()[0] else [0, *starts.tolist()]
  return [
    [first, [value + 0.8 for value in first]],
    {"counts": runs, "size": [height, width]},
    [
      corner(0, 0, 2, 3),
      corner(width - 2, height - 3, width, height),
      corner(width // 2, 0, width // 2 + 1, height),
    ],
    [corner(x, y, x + 1, y + 1)],
    [polygon(rng, height, width, 12)],
  ]  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Judged:
  """Prepared images with annotations, and a table of logits; `meta` in the order of the data."""

  data_dir: str
  meta: list[dict[str, Any]]
  truth: list[Any]
  """Returns run lengths by pycocotools, directly from the annotations."""
  logits: np.ndarray


@pytest.fixture(scope="module")
def judged(tmp_path_factory) -> Judged:
  folder, rng = tmp_path_factory.mktemp("judged"), np.random.default_rng(0)
  (folder / "train2014").mkdir()
  refs, images, annotations = [], [], []
  for number in range(IMAGES):
    height, width = SIZES[number]
    name = f"COCO_train2014_{number:012d}.jpg"
    pixels = rng.integers(0, 256, (height, width, 3), np.uint8)
    grey = number % 3 == 0
    Image.fromarray(pixels).convert("L" if grey else "RGB").save(folder / "train2014" / name)
    images.append({"id": number, "file_name": name, "height": height, "width": width})
    for which, segmentation in enumerate(segmentations(rng, height, width)):
      key = OBJECTS * number + which
      common = {"id": key, "image_id": number, "category_id": 47, "iscrowd": 0, "area": 9.0}
      annotations.append(common | {"segmentation": segmentation})
      refs.append(_ref(key, number, name))
  content = {"images": images, "annotations": annotations, "categories": []}
  layout = refer_layout.ReferLayout(
    "refcoco_unc", folder / "refer", folder / "train2014", refs, content
  ).write()
  prepare.main(layout.arguments(folder / "data"))
  sizes = {row["id"]: (row["height"], row["width"]) for row in images}
  masks = {row["id"]: _runs(row["segmentation"], *sizes[row["image_id"]]) for row in annotations}
  numbered = [
    (index, row)
    for batch in open_batches(str(folder / "data"))
    for index, row in zip(batch["index"].tolist(), batch["meta"], strict=True)
    if row is not None
  ]
  # Larger photos come in batches of their own.
  meta = [row for _, row in sorted(numbered, key=lambda pair: pair[0])]
  truth = [masks[row["ref_id"]] for row in meta]
  logits = [draw_logits(rng, runs, i) for i, runs in enumerate(truth)]
  return Judged(str(folder / "data"), meta, truth, np.stack(logits))


def _ref(key: int, image_id: int, name: str) -> dict[str, Any]:
  sentences = [
    {
      "raw": f"thing {key} {i}",
      "sent": f"thing {key} {i}",
      "sent_id": SENTENCES * key + i,
      "tokens": [],
    }
    for i in range(SENTENCES)
  ]
  ids = [sentence["sent_id"] for sentence in sentences]
  ref = {"ref_id": key, "ann_id": key, "category_id": 47, "image_id": image_id, "split": "val"}
  return ref | {"file_name": name, "sent_ids": ids, "sentences": sentences}


def _runs(segmentation: Any, height: int, width: int) -> Any:
  runs = coco_mask.frPyObjects(segmentation, height, width)
  return coco_mask.merge(runs) if isinstance(runs, list) else runs


def draw_logits(rng: np.random.Generator, runs: Any, number: int) -> np.ndarray:
  """Returns noise, a mask like the target, or nothing; never close to the threshold."""
  height, width = runs["size"]
  kind = number % SENTENCES
  noise = rng.normal(size=(SIDE, SIDE))
  if kind == 0:
    return np.full((SIDE, SIDE), -3, np.float32)
  if kind == 1:
    return _clear(noise + rng.uniform(-1, 1), height, width)
  mask = Image.fromarray(255 * coco_mask.decode(runs)).resize((SIDE, SIDE), Image.Resampling.BOX)
  return _clear(np.asarray(mask) / 32 - 4 + (0, 0, 0.2, 1, 3)[kind] * noise, height, width)


def _clear(logits: np.ndarray, height: int, width: int) -> np.ndarray:
  """Shifts logits so that zero lies in the largest gap of the interpolated values around it."""
  logits = logits.astype(np.float32)
  values = resize(bilinear, logits, height, width).ravel()
  near = np.sort(np.append(values[np.abs(values) < 0.1], [-0.1, 0.1]))
  gap = np.argmax(np.diff(near))
  assert near[gap + 1] - near[gap] > 4 * MARGIN
  return (logits - (near[gap] + near[gap + 1]) / 2).astype(np.float32)


def bilinear(size: int) -> np.ndarray:
  return interpolate(np.eye(SIDE), size)


def cubic(size: int) -> np.ndarray:
  """Computes OpenCV's cubic, a = -3/4, tap by tap; 0 outside the map."""
  a, weights = -0.75, np.zeros((size, SIDE))
  for i in range(size):
    at = (i + 0.5) * SIDE / size - 0.5
    for tap in range(math.floor(at) - 1, math.floor(at) + 3):
      x = abs(at - tap)
      inner, outer = (a + 2) * x**3 - (a + 3) * x**2 + 1, a * (x**3 - 5 * x**2 + 8 * x - 4)
      if 0 <= tap < SIDE:
        weights[i, tap] = inner if x <= 1 else outer
  return weights


def resize(kernel: Any, values: np.ndarray, height: int, width: int) -> np.ndarray:
  return kernel(height) @ values.astype(float) @ kernel(width).T


def open_batches(data_dir: str, limit: int = CASES) -> Any:
  tokenizer = SentencePieceTokenizer.train(["the left cup", "a red one", "that dog there"], 300)
  return read_batches.evaluation(
    data_dir, "refcoco_unc", "val", tokenizer, batch_size=OBJECTS * SENTENCES, image_size=SIDE,
    max_instances=0, max_tokens=8, limit=limit,
  )  # fmt: skip


def counted(judged: Judged, name: str, limit: int = CASES) -> dict[str, np.ndarray]:
  protocol, table = protocols.find(name), jax.numpy.asarray(judged.logits)

  @jax.jit
  def measure(variables, batch):
    del variables
    logits = table[jax.numpy.maximum(batch["index"], 0)]
    none = jax.numpy.zeros((len(logits), 1))
    output = Output(
      logits[..., None], none[:, :0], none, jax.numpy.zeros((len(logits), 1, SIDE, SIDE), "uint16")
    )
    return count(output, batch, 0, protocol)

  evaluator = SegmentationEvaluator(measure, lambda: open_batches(judged.data_dir, limit), protocol)
  metrics = dict(evaluator.run({}))
  assert metrics == dict(summarise(evaluator.rows, protocol))
  return evaluator.rows


@pytest.fixture(scope="module")
def ours(judged) -> dict[str, np.ndarray]:
  return counted(judged, "original")


def test_integers_of_500_expressions_equal_those_of_pycocotools(judged, ours):
  assert len(ours["intersection"]) == CASES == 500
  for i, runs in enumerate(judged.truth):
    predicted = resize(bilinear, judged.logits[i], *runs["size"]) > 0
    pair = [coco_mask.encode(np.asfortranarray(predicted.astype(np.uint8))), runs]
    both, either = (coco_mask.merge(pair, intersect=intersect) for intersect in (True, False))
    actual = [int(ours[name][i]) for name in ("intersection", "union", "area", "height", "width")]
    expected = [*(int(coco_mask.area(mask)) for mask in (both, either, runs)), *runs["size"]]
    assert actual == expected, judged.meta[i]


def boundary_of(mask: np.ndarray) -> np.ndarray:
  """Returns the pixels of a mask with background or the border of the image in a square around."""
  side = 2 * max(1, round(0.02 * np.hypot(*mask.shape))) + 1
  return mask & ~ndimage.minimum_filter(mask, side, mode="constant", cval=0)


def test_boundaries_of_500_expressions_equal_those_of_scipy(judged, ours):
  expected, truth, runs_of = [], np.zeros(0), None
  for logits, runs in zip(judged.logits, judged.truth, strict=True):
    if runs is not runs_of:
      truth, runs_of = boundary_of(coco_mask.decode(runs) > 0), runs
    predicted = boundary_of(resize(bilinear, logits, *runs["size"]) > 0)
    expected.append([(predicted & truth).sum(), (predicted | truth).sum()])
  actual = np.stack([ours[f"boundary_{name}"] for name in ("intersection", "union")], axis=1)
  np.testing.assert_array_equal(actual, expected)
  assert (actual[:, 1] < ours["union"]).sum() > CASES / 3, "most masks are outline alone"


def test_the_500_expressions_are_diverse(judged, ours):
  assert (ours["area"] == 1).sum() >= CASES / OBJECTS
  assert (ours["intersection"] == 0).sum() >= CASES / SENTENCES
  iou = ours["intersection"] / ours["union"]
  assert (iou > 0.9).sum() > 10 and len(set(iou.tolist())) > CASES / 3
  assert {tuple(runs["size"]) for runs in judged.truth} == set(SIZES)


def check(rows: dict[str, np.ndarray], i: int, values: np.ndarray, truth: np.ndarray) -> int:
  """Compares an expression with values, positive on the referent; returns the ambiguous pixels."""
  predicted, close = values > 0, np.abs(values) < MARGIN
  for name, mask in (("intersection", predicted & truth), ("union", predicted | truth)):
    assert abs(int(rows[name][i]) - int(mask.sum())) <= close.sum(), (name, i)
  return int(close.sum())


def test_lavt_compares_squares_of_480_with_a_target_that_pillow_squashed(judged):
  rows, close = counted(judged, "lavt", FEWER), 0
  for i, runs in enumerate(judged.truth[:FEWER]):
    target = Image.fromarray(coco_mask.decode(runs)).resize((480, 480), Image.Resampling.NEAREST)
    values = resize(bilinear, judged.logits[i], 480, 480)
    close += check(rows, i, values, np.asarray(target) > 0)
    assert rows["area"][i] == coco_mask.area(runs)  # sizes of targets are those of the photo
  assert close < 1e-5 * FEWER * 480**2
  assert {runs["size"][1] for runs in judged.truth[:FEWER]} & {64, 128, 320}, "all sides are easy"
  assert (rows["union"] == 0).any(), "a target of one pixel can be lost"


def test_cris_compares_probabilities_over_035_at_the_original_size(judged):
  rows, close, pixels = counted(judged, "cris", FEWER), 0, 0
  for i, runs in enumerate(judged.truth[:FEWER]):
    probability = resize(cubic, 1 / (1 + np.exp(-judged.logits[i].astype(float))), *runs["size"])
    close += check(rows, i, probability - 0.35, coco_mask.decode(runs) > 0)
    pixels += probability.size
  assert close < 1e-4 * pixels


def opencv_nearest(mask: np.ndarray, side: int) -> np.ndarray:
  """Resizes as `resizeNN` of OpenCV does, pixel by pixel."""
  picks = []
  for length in mask.shape:
    step = 1.0 / (side / length)
    picks.append([min(math.floor(x * step), length - 1) for x in range(side)])
  return np.array([[mask[y, x] for x in picks[1]] for y in picks[0]])


@pytest.mark.parametrize(("name", "side"), [("c3vg", 320), ("deris", 384)])
def test_c3vg_and_deris_compare_squares_with_a_target_that_opencv_squashed(judged, name, side):
  rows, close, seen = counted(judged, name, FEWER), 0, {}
  for i, runs in enumerate(judged.truth[:FEWER]):
    key = (*runs["size"], runs["counts"])
    if key not in seen:
      seen[key] = opencv_nearest(coco_mask.decode(runs) > 0, side)
    close += check(rows, i, resize(bilinear, judged.logits[i], side, side), seen[key])
  assert close < 1e-5 * FEWER * side**2
  pillow = Image.fromarray(coco_mask.decode(judged.truth[0])).resize((side, side), 0)
  assert (opencv_nearest(coco_mask.decode(judged.truth[0]), side) != np.asarray(pillow)).any()


def test_c3vg_and_deris_take_a_logit_of_zero_for_the_target():
  truth = np.ones((1, 320, 320), bool)
  for name, expected in (("c3vg", 1), ("lavt", 0)):
    assert judge(name, np.zeros((1, 320, 320)), truth, 0)["oIoU"] == expected


def letterboxed(mask: np.ndarray, side: int) -> tuple[np.ndarray, tuple[slice, slice]]:
  """Resizes and pads as OneRef does with Pillow's and torch's functions, pixel by pixel."""
  height, width = mask.shape
  ratio = float(side / float(max(height, width)))
  new = [round(length * ratio) for length in (height, width)]
  picks = []
  for old, length in zip(mask.shape, new, strict=True):
    step = np.float32(old) / np.float32(length)
    picks.append([min(int(np.floor(np.float32(x) * step)), old - 1) for x in range(length)])
  top, left = (round((side - length) / 2.0 - 0.1) for length in new)
  inside = (slice(top, top + new[0]), slice(left, left + new[1]))
  square = np.zeros((side, side), bool)
  square[inside] = [[mask[y, x] for x in picks[1]] for y in picks[0]]
  return square, inside


def test_oneref_compares_letterboxed_squares_and_spreads_the_prediction(judged):
  rows, close, spread = counted(judged, "oneref", 50), 0, 0
  for i, runs in enumerate(judged.truth[:50]):
    truth, inside = letterboxed(coco_mask.decode(runs) > 0, 384)
    shape = truth[inside].shape
    excess = np.maximum(1 / (1 + np.exp(-judged.logits[i].astype(float))) - 0.5, 0)
    values = np.zeros((384, 384))
    values[inside] = resize(bilinear, excess, *shape)
    spread += int(
      (values[inside] > 0).sum() - (resize(bilinear, judged.logits[i], *shape) > 0).sum()
    )
    # Only small positive values are ambiguous: a weight of zero may be rounded.
    close += check(rows, i, np.where(values > 0, values, -1), truth)
  assert close < 1e-3 * 50 * 384**2
  assert spread > 0


@pytest.mark.parametrize("name", protocols.PROTOCOLS)
@pytest.mark.parametrize(
  "size", [(90, 60), (427, 640), (333, 500), (208, 224), (7, 11), (612, 612)]
)
def test_a_given_mask_is_resized_like_the_target(name, size):
  protocol, rng = protocols.find(name), np.random.default_rng(sum(size))
  mask = rng.random(size) < 0.5
  on_canvas = np.zeros((1, 640, 640), bool)
  on_canvas[0, : size[0], : size[1]] = mask
  arrays = (np.zeros((1, 2, 2, 1), np.float32), on_canvas, np.array([size], np.int32))
  _, true = protocol.masks(*(jax.numpy.asarray(x) for x in arrays))
  fitted = protocol.fit(mask)
  assert protocol.side is None or fitted.shape == (protocol.side, protocol.side)
  expected = {
    "original": lambda: mask,
    "cris": lambda: mask,
    "lavt": lambda: np.asarray(Image.fromarray(mask).resize((480, 480), Image.Resampling.NEAREST)),
    "c3vg": lambda: opencv_nearest(mask, 320),
    "deris": lambda: opencv_nearest(mask, 384),
    "oneref": lambda: letterboxed(mask, 384)[0],
  }[name]()
  np.testing.assert_array_equal(fitted, expected)
  rows, cols = (np.flatnonzero(fitted.any(axis)) for axis in (1, 0))
  tight = fitted[rows.min() : rows.max() + 1, cols.min() : cols.max() + 1]
  rows, cols = (np.flatnonzero(np.asarray(true[0]).any(axis)) for axis in (1, 0))
  np.testing.assert_array_equal(
    np.asarray(true[0])[rows.min() : rows.max() + 1, cols.min() : cols.max() + 1], tight
  )


def test_papers_count_precision_and_emptiness_in_their_own_ways():
  rows = {
    "intersection": np.array([1, 3, 0]),
    "union": np.array([2, 5, 0]),
    "selected_iou": np.zeros(3),
    "oracle_iou": np.zeros(3),
  }
  actual = {name: dict(summarise(rows, protocol)) for name, protocol in protocols.PROTOCOLS.items()}
  shown = {
    name: [metrics[key] for key in ("mIoU", "P@0.5", "P@0.6")] for name, metrics in actual.items()
  }
  assert shown["original"] == pytest.approx([2.1 / 3, 1, 2 / 3])
  assert shown["lavt"] == pytest.approx([1.1 / 3, 2 / 3, 1 / 3])
  assert shown["cris"] == pytest.approx([1.1 / 3, 1 / 3, 0])


SCORED = ("oIoU", "mIoU", "P@0.5", "P@0.6", "P@0.7", "P@0.8", "P@0.9")
SCORED += ("selection_accuracy", "selected_mIoU")


def judge(name: str, predicted: np.ndarray, truth: np.ndarray, selected: int) -> dict[str, Any]:
  """Returns metrics of masks of the protocol's size; `predicted` is bool, or logits."""
  protocol, rows = protocols.find(name), len(truth)
  selection = np.zeros((rows, 3), np.float32)
  selection[:, selected] = 1
  planes = np.stack([bit_planes.packbits(np.stack([~mask, mask])) for mask in truth])
  logits = predicted.astype(np.float32)
  if predicted.dtype == bool:
    logits = 16 * logits - 8
  batch = {
    "original_target": truth,
    "target": truth,
    "original_size": np.full((rows, 2), truth.shape[1], np.int32),
  }
  arrays = [jax.numpy.asarray(x) for x in (logits[..., None], selection[:, :2], selection, planes)]
  found = count(Output(*arrays), jax.tree.map(jax.numpy.asarray, batch), 2, protocol)
  return dict(summarise(jax.device_get(found), protocol))


def draw_targets(name: str) -> np.ndarray:
  """Returns masks of a size that the protocol does not resize."""
  rng, side = np.random.default_rng(1), protocols.find(name).side or 480
  masks = np.zeros((4, side, side), bool)
  for mask in masks:
    top, left = rng.integers(0, side - 170, 2)
    mask[top : top + 170, left : left + 150] = rng.random((170, 150)) < 0.9
  masks[3] = False
  masks[3, -1, -1] = True
  return masks


@pytest.mark.parametrize("name", protocols.PROTOCOLS)
def test_a_perfect_prediction_scores_one_in_every_metric_and_an_empty_one_zero(name):
  targets = draw_targets(name)
  perfect = judge(name, targets, targets, selected=1)
  assert {perfect[metric] for metric in (*SCORED, "oracle_mIoU")} == {1}
  empty = judge(name, np.zeros_like(targets), targets, selected=2)
  assert {empty[metric] for metric in SCORED} == {0}
  assert empty["oracle_mIoU"] == 1  # of the masks that were there


@pytest.mark.parametrize("name", protocols.PROTOCOLS)
def test_the_target_of_another_ref_scores_what_brute_force_says(name):
  targets = draw_targets(name)
  actual = judge(name, np.roll(targets, 1, axis=0), targets, selected=0)
  pixels = [set(zip(*np.nonzero(mask), strict=True)) for mask in targets]
  pairs = [
    (len(pixels[i - 1] & pixels[i]), len(pixels[i - 1] | pixels[i])) for i in range(len(pixels))
  ]
  assert any(both for both, _ in pairs)
  assert actual["oIoU"] == sum(both for both, _ in pairs) / sum(either for _, either in pairs)
  assert actual["mIoU"] == pytest.approx(sum(b / e for b, e in pairs) / len(pairs), rel=1e-12)
  assert actual["selection_accuracy"] == 0


def test_an_unknown_protocol_is_named():
  with pytest.raises(
    InputError,
    match=r"--protocol mattnet: the protocols are original, lavt, cris, c3vg, deris, oneref",
  ):
    protocols.find("mattnet")
