"""The examples in the help texts run as they are, in a folder with the files that they name.

The exceptions are listed below.
"""

import json
import pathlib
import shutil
from collections.abc import Iterator

import beit3_weights
import help_pages
import hub_server
import phrasecut_layout
import pytest
import refer_layout
import tiny_run
import vilt_weights

from input_pipeline import records
from input_pipeline.custom import example as custom_example
from input_pipeline.masks.segmentation import encode_segmentation
from mail_jax.evaluate import given_masks

EXAMPLES = sorted(
  {line for p in help_pages.parsers().values() for line in help_pages.examples(p.description)}
)
NOT_RUN = {
  "mail_jax.app": "it does not end; tests/app/test_app.py runs it, where Gradio is",
  "mail_jax.serve": "it does not end; tests/serve/ runs it, where FastAPI is",
  "mail_jax.reproduce": "it needs photos; tests/reproduce/test_reproduce.py runs it",
  "mail_jax.plan": "the TPU compiler takes minutes; tests/plan/test_plan_compiler.py runs it",
}
# Replacements for what would take minutes or a download.
CHANGED = {
  "--config demo:paper --config.minutes=5": f"--config {tiny_run.__file__} --config.seed=1",
  "--config demo": f"--config {tiny_run.__file__}",
  "--dataset shapes": "--dataset shapes --train_scenes 24 --eval_scenes 12",
  "refer:refer/rrsisd:unc --images JPEGImages": "refer:refer/refcoco+:unc --images train2014",
  "huggingface:MODEL": "none",
  "--annotations FILE": "--annotations instances_train2014.json",
  "--vocab_size 8000": "--vocab_size 280",
  # tests/export/test_export.py has the other formats.
  "safetensors,stablehlo": "safetensors",
}
# They train, or draw a hundred images.
SLOW = ("runs/paper", "--html report.html", "mail_jax.report", "mail_jax.sweep")


def _marked() -> Iterator[object]:
  for line in EXAMPLES:
    if help_pages.split(line)[0] not in NOT_RUN:
      marks = [pytest.mark.slow] if any(word in line for word in SLOW) else []
      yield pytest.param(line, marks=marks, id=line.removeprefix("python -m "))


@pytest.fixture(scope="module")
def folder(finished_run, shapes_data, tmp_path_factory) -> Iterator[pathlib.Path]:
  """A folder with the files that the examples name."""
  home = tmp_path_factory.mktemp("examples")
  shutil.copytree(shapes_data, home / "data")
  shutil.copytree(finished_run, home / "runs" / "demo")
  custom_example.write(str(home / "mine"), 6, 2, 96, 0)
  shutil.copytree(home / "mine", home, dirs_exist_ok=True)
  shutil.copy(next((home / "photos").iterdir()), home / "photo.jpg")
  for name in refer_layout.SPLITS:
    layout = refer_layout.make_layout(home / f"of {name}", name)
    layout.root = home / "refer"
    layout.write()
  (home / "of refcoco_unc" / "train2014").rename(home / "train2014")
  shutil.copy(home / "refer" / "refcoco" / "instances.json", home / "instances_train2014.json")
  phrasecut_layout.make_layout(home / "PhraseCutDataset")
  (home / "vilt-b32-mlm").mkdir()
  vilt_weights.write_folder(home / "vilt-b32-mlm", vilt_weights.random_weights())
  weights = beit3_weights.random_weights()
  beit3_weights.save(home / "beit3_base_patch16_224.pth", weights)
  (home / "beit3.spm").write_bytes(beit3_weights.train_tokenizer())
  _write_exports(home)
  _write_masks(home)
  (home / "metrics.json").write_text(json.dumps({"shapes/val": {"mIoU": 0.5}}))
  shutil.copy(home / "photo.jpg", home / "overlays.png")
  with pytest.MonkeyPatch.context() as patch, hub_server.running(patch, home / "hf"):
    yield home


def _write_masks(home: pathlib.Path) -> None:
  """Writes a mask for every expression of shapes/val."""
  questions, targets = given_masks.read_questions(str(home / "data"), ["shapes/val"])
  rows = [
    {"ref_id": question.ref_id, "expression_index": question.expression_index}
    | {"mask": encode_segmentation(records.decode_target(target))}
    for question, target in zip(questions, targets, strict=True)
  ]
  (home / "masks.json").write_text(json.dumps(rows))


def _write_exports(home: pathlib.Path) -> None:
  """Returns what annotation tools export for an image in `images`."""
  (home / "images").mkdir()
  photo = shutil.copy(home / "photo.jpg", home / "images" / "a.png")
  image = {"id": 1, "file_name": "a.png", "width": 96, "height": 96}
  box = {"bbox": [8, 8, 16, 16], "area": 256, "iscrowd": 0, "category_id": 1}
  outline = {"segmentation": [[8, 8, 24, 8, 24, 24, 8, 24]], "attributes": {"sentence": "the cup"}}
  coco = {
    "images": [image],
    "annotations": [{"id": 1, "image_id": 1, **box, **outline}],
    "categories": [{"id": 1, "name": "cup"}],
  }
  (home / "instances_default.json").write_text(json.dumps(coco))
  size = {"original_width": 96, "original_height": 96, "to_name": "image", "image_rotation": 0}
  corners = {"points": [[10, 10], [30, 10], [30, 30]], "closed": True, "polygonlabels": ["cup"]}
  rows = [
    {"id": "r", "type": "polygonlabels", "from_name": "label", "value": corners, **size},
    {"id": "r", "type": "textarea", "from_name": "text", "value": {"text": ["the cup"]}, **size},
  ]
  annotation = {"id": 1, "was_cancelled": False, "ground_truth": False, "result": rows}
  task = {"id": 1, "data": {"image": f"/data/upload/1/{pathlib.Path(photo).name}"}}
  (home / "export.json").write_text(json.dumps([task | {"annotations": [annotation]}]))


# Files that an example needs and another one writes.
BEFORE = {
  "--compare demo.jsonl": ("demo.jsonl", "mail_jax.evaluate --checkpoint"),
  "--train_from refcoco_unc": (
    "data/referring_segmentation/refcoco_unc",
    "input_pipeline.prepare --dataset refcoco_unc",
  ),
}
# Files that must not exist yet.
WRITTEN_ONCE = {"custom convert": "mine.jsonl", "custom example": "example"}


def _run(line: str) -> None:
  for old, new in CHANGED.items():
    line = line.replace(old, new)
  module, arguments = help_pages.split(line)
  help_pages.main_of(module)(arguments)


def _prepare(line: str) -> None:
  for part, (path, command) in BEFORE.items():
    if part in line and not pathlib.Path(path).exists():
      (first,) = (other for other in EXAMPLES if command in other)
      _run(first)
  if "other.jsonl" in line:
    shutil.copy("demo.jsonl", "other.jsonl")
  for command, path in WRITTEN_ONCE.items():
    if command in line:
      shutil.rmtree(path) if pathlib.Path(path).is_dir() else pathlib.Path(path).unlink(True)


@pytest.mark.parametrize("line", _marked())
def test_an_example_runs(line, folder, monkeypatch, capsys):
  monkeypatch.chdir(folder)
  monkeypatch.setenv("PYTHONPATH", str(pathlib.Path(__file__).parents[2]))
  shutil.copy("mine/mine.jsonl", "mine.jsonl")
  _prepare(line)
  capsys.readouterr()
  before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
  _run(line)
  after = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
  assert capsys.readouterr().out.strip() or after != before


def test_every_replacement_and_exception_is_still_in_an_example():
  text = "\n".join(EXAMPLES)
  for part in (*NOT_RUN, *CHANGED, *SLOW, *BEFORE, *WRITTEN_ONCE):
    assert part in text
