"""All readers of JSON: damaged files are read, or refused with a message."""

import json
from collections.abc import Callable
from typing import Any

import damaged_json
import numpy as np
import phrasecut_layout
import pytest
import refer_layout
from refer_layout import HEIGHT, WIDTH

from input_pipeline import records
from input_pipeline.common.errors import InputError
from input_pipeline.proposers.coco import CocoProposer
from input_pipeline.proposers.registry import UnknownImage
from input_pipeline.proposers.results import ResultsProposer
from input_pipeline.sources import annotated_images, phrasecut, refer
from mail_jax.config import from_json, load_config, to_json
from mail_jax.evaluate import per_expression
from mail_jax.export import folder as folders
from mail_jax.export import load
from mail_jax.report import curves

PHOTO = np.zeros((HEIGHT, WIDTH, 3), np.uint8)


def check(read: Callable[[Any], object], content: Any) -> None:
  """Checks that a reader accepts the content, and raises only InputErrors for its variants."""
  content = json.loads(json.dumps(content))
  read(content)
  broken = []
  for damage, changed in damaged_json.variants(content):
    try:
      read(changed)
    except (InputError, UnknownImage):
      pass
    except Exception as error:
      broken.append(f"{damage}: {error!r}")
  assert broken == []


def _make_record(reader, split, image_id, images):
  photo = reader.annotated_image(split, image_id, str(images))
  data, pixels = annotated_images.read_image(photo.path, (photo.height, photo.width))
  return annotated_images.make_record(photo, data, records.no_instances(*pixels.shape[:2]))


@pytest.mark.parametrize("field", ["refs", "instances"])
def test_refs_and_their_annotations(tmp_path, field):
  layout = refer_layout.make_layout(tmp_path)

  def read(content):
    setattr(layout, field, content)
    layout.write()
    return _make_record(
      refer.RefReader("refcoco_unc", str(layout.root)), "train", 100, layout.images
    )

  check(read, getattr(layout, field))


def test_refs_of_several_targets(tmp_path):
  layout = refer_layout.make_generalised(tmp_path)

  def read(content):
    layout.refs = content
    layout.write()
    return _make_record(
      refer.RefReader("grefcoco_unc", str(layout.root)), "train", 100, layout.images
    )

  check(read, layout.refs)


def test_tasks_of_phrasecut(tmp_path):
  layout = phrasecut_layout.make_layout(tmp_path)

  def read(tasks, image_data):
    layout.tasks["train"], layout.image_data = tasks, image_data
    layout.write()
    return _make_record(phrasecut.PhraseCutReader(str(layout.root)), "train", 2000, layout.images)

  tasks, image_data = layout.tasks["train"][:1], layout.image_data
  check(lambda content: read(content, image_data), tasks)
  check(lambda content: read(tasks, content), image_data)


@pytest.mark.parametrize("given", ["a file", "in memory"])
def test_annotations_that_are_instances(tmp_path, given):
  layout = refer_layout.make_layout(tmp_path)
  path = tmp_path / "some.json"

  def read(content):
    path.write_text(json.dumps(content))
    in_memory = given == "in memory" and isinstance(content, dict)
    proposer = CocoProposer(content if in_memory else str(path))
    proposer.only_image()
    proposer.find_image(layout.image_path(0).name)
    return proposer.propose([PHOTO], [100])

  used = {row["category_id"] for row in layout.instances["annotations"]}
  check(read, layout.instances | {"categories": [{"id": n, "name": "x"} for n in sorted(used)]})


@pytest.mark.parametrize(
  "segmentation",
  [
    [refer_layout.rectangle(2, 3, 12, 13)],
    {"size": [HEIGHT, WIDTH], "counts": [5, 7, HEIGHT * WIDTH - 12]},
  ],
)
def test_detections(tmp_path, segmentation):
  path = tmp_path / "results.json"

  def read(content):
    path.write_text(json.dumps(content))
    return ResultsProposer(str(path)).propose([PHOTO], [1])

  row = {"image_id": 1, "category_id": 1, "segmentation": segmentation, "score": 0.5}
  check(read, [row])


def test_rows_of_an_evaluation(tmp_path):
  path = tmp_path / "rows.jsonl"

  def read(content):
    path.write_text(json.dumps(content) + "\n")
    return per_expression.columns(per_expression.read(path))

  samples = {str: "x", int: 3, float: 0.5, bool: True}
  kinds = per_expression.FIELDS | per_expression.OPTIONAL
  check(read, {name: samples[kind] for name, kind in kinds.items()} | {"protocol": "original"})


def test_the_log_of_a_run(tmp_path):

  def read(content):
    (tmp_path / curves.FILE).write_text(json.dumps(content) + "\n")
    return curves.read_curves(curves.read_log(str(tmp_path)) or ())

  check(read, {"step": 3, "loss": 0.5, "seconds": {"step": 1.0}})


def test_a_stored_config():
  check(from_json, to_json(load_config("demo")))


def test_the_description_of_an_exported_folder(exported, tmp_path):
  about = json.loads((exported / folders.ABOUT).read_text())

  def read(content):
    (tmp_path / folders.ABOUT).write_text(json.dumps(content))
    return folders.read_about(folders.epath.Path(tmp_path))

  check(read, about | {"config": {}})


@pytest.mark.parametrize(
  ("key", "value", "message"),
  [
    ("heads", 7, r"model\.width 32 is not a multiple of model\.heads 7"),
    ("heads", 0, r"config\.model\.heads is 0, not 1 to"),
    ("depth", 10**9, r"config\.model\.depth is 1000000000, not 1 to"),
    ("width", "wide", r"config\.model\.width is 'wide', not of type int"),
    ("mlp_ratio", -1.0, "describes no model"),
    ("decoder_widths", [64, "x"], r"decoder_widths is \[64, 'x'\], not 1 to"),
    ("norm", "none", "norm"),
    ("of_tomorrow", 1, r"config\.model\.of_tomorrow is unknown"),
  ],
)
def test_an_invalid_model_config_is_refused_by_key(exported, tmp_path, key, value, message):
  for path in exported.iterdir():
    (tmp_path / path.name).symlink_to(path)
  about = json.loads((exported / folders.ABOUT).read_text())
  about["config"]["model"][key] = value
  (tmp_path / folders.ABOUT).unlink()
  (tmp_path / folders.ABOUT).write_text(json.dumps(about))
  with pytest.raises(InputError, match=message) as caught:
    load.load(str(tmp_path))
  assert str(tmp_path / folders.ABOUT) in str(caught.value)
