"""Masks of ONNX models."""

import pathlib
import re
from collections import deque

import numpy as np
import onnx_models as om
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from proposer_images import ALL, assert_same

from input_pipeline.common.errors import InputError
from input_pipeline.proposers.registry import open_proposer
from input_pipeline.proposers.selection import Selection


def flood_fill(classes: np.ndarray) -> list[tuple[int, np.ndarray]]:
  """Yields class and mask of each connected component, pixel by pixel."""
  left = np.ones(classes.shape, bool)
  parts = []
  for start in np.ndindex(classes.shape):
    if not left[start]:
      continue
    mask = np.zeros(classes.shape, bool)
    left[start] = False
    queue = deque([start])
    while queue:
      row, column = queue.popleft()
      mask[row, column] = True
      for y, x in ((row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)):
        inside = 0 <= y < classes.shape[0] and 0 <= x < classes.shape[1]
        if inside and left[y, x] and classes[y, x] == classes[start]:
          left[y, x] = False
          queue.append((y, x))
    parts.append((int(classes[start]), mask))
  return parts


@pytest.mark.extras
@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 12), st.integers(1, 12), st.integers(1, 4))
def test_components_are_those_of_a_flood_fill(seed, height, width, count):
  onnx = pytest.importorskip("onnxruntime") and _onnx()
  generator = np.random.default_rng(seed)
  classes = generator.integers(0, count, (height, width))
  probability = generator.random((height, width), np.float32)
  masks, scores, categories = onnx.components(classes, probability)
  expected = {mask.tobytes(): (value, mask) for value, mask in flood_fill(classes)}
  assert len(masks) == len(expected)
  assert (np.diff(masks.sum((1, 2))) <= 0).all()
  for mask, score, category in zip(masks, scores, categories, strict=True):
    value, actual = expected[mask.tobytes()]
    assert category == value
    np.testing.assert_allclose(score, probability[actual].mean(), rtol=1e-5)


def _onnx():
  from input_pipeline.proposers import onnx

  return onnx


@pytest.mark.extras
def test_a_noisy_map_keeps_its_largest_components_only():
  pytest.importorskip("onnxruntime")
  classes = np.random.default_rng(0).integers(0, 150, (480, 640))
  classes[100:200, 100:200] = 7
  masks, _, categories = _onnx().components(classes)
  assert len(masks) <= _onnx().MAX_COMPONENTS
  assert categories[0] == 7
  assert masks[0][100:200, 100:200].all()
  assert (masks.sum((1, 2)) >= 0.0001 * classes.size).all()


def red_is_the_class(path: pathlib.Path, side: int | str = "open", kind: int = om.INT32) -> str:
  """Writes a model whose class map [N, H, W] is the red channel of raw RGB."""
  return om.write(
    path,
    [om.Value("image", om.UINT8, ["n", side, side, 3])],
    [
      om.Node("Gather", ["image", "zero"], ["red"], {"axis": 3}),
      om.Node("Cast", ["red"], ["classes"], {"to": kind}),
    ],
    [om.Value("classes", kind, ["n", "h", "w"])],
    {"zero": (om.INT64, [0])},
  )


def picture(height: int, width: int) -> np.ndarray:
  """Returns an image with rectangles of classes 3 (twice), 5 and 9 on 0, in red."""
  photo = np.zeros((height, width, 3), np.uint8)
  photo[2 : height // 2, 3 : width // 3, 0] = 3
  photo[height // 2 + 2 :, 3 : width // 3, 0] = 3
  photo[4 : height // 3, width // 2 :, 0] = 5
  photo[height // 2 :, width // 2 : width // 2 + 5, 0] = 9
  return photo


@pytest.mark.extras
@pytest.mark.parametrize("kind", [om.INT32, om.INT64, om.UINT8])
def test_a_class_map_becomes_its_connected_components(tmp_path, kind):
  pytest.importorskip("onnxruntime")
  five_photos = [picture(30, 40), picture(31, 23)]
  proposer = open_proposer(f"onnx:{red_is_the_class(tmp_path / 'red.onnx', kind=kind)}", ALL)
  for photo, actual in zip(five_photos, proposer.propose(five_photos, [1, 2]), strict=True):
    expected = {(value, mask.tobytes()) for value, mask in flood_fill(photo[..., 0])}
    assert len(expected) == 5
    assert {
      (int(value), mask.tobytes())
      for value, mask in zip(actual.categories, actual.masks, strict=True)
    } == expected
    assert set(actual.scores) == {1.0}
    assert (actual.source, actual.trained_on) == ("onnx", "unknown")


@pytest.mark.extras
def test_a_model_of_fixed_size_gives_masks_of_the_image_s_size(tmp_path):
  pytest.importorskip("onnxruntime")
  photo = np.zeros((60, 90, 3), np.uint8)
  photo[15:45, 30:60] = 200
  model = red_is_the_class(tmp_path / "red.onnx", 32)
  (proposals,) = open_proposer(f"onnx:{model}", Selection(min_area=0.05)).propose([photo], [1])
  thing = photo[..., 0] == 200
  assert proposals.masks.shape == (2, 60, 90)
  iou = (proposals.masks & thing).sum((1, 2)) / (proposals.masks | thing).sum((1, 2))
  assert iou.max() > 0.75  # A pixel of the model is three of the image.
  middle = np.argwhere(proposals.masks[iou.argmax()]).mean(0)
  np.testing.assert_allclose(middle, np.argwhere(thing).mean(0), atol=0.5)


def colours_are_logits(path: pathlib.Path, metadata: dict[str, str] | None = None) -> str:
  """Writes a model whose logits are 4 times its input's three channels, float NCHW."""
  shape = [1, 3, "h", "w"]
  return om.write(
    path,
    [om.Value("image", om.FLOAT, shape)],
    [om.Node("Mul", ["image", "four"], ["logits"])],
    [om.Value("logits", om.FLOAT, shape)],
    {"four": (om.FLOAT, [4.0])},
    metadata,
  )


@pytest.mark.extras
@pytest.mark.parametrize(
  ("metadata", "mean", "std"),
  [
    (None, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ({"mean": "0.1,0.5,0.2", "std": "[0.5, 0.25, 1]"}, (0.1, 0.5, 0.2), (0.5, 0.25, 1)),
    ({"mean": "0", "std": "0.00392156862745098"}, (0, 0, 0), (1 / 255, 1 / 255, 1 / 255)),
  ],
)
def test_logits_are_of_the_normalised_image_and_score_their_components(
  tmp_path, metadata, mean, std
):
  pytest.importorskip("onnxruntime")
  generator = np.random.default_rng(1)
  photo = np.repeat(np.repeat(generator.integers(0, 256, (3, 4, 3), np.uint8), 8, 0), 8, 1)
  model = colours_are_logits(tmp_path / "logits.onnx", metadata)
  (actual,) = open_proposer(f"onnx:{model}", ALL).propose([photo], [1])
  logits = 4 * (photo.astype(np.float64) / 255 - mean) / std
  classes = logits.argmax(2)
  powers = np.exp(logits - logits.max(2, keepdims=True))
  probability = powers.max(2) / powers.sum(2)
  expected = {mask.tobytes(): (value, mask) for value, mask in flood_fill(classes)}
  assert len(actual.masks) == len(expected) > 1
  for mask, score, category in zip(actual.masks, actual.scores, actual.categories, strict=True):
    value, part = expected[mask.tobytes()]
    assert category == value
    np.testing.assert_allclose(score, probability[part].mean(), rtol=1e-4)


def channels_are_masks(path: pathlib.Path, batched: bool = False, without: str = "") -> str:
  """Writes a model in torchvision's format: channels are masks, their means the scores."""
  outputs = [
    om.Value("labels", om.INT64, [3]),
    om.Value("scores", om.FLOAT, ["k"]),
    om.Value("masks", om.FLOAT, ["k", 1, "h", "w"]),
  ]
  inputs = ["image"]
  nodes = [
    om.Node("Unsqueeze", ["image", "one"], ["masks"]),
    om.Node("ReduceMean", inputs, ["scores"], {"axes": [1, 2], "keepdims": 0}),
    om.Node("Identity", ["classes"], ["labels"]),
  ]
  if batched:
    nodes = [
      om.Node("Identity", ["image"], ["masks"]),
      om.Node("ReduceMean", inputs, ["scores"], {"axes": [2, 3], "keepdims": 0}),
      nodes[2],
    ]
  return om.write(
    path,
    [om.Value("image", om.FLOAT, ["n", 3, "h", "w"] if batched else [3, "h", "w"])],
    [node for node in nodes if node.outputs[0] != without],
    [value for value in outputs if value.name != without],
    {"one": (om.INT64, [1]), "classes": (om.INT64, [7, 5, 6])},
    {"mean": "0", "std": "1"} if batched else None,
  )


@pytest.mark.extras
@pytest.mark.parametrize("batched", [False, True])
def test_masks_with_scores_are_taken_as_they_are(tmp_path, batched):
  pytest.importorskip("onnxruntime")
  photo = np.random.default_rng(2).integers(0, 256, (20, 30, 3), np.uint8)
  model = channels_are_masks(tmp_path / "masks.onnx", batched)
  proposer = open_proposer(f"onnx:{model}", ALL)
  (proposals,) = proposer.proposer.propose([photo], [1])
  np.testing.assert_array_equal(proposals.masks, np.moveaxis(photo >= 128, 2, 0))
  np.testing.assert_allclose(proposals.scores, photo.mean((0, 1)) / 255, rtol=1e-5)
  assert proposals.categories.tolist() == [7, 5, 6]


@pytest.mark.extras
def test_masks_need_no_labels_but_scores(tmp_path):
  pytest.importorskip("onnxruntime")
  photo = np.random.default_rng(2).integers(0, 256, (20, 30, 3), np.uint8)
  model = channels_are_masks(tmp_path / "masks.onnx", without="labels")
  (proposals,) = open_proposer(f"onnx:{model}").propose([photo], [1])
  assert proposals.categories.tolist() == [0, 0, 0]
  with pytest.raises(InputError, match=r"masks, scores .*labels tensor\(int64\) \[3\]"):
    open_proposer(f"onnx:{channels_are_masks(tmp_path / 'masks.onnx', without='scores')}")


def _identity(path, shape, kind=om.FLOAT, out=None):
  value = om.Value("picture", kind, shape)
  node = om.Node("Identity", ["picture"], ["result"])
  return om.write(path, [value], [node], [om.Value("result", kind, out or shape)])


@pytest.mark.extras
@pytest.mark.parametrize(
  ("shape", "kind", "message"),
  [
    ([2, 3, 8, 8], om.FLOAT, r"one image, or a batch of variable size"),
    ([1, 4, 8, 8], om.FLOAT, r"must be 3 channels"),
    ([1, 3, 8, 3], om.FLOAT, r"must be 3 channels"),
    ([1, "c", "h", "w"], om.FLOAT, r"must be 3 channels"),
    (["h", "w"], om.FLOAT, r"one image"),
    ([1, 3, 8, 8], om.INT64, r"uint8 or float32"),
  ],
)
def test_a_model_with_an_unsupported_input_is_refused_with_its_shape(
  tmp_path, shape, kind, message
):
  pytest.importorskip("onnxruntime")
  path = _identity(tmp_path / "other.onnx", shape, kind)
  with pytest.raises(InputError, match=message) as caught:
    open_proposer(f"onnx:{path}")
  shown = re.escape(str(list(shape)))
  assert re.search(rf"Inputs: picture tensor\(\w+\) {shown}.*Outputs: result", str(caught.value))


@pytest.mark.extras
def test_a_model_with_an_unsupported_output_is_refused_with_its_shape(tmp_path):
  pytest.importorskip("onnxruntime")
  path = _identity(tmp_path / "other.onnx", [3, "h", "w"])
  with pytest.raises(InputError, match=r"output is float32 \[3, 6, 5\].*\[N, C, H, W\]"):
    open_proposer(f"onnx:{path}").propose([np.zeros((6, 5, 3), np.uint8)], [1])


@pytest.mark.extras
def test_a_file_that_is_not_a_model_is_named(tmp_path):
  pytest.importorskip("onnxruntime")
  path = tmp_path / "no.onnx"
  path.write_bytes(b"<html>Not Found</html>")
  for spec, message in (
    ("onnx", r"missing file"),
    (f"onnx:{tmp_path / 'none.onnx'}", r"none\.onnx: no such file"),
    (f"onnx:{path}", r"no\.onnx: onnxruntime cannot load"),
  ):
    with pytest.raises(InputError, match=message):
      open_proposer(spec)
  model = colours_are_logits(path, {"mean": "imagenet"})
  with pytest.raises(InputError, match=r"mean in its metadata is 'imagenet'"):
    open_proposer(f"onnx:{model}")


@pytest.mark.extras
def test_a_real_segmenter_finds_what_people_refer_to(realdata, five_photos):
  pytest.importorskip("onnxruntime")
  model = realdata / "models/deeplabv3_mnv2_ade20k_uint8.onnx"
  proposer = open_proposer(f"onnx:{model}")
  together = proposer.propose(five_photos, range(5))
  for photo, proposals in zip(five_photos, together, strict=True):
    (alone,) = proposer.propose([photo], [9])
    assert_same(proposals, alone)
    assert proposals.masks.shape[1:] == photo.shape[:2]
    assert len(proposals.masks) >= 3
    assert proposals.masks.any(0).mean() > 0.7  # A class map only leaves out tiny components.
