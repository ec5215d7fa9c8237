"""Custom data as a data set: `prepare` stores what the lines say."""

import io
import json

import custom_files
import numpy as np
import pytest
import tensorflow as tf
import tiny_run
from custom_files import SQUARE, line, write_lines, write_photo
from PIL import Image, ImageDraw, ImageOps
from pycocotools.coco import COCO

from input_pipeline import preprocess, records, storage
from input_pipeline.common import drawing
from input_pipeline.common.errors import InputError
from input_pipeline.custom import command
from input_pipeline.prepare import command as prepare
from input_pipeline.tf import loader, record_reader
from mail_jax.evaluate import command as evaluate
from mail_jax.evaluate import dataset_metrics, runner
from mail_jax.train import command as train


def records_of(data_dir, name, split):
  decoded_records = map(
    records.decode_record,
    record_reader.read_records(record_reader.Split(str(data_dir), name, split)),
  )
  return sorted(decoded_records, key=lambda record: record.file_name)


def decoded(record):
  """Returns the pixels that training sees."""
  return tf.io.decode_jpeg(record.image, channels=3, dct_method="INTEGER_ACCURATE").numpy()


def make(folder, *rows, options=(), name="mine.jsonl"):
  """Prepares lines and returns the folder of the data."""
  path = write_lines(folder / name, *rows)
  data_dir = folder / "data"
  prepare.main(["--dataset", f"jsonl:{path}", "--data_dir", str(data_dir), *options])
  return data_dir


def test_lines_of_an_image_become_one_record_per_split(tmp_path):
  for name in "ab":
    write_photo(tmp_path / f"{name}.png", seed=ord(name))
  rows = [
    line("a.png", sentences=["One", "two"]),
    line("b.png", split="val", ref_id=77),
    line("a.png", target=None, sentences=["nothing"]),
    line("a.png", split="night", target=[SQUARE, {"polygons": [[0, 0, 9, 0, 9, 9]]}]),
  ]
  data = make(tmp_path, *rows)
  (a,) = records_of(data, "mine", "train")
  assert [ref.sentences for ref in a.refs] == [("One", "two"), ("nothing",)]
  assert [ref.ref_id for ref in a.refs] == [1, 3]
  assert [bool(ref.target.any()) for ref in a.refs] == [True, False]
  assert a.image == (tmp_path / "a.png").read_bytes()
  assert a.instances.source == "none"
  ((b,), (night,)) = records_of(data, "mine", "val"), records_of(data, "mine", "night")
  assert [ref.ref_id for ref in b.refs] == [77]
  assert night.image_id == a.image_id != b.image_id
  assert night.refs[0].target.sum() > a.refs[0].target.sum()
  assert loader.splits(str(data), "mine") == ["train", "val", "night"]
  assert storage.prepared(str(data)) == ["mine"]
  metadata = storage.read_metadata(str(data), "mine") or {}
  assert metadata["no_targets"] == {"train": 1, "val": 0, "night": 0}


def test_instances_are_those_of_the_lines_best_first(tmp_path):
  for name in "ab":
    write_photo(tmp_path / f"{name}.png")
  other = {"polygons": [[15, 3, 25, 3, 25, 13]]}
  instances = [SQUARE | {"score": 0.2, "category": 4}, other | {"score": 0.9}]
  rows = [line(), line(instances=instances), line("b.png")]
  a, b = records_of(make(tmp_path, *rows, options=["--trained_on", "other"]), "mine", "train")
  assert a.instances.scores.tolist() == pytest.approx([0.9, 0.2])
  assert a.instances.categories.tolist() == [0, 4]
  assert np.array_equal(a.instances.masks[1], a.refs[0].target)
  assert (a.instances.source, a.instances.trained_on) == ("custom", "other")
  assert len(b.instances.masks) == 0


@pytest.mark.parametrize("orientation", [1, 2, 3, 6, 8])
def test_images_are_stored_upright_and_their_targets_fit(tmp_path, orientation):
  picture = Image.new("RGB", (40, 24), "black")
  ImageDraw.Draw(picture).rectangle((4, 3, 15, 8), fill="white")
  exif = Image.Exif()
  exif[0x0112] = orientation
  picture.save(tmp_path / "a.jpg", exif=exif, quality=100)
  with Image.open(tmp_path / "a.jpg") as stored:
    upright = np.asarray(ImageOps.exif_transpose(stored))
  target = upright[..., 0] > 128
  Image.fromarray(target).save(tmp_path / "m.png")
  (record,) = records_of(make(tmp_path, line("a.jpg", target={"png": "m.png"})), "mine", "train")
  assert (record.height, record.width) == upright.shape[:2]
  assert decoded(record) == pytest.approx(upright, abs=1)
  assert np.array_equal(record.refs[0].target, target)
  untouched = record.image == (tmp_path / "a.jpg").read_bytes()
  assert untouched == (orientation == 1)


@pytest.mark.parametrize(("ending", "mode"), [("webp", "RGB"), ("tiff", "RGB"), ("jpg", "CMYK")])
def test_images_of_any_format_are_stored_as_training_decodes_them(tmp_path, ending, mode):
  pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
  Image.fromarray(pixels).convert(mode).save(tmp_path / f"a.{ending}")
  (record,) = records_of(make(tmp_path, line(f"a.{ending}")), "mine", "train")
  with Image.open(tmp_path / f"a.{ending}") as image:
    expected = np.asarray(image.convert("RGB"))
  assert np.array_equal(decoded(record), expected)


@pytest.mark.parametrize("orientation", [1, 6])
def test_a_tiff_is_rotated_once(tmp_path, orientation):
  """Pillow rotates TIFFs itself, but not other formats."""
  pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
  Image.fromarray(pixels).save(tmp_path / "a.tiff", tiffinfo={0x0112: orientation})
  expected = pixels if orientation == 1 else np.rot90(pixels, -1)
  row = line("a.tiff", target={"polygons": [[1, 1, 9, 1, 9, 9]]})
  (record,) = records_of(make(tmp_path, row), "mine", "train")
  assert (record.height, record.width) == expected.shape[:2]
  assert np.array_equal(decoded(record), expected)


@pytest.mark.parametrize("alpha", [255, 64, None])
def test_transparency_is_composited_on_white_in_training_as_in_prediction(tmp_path, alpha):
  pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 4), np.uint8)
  if alpha is not None:
    pixels[..., 3] = alpha
  Image.fromarray(pixels).save(tmp_path / "a.png")
  (record,) = records_of(make(tmp_path, line("a.png")), "mine", "train")
  share = pixels[..., 3:] / 255
  expected = share * pixels[..., :3] + (1 - share) * 255
  assert np.abs(decoded(record) - expected).max() <= 1
  assert np.array_equal(preprocess.open_image(tmp_path / "a.png"), decoded(record))


def test_nothing_is_written_where_a_line_is_wrong(tmp_path):
  write_photo(tmp_path / "a.png")
  with pytest.raises(InputError, match=r"2 errors in 2 lines; the first is: line 2: .*validate"):
    make(tmp_path, line(), line("none.png"), line(sentences=[]))
  assert not (tmp_path / "data").exists()


def test_invalid_lines_and_truncated_images_can_be_left_out(tmp_path, capsys):
  write_photo(tmp_path / "a.png")
  write_photo(tmp_path / "big.jpg", (200, 300))
  whole = (tmp_path / "big.jpg").read_bytes()
  (tmp_path / "half.jpg").write_bytes(whole[: len(whole) // 2])
  rows = [line(), line("none.png"), "{", line("half.jpg"), line(target=None)]
  data = make(tmp_path, *rows, options=["--on_error", "skip"])
  (record,) = records_of(data, "mine", "train")
  assert [ref.ref_id for ref in record.refs] == [1, 5]
  printed = capsys.readouterr()
  assert "skipped line 2: image: " in printed.out
  assert "skipped line 3: " in printed.out
  assert "skipped in train: 1 image" in printed.out
  assert "2 lines of" in printed.err
  with pytest.raises(InputError, match="2 errors"):
    make(tmp_path, '{"a', "[", options=["--on_error", "skip", "--overwrite"])


def test_an_image_in_two_splits_is_warned_of(tmp_path, capsys):
  write_photo(tmp_path / "a.png")
  make(tmp_path, line(), line(split="val"))
  assert "a.png is in val here, but in train on line 1: leakage" in capsys.readouterr().err


def test_a_data_set_is_named_by_its_file_or_by_the_user(tmp_path):
  write_photo(tmp_path / "a.png")
  data = make(tmp_path, line(), name="my-photos v2.jsonl")
  assert storage.prepared(str(data)) == ["my_photos_v2"]
  make(tmp_path, line(), options=["--name", "Other"])
  assert storage.prepared(str(data)) == ["Other", "my_photos_v2"]
  for name, message in (("shapes", "choose another one"), ("a b", "is not a valid name")):
    with pytest.raises(InputError, match=message):
      make(tmp_path, line(), options=["--name", name])
  with pytest.raises(InputError, match="'refcocoplus_unc' is not a valid name"):
    make(tmp_path, line(), options=["--name", "refcocoplus_unc"])
  with pytest.raises(InputError, match=r"custom data in .*: Other, my_photos_v2"):
    loader.splits(str(data), "mine")


def test_preparing_again_does_nothing_and_another_file_is_refused(tmp_path, capsys):
  write_photo(tmp_path / "a.png")
  make(tmp_path, line())
  make(tmp_path, line())
  assert "nothing to do" in capsys.readouterr().out
  with pytest.raises(InputError, match="already exists with other arguments"):
    make(tmp_path, line(sentences=["another"]))


@pytest.mark.parametrize(
  ("options", "message"),
  [
    (["--refer_root", "refer"], "--refer_root cannot be used with"),
    (["--train_scenes", "3"], "--train_scenes cannot be used with"),
  ],
)
def test_options_of_other_data_sets_are_refused(tmp_path, capsys, options, message):
  with pytest.raises(SystemExit):
    make(tmp_path, line(), options=options)
  assert message in capsys.readouterr().err


def test_masks_are_looked_up_by_the_image_s_name_or_id(tmp_path):
  write_photo(tmp_path / "a.png")
  write_photo(tmp_path / "b.png")
  custom_files.write_coco(tmp_path / "coco.json")
  spec = ["--instances", f"coco:{tmp_path / 'coco.json'}", "--overwrite"]
  for row in (line(), line(image_id=1)):
    (record,) = records_of(make(tmp_path, row, options=spec), "mine", "train")
    assert len(record.instances.masks) == 2
  for row in (line("b.png"), line("b.png", image_id=1)):
    with pytest.raises(InputError, match=r"b\.png"):
      make(tmp_path, row, options=spec)


def test_images_with_coco_names_are_recognised_as_coco_s(tmp_path):
  write_photo(tmp_path / "COCO_train2014_000000000009.jpg")
  write_photo(tmp_path / "a.jpg", seed=1)
  rows = [line("COCO_train2014_000000000009.jpg", split="val"), line("a.jpg", split="val")]
  rows[0]["instances"] = [SQUARE]
  data = make(tmp_path, *rows, options=["--trained_on", "coco"])
  warning = runner.recall_instances(str(data), "mine/val")["warning"]
  assert "trained on COCO, which contains 1 of its 2 images" in warning


def test_targets_by_annotation_are_coco_s_own(tmp_path, realdata):
  path = realdata / "coco/annotations/instances_train2014.json"
  coco = COCO(str(path))
  chosen = [row for row in coco.loadAnns(coco.getAnnIds(iscrowd=False)) if row["area"] > 500][::300]
  rows = [
    line(
      coco.imgs[row["image_id"]]["file_name"],
      image_id=row["image_id"],
      target={"ann_id": row["id"]},
      ref_id=row["id"],
    )
    for row in chosen
  ]
  options = ["--images", str(realdata / "coco/train2014"), "--annotations", str(path)]
  records = records_of(make(tmp_path, *rows, options=options), "mine", "train")
  targets = {ref.ref_id: ref for record in records for ref in record.refs}
  assert len(targets) == len(chosen) > 5
  for row in chosen:
    assert targets[row["id"]].ann_ids == (row["id"],)
    assert np.array_equal(targets[row["id"]].target, coco.annToMask(row).astype(bool))


def test_the_example_is_trained_on_and_evaluated_by_its_name(tmp_path, capsys):
  command.main(["example", "--out", str(tmp_path / "ex"), "--train", "10", "--val", "4"])
  data, run = str(tmp_path / "data"), tmp_path / "run"
  path = tmp_path / "ex" / "mine.jsonl"
  prepare.main(["--dataset", f"jsonl:{path}", "--trained_on", "nothing", "--data_dir", data])
  train.main(tiny_run.arguments(data, run, "--config.dataset=mine", "--config.steps=4"))
  capsys.readouterr()
  common = ["--checkpoint", str(run), "--data_dir", data]
  evaluate.main([*common, "--data", "mine", "--json", str(tmp_path / "m.json")])
  metrics = json.loads((tmp_path / "m.json").read_text())
  rows = [json.loads(text) for text in path.read_text().splitlines()]
  expressions = sum(len(row["sentences"]) for row in rows if row["split"] == "val")
  assert metrics["mine/val"]["expressions"] == expressions
  assert "warning" not in capsys.readouterr().out


def test_data_with_expressions_that_mean_nothing_has_their_metrics():
  counts = {"intersection": [5, 0], "union": [10, 0], "area": [8, 0]}
  rows = {key: np.array(values) for key, values in counts.items()}
  assert {"N-acc", "gIoU"} <= set(dataset_metrics.summarise("mine", rows))
  assert dataset_metrics.summarise("mine", {k: v[:1] for k, v in rows.items()}) == {}


def test_draw_shows_the_targets(tmp_path):
  write_photo(tmp_path / "a.png", (200, 200))
  square = {"polygons": [[50, 50, 150, 50, 150, 150, 50, 150]]}
  path = write_lines(tmp_path / "mine.jsonl", line(target=square))
  command.main(["draw", path, "--out", str(tmp_path / "draw.png")])
  with Image.open(io.BytesIO((tmp_path / "draw.png").read_bytes())) as sheet:
    pixels = np.asarray(sheet.convert("RGB")).astype(float)
  inside, outside = pixels[80:180, 80:180].mean((0, 1)), pixels[15:50, 15:50].mean((0, 1))
  assert inside[2] - inside[0] > 60 > abs(outside[2] - outside[0])


def test_draw_outlines_the_instances_of_an_image_on_all_of_its_lines(tmp_path):
  write_photo(tmp_path / "a.png")
  other = line(ref_id=2, sentences=["a corner"])
  path = write_lines(tmp_path / "mine.jsonl", line(instances=[SQUARE]), other)
  command.main(["draw", path, "--out", str(tmp_path / "draw.png")])
  with Image.open(tmp_path / "draw.png") as sheet:
    yellow = (np.asarray(sheet.convert("RGB")) == drawing.SELECTED).all(2)
  first, second = yellow[:, :250].sum(), yellow[:, 250:].sum()
  assert first == second > 100


def test_a_missing_file_is_reported(tmp_path):
  arguments = ["--dataset", f"jsonl:{tmp_path}/gone.jsonl", "--data_dir", str(tmp_path / "data")]
  with pytest.raises(InputError, match=r"gone\.jsonl: no such file; docs/guides/custom-data\.md"):
    prepare.main(arguments)
