"""Instance masks of detectors and segmenters that are somebody else's packages."""

import pathlib
import re
import subprocess
import sys
from collections import deque

import numpy as np
import onnx_models as om
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from input_pipeline import records
from input_pipeline.errors import InputError
from input_pipeline.instances import open_provider
from input_pipeline.instances.postprocess import Selection

ALL = Selection(max_instances=64, min_area=0.0, nms_iou=1.0)


@pytest.fixture(scope="module")
def photos(realdata) -> list[np.ndarray]:
  """Five real photos of three sizes."""
  folder = realdata / "coco/train2014"
  found, sizes = [], {}
  for path in sorted(folder.glob("*.jpg")):
    photo = np.asarray(Image.open(path).convert("RGB"))
    if sizes.setdefault(photo.shape, 0) < 2 and len(found) < 5:
      sizes[photo.shape] += 1
      found.append(photo)
  assert len({photo.shape for photo in found}) >= 3
  return found


def assert_same(one: records.Instances, other: records.Instances):
  assert len(one.masks) == len(other.masks)
  np.testing.assert_allclose(one.scores, other.scores, atol=1e-5)
  np.testing.assert_array_equal(one.categories, other.categories)
  # Sums of another order may move a pixel of the outline.
  differing = (one.masks != other.masks).mean(axis=(1, 2))
  assert (differing < 1e-4).all()


# felzenszwalb


@pytest.mark.extras
def test_felzenszwalb_finds_what_differs_in_colour():
  pytest.importorskip("skimage")
  photo = np.full((90, 120, 3), (40, 160, 60), np.uint8)
  photo[20:60, 30:70] = (200, 30, 30)
  photo[30:80, 80:110] = (30, 30, 200)
  (found,) = open_provider("felzenszwalb").propose([photo], [0])
  for color in ((200, 30, 30), (30, 30, 200)):
    thing = (photo == color).all(2)
    iou = (found.masks & thing).sum((1, 2)) / (found.masks | thing).sum((1, 2))
    assert iou[:3].max() > 0.85  # It is among the first; smoothing takes its corners.
  assert (np.diff(found.scores) < 0).all()
  assert (found.source, found.trained_on) == ("felzenszwalb", "nothing")


@pytest.mark.extras
def test_felzenszwalb_gives_a_photo_the_same_masks_in_any_batch(photos):
  pytest.importorskip("skimage")
  provider = open_provider("felzenszwalb:200")
  together = provider.propose(photos[:4], range(4))
  for photo, found in zip(photos, together, strict=False):
    (alone,) = provider.propose([photo], [7])
    np.testing.assert_array_equal(found.masks, alone.masks)
    assert found.masks.shape == (16, *photo.shape[:2])
    assert found.masks.any((1, 2)).all()


@pytest.mark.extras
@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (3, 2), (400, 2)])
def test_felzenszwalb_takes_the_smallest_photos(shape):
  pytest.importorskip("skimage")
  photo = np.zeros((*shape, 3), np.uint8)
  (found,) = open_provider("felzenszwalb").propose([photo], [0])
  assert found.masks.all()
  assert len(found.masks) == 1


@pytest.mark.extras
@pytest.mark.parametrize("argument", ["fine", "0", "100,", "-3", "inf", "nan"])
def test_felzenszwalb_refuses_what_is_no_scale(argument):
  pytest.importorskip("skimage")
  with pytest.raises(InputError, match=rf"felzenszwalb:{argument}: .*scale"):
    open_provider(f"felzenszwalb:{argument}")


# onnx


def flood_fill(classes: np.ndarray) -> list[tuple[int, np.ndarray]]:
  """Each connected part, pixel by pixel: its class and mask."""
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
    value, found = expected[mask.tobytes()]
    assert category == value
    np.testing.assert_allclose(score, probability[found].mean(), rtol=1e-5)


def _onnx():
  from input_pipeline.instances import onnx

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
  """A model whose class map is the red channel of raw RGB, [N, H, W]."""
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
  """Rectangles of classes 3 (twice), 5 and 9 on 0, in red."""
  photo = np.zeros((height, width, 3), np.uint8)
  photo[2 : height // 2, 3 : width // 3, 0] = 3
  photo[height // 2 + 2 :, 3 : width // 3, 0] = 3
  photo[4 : height // 3, width // 2 :, 0] = 5
  photo[height // 2 :, width // 2 : width // 2 + 5, 0] = 9
  return photo


@pytest.mark.extras
@pytest.mark.parametrize("kind", [om.INT32, om.INT64, om.UINT8])
def test_a_map_of_classes_becomes_its_connected_parts(tmp_path, kind):
  pytest.importorskip("onnxruntime")
  photos = [picture(30, 40), picture(31, 23)]
  provider = open_provider(f"onnx:{red_is_the_class(tmp_path / 'red.onnx', kind=kind)}", ALL)
  for photo, found in zip(photos, provider.propose(photos, [1, 2]), strict=True):
    expected = {(value, mask.tobytes()) for value, mask in flood_fill(photo[..., 0])}
    assert len(expected) == 5
    assert {
      (int(value), mask.tobytes())
      for value, mask in zip(found.categories, found.masks, strict=True)
    } == expected
    assert set(found.scores) == {1.0}
    assert (found.source, found.trained_on) == ("onnx", "unknown")


@pytest.mark.extras
def test_a_model_of_fixed_size_gives_masks_of_the_photo_s_own(tmp_path):
  pytest.importorskip("onnxruntime")
  photo = np.zeros((60, 90, 3), np.uint8)
  photo[15:45, 30:60] = 200
  model = red_is_the_class(tmp_path / "red.onnx", 32)
  (found,) = open_provider(f"onnx:{model}", Selection(min_area=0.05)).propose([photo], [1])
  thing = photo[..., 0] == 200
  assert found.masks.shape == (2, 60, 90)
  iou = (found.masks & thing).sum((1, 2)) / (found.masks | thing).sum((1, 2))
  assert iou.max() > 0.75  # A pixel of the model is three of the photo.
  middle = np.argwhere(found.masks[iou.argmax()]).mean(0)
  np.testing.assert_allclose(middle, np.argwhere(thing).mean(0), atol=0.5)


def colours_are_logits(path: pathlib.Path, metadata: dict[str, str] | None = None) -> str:
  """A model whose three classes' logits are 4 times its input's channels, float NCHW."""
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
def test_logits_are_of_the_normalised_photo_and_score_their_parts(tmp_path, metadata, mean, std):
  pytest.importorskip("onnxruntime")
  generator = np.random.default_rng(1)
  photo = np.repeat(np.repeat(generator.integers(0, 256, (3, 4, 3), np.uint8), 8, 0), 8, 1)
  model = colours_are_logits(tmp_path / "logits.onnx", metadata)
  (found,) = open_provider(f"onnx:{model}", ALL).propose([photo], [1])
  logits = 4 * (photo.astype(np.float64) / 255 - mean) / std
  classes = logits.argmax(2)
  powers = np.exp(logits - logits.max(2, keepdims=True))
  probability = powers.max(2) / powers.sum(2)
  expected = {mask.tobytes(): (value, mask) for value, mask in flood_fill(classes)}
  assert len(found.masks) == len(expected) > 1
  for mask, score, category in zip(found.masks, found.scores, found.categories, strict=True):
    value, part = expected[mask.tobytes()]
    assert category == value
    np.testing.assert_allclose(score, probability[part].mean(), rtol=1e-4)


def channels_are_masks(path: pathlib.Path, batched: bool = False, without: str = "") -> str:
  """A model whose masks are the channels of one picture on [0, 1], their mean the score, as torchvision shapes them."""
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
  provider = open_provider(f"onnx:{model}", ALL)
  (found,) = provider.provider.propose([photo], [1])
  np.testing.assert_array_equal(found.masks, np.moveaxis(photo >= 128, 2, 0))
  np.testing.assert_allclose(found.scores, photo.mean((0, 1)) / 255, rtol=1e-5)
  assert found.categories.tolist() == [7, 5, 6]


@pytest.mark.extras
def test_masks_need_no_labels_but_scores(tmp_path):
  pytest.importorskip("onnxruntime")
  photo = np.random.default_rng(2).integers(0, 256, (20, 30, 3), np.uint8)
  model = channels_are_masks(tmp_path / "masks.onnx", without="labels")
  (found,) = open_provider(f"onnx:{model}").propose([photo], [1])
  assert found.categories.tolist() == [0, 0, 0]
  with pytest.raises(InputError, match=r"masks, scores .*labels tensor\(int64\) \[3\]"):
    open_provider(f"onnx:{channels_are_masks(tmp_path / 'masks.onnx', without='scores')}")


def _identity(path, shape, kind=om.FLOAT, out=None):
  value = om.Value("picture", kind, shape)
  node = om.Node("Identity", ["picture"], ["result"])
  return om.write(path, [value], [node], [om.Value("result", kind, out or shape)])


@pytest.mark.extras
@pytest.mark.parametrize(
  ("shape", "kind", "message"),
  [
    ([2, 3, 8, 8], om.FLOAT, r"one picture, or a batch of any size"),
    ([1, 4, 8, 8], om.FLOAT, r"there must be 3"),
    ([1, 3, 8, 3], om.FLOAT, r"there must be 3"),
    ([1, "c", "h", "w"], om.FLOAT, r"there must be 3"),
    (["h", "w"], om.FLOAT, r"one picture"),
    ([1, 3, 8, 8], om.INT64, r"uint8 or float32"),
  ],
)
def test_a_model_of_another_input_is_refused_with_what_it_has(tmp_path, shape, kind, message):
  pytest.importorskip("onnxruntime")
  path = _identity(tmp_path / "other.onnx", shape, kind)
  with pytest.raises(InputError, match=message) as caught:
    open_provider(f"onnx:{path}")
  shown = re.escape(str(list(shape)))
  assert re.search(rf"inputs: picture tensor\(\w+\) {shown}.*outputs: result", str(caught.value))


@pytest.mark.extras
def test_a_model_of_another_output_is_refused_with_what_it_gave(tmp_path):
  pytest.importorskip("onnxruntime")
  path = _identity(tmp_path / "other.onnx", [3, "h", "w"])
  with pytest.raises(InputError, match=r"output was float32 \[3, 6, 5\].*\[N, C, H, W\]"):
    open_provider(f"onnx:{path}").propose([np.zeros((6, 5, 3), np.uint8)], [1])


@pytest.mark.extras
def test_a_file_that_is_no_model_is_named(tmp_path):
  pytest.importorskip("onnxruntime")
  path = tmp_path / "no.onnx"
  path.write_bytes(b"<html>Not Found</html>")
  for spec, message in (
    ("onnx", r"which file"),
    (f"onnx:{tmp_path / 'none.onnx'}", r"none\.onnx: no such file"),
    (f"onnx:{path}", r"no\.onnx: no model"),
  ):
    with pytest.raises(InputError, match=message):
      open_provider(spec)
  model = colours_are_logits(path, {"mean": "imagenet"})
  with pytest.raises(InputError, match=r"mean 'imagenet' of its metadata"):
    open_provider(f"onnx:{model}")


@pytest.mark.extras
def test_a_real_segmenter_finds_what_people_refer_to(realdata, photos):
  pytest.importorskip("onnxruntime")
  model = realdata / "models/deeplabv3_mnv2_ade20k_uint8.onnx"
  provider = open_provider(f"onnx:{model}")
  together = provider.propose(photos, range(5))
  for photo, found in zip(photos, together, strict=True):
    (alone,) = provider.propose([photo], [9])
    assert_same(found, alone)
    assert found.masks.shape[1:] == photo.shape[:2]
    assert len(found.masks) >= 3
    assert found.masks.any(0).mean() > 0.7  # A map of classes leaves nothing out but crumbs.


# huggingface


@pytest.fixture(scope="module")
def tiny():
  """The module that makes tiny models; without torch and transformers there is nothing to make."""
  pytest.importorskip("torch")
  pytest.importorskip("transformers")
  import tiny_segmenters

  return tiny_segmenters


def _needs_torchvision(name: str):
  """Skips SAM 2 where its processor, which is torchvision's, cannot be."""
  if name == "sam2":
    try:
      import torchvision  # noqa: F401
    except (ImportError, RuntimeError):  # A RuntimeError where torchvision is not of this torch.
      pytest.skip("transformers' processor of SAM 2 needs a torchvision that fits torch")


@pytest.mark.extras
@pytest.mark.parametrize("name", ["mask2former", "maskformer", "detr", "oneformer"])
def test_segmenters_give_a_photo_the_same_masks_in_any_batch(tmp_path, tiny, photos, name):
  getattr(tiny, name)(tmp_path)
  provider = open_provider(f"huggingface:{tmp_path}").provider
  together = provider.propose(photos[:4], range(4))
  for photo, found in zip(photos, together, strict=False):
    (alone,) = provider.propose([photo], [9])
    assert_same(found, alone)
    assert found.masks.shape[1:] == photo.shape[:2]
    assert len(found.masks) >= 3
    assert found.masks.any((1, 2)).all()
    assert (~found.masks).any((1, 2)).any()
    assert len({mask.tobytes() for mask in found.masks}) >= 3
    assert ((found.scores > 0) & (found.scores <= 1)).all()
    assert found.categories.max() < tiny.LABELS
    assert found.source == "huggingface"
  other = [found.masks.mean() for found in together]
  assert len(set(other)) == len(other)  # It depends on the photo.


@pytest.mark.extras
@pytest.mark.parametrize(
  ("name", "least_iou", "tolerance"),
  # Theirs are cut at 384 x 384, those of MaskFormer at the 24 x 40 of its logits, and enlarged in blocks.
  [("mask2former", 0.95, 1e-4), ("maskformer", 0.7, 0.03)],
)
def test_masks_are_those_of_the_processor_s_own_function(
  tmp_path, tiny, photos, name, least_iou, tolerance
):
  import torch
  import transformers

  model = getattr(tiny, name)(tmp_path)
  processor = transformers.AutoImageProcessor.from_pretrained(tmp_path)
  photo = photos[0]
  with torch.no_grad():
    outputs = model(**processor(images=photo, return_tensors="pt"))
  (expected,) = processor.post_process_instance_segmentation(
    outputs, threshold=0.02, target_sizes=[photo.shape[:2]], return_binary_maps=True
  )
  (found,) = open_provider(f"huggingface:{tmp_path}").provider.propose([photo], [1])
  theirs = expected["segmentation"].numpy().astype(bool)
  info = expected["segments_info"]
  for mask, score, category in zip(found.masks, found.scores, found.categories, strict=True):
    iou = (mask & theirs).sum((1, 2)) / (mask | theirs).sum((1, 2))
    alike = [
      iou[k] > least_iou
      and info[k]["label_id"] == category
      and abs(info[k]["score"] - score) < tolerance
      for k in range(len(info))
    ]
    assert any(alike)
  assert len(found.masks) >= 3


@pytest.mark.extras
def test_what_a_processor_pads_is_no_part_of_the_photo(tmp_path, tiny, photos):
  import transformers

  tiny.mask2former(tmp_path)
  (plain,) = open_provider(f"huggingface:{tmp_path}").provider.propose([photos[0]], [1])
  padded = transformers.Mask2FormerImageProcessor(size=tiny.SIZE, pad_size=None)
  padded.pad_size = {"height": 160, "width": 224}
  padded.save_pretrained(tmp_path)
  (found,) = open_provider(f"huggingface:{tmp_path}").provider.propose([photos[0]], [1])
  assert found.masks.shape[1:] == plain.masks.shape[1:]
  iou = [
    ((mask & plain.masks).sum((1, 2)) / (mask | plain.masks).sum((1, 2))).max()
    for mask in found.masks
  ]
  assert (
    np.mean(iou) > 0.7
  )  # Padding changes what the model sees at the border, not where things are.


@pytest.fixture
def coarse_grid(monkeypatch):
  """36 points and no duplicates left out: noise has its box everywhere."""
  from input_pipeline.instances import mask_generator

  monkeypatch.setattr(mask_generator, "POINTS_PER_SIDE", 6)
  monkeypatch.setattr(mask_generator, "POINTS_AT_A_TIME", 10)
  monkeypatch.setattr(mask_generator, "MAX_BOX_IOU", 1.0)


@pytest.mark.extras
@pytest.mark.parametrize("name", ["sam", "sam2"])
def test_mask_generators_give_what_they_say_of_each_point_alone(
  tmp_path, tiny, photos, name, coarse_grid
):
  import torch
  import transformers

  del coarse_grid
  _needs_torchvision(name)
  model = getattr(tiny, name)(tmp_path)
  processor = transformers.AutoProcessor.from_pretrained(tmp_path)
  small = [np.asarray(Image.fromarray(photo).reduce(4)) for photo in photos[:4]]
  provider = open_provider(f"huggingface:{tmp_path}").provider
  for photo, found in zip(small, provider.propose(small, range(4)), strict=True):
    (alone,) = provider.propose([photo], [9])
    assert_same(found, alone)
    assert len(found.masks) >= 3
    assert (np.diff(found.scores) <= 0).all()

  height, width = small[0].shape[:2]
  expected = []
  for y in range(6):
    for x in range(6):
      point = [(x + 0.5) * width / 6, (y + 0.5) * height / 6]
      inputs = processor(
        images=Image.fromarray(small[0]), input_points=[[[point]]], return_tensors="pt"
      )
      sizes = {key: inputs.pop(key) for key in list(inputs) if key.endswith("sizes")}
      inputs["input_points"] = inputs["input_points"].float()
      with torch.no_grad():
        outputs = model(**inputs, multimask_output=True)
      (masks,) = processor.post_process_masks(outputs.pred_masks, binarize=False, **sizes)
      for logits, score in zip(masks[0].numpy(), outputs.iou_scores[0, 0].tolist(), strict=True):
        steep = (logits > 1).sum() / max((logits > -1).sum(), 1)
        if score > 0.88 and steep > 0.95:
          expected.append((score, logits > 0))
  expected.sort(key=lambda pair: -pair[0])
  (found,) = provider.propose([small[0]], [0])
  # One of a few hundred may be on the other side of a threshold in sums of another order.
  assert abs(len(found.masks) - len(expected)) <= 1
  matched = [
    any(abs(score - own) < 1e-4 and (mask != other).mean() < 1e-3 for score, mask in expected)
    for own, other in zip(found.scores, found.masks, strict=True)
  ]
  assert np.mean(matched) > 0.98


@pytest.mark.extras
def test_of_masks_with_one_box_the_best_is_kept(tiny):
  del tiny
  from input_pipeline.instances import mask_generator

  masks = np.zeros((4, 10, 12), bool)
  masks[0, 1:5, 1:5] = True
  masks[1, 1:5, 1:5] = ~np.eye(4, dtype=bool)  # The same box.
  masks[2, 6:9, 2:11] = True
  masks[3, 2:7, 1:5] = True  # 12 of 24 pixels shared with the first.
  scores = np.asarray([0.9, 0.95, 0.97, 0.89], np.float32)
  packed = [np.packbits(mask) for mask in masks]
  found = mask_generator._without_duplicates(packed, scores, (10, 12))
  np.testing.assert_array_equal(found.masks, masks[[2, 1, 3]])


@pytest.mark.extras
def test_what_is_no_model_of_masks_is_named(tmp_path, tiny):
  import transformers

  empty = tmp_path / "empty"
  empty.mkdir()
  bert = tmp_path / "bert"
  transformers.BertConfig().save_pretrained(bert)
  weightless = tmp_path / "weightless"
  weightless.mkdir()
  tiny.mask2former(weightless)
  (weightless / "model.safetensors").unlink()
  damaged = tmp_path / "damaged"
  damaged.mkdir()
  tiny.mask2former(damaged)
  (damaged / "model.safetensors").write_bytes(b"<html>Not Found</html>")
  unprepared = tmp_path / "unprepared"
  unprepared.mkdir()
  tiny.mask2former(unprepared)
  (unprepared / "preprocessor_config.json").unlink()
  for argument, message in (
    ("", "which model"),
    (f"{tmp_path}/none", "none: no such folder"),
    (str(empty), r"empty: no config\.json"),
    (str(bert), r"bert: a model of kind bert; .*mask2former.*sam"),
    (str(weightless), "weightless: AutoModel.* cannot load it"),
    (str(damaged), "damaged: AutoModel.* cannot load it"),
    (str(unprepared), "unprepared: AutoImageProcessor cannot load it"),
  ):
    with pytest.raises(InputError, match=message):
      open_provider(f"huggingface:{argument}")


@pytest.mark.extras
def test_a_detector_without_its_mask_head_is_refused(tmp_path, tiny):
  model = tiny.detr(tmp_path)
  model.detr.save_pretrained(tmp_path)
  with pytest.raises(InputError, match=r"weights of DetrForSegmentation are not there, "):
    open_provider(f"huggingface:{tmp_path}")


@pytest.mark.extras
def test_tensorflow_stays_out_of_transformers(tiny):
  del tiny
  code = "import input_pipeline.instances.huggingface, sys; sys.exit('tensorflow' in sys.modules)"
  done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
  assert done.returncode == 0, done.stderr.decode()[-500:]


# Whatever the provider


@pytest.mark.parametrize(
  ("name", "package"),
  [("felzenszwalb", "skimage"), ("onnx", "onnxruntime"), ("huggingface", "transformers")],
)
def test_a_missing_package_is_an_error_that_names_its_extra(monkeypatch, name, package):
  monkeypatch.setitem(sys.modules, package, None)
  monkeypatch.delitem(sys.modules, f"input_pipeline.instances.{name}", raising=False)
  with pytest.raises(InputError, match=rf'needs .*: pip install "mail_jax\[{name}\]"'):
    open_provider(f"{name}:anything")


def test_the_detector_of_the_documentation_works(tmp_path, monkeypatch):
  text = (pathlib.Path(__file__).parents[1] / "docs/instances.md").read_text()
  (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
  (tmp_path / "my_detector.py").write_text(code)
  monkeypatch.syspath_prepend(tmp_path)
  photo = np.zeros((20, 30, 3), np.uint8)
  photo[2:6, 3:9] = 250
  photo[10:18, 12:28] = 210
  (found,) = open_provider("my_detector.MyDetector:200").propose([photo], [1])
  assert found.masks.sum((1, 2)).tolist() == [8 * 16, 4 * 6]
  np.testing.assert_array_equal(found.masks[1], photo[..., 0] == 250)
  assert (found.source, found.trained_on) == ("my_detector", "nothing")
  (dim,) = open_provider("my_detector.MyDetector:230").propose([photo], [1])
  assert len(dim.masks) == 1
