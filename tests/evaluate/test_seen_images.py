"""A model is not judged on images that it was trained on without saying so."""

import contextlib
import io
import json
import pathlib
import shutil
from typing import Any

import numpy as np
import phrasecut_layout
import pytest
import refer_layout
import tiny_run
from custom_files import SQUARE, write_lines, write_photo
from PIL import Image

from input_pipeline import image_hashes, storage
from input_pipeline.prepare import command as prepare
from input_pipeline.proposers import leakage
from input_pipeline.tf import builder
from mail_jax.checkpoints.checkpoint import Checkpoints, read_images
from mail_jax.evaluate import command as evaluate
from mail_jax.export import command as export
from mail_jax.export import load
from mail_jax.export.model_card import CardOptions
from mail_jax.report import command as report
from mail_jax.train import command as train


@pytest.fixture(scope="module")
def mixed_data(shapes_data, tmp_path_factory) -> pathlib.Path:
  """Data folder of `mine`, whose val has two training scenes, as they are, and one other image."""
  folder = tmp_path_factory.mktemp("mixed")
  scenes = builder.open_dataset(shapes_data, "shapes").as_dataset(split="train").take(2)
  rows = []
  for number, fields in enumerate(scenes):
    (folder / f"{number}.png").write_bytes(fields["image"].numpy())
    rows.append({"image": f"{number}.png", "split": "val"})
  write_photo(folder / "other.png", seed=5)
  write_photo(folder / "own.png", seed=6)
  rows += [{"image": "other.png", "split": "val"}, {"image": "own.png", "split": "train"}]
  lines = [{"sentences": ["the thing"], "target": SQUARE, **row} for row in rows]
  path = write_lines(folder / "mine.jsonl", *lines)
  prepare.main(["--dataset", f"jsonl:{path}", "--data_dir", str(folder / "data")])
  return folder / "data"


def _evaluate(model: pathlib.Path, data_dir: Any, *names: str) -> tuple[dict, list[str]]:
  """Runs `evaluate`; returns its JSON, and the warnings about images that were seen."""
  out = pathlib.Path(data_dir).parent / f"{model.name}.json"
  command = ["--checkpoint", str(model), "--data_dir", str(data_dir), "--json", str(out)]
  printed = io.StringIO()
  with contextlib.redirect_stdout(printed):
    evaluate.main([*command, *(f"--data={name}" for name in names)])
  below = [x for x in printed.getvalue().splitlines() if x.startswith("warning: ")]
  content = json.loads(out.read_text())
  return content, [line for line in below if "detector" not in line]


def _without_hashes(data_dir: Any, name: str, target: pathlib.Path) -> pathlib.Path:
  """Returns a copy of a data folder as an earlier version left it."""
  shutil.copytree(data_dir, target)
  (pathlib.Path(storage.dataset_dir(str(target), name)) / "image_hashes.safetensors").unlink()
  return target


@pytest.mark.parametrize("kind", ["run", "exported"])
def test_evaluate_counts_the_images_of_another_data_set_that_were_seen(
  kind, finished_run, exported, mixed_data
):
  model = finished_run if kind == "run" else exported
  content, warnings = _evaluate(model, mixed_data, "mine/val", "mine/train")
  (line,) = warnings
  assert line.startswith(
    "warning: mine/val: 2 of 3 images were in the training data of this model (shapes/train); "
  )
  finding = {"images": 3, "seen": 2, "similar": 0, "from": ["shapes/train"]}
  assert content["mine/val"]["training_images"] == {
    **finding,
    "warning": line.removeprefix("warning: mine/val: "),
  }
  finding = {"images": 1, "seen": 0, "similar": 0, "from": [], "warning": None}
  assert content["mine/train"]["training_images"] == finding


def test_evaluate_is_silent_where_nothing_was_seen(finished_run, shapes_data, tmp_path):
  shutil.copytree(shapes_data, tmp_path / "data")
  content, warnings = _evaluate(finished_run, tmp_path / "data", "shapes/train", "shapes/val")
  assert warnings == []
  seen = {name: row["training_images"]["seen"] for name, row in content.items()}
  assert seen == {"shapes/train": 24, "shapes/val": 0}


def test_data_without_hashes_is_told_once(finished_run, shapes_data, tmp_path):
  data_dir = _without_hashes(shapes_data, "shapes", tmp_path / "data")
  content, warnings = _evaluate(finished_run, data_dir, "shapes/val", "shapes/testA")
  (line,) = warnings
  assert line.startswith("warning: shapes/val, shapes/testA: the model may have seen these")
  assert "prepare them again with --overwrite" in line
  assert content["shapes/val"]["training_images"]["seen"] is None


def test_the_report_and_the_model_card_say_it(finished_run, mixed_data, tmp_path):
  out = tmp_path / "report.html"
  names = ["--data_dir", str(mixed_data), "--data", "mine/val", "--count", "0"]
  report.main([str(finished_run), *names, "--out", str(out)])
  sentence = "2 of 3 images were in the training data of this model (shapes/train)"
  assert sentence in out.read_text()
  _evaluate(finished_run, mixed_data, "mine/val")
  metrics = str(mixed_data.parent / f"{finished_run.name}.json")
  card = CardOptions(metrics)
  export.export(str(finished_run), str(tmp_path / "exported"), card=card)
  assert f"  - warning: mine/val: {sentence}" in (tmp_path / "exported/README.md").read_text()


def test_an_exported_model_can_be_exported_again_with_its_images(exported, tmp_path, finished_run):
  export.export(str(exported), str(tmp_path / "again"))
  images, first = (load.load(str(path)).images for path in (tmp_path / "again", finished_run))
  assert images is not None and first is not None
  assert image_hashes.to_bytes(images) == image_hashes.to_bytes(first)
  assert {name: len(rows) for name, rows in images.items()} == {"shapes/train": 24}


def test_the_hashes_are_those_of_the_stored_bytes(shapes_data):
  stored = builder.open_dataset(shapes_data, "shapes").as_dataset(split="val")
  expected = {
    image_hashes.hash_image(0, row["image"].numpy(), looks=False).content for row in stored
  }
  hashes = storage.read_hashes(shapes_data, "shapes", "val")
  assert hashes is not None
  assert {f"{content:016x}" for content in hashes.contents.tolist()} == expected
  assert not hashes.looks.any()
  assert storage.read_hashes(shapes_data, "shapes", "nothing") is None


def test_a_resumed_run_remembers_what_it_was_trained_on_before(finished_run, shapes_data, tmp_path):
  data_dir, workdir = tmp_path / "data", tmp_path / "run"
  shutil.copytree(shapes_data, data_dir)
  shutil.copytree(finished_run, workdir)
  last = tiny_run.steps_kept(workdir)[-1]
  shutil.rmtree(workdir / "checkpoints" / str(last))
  image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
  file = io.BytesIO()
  Image.fromarray(image).save(file, "PNG")
  new = image_hashes.ImageSet.of([image_hashes.hash_image(1, file.getvalue())], {1: 7})
  storage.write_hashes(str(data_dir), "shapes", {"train": new})
  train.main(tiny_run.arguments(str(data_dir), workdir))
  checkpoints = Checkpoints(str(workdir), read_only=True)
  images = read_images(checkpoints.meta(last))
  checkpoints.close()
  assert images is not None
  assert len(images["shapes/train"]) == 25
  finding = leakage.of_model(images, new, "val")
  assert (finding["seen"], finding["images"]) == (1, 1)


def test_a_model_without_a_record_of_its_images_is_told(mixed_data):
  images = storage.read_hashes(str(mixed_data), "mine", "val")
  finding = leakage.of_model(None, images, "val")
  assert "does not record" in finding["warning"]
  assert leakage.of_model(None, images, "train")["warning"] is None


def test_visual_genomes_images_are_known_by_their_coco_ids(tmp_path):
  layout = phrasecut_layout.make_layout(tmp_path)
  prepare.main(layout.arguments(tmp_path / "data"))
  hashes = storage.read_hashes(str(tmp_path / "data"), "phrasecut", "val")
  assert hashes is not None
  assert hashes.coco_ids.tolist() == [-1, 501]
  refs = refer_layout.make_layout(tmp_path / "refcoco")
  name = "COCO_train2014_000000000501.jpg"
  refs.image_path(0).rename(refs.images / name)
  refs.instances["images"][0] |= {"id": 501, "file_name": name}
  for row in [*refs.refs, *refs.instances["annotations"]]:
    if row["image_id"] == 100:
      row["image_id"] = 501
  prepare.main(refs.write().arguments(tmp_path / "data", "--instances", "none"))
  trained = storage.read_hashes(str(tmp_path / "data"), "refcoco_unc", "train")
  assert trained is not None
  finding = image_hashes.find_seen({"refcoco_unc/train": trained}, hashes)
  assert finding == {"images": 2, "seen": 1, "similar": 0, "from": ["refcoco_unc/train"]}
