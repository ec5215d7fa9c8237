"""The Python API: kinds of input, results that do not depend on them, and compilation."""

import concurrent.futures
import io
import json
import subprocess
import sys

import numpy as np
import pytest
import tiny_run
from PIL import Image
from pycocotools import mask as coco_mask

from input_pipeline.common.errors import InputError
from input_pipeline.proposers.coco import CocoProposer
from input_pipeline.proposers.registry import open_proposer
from input_pipeline.shapes import scenes as shapes
from mail_jax.predict.segmenter import Segmentation, Segmenter

TEXTS = ("the leftmost star", "the large ring", "red", "the second object from the left")


@pytest.fixture(scope="module")
def segmenter(finished_run) -> Segmenter:
  return Segmenter.load(str(finished_run))


@pytest.fixture(scope="module")
def scene() -> shapes.Scene:
  return shapes.make_scene("val", 1, 0)


def assert_same(a: Segmentation, b: Segmentation) -> None:
  """Checks that results are equal, bit for bit."""
  for name in ("image", "mask", "probability", "instances", "instance_probability"):
    np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)
  assert (a.expression, a.selected, a.was_cut) == (b.expression, b.selected, b.was_cut)


def as_png(pixels: np.ndarray) -> bytes:
  buffer = io.BytesIO()
  Image.fromarray(pixels).save(buffer, "PNG")
  return buffer.getvalue()


def as_coco(masks: np.ndarray, file_name: str, more_images: int = 0) -> dict:
  """Returns COCO annotations of masks, half of them run lengths of pycocotools."""
  _, height, width = masks.shape
  rows = []
  for number, mask in enumerate(masks):
    runs = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    size = {"size": [height, width], "counts": runs["counts"].decode()}
    rows.append({"id": number + 1, "image_id": 7, "category_id": 1, "segmentation": size})
  others = [{"id": 100 + n, "file_name": f"{n}.jpg"} for n in range(more_images)]
  image = {"id": 7, "file_name": f"val/{file_name}", "height": height, "width": width}
  return {"images": [*others, image], "annotations": rows, "categories": [{"id": 1, "name": "x"}]}


def test_every_kind_of_image_gives_the_same_result(segmenter, scene, tmp_path):
  path = tmp_path / "scene.png"
  path.write_bytes(as_png(scene.image))
  expected = segmenter(scene.image, TEXTS[0], scene.instances.masks)
  for image in (str(path), path, path.read_bytes(), Image.open(path)):
    assert_same(segmenter(image, TEXTS[0], scene.instances.masks), expected)


def test_results_do_not_depend_on_the_other_expressions(segmenter, scene):
  alone = [segmenter(scene.image, text, scene.instances.masks) for text in TEXTS]
  for order in (TEXTS, TEXTS[::-1]):
    for result in segmenter(scene.image, order, scene.instances.masks):
      assert_same(result, alone[TEXTS.index(result.expression)])
  assert isinstance(segmenter(scene.image, [TEXTS[0]]), list)
  assert len({result.probability.tobytes() for result in alone}) == len(TEXTS)


def test_every_kind_of_instances_gives_the_same_result(segmenter, scene, tmp_path):
  # Kept under any rules of a proposer: of one size, so that their order is theirs.
  masks = np.zeros((3, *scene.image.shape[:2]), bool)
  masks[0, 5:30, 5:30] = masks[1, 40:70, 8:40] = masks[2, 50:80, 50:90] = True
  expected = segmenter(scene.image, TEXTS[0], masks)
  photo, alone, several = tmp_path / "a.png", tmp_path / "one.json", tmp_path / "several.json"
  photo.write_bytes(as_png(scene.image))
  alone.write_text(json.dumps(as_coco(masks, "elsewhere.jpg")))
  several.write_text(json.dumps(as_coco(masks, "a.png", more_images=2)))
  proposer = CocoProposer(str(several))
  given = {
    "0 and 1": masks.astype(np.int64),
    "a dictionary": as_coco(masks, "elsewhere.jpg"),
    "a file of this photo": str(alone),
    "a path": alone,
    "a file of several": str(several),
    "by name": f"coco:{several}",
    "a proposer": proposer,
    "one that is open": open_proposer(f"coco:{several}"),
  }
  for name, instances in given.items():
    actual = segmenter(photo, TEXTS[0], instances)
    assert len(actual.instances) == 3, name
    by_place = np.argsort([mask.argmax() for mask in actual.instances])
    np.testing.assert_array_equal(actual.instances[by_place], masks, err_msg=name)
    np.testing.assert_allclose(actual.probability, expected.probability, atol=1e-5, err_msg=name)
  # A file that has changed is read again.
  fewer = as_coco(masks[:1], "a.png")
  several.write_text(json.dumps(fewer))
  assert len(segmenter(photo, TEXTS[0], f"coco:{several}").instances) == 1


def test_the_exif_orientation_is_applied(segmenter, scene, tmp_path):
  upright = scene.image[:60]
  exif = Image.Exif()
  exif[0x0112] = 6  # "rotate by 90 degrees clockwise to look at it"
  Image.fromarray(np.rot90(upright)).save(tmp_path / "turned.png", exif=exif)
  result = segmenter(tmp_path / "turned.png", TEXTS[0])
  np.testing.assert_array_equal(result.image, upright)
  assert_same(result, segmenter(upright, TEXTS[0]))


@pytest.mark.parametrize(
  ("image", "expression", "instances", "message"),
  [
    ("nowhere.png", "red", None, r"image nowhere\.png: No such file"),
    (b"text", "red", None, r"not an image in a known format"),
    (np.zeros((4, 4), np.uint8), "red", None, r"an array must be uint8 \[height, width, 3\]"),
    (None, " ", None, r"is empty; write what to look for"),
    (None, [], None, r"expression: the list is empty"),
    (None, ["red", 3], None, r"expression: must be text, not int"),
    (None, "red", np.zeros((1, 4, 4), bool), r"masks are 4 x 4 pixels, the image 96 x 96"),
    (
      None,
      "red",
      np.full((1, 96, 96), 2),
      r"expected masks, bool \[k, height, width\] or of 0 and 1",
    ),
    (None, "red", np.zeros((96, 96), bool), r"expected masks, bool \[k, height, width\]"),
    (None, "red", 3, r"instances: expected masks .*, got int"),
    (None, "red", "nowhere.json", r"nowhere\.json: no such file"),
    (None, "red", "detectron", r"unknown proposer"),
    (None, "red", {"images": 3}, r"`images` must be a list"),
    (None, "red", {"images": []}, r"not a COCO instances file"),
  ],
)
def test_invalid_input_is_reported(segmenter, scene, image, expression, instances, message):
  with pytest.raises(InputError, match=message) as caught:
    segmenter(scene.image if image is None else image, expression, instances)
  assert "\n" not in str(caught.value)


def test_an_image_without_a_name_is_not_found_by_name(segmenter, scene):
  annotations = as_coco(scene.instances.masks, "a.png", more_images=1)
  with pytest.raises(InputError, match="the image has no file name"):
    segmenter(scene.image, "red", annotations)


@pytest.mark.parametrize("form", ["run", "safetensors", "stablehlo"])
def test_each_size_is_compiled_once(finished_run, exported, scene, compilations, form):
  places = {"run": finished_run, "safetensors": exported, "stablehlo": exported / "model.stablehlo"}
  fresh = Segmenter.load(str(places[form]))
  compilations.clear()
  fresh(scene.image, TEXTS[0], scene.instances.masks)
  assert compilations
  compilations.clear()
  fresh(scene.image, TEXTS[1], scene.instances.masks)  # a second expression
  fresh(scene.image, TEXTS, scene.instances.masks)  # several
  fresh(scene.image[:80, :70], TEXTS[0])  # another photo, in the same canvas, without masks
  assert not compilations
  fresh(scene.image[:60, :60], TEXTS[0])  # a smaller canvas
  assert compilations


def test_twenty_threads_get_the_results_of_one(finished_run, compilations):
  scenes = [
    shapes.make_scene("val", 2, index, size=size) for index, size in enumerate((96, 64, 130))
  ]
  asked = [(scene, text) for scene in scenes for text in TEXTS] * 5
  shared = Segmenter.load(str(finished_run))
  compilations.clear()
  with concurrent.futures.ThreadPoolExecutor(20) as pool:
    actual = list(pool.map(lambda ask: shared(ask[0].image, ask[1], ask[0].instances.masks), asked))
  # One program per size, for any number of waiting threads.
  assert len(compilations) == shared._predict._cache_size() == 3
  serial = Segmenter.load(str(finished_run))
  for (scene, text), result in zip(asked, actual, strict=True):
    assert_same(result, serial(scene.image, text, scene.instances.masks))


def test_the_package_has_the_api_and_does_not_import_jax_before_it_is_used():
  program = (
    "import sys, mail_jax; assert 'jax' not in sys.modules; "
    "from mail_jax import Segmenter, Segmentation; assert 'jax' in sys.modules; "
    "assert 'pycocotools' not in sys.modules; print(Segmenter.__name__)"
  )
  done = subprocess.run(
    [sys.executable, "-c", program],
    cwd=tiny_run.CHECKOUT,
    capture_output=True,
    text=True,
    check=True,
  )
  assert done.stdout == "Segmenter\n"


def test_real_images_with_their_annotations_by_name(segmenter, realdata, tmp_path):
  folder = realdata / "coco/train2014"
  photos = sorted(folder.glob("*.jpg"))[:2]
  annotations = next(iter(sorted((realdata / "coco").rglob("instances*.json"))), None)
  if annotations is None:
    pytest.skip("no annotations in the excerpt")
  for photo in photos:
    by_name = segmenter(photo, "the man on the left", f"coco:{annotations}")
    proposer = CocoProposer(str(annotations))
    proposed = proposer.propose([by_name.image], [proposer.find_image(photo.name)])[0]
    kept = by_name.instances
    assert 0 < len(kept) <= len(proposed.masks)
    known = {mask.tobytes() for mask in proposed.masks}
    assert all(mask.tobytes() in known for mask in kept)
