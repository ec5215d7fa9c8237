"""Instance masks of a file in `predict`: the image's own, none, or an error, and what is said."""

import json

import numpy as np
import pytest
from PIL import Image

from input_pipeline import preprocess
from input_pipeline.common.errors import InputError
from mail_jax.predict import command as predict
from mail_jax.predict.image_instances import ImageInstances

PIXELS = np.zeros((20, 30, 3), np.uint8)
SQUARE = [[2, 3, 12, 3, 12, 13, 2, 13]]


def _coco(*names, **fields):
  images = [
    {"id": n, "file_name": name, "height": 20, "width": 30} for n, name in enumerate(names, 1)
  ]
  return {"images": images, "annotations": [_row(1)]} | fields


def _row(image_id, **fields):
  return {"id": image_id, "image_id": image_id, "segmentation": SQUARE} | fields


@pytest.fixture
def write(tmp_path):
  def written(content, name="masks.json"):
    (tmp_path / name).write_text(json.dumps(content))
    return str(tmp_path / name)

  return written


@pytest.mark.parametrize("kind", ["coco", "results", "empty results"])
def test_an_image_of_which_a_file_has_nothing_has_no_instances_and_is_counted(write, kind):
  path = write(_coco("a_1.jpg", "a_2.jpg") if kind == "coco" else [_row(1, score=1)])
  if kind == "empty results":
    path = write([])
  instances = ImageInstances()
  spec = f"{kind.split()[-1]}:{path}"
  assert instances.find(spec, PIXELS, "x/a_2.jpg").shape == (0, 20, 30)
  assert instances.notes == {"image without masks in the file": 1}
  if kind != "empty results":
    assert instances.find(spec, PIXELS, "x/a_1.jpg")[0].sum() == 100


def test_an_image_that_annotations_do_not_list_is_an_error(write):
  spec = f"coco:{write(_coco('a_1.jpg', 'a_2.jpg'))}"
  with pytest.raises(InputError, match=r"no image named x/a_3\.jpg") as caught:
    ImageInstances().find(spec, PIXELS, "x/a_3.jpg")
  assert "--allow_empty" not in str(caught.value)


def test_what_is_left_out_is_counted(write):
  rows = [
    _row(1),
    _row(1, id=2, segmentation=None),
    _row(1, id=3, segmentation=[*SQUARE, [1, 2, 3, 4]]),
  ]
  instances = ImageInstances()
  spec = f"coco:{write(_coco('a.jpg', 'b.jpg', annotations=rows))}"
  assert len(instances.find(spec, PIXELS, "a.jpg")) == 1  # twice the same
  assert instances.notes == {
    "annotation without a mask left out": 1,
    "part with fewer than three points left out": 1,
  }


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("seen", [True, False])
def test_masks_of_a_turned_photo_are_for_the_pixels_that_are_seen_or_refused(
  write, tmp_path, orientation, seen
):
  """The annotation is a square at the star as it is seen, or as it is stored."""
  stored = Image.new("RGB", (30, 20), "black")
  stored.paste("white", (2, 3, 12, 13))
  exif = Image.Exif()
  exif[0x0112] = orientation
  path = str(tmp_path / "phone.png")
  stored.save(path, exif=exif)
  pixels = preprocess.open_image(path)
  height, width = pixels.shape[:2] if seen else (20, 30)
  rows, columns = np.nonzero(pixels[..., 0]) if seen else (np.array([3, 12]), np.array([2, 11]))
  left, top, right, bottom = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
  square = [[int(v) for v in (left, top, right, top, right, bottom, left, bottom)]]
  image = {"id": 1, "file_name": "phone.png", "height": height, "width": width}
  spec = write({"images": [image], "annotations": [_row(1, segmentation=square)]})
  known = orientation == 1 or (seen and orientation > 4)
  if known:
    (mask,) = ImageInstances().find(spec, pixels, path)
    np.testing.assert_array_equal(mask, pixels[..., 0] > 0)
  else:
    with pytest.raises(InputError, match=r"EXIF rotates .*stored or the|sides are swapped"):
      ImageInstances().find(spec, pixels, path)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
  folder = tmp_path_factory.mktemp("photos")
  for number, name in enumerate(("a_1.png", "a_2.png", "clip/a_1.png")):
    (folder / name).parent.mkdir(exist_ok=True)
    Image.new("RGB", (30, 20), (80 * number, 0, 0)).save(folder / name)
  return folder


def _predict(run, photos, spec, out):
  options = ["--image", photos, "--text", "it", "--instances", spec, "--out", out]
  predict.main(["--checkpoint", str(run), *map(str, options)])
  rows = (out / "predictions.jsonl").read_text().splitlines()
  return {row["image"]: row["instances"] for row in map(json.loads, rows)}


def test_a_folder_gets_the_masks_of_its_images_and_what_is_missing_is_printed(
  finished_run, photos, write, tmp_path, capsys
):
  names = f"{photos.name}/a_1.png", "a_2.png", "x/clip/a_1.png"
  content = _coco(*names, annotations=[_row(1), _row(2, segmentation=[*SQUARE, [1, 2]])])
  found = _predict(finished_run, photos, f"coco:{write(content)}", tmp_path / "out")
  assert found == {"a_1.png": 1, "a_2.png": 1, "clip/a_1.png": 0}
  assert (
    "instances: image without masks in the file (1); part with fewer than three points left out (1)"
  ) in capsys.readouterr().err


def test_two_images_of_a_folder_do_not_get_the_same_masks(finished_run, photos, write, tmp_path):
  """Nor all of them those of the only image in a file."""
  spec = write(_coco("a_1.png"))
  with pytest.raises(InputError, match=r"a_1\.png and .*a_1\.png both match image"):
    _predict(finished_run, photos, spec, tmp_path / "out")
