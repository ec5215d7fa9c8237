"""Error messages for invalid input that no other test covers."""

import json
import os

import custom_files
import numpy as np
import pytest
from PIL import Image

from input_pipeline import preprocess, storage
from input_pipeline.common import atomic_files, errors, places
from input_pipeline.common.errors import InputError
from input_pipeline.custom import command as custom_data
from input_pipeline.custom import image_files, masks, schema
from input_pipeline.custom.converters import label_studio_shapes
from input_pipeline.custom.schema import LineError
from input_pipeline.masks import segmentation
from input_pipeline.prepare import command as prepare
from input_pipeline.preprocess import tokenizer as tokenizers
from input_pipeline.proposers import custom, registry
from input_pipeline.sources import scene_source
from mail_jax.checkpoints import manifest
from mail_jax.export import folder
from mail_jax.hardware import chips
from mail_jax.predict import command as predict
from mail_jax.predict import outputs
from mail_jax.pretrained import vilt
from mail_jax.report import command as report

HEIGHT, WIDTH = custom_files.HEIGHT, custom_files.WIDTH


class NoProposer:
  def __init__(self, argument: str):
    del argument


class GivesNothing:
  def propose(self, images, image_ids):
    del images, image_ids
    return []


def _selected():
  proposer = registry.SelectingProposer(GivesNothing(), registry.Selection())
  return proposer.propose([np.zeros((2, 2, 3), np.uint8)], [1])


def _peak_flops():
  return chips.peak_flops(chips.parse_topology("v5e:2x2").chip, "float8")


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (lambda: registry.EmptyProposer("x"), "none does not take an argument"),
    (lambda: custom.CustomProposer("x"), "custom does not take an argument"),
    (lambda: custom.CustomProposer().propose([], []), "only works with --dataset jsonl:FILE"),
    (lambda: registry.open_proposer(f"{__name__}.NoProposer"), "no method propose"),
    (_selected, "proposals for 0 images, expected 1"),
    (lambda: scene_source.SceneSource(train_scenes=0), "must be at least 1"),
    (lambda: scene_source.SceneSource(size=8), "--size 8: scenes need"),
    (lambda: scene_source.SceneSource(seed=-1), "--seed -1: must not be negative"),
    (lambda: tokenizers.from_file_bytes("morse", b"", "x.model"), "x.model is of the kind 'morse'"),
    (_peak_flops, "'float8' is not one of float32, bfloat16"),
    (lambda: report.main(["--count", "-1", "runs/x"]), "--count -1: it must be between 0"),
    (lambda: prepare.main(["--dataset", "refcoco_unc", "--data_dir", "new"]), "needs --refer_root"),
    (lambda: preprocess.open_image(Image.new("1", (20_000, 20_000))), "the given image has"),
    (
      lambda: folder.variables_from_bytes(b"none", {}, "a.safetensors"),
      "a.safetensors: not an intact",
    ),
  ],
)
def test_an_invalid_value_is_reported(call, message):
  with pytest.raises(InputError, match=message):
    call()


@pytest.mark.parametrize(
  ("command", "arguments", "message"),
  [
    (predict, ["--checkpoint", "x", "--out", "y", "--image", "a.jpg"], "--image needs --text"),
    (
      predict,
      ["--checkpoint", "x", "--out", "y", "--pairs", "a", "--text", "b"],
      "omit --text",
    ),
    (prepare, ["--dataset", "nothing", "--data_dir", "new"], "is not one of"),
    (
      prepare,
      ["--dataset", "shapes", "--data_dir", "new", "--workers", "0"],
      "--workers 0: must be at least 1",
    ),
  ],
)
def test_an_invalid_command_line_is_reported_with_its_usage(command, arguments, message, capsys):
  with pytest.raises(SystemExit) as ended:
    command.main(arguments)
  assert ended.value.code == 2 and message in " ".join(capsys.readouterr().err.split())


def test_ctrl_c_prints_the_commands_own_message(capsys):
  def stop():
    raise KeyboardInterrupt

  with pytest.raises(SystemExit) as ended:
    errors.run_command(stop, interrupted="the same command goes on")
  assert (ended.value.code, capsys.readouterr().err) == (130, "the same command goes on\n")
  with pytest.raises(KeyboardInterrupt):
    errors.run_command(stop)


@pytest.mark.parametrize(
  ("mask", "message"),
  [
    ({"rle": {"size": [20, 30]}}, "must have 'size' and 'counts'"),
    ({"polygons": []}, "must be a list of polygons"),
    ({"ann_ids": [1, "x"]}, "must be a list of integers"),
  ],
)
def test_an_invalid_mask_of_a_line_is_reported(mask, message):
  _, problems = schema.parse(3, json.dumps(custom_files.line(target=mask)).encode())
  assert len(problems) == 1 and message in str(problems[0]) and "line 3" in str(problems[0])


@pytest.mark.parametrize(
  ("counts", "message"), [([1, "x"], "must be integers"), (7, "must be a string or a list")]
)
def test_invalid_run_lengths_are_reported(counts, message):
  with pytest.raises(LineError, match=message):
    masks.rasterise({"rle": {"size": [HEIGHT, WIDTH], "counts": counts}}, HEIGHT, WIDTH)


def test_an_invalid_instance_is_reported_once():
  _, problems = schema.parse(3, json.dumps(custom_files.line(instances=[7])).encode())
  assert len(problems) == 1 and "a mask is an object" in str(problems[0])


def test_annotations_without_masks_are_reported(tmp_path):
  rows = custom_files.write_coco(tmp_path / "coco.json")
  content = json.loads((tmp_path / "coco.json").read_text())
  content["annotations"][0]["segmentation"] = []
  content["annotations"][1]["segmentation"] = {"size": [HEIGHT, WIDTH], "counts": [600]}
  (tmp_path / "coco.json").write_text(json.dumps(content))
  places = masks.PathResolver(str(tmp_path), str(tmp_path / "coco.json"))
  with pytest.raises(LineError, match="annotation 7 has no segmentation"):
    list(masks.resolve({"ann_id": rows[0]["id"]}, "a.png", places))
  (run_lengths,) = masks.resolve({"ann_id": rows[1]["id"]}, "a.png", places)
  assert not masks.rasterise(run_lengths, HEIGHT, WIDTH).any()


@pytest.mark.parametrize(
  ("data", "message"), [(b"text", "not an image in a known format"), (b"\x89PNG\r\n", "m.png")]
)
def test_a_mask_that_is_not_an_image_is_reported(tmp_path, data, message):
  (tmp_path / "m.png").write_bytes(data)
  with pytest.raises(LineError, match=message) as raised:
    masks.rasterise({"png": str(tmp_path / "m.png")}, HEIGHT, WIDTH)
  assert raised.value.kind == "invalid PNG" and "m.png" in str(raised.value)


def test_an_image_of_too_many_pixels_is_refused_by_its_header(tmp_path):
  Image.new("1", (20_000, 20_000)).save(tmp_path / "a.png")
  with pytest.raises(LineError, match="pixels") as raised:
    image_files.read_header(str(tmp_path / "a.png"))
  assert raised.value.kind == "image is too large"


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (["draw", "FILE", "--count", "0"], "--count 0: must be at least 1"),
    (["validate", "FILE", "--images", "nowhere"], "nowhere: no such folder"),
    (["convert", "--from", "coco", "FILE", "--out", "FILE"], "already exists; add --overwrite"),
    (
      ["convert", "--from", "coco", "FILE", "--out", "new.jsonl", "--images", "nowhere"],
      "--images nowhere: no such folder",
    ),
    (
      ["convert", "--from", "coco", "FILE", "--out", "new.jsonl", "--no_target", "x"],
      "--no_target only works with --from label-studio",
    ),
    (["example", "--out", "."], "--out .: this folder is not empty"),
    (["example", "--out", "new", "--size", "2"], "--size must be"),
    (["example", "--out", "new", "--train", "0"], "--train must be at least 1"),
  ],
)
def test_an_invalid_command_about_custom_data_is_reported(
  tmp_path, monkeypatch, arguments, message
):
  monkeypatch.chdir(tmp_path)
  custom_files.write_photo(tmp_path / "a.png")
  custom_files.write_lines(tmp_path / "mine.jsonl", custom_files.line())
  words = [word.replace("FILE", "mine.jsonl") for word in arguments]
  if "draw" in words:
    words += ["--out", "sheet.png"]
  with pytest.raises(InputError, match=message):
    custom_data.main(words)
  assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "mine.jsonl"]


def test_missing_images_of_an_export_are_reported(tmp_path, capsys):
  custom_files.write_coco(tmp_path / "coco.json")
  content = json.loads((tmp_path / "coco.json").read_text())
  content["annotations"][0]["caption"] = "the cup"
  (tmp_path / "coco.json").write_text(json.dumps(content))
  command = ["convert", "--from", "coco", str(tmp_path / "coco.json")]
  custom_data.main([*command, "--out", str(tmp_path / "mine.jsonl")])
  assert "no image named a.png" in capsys.readouterr().err


def test_a_brush_beyond_its_image_is_reported():
  bits = f"{4:032b}{7:05b}" + f"{15:04b}" * 4 + f"1{0:02b}{30:016b}{255:08b}"
  bits += "0" * (-len(bits) % 8)
  data = [int(bits[n : n + 8], 2) for n in range(0, len(bits), 8)]
  with pytest.raises(ValueError, match="a run exceeds the brush"):
    label_studio_shapes.decode_brush(data, 1, 1)


def test_too_many_polygons_are_reported():
  with pytest.raises(ValueError, match="1,000,000 polygons"):
    segmentation.decode_phrasecut([[]] * 1_000_000, 8, 8)


@pytest.mark.parametrize("content", ["[]", "{", "7"])
def test_invalid_metadata_of_a_data_set_is_reported(tmp_path, shapes_data, content):
  folder = storage.dataset_dir(str(tmp_path), "shapes")
  os.makedirs(folder)
  for name in os.listdir(storage.dataset_dir(shapes_data, "shapes")):
    os.symlink(os.path.join(storage.dataset_dir(shapes_data, "shapes"), name), f"{folder}/{name}")
  os.unlink(f"{folder}/metadata.json")
  with open(f"{folder}/metadata.json", "w") as file:
    file.write(content)
  with pytest.raises(InputError, match=r"metadata\.json cannot be read .*prepare shapes again"):
    storage.read_metadata(str(tmp_path), "shapes")


@pytest.mark.parametrize("content", ["[]", "{", "7"])
def test_invalid_settings_of_predictions_are_reported(tmp_path, content):
  (tmp_path / outputs.SETTINGS).write_text(content)
  with (
    pytest.raises(InputError, match=r"cannot be read .*--overwrite to start over"),
    outputs.open_writer(str(tmp_path), {}, overwrite=False),
  ):
    pass


def test_a_manifest_that_names_nothing_is_damaged(tmp_path):
  for content, message in (
    ({}, "lists no files"),
    ({"files": {"a": 7}}, "has no size and SHA-256 of a"),
  ):
    with pytest.raises(manifest.DamagedError, match=message):
      manifest._files(content)


def test_a_folder_that_cannot_be_created_is_reported(tmp_path):
  (tmp_path / "file").write_text("")
  with (
    pytest.raises(InputError, match="cannot be written"),
    atomic_files.whole_folder(tmp_path / "file" / "x"),
  ):
    pass
  with (
    pytest.raises(InputError, match="the folder cannot be created"),
    outputs.open_writer(str(tmp_path / "file" / "x"), {}, overwrite=False),
  ):
    pass


def test_without_a_home_the_index_is_of_this_process(tmp_path, monkeypatch):
  (tmp_path / "file").write_text("")
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
  places.cache_folder.cache_clear()
  try:
    folder = places.cache_folder()
    assert folder.is_dir() and tmp_path not in folder.parents
  finally:
    places.cache_folder.cache_clear()


def test_an_invalid_vilt_config_is_reported(tmp_path):
  (tmp_path / "config.json").write_text("{}")
  with pytest.raises(InputError, match="num_attention_heads is missing"):
    vilt._heads(tmp_path / "config.json", 64)


def test_a_message_is_one_line_for_any_names_in_it(capsys):
  def main():
    raise InputError("x.parquet: the columns are s\nen\x1b[2Jtences\u2028, ü")

  with pytest.raises(SystemExit):
    errors.run_command(main)
  assert capsys.readouterr().err == "error: x.parquet: the columns are s en [2Jtences , ü\n"
