"""`predict` on several images: outputs, resuming, errors; API, command and app agree."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tiny_run
from PIL import Image
from pycocotools import mask as coco_mask

from input_pipeline.common.errors import InputError
from input_pipeline.custom import command as custom_command
from mail_jax.app import limits, service
from mail_jax.app.examples import ExampleMasks
from mail_jax.predict import command as predict
from mail_jax.predict import outputs
from mail_jax.predict.segmenter import Segmenter


@pytest.fixture(scope="module")
def example(tmp_path_factory) -> pathlib.Path:
  """Five generated images with lines, as custom data; not to be changed."""
  folder = tmp_path_factory.mktemp("own") / "example"
  custom_command.main(["example", "--out", str(folder), "--train", "1", "--val", "4"])
  return folder


@pytest.fixture(scope="module")
def segmenter(finished_run) -> Segmenter:
  return Segmenter.load(str(finished_run))


def run(finished_run: pathlib.Path, out: pathlib.Path, *more: object) -> None:
  predict.main(["--checkpoint", str(finished_run), "--out", str(out), *map(str, more)])


def rows_of(out: pathlib.Path) -> list[dict]:
  return [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]


def mask_of(row: dict) -> np.ndarray:
  return coco_mask.decode(row["mask"]).astype(bool)


def contents(folder: pathlib.Path) -> dict[str, bytes]:
  return {
    str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()
  }


@pytest.fixture(scope="module")
def answered(finished_run, example, tmp_path_factory) -> pathlib.Path:
  """The output of `predict --pairs`; not to be changed."""
  out = tmp_path_factory.mktemp("answers") / "out"
  run(finished_run, out, "--pairs", example / "mine.jsonl")
  return out


def test_lines_are_predicted_with_their_own_instances(segmenter, example, answered):
  lines = [json.loads(line) for line in (example / "mine.jsonl").read_text().splitlines()]
  asked = [(n, line, text) for n, line in enumerate(lines, 1) for text in line["sentences"]]
  instances = {line["image"]: line["instances"] for line in lines if "instances" in line}
  assert len(instances) == 5 < len(lines)  # they stand in one line of each photo
  actual = rows_of(answered)
  assert [(row["line"], row["expression"]) for row in actual] == [(n, text) for n, _, text in asked]
  for row, (_, line, text) in zip(actual[:12], asked, strict=False):
    given = sorted(instances[line["image"]], key=lambda mask: -mask["score"])
    masks = np.stack([coco_mask.decode(mask["rle"]).astype(bool) for mask in given])
    result = segmenter(example / line["image"], text, masks)
    assert row["instances"] == len(masks)
    np.testing.assert_array_equal(mask_of(row), result.mask)
    assert row["instance_probability"] == [float(p) for p in result.instance_probability]
    assert (row["selected"], row["was_cut"], row["size"]) == (
      result.selected,
      result.was_cut,
      [96, 96],
    )
    assert row["area"] == int(result.mask.sum())
    with Image.open(answered / row["overlay"]) as picture:
      np.testing.assert_array_equal(np.asarray(picture), result.overlay())
  assert len({row["overlay"] for row in actual}) == len(actual)


def test_a_photo_gets_every_expression(finished_run, segmenter, example, tmp_path):
  photo = example / "photos" / sorted(os.listdir(example / "photos"))[0]
  texts = ("the star", "red", "the large ring")
  words = [word for text in texts for word in ("--text", text)]
  run(finished_run, tmp_path / "out", "--image", photo, *words)
  actual = rows_of(tmp_path / "out")
  assert [(row["image"], row["expression"]) for row in actual] == [(str(photo), t) for t in texts]
  for number, row in enumerate(actual, 1):
    np.testing.assert_array_equal(mask_of(row), segmenter(photo, row["expression"]).mask)
    assert row["overlay"] == f"{photo.stem}-{number}.png"
    assert (tmp_path / "out" / row["overlay"]).is_file()
  # Another photo of that name would overwrite the pictures.
  (tmp_path / photo.name).write_bytes(photo.read_bytes())
  with pytest.raises(InputError, match="--overwrite"):
    run(finished_run, tmp_path / "out", "--image", tmp_path / photo.name, *words)
  for more, message in (
    (("--out", tmp_path / "o.png"), "for several images or expressions this is a folder"),
    (("--json", "-"), "--json is for a single image and expression"),
  ):
    with pytest.raises(InputError, match=message):
      run(finished_run, tmp_path / "out", "--image", photo, *words, *more)


def test_every_image_of_a_folder_gets_every_expression(finished_run, segmenter, example, tmp_path):
  photos = tmp_path / "photos"
  (photos / "more").mkdir(parents=True)
  names = sorted(os.listdir(example / "photos"))[:2]
  (photos / "a.jpg").write_bytes((example / "photos" / names[0]).read_bytes())
  (photos / "more" / "b.jpg").write_bytes((example / "photos" / names[1]).read_bytes())
  Image.open(photos / "a.jpg").save(photos / "a.png")
  (photos / "notes.txt").write_text("no picture")
  out = tmp_path / "out"
  run(finished_run, out, "--image", photos, "--text", "the star", "--text", "red")
  actual = rows_of(out)
  images = ["a.jpg", "a.png", os.path.join("more", "b.jpg")]
  assert [(r["image"], r["expression"]) for r in actual] == [
    (image, text) for image in images for text in ("the star", "red")
  ]
  for row in actual:
    result = segmenter(photos / row["image"], row["expression"])
    np.testing.assert_array_equal(mask_of(row), result.mask)
    assert (out / row["overlay"]).is_file()
  # Only an image that was added later is predicted later.
  before = contents(out)
  Image.open(photos / "a.png").save(photos / "c.png")
  run(finished_run, out, "--image", photos, "--text", "the star", "--text", "red")
  assert [row["image"] for row in rows_of(out)][-2:] == ["c.png", "c.png"]
  after = contents(out)
  assert after["predictions.jsonl"].startswith(before["predictions.jsonl"])
  assert {name: after[name] for name in before if name.endswith(".png")} == {
    name: data for name, data in before.items() if name.endswith(".png")
  }


def test_a_resumed_run_gives_the_same_files_as_an_uninterrupted_one(
  finished_run, example, answered, tmp_path, monkeypatch
):
  out = tmp_path / "out"
  out.mkdir()
  whole = contents(answered)
  lines = whole["predictions.jsonl"].splitlines(keepends=True)
  # Seven predictions and half of the eighth row, as after a power cut; its overlay exists.
  (out / "settings.json").write_bytes(whole["settings.json"])
  (out / "predictions.jsonl").write_bytes(b"".join(lines[:7]) + lines[7][:40])
  for line in lines[:8]:
    name = json.loads(line)["overlay"]
    (out / name).write_bytes(whole[name])
  asked = []
  call = Segmenter.__call__
  monkeypatch.setattr(
    Segmenter,
    "__call__",
    lambda self, image, texts, *more: asked.extend(texts) or call(self, image, texts, *more),
  )
  run(finished_run, out, "--pairs", example / "mine.jsonl")
  assert len(asked) == len(lines) - 7
  assert contents(out) == whole
  asked.clear()
  run(finished_run, out, "--pairs", example / "mine.jsonl")
  assert not asked


def test_a_killed_command_loses_nothing(finished_run, example, answered, tmp_path):
  out = tmp_path / "out"
  command = [sys.executable, "-m", "mail_jax.predict", "--checkpoint", str(finished_run)]
  command += ["--pairs", str(example / "mine.jsonl"), "--out", str(out)]
  killed = subprocess.Popen(command, cwd=tiny_run.CHECKOUT)
  deadline = time.monotonic() + 120
  while not (out / "predictions.jsonl").exists() or not (out / "predictions.jsonl").stat().st_size:
    assert killed.poll() is None, "ended before it could be killed"
    assert time.monotonic() < deadline
    time.sleep(0.001)
  killed.send_signal(signal.SIGSTOP)
  # A second command does not write to the same folder.
  with pytest.raises(InputError, match="another command is writing to this folder"):
    run(finished_run, out, "--pairs", example / "mine.jsonl")
  killed.send_signal(signal.SIGKILL)
  killed.wait()
  run(finished_run, out, "--pairs", example / "mine.jsonl")
  left = {name for name in contents(out) if not pathlib.Path(name).name.startswith(".")}
  assert left == contents(answered).keys()
  for row, expected in zip(rows_of(out), rows_of(answered), strict=True):
    assert (row["line"], row["number"]) == (expected["line"], expected["number"])
    np.testing.assert_array_equal(mask_of(row), mask_of(expected))


def test_predictions_of_another_run_are_not_resumed(finished_run, example, answered, tmp_path):
  other = tmp_path / "other.jsonl"
  lines = (example / "mine.jsonl").read_text().splitlines()
  other.write_text("\n".join(lines[:2]))
  before = contents(answered)
  for more, difference in (
    (["--pairs", other, "--images", example], "`pairs` was"),
    (["--pairs", example / "mine.jsonl", "--instances", "none"], "`instances` was 'auto'"),
  ):
    with pytest.raises(
      InputError, match=f"holds predictions of another run: {difference}.*--overwrite"
    ):
      run(finished_run, answered, *more)
  assert contents(answered) == before
  out = tmp_path / "out"
  run(finished_run, out, "--pairs", other, "--images", example)
  (out / "mine.txt").write_text("not ours")
  run(finished_run, out, "--pairs", example / "mine.jsonl", "--overwrite")
  assert contents(out) == before | {"mine.txt": b"not ours"}
  holds = tmp_path / "holds"
  holds.mkdir()
  (holds / "a").write_text("")
  with pytest.raises(InputError, match="the folder holds other files"):
    run(finished_run, holds, "--pairs", example / "mine.jsonl", "--overwrite")


def test_a_folder_that_cannot_be_locked_is_reported_in_one_line(tmp_path):
  # Root may write to any folder, but cannot open a folder as a file.
  (tmp_path / ".lock").mkdir()
  with (
    pytest.raises(
      InputError, match=r"--out \S+: the folder cannot be written to \(Is a directory\)"
    ),
    outputs.open_writer(str(tmp_path), {}, overwrite=False),
  ):
    pass


def test_a_folder_gives_every_image_that_can_be_predicted_alone(
  finished_run, segmenter, tmp_path, capsys
):
  photos = tmp_path / "photos"
  (photos / "deep").mkdir(parents=True)
  pixels = np.kron(
    np.random.default_rng(3).integers(0, 255, (6, 8, 3), np.uint8), np.ones((8, 8, 1))
  )
  image = Image.fromarray(pixels.astype(np.uint8))
  kinds = {
    "a.jfif": "JPEG",
    "b.JPG": "JPEG",
    "c.avif": "AVIF",
    "d.jp2": "JPEG2000",
    "e.webp": "WEBP",
    "f.png": "PNG",
    "g.ppm": "PPM",
    "h.gif": "GIF",
    "deep/i.tif": "TIFF",
    "deep/k": "BMP",
    "l.jpeg": "MPO",
  }
  for name, kind in kinds.items():
    image.save(photos / name, format=kind)
  (photos / ".thumbnail.jpg").write_bytes((photos / "a.jfif").read_bytes())
  (photos / "notes.txt").write_text("no picture")
  (photos / "void").write_bytes(b"")
  (photos / "phone.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
  run(finished_run, tmp_path / "out", "--image", photos, "--text", "red")
  rows = {row["image"]: row for row in rows_of(tmp_path / "out")}
  assert sorted(rows) == sorted(kinds)
  for name, row in rows.items():
    np.testing.assert_array_equal(mask_of(row), segmenter(photos / name, "red").mask)
  ignored = [line for line in capsys.readouterr().err.splitlines() if "ignored" in line]
  assert ignored[0].startswith("ignored: notes.txt is not an image")
  assert ignored[1].startswith("ignored: phone.heic is HEIC; run `pip install pillow-heif`")
  assert ignored[2:] == ["ignored: void is empty"]


def test_files_beyond_the_first_fifty_are_ignored_by_extension(finished_run, tmp_path, capsys):
  photos = tmp_path / "photos"
  photos.mkdir()
  Image.new("RGB", (8, 8)).save(photos / "a.png")
  for number in range(53):
    (photos / f"b{number:02}.xml").write_text("<a/>")
  (photos / "c").write_text("text")
  run(finished_run, tmp_path / "out", "--image", photos, "--text", "red")
  printed = capsys.readouterr().err.splitlines()
  assert sum("ignored: b" in line for line in printed) == 50
  assert "ignored: 4 more (.xml, no extension)" in printed


def test_a_photo_that_cannot_be_read_stops_or_is_skipped(finished_run, example, tmp_path, capsys):
  photos = tmp_path / "photos"
  photos.mkdir()
  (photos / "a.jpg").write_text("no picture")
  first = sorted((example / "photos").iterdir())[0]
  (photos / "b.jpg").write_bytes(first.read_bytes())
  (photos / "c.jpg").write_bytes(first.read_bytes()[:-200])
  out = tmp_path / "out"
  options = ["--image", photos, "--text", "red"]
  with pytest.raises(InputError, match=r"a\.jpg is not an image .*--on_error skip continues"):
    run(finished_run, out, *options)
  with pytest.raises(SystemExit, match="1"):
    run(finished_run, out, *options, "--on_error", "skip")
  assert [row["image"] for row in rows_of(out)] == ["b.jpg"]
  printed = capsys.readouterr().err
  assert "skipped: image" in printed
  assert "2 of 3 images were skipped" in printed
  # Repaired images are predicted the next time.
  (photos / "a.jpg").write_bytes(first.read_bytes())
  (photos / "c.jpg").unlink()
  run(finished_run, out, *options)
  assert [row["image"] for row in rows_of(out)] == ["b.jpg", "a.jpg"]


@pytest.mark.parametrize(
  ("options", "message"),
  [
    (["--image", "photos", "--text", " "], r"is empty; write what to look for"),
    (["--image", "empty", "--text", "red"], r"--image empty: no images in this folder"),
    (["--image", "photos", "--text", "red", "--mask", "m.png"], r"--mask is for a single image"),
    (
      ["--image", "photos", "--text", "red", "--out", "photos/o"],
      r"is inside the folder of images",
    ),
    (["--pairs", "nowhere.jsonl"], r"nowhere\.jsonl: No such file"),
    (["--pairs", "void.jsonl"], r"void\.jsonl: the file is empty"),
    (
      ["--pairs", "bad.jsonl"],
      r"line 1: missing key 'sentences'; line 2: .*\(docs/reference/formats",
    ),
    (["--pairs", "out.jsonl"], r"out\.jsonl: line 1: image: .*leaves the folder"),
    (["--pairs", "coco.jsonl"], r"line 1: annotations '/etc/passwd': write a path relative to"),
    (["--pairs", "fine.jsonl", "--images", "nowhere"], r"--images nowhere: no such folder"),
    (["--pairs", "fine.jsonl"], r"fine\.jsonl, line 1: image .*gone\.png: No such file"),
    (["--pairs", "masks.jsonl"], r"line 1: instances.*; --on_error skip"),
    (["--pairs", "two.jsonl"], r"line 3: instances differ from those of line 1 for the same"),
    (["--pairs", "files.jsonl"], r"line 2: annotations: b\.json differs from an earlier"),
  ],
)
def test_errors_are_reported_and_no_prediction_is_written(
  finished_run, tmp_path, monkeypatch, options, message
):
  monkeypatch.chdir(tmp_path)
  for name in ("photos", "empty"):
    pathlib.Path(name).mkdir()
  Image.new("RGB", (20, 20)).save("photos/a.png")
  pathlib.Path("void.jsonl").touch()
  pathlib.Path("bad.jsonl").write_text('{"image": "a.png"}\n{"image": 3, "sentences": ["a"]}\n')
  line = {"image": "photos/a.png", "sentences": ["red"]}
  pathlib.Path("out.jsonl").write_text(json.dumps(line | {"image": "../a.png"}))
  pathlib.Path("coco.jsonl").write_text(json.dumps(line | {"annotations": "/etc/passwd"}))
  pathlib.Path("fine.jsonl").write_text(json.dumps(line | {"image": "gone.png"}))
  runs = {"size": [9, 9], "counts": [81]}
  pathlib.Path("masks.jsonl").write_text(json.dumps(line | {"instances": [{"rle": runs}]}))
  several = [
    {"instances": [{"rle": runs}]},
    {},
    {"image": "photos/../photos/a.png", "instances": []},
  ]
  pathlib.Path("two.jsonl").write_text("\n".join(json.dumps(line | more) for more in several))
  for name in ("a.json", "b.json"):
    pathlib.Path(name).write_text("{}")
  named = [{"annotations": "a.json"}, {"annotations": "b.json"}]
  pathlib.Path("files.jsonl").write_text("\n".join(json.dumps(line | more) for more in named))
  with pytest.raises(InputError, match=message) as caught:
    run(finished_run, pathlib.Path("out"), *options)
  assert "\n" not in str(caught.value)
  assert not list(tmp_path.rglob("*-1.png"))
  assert not any((tmp_path / "out").glob("*.png"))


def test_api_command_and_app_give_the_same_mask(finished_run, segmenter, example, tmp_path, capsys):
  photo, text = next((example / "photos").iterdir()), "the object on the left"
  masks = np.zeros((2, 96, 96), bool)
  masks[0, 10:50, 10:40] = masks[1, 60:90, 30:80] = True
  rows = []
  for number, mask in enumerate(masks, 1):
    runs = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    runs = {"size": [96, 96], "counts": runs["counts"].decode()}
    rows.append({"id": number, "image_id": 1, "category_id": 1, "segmentation": runs})
  image = {"id": 1, "file_name": photo.name, "height": 96, "width": 96}
  file = tmp_path / "instances.json"
  file.write_text(json.dumps({"images": [image], "annotations": rows, "categories": []}))

  result = segmenter(photo, text, file)
  assert result.mask.any()
  picture, mask = tmp_path / "o.png", tmp_path / "m.png"
  run(
    finished_run, picture, "--image", photo, "--text", text,
    "--instances", file, "--mask", mask, "--json", "-",
  )  # fmt: skip
  row = json.loads(capsys.readouterr().out)
  page = service.RequestHandler(
    {"run": segmenter}, limits.Limits(), tmp_path / "page", ExampleMasks([])
  )
  (tmp_path / "page").mkdir()
  (answer,) = page(str(photo), text, str(file)).models["run"]
  assert np.array_equal(np.asarray(Image.open(mask)) > 0, result.mask)
  assert np.array_equal(mask_of(row), result.mask)
  assert np.array_equal(np.asarray(Image.open(answer.mask)) > 0, result.mask)
  for path in (picture, answer.overlay):
    np.testing.assert_array_equal(np.asarray(Image.open(path)), result.overlay())
