"""Masks of segmentation models in transformers, with tiny, random models."""

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from proposer_images import assert_same

from input_pipeline.common.errors import InputError
from input_pipeline.proposers.registry import open_proposer


@pytest.fixture(scope="module")
def tiny():
  """Module that makes tiny models; needs torch and transformers."""
  pytest.importorskip("torch")
  pytest.importorskip("transformers")
  import tiny_segmenters

  return tiny_segmenters


def _needs_torchvision(name: str):
  """Skips SAM 2 without torchvision, which its processor needs."""
  if name == "sam2":
    try:
      import torchvision  # noqa: F401
    except (ImportError, RuntimeError):  # A RuntimeError where torchvision is not of this torch.
      pytest.skip("transformers' processor of SAM 2 needs a torchvision that fits torch")


@pytest.mark.extras
@pytest.mark.parametrize("name", ["mask2former", "maskformer", "detr", "oneformer"])
def test_segmenters_give_an_image_the_same_masks_in_any_batch(tmp_path, tiny, five_photos, name):
  getattr(tiny, name)(tmp_path)
  proposer = open_proposer(f"huggingface:{tmp_path}").proposer
  together = proposer.propose(five_photos[:4], range(4))
  for photo, proposals in zip(five_photos, together, strict=False):
    (alone,) = proposer.propose([photo], [9])
    assert_same(proposals, alone)
    assert proposals.masks.shape[1:] == photo.shape[:2]
    assert len(proposals.masks) >= 3
    assert proposals.masks.any((1, 2)).all()
    assert (~proposals.masks).any((1, 2)).any()
    assert len({mask.tobytes() for mask in proposals.masks}) >= 3
    assert ((proposals.scores > 0) & (proposals.scores <= 1)).all()
    assert proposals.categories.max() < tiny.LABELS
    assert proposals.source == "huggingface"
  other = [proposals.masks.mean() for proposals in together]
  assert len(set(other)) == len(other)  # It depends on the photo.


@pytest.mark.extras
@pytest.mark.parametrize(
  ("name", "least_iou", "tolerance"),
  # Theirs are thresholded at 384 x 384, MaskFormer's at the 24 x 40 of its logits, and enlarged.
  [("mask2former", 0.95, 1e-4), ("maskformer", 0.7, 0.03)],
)
def test_masks_are_those_of_the_processor_s_own_function(
  tmp_path, tiny, five_photos, name, least_iou, tolerance
):
  import torch
  import transformers

  model = getattr(tiny, name)(tmp_path)
  processor = transformers.AutoImageProcessor.from_pretrained(tmp_path)
  photo = five_photos[0]
  with torch.no_grad():
    outputs = model(**processor(images=photo, return_tensors="pt"))
  (expected,) = processor.post_process_instance_segmentation(
    outputs, threshold=0.02, target_sizes=[photo.shape[:2]], return_binary_maps=True
  )
  (actual,) = open_proposer(f"huggingface:{tmp_path}").proposer.propose([photo], [1])
  theirs = expected["segmentation"].numpy().astype(bool)
  info = expected["segments_info"]
  for mask, score, category in zip(actual.masks, actual.scores, actual.categories, strict=True):
    iou = (mask & theirs).sum((1, 2)) / (mask | theirs).sum((1, 2))
    alike = [
      iou[k] > least_iou
      and info[k]["label_id"] == category
      and abs(info[k]["score"] - score) < tolerance
      for k in range(len(info))
    ]
    assert any(alike)
  assert len(actual.masks) >= 3


@pytest.mark.extras
def test_padding_of_a_processor_is_removed(tmp_path, tiny, five_photos):
  import transformers

  tiny.mask2former(tmp_path)
  (plain,) = open_proposer(f"huggingface:{tmp_path}").proposer.propose([five_photos[0]], [1])
  padded = transformers.Mask2FormerImageProcessor(size=tiny.SIZE, pad_size=None)
  padded.pad_size = {"height": 160, "width": 224}
  padded.save_pretrained(tmp_path)
  (proposals,) = open_proposer(f"huggingface:{tmp_path}").proposer.propose([five_photos[0]], [1])
  assert proposals.masks.shape[1:] == plain.masks.shape[1:]
  iou = [
    ((mask & plain.masks).sum((1, 2)) / (mask | plain.masks).sum((1, 2))).max()
    for mask in proposals.masks
  ]
  assert (
    np.mean(iou) > 0.7
  )  # Padding changes what the model sees at the border, not where things are.


@pytest.fixture
def coarse_grid(monkeypatch):
  """Uses 36 points and keeps duplicates: the boxes of noise are everywhere."""
  from input_pipeline.proposers import huggingface

  monkeypatch.setattr(huggingface, "POINTS_PER_SIDE", 6)
  monkeypatch.setattr(huggingface, "POINTS_AT_A_TIME", 10)
  monkeypatch.setattr(huggingface, "MAX_BOX_IOU", 1.0)


@pytest.mark.extras
@pytest.mark.parametrize("name", ["sam", "sam2"])
def test_mask_generators_give_the_masks_of_each_point_alone(
  tmp_path, tiny, five_photos, name, coarse_grid
):
  import torch
  import transformers

  del coarse_grid
  _needs_torchvision(name)
  model = getattr(tiny, name)(tmp_path)
  processor = transformers.AutoProcessor.from_pretrained(tmp_path)
  small = [np.asarray(Image.fromarray(photo).reduce(4)) for photo in five_photos[:4]]
  proposer = open_proposer(f"huggingface:{tmp_path}").proposer
  for photo, actual in zip(small, proposer.propose(small, range(4)), strict=True):
    (alone,) = proposer.propose([photo], [9])
    assert_same(actual, alone)
    assert len(actual.masks) >= 3
    assert (np.diff(actual.scores) <= 0).all()

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
  (actual,) = proposer.propose([small[0]], [0])
  # Rounding may move one of a few hundred masks across a threshold.
  assert abs(len(actual.masks) - len(expected)) <= 1
  matched = [
    any(abs(score - own) < 1e-4 and (mask != other).mean() < 1e-3 for score, mask in expected)
    for own, other in zip(actual.scores, actual.masks, strict=True)
  ]
  assert np.mean(matched) > 0.98


@pytest.mark.extras
def test_of_masks_with_one_box_the_best_is_kept(tiny):
  del tiny
  from input_pipeline.proposers import huggingface

  masks = np.zeros((4, 10, 12), bool)
  masks[0, 1:5, 1:5] = True
  masks[1, 1:5, 1:5] = ~np.eye(4, dtype=bool)  # The same box.
  masks[2, 6:9, 2:11] = True
  masks[3, 2:7, 1:5] = True  # 12 of 24 pixels shared with the first.
  scores = np.asarray([0.9, 0.95, 0.97, 0.89], np.float32)
  packed = [np.packbits(mask) for mask in masks]
  actual = huggingface._without_duplicates(packed, scores, (10, 12))
  np.testing.assert_array_equal(actual.masks, masks[[2, 1, 3]])


@pytest.mark.extras
def test_an_unsupported_model_is_named(tmp_path, tiny):
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
    ("", "missing model"),
    (f"{tmp_path}/none", "none: no such folder"),
    (str(empty), r"empty: no config\.json"),
    (str(bert), r"bert: unsupported model type bert; .*mask2former.*sam"),
    (str(weightless), "weightless: AutoModel.* cannot load it"),
    (str(damaged), "damaged: AutoModel.* cannot load it"),
    (str(unprepared), "unprepared: AutoImageProcessor cannot load it"),
  ):
    with pytest.raises(InputError, match=message):
      open_proposer(f"huggingface:{argument}")


@pytest.mark.extras
def test_a_detector_without_its_mask_head_is_refused(tmp_path, tiny):
  model = tiny.detr(tmp_path)
  model.detr.save_pretrained(tmp_path)
  with pytest.raises(InputError, match=r"weights of DetrForSegmentation are missing, "):
    open_proposer(f"huggingface:{tmp_path}")


@pytest.mark.extras
def test_tensorflow_stays_out_of_transformers(tiny):
  del tiny
  code = "import input_pipeline.proposers.huggingface, sys; sys.exit('tensorflow' in sys.modules)"
  done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
  assert done.returncode == 0, done.stderr.decode()[-500:]
