"""Limits, examples and texts of the app, without Gradio."""

import json
import pathlib
import sys

import numpy as np
import pytest
from PIL import Image, ImageFile
from pycocotools import mask as coco_mask

from input_pipeline.common.errors import InputError
from mail_jax.app import command as app
from mail_jax.app import examples, limits, texts

ALLOWED = limits.Limits()


def test_without_gradio_it_says_how_to_install_it(monkeypatch, tmp_path):
  monkeypatch.setitem(sys.modules, "gradio", None)
  with pytest.raises(InputError, match=r'pip install "mail_jax\[app\]"'):
    app.main(["--checkpoint", str(tmp_path)])


def test_an_image_with_too_many_pixels_is_rejected_before_decoding(tmp_path, monkeypatch):
  decoded = []
  monkeypatch.setattr(ImageFile.ImageFile, "load", lambda image: decoded.append(image))
  for size in ((8000, 5000), (20_000, 20_000)):
    path = tmp_path / "large.png"
    Image.new("1", size).save(path)
    with pytest.raises(InputError, match=r"large\.png has .* megapixels; the limit is"):
      limits.check_photo(str(path), ALLOWED)
  assert not decoded


def test_a_format_that_starts_programs_is_not_opened(tmp_path):
  path = tmp_path / "drawing.jpg"
  Image.new("RGB", (8, 8)).save(path, "EPS")
  with pytest.raises(InputError, match="cannot be opened as an image"):
    limits.check_photo(str(path), ALLOWED)


def test_an_expression_is_a_line():
  assert limits.read_expressions("a star\n\n  the cup \r\n", ALLOWED) == ["a star", "the cup"]


def test_the_name_of_a_model_is_escaped():
  assert "<b>" not in texts.title([texts.describe_model("<b>run", "best", 1, "shapes")])


def test_an_example_outside_the_folder_of_its_file_is_refused(tmp_path):
  home = tmp_path / "home"
  home.mkdir()
  Image.new("RGB", (40, 40)).save(tmp_path / "a.png")
  (home / "list.jsonl").write_text('{"image": "../a.png", "sentences": ["x"]}\n')
  with pytest.raises(InputError, match=r"--examples .*line 1: image: .*leaves the folder"):
    examples.load(str(home / "list.jsonl"), "refcoco_unc", ALLOWED, tmp_path)


def test_custom_lines_are_examples_with_their_expressions_and_masks(tmp_path):
  from input_pipeline.custom import example

  example.write(str(tmp_path / "mine"), 3, 1, 96, 0)
  lines = [json.loads(line) for line in (tmp_path / "mine" / "mine.jsonl").read_text().splitlines()]
  actual = examples.load(str(tmp_path / "mine" / "mine.jsonl"), "refcoco_unc", ALLOWED, tmp_path)
  assert [pathlib.Path(shown.path).name for shown in actual] == list(
    dict.fromkeys(pathlib.Path(line["image"]).name for line in lines)
  )
  for shown in actual:
    of_photo = [line for line in lines if shown.path.endswith(line["image"])]
    assert shown.expressions == tuple(t for line in of_photo for t in line["sentences"])[:3]
    (given,) = [line["instances"] for line in of_photo if "instances" in line]
    masks = [coco_mask.decode(mask["rle"]) for mask in sorted(given, key=lambda m: -m["score"])]
    np.testing.assert_array_equal(shown.masks, np.stack(masks).astype(bool))
