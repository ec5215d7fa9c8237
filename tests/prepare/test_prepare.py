"""`prepare` as users run it: what it writes, what it refuses, and what it leaves behind."""

import hashlib
import io
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from PIL import Image
from refer_layout import HEIGHT, WIDTH, make_layout

from input_pipeline import records, storage
from input_pipeline.common.errors import InputError
from input_pipeline.prepare import command as prepare
from input_pipeline.preprocess import bit_planes
from input_pipeline.proposers.registry import open_proposer
from input_pipeline.shapes import scenes
from input_pipeline.sources import annotated_images, refer, scene_source
from input_pipeline.tf import builder


def _read(data_dir, name: str, split: str) -> dict[int, records.ImageRecord]:
  """Yields the records of a split, read by TFDS and decoded by their documented format alone."""
  dataset = builder.open_dataset(str(data_dir), name).as_dataset(split=split)
  decoded = [_decode(fields) for fields in dataset]
  return {record.image_id: record for record in decoded}


def _decode(fields) -> records.ImageRecord:
  scores = fields["instance_score"].numpy()
  planes = bit_planes.decode_png(fields["instances"].numpy(), int(fields["height"]))
  refs = fields["refs"]
  return records.ImageRecord(
    image=fields["image"].numpy(),
    image_id=int(fields["image_id"]),
    file_name=fields["file_name"].numpy().decode(),
    height=int(fields["height"]),
    width=int(fields["width"]),
    instances=records.Instances(
      masks=bit_planes.unpackbits(planes, len(scores)),
      scores=scores,
      categories=fields["instance_category"].numpy(),
      source=fields["instances_from"].numpy().decode(),
      trained_on=fields["instances_trained_on"].numpy().decode(),
    ),
    refs=tuple(
      records.Ref(
        ref_id=int(refs["ref_id"][i]),
        ann_ids=tuple(refs["ann_ids"][i].numpy().tolist()),
        target=records.decode_target(refs["target"][i].numpy()),
        sentences=tuple(text.decode() for text in refs["sentences"][i].numpy()),
      )
      for i in range(len(refs["ref_id"]))
    ),
  )


def _assert_same_record(record: records.ImageRecord, expected: records.ImageRecord) -> None:
  assert record.image == expected.image
  assert (record.file_name, record.height, record.width) == (
    expected.file_name,
    expected.height,
    expected.width,
  )
  for name in ("masks", "scores", "categories"):
    np.testing.assert_array_equal(
      getattr(record.instances, name), getattr(expected.instances, name)
    )
  assert record.instances.source == expected.instances.source
  assert record.instances.trained_on == expected.instances.trained_on
  assert len(record.refs) == len(expected.refs)
  for ref, other in zip(record.refs, expected.refs, strict=True):
    assert (ref.ref_id, ref.ann_ids, ref.sentences) == (
      other.ref_id,
      other.ann_ids,
      other.sentences,
    )
    np.testing.assert_array_equal(ref.target, other.target)


def _hashes(folder: pathlib.Path) -> dict[str, str]:
  return {
    str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
    for path in folder.rglob("*")
    if path.is_file()
  }


def _shapes(data_dir, *more: str) -> list[str]:
  """Returns the command that made the data of the fixture `shapes_data`."""
  sizes = ["--train_scenes", "24", "--eval_scenes", "12"]
  return ["--dataset", "shapes", "--data_dir", str(data_dir), *sizes, *more]


def test_records_of_scenes_are_the_scenes(shapes_data):
  for split, count in (("train", 24), ("testC", 12)):
    read = _read(shapes_data, "shapes", split)
    assert sorted(read) == list(range(count))
    for index in range(3):
      _assert_same_record(read[index], scenes.make_record(split, 0, index))


def test_metadata_describes_the_data_set(shapes_data):
  metadata = builder.open_dataset(str(shapes_data), "shapes").info.metadata
  assert metadata["arguments"] == {
    "train_scenes": 24,
    "eval_scenes": 12,
    "size": 96,
    "seed": 0,
    "noise": "default",
  }
  read = _read(shapes_data, "shapes", "val").values()
  assert metadata["counts"]["val"] == {
    "records": 12,
    "refs": sum(len(record.refs) for record in read),
    "expressions": sum(len(ref.sentences) for record in read for ref in record.refs),
  }


def test_the_number_of_workers_changes_no_byte(shapes_data, tmp_path):
  alone = scene_source.SceneSource(24, 12, workers=1)
  metadata = storage.read_metadata(str(shapes_data), "shapes")
  assert metadata is not None
  builder.write_dataset(str(tmp_path), "shapes", alone, metadata["arguments"])
  assert _hashes(tmp_path) == _hashes(pathlib.Path(shapes_data))


def test_preparing_the_same_again_is_a_quick_no_op(shapes_data, capsys, monkeypatch):
  monkeypatch.setattr(builder, "write_dataset", None)
  prepare.main(_shapes(shapes_data))
  assert "nothing to do" in capsys.readouterr().out


def test_other_arguments_are_not_silently_ignored(shapes_data):
  with pytest.raises(InputError, match=r"noise was default and is now oracle.*--overwrite"):
    prepare.main(_shapes(shapes_data, "--noise", "oracle"))


def test_records_of_the_refcoco_family_round_trip(tmp_path, capsys):
  layout = make_layout(tmp_path, "refcoco+_unc")
  prepare.main(layout.arguments(tmp_path / "data"))
  printed = capsys.readouterr()
  assert ["testA", "1", "2", "3"] in [line.split() for line in printed.out.splitlines()]
  assert printed.err.startswith("warning: refcoco+_unc is not the complete")
  reader = refer.RefReader("refcoco+_unc", str(layout.root))
  proposer = open_proposer(f"coco:{layout.instances_path}")
  for split, (image_id,) in reader.splits.items():
    read = _read(tmp_path / "data", "refcoco+_unc", split)
    photo = reader.annotated_image(split, image_id, str(layout.images))
    data, pixels = annotated_images.read_image(photo.path, (HEIGHT, WIDTH))
    expected = annotated_images.make_record(photo, data, proposer.propose([pixels], [image_id])[0])
    _assert_same_record(read[image_id], expected)


def test_tensorflow_reads_the_planes_and_targets_that_pillow_reads(shapes_data, tmp_path):
  dataset = builder.open_dataset(str(shapes_data), "shapes").as_dataset(split="val")
  fields = next(iter(dataset))
  planes = tf.io.decode_png(fields["instances"], channels=1, dtype=tf.uint16).numpy()[..., 0]
  with Image.open(io.BytesIO(fields["instances"].numpy())) as image:
    np.testing.assert_array_equal(planes, np.asarray(image))
  assert planes.any()
  for target in fields["refs"]["target"]:
    read = tf.io.decode_png(target, channels=1).numpy()[..., 0] > 0
    np.testing.assert_array_equal(read, records.decode_target(target.numpy()))
    assert read.any()
  # Several planes: 40 instances take three, stacked vertically.
  masks = np.random.default_rng(0).random((40, 7, 5)) < 0.5
  png = bit_planes.encode_png(bit_planes.packbits(masks))
  stacked = tf.io.decode_png(png, channels=1, dtype=tf.uint16).numpy()[..., 0]
  np.testing.assert_array_equal(stacked.reshape(3, 7, 5), bit_planes.packbits(masks))


def test_normalised_expressions_are_stored_beside_the_raw_ones(tmp_path):
  layout = make_layout(tmp_path)
  prepare.main(layout.arguments(tmp_path / "data"))
  dataset = builder.open_dataset(str(tmp_path / "data"), "refcoco_unc").as_dataset(split="val")
  (fields,) = list(dataset)
  assert fields["refs"]["sentences"].to_list() == [[b"The LEFT one ", b"cup"], [b"bigger cup"]]
  assert fields["refs"]["normalised"].to_list() == [[b"the left one", b"cup"], [b"bigger cup"]]


def _missing_photo(layout):
  layout.image_path(2).unlink()


def _corrupt_photo(layout):
  layout.image_path(2).write_bytes(layout.image_path(2).read_bytes()[:-100])


def _number_for_a_sentence(layout):
  layout.refs[3]["sentences"][0].update(raw=7)
  layout.write()


def _refs_of_another_data_set(layout):
  layout.refs[3]["ann_id"] = 77
  layout.write()


def _missing_folder(layout):
  layout.root.rename(layout.root.parent / "elsewhere")


def _missing_images(layout):
  layout.images.rename(layout.images.parent / "elsewhere")


_DAMAGES = {
  _missing_photo: r"no image named COCO_train2014_000000000102\.jpg.* \(1 of 4 images are",
  _corrupt_photo: r"000000000102\.jpg cannot be decoded",
  _number_for_a_sentence: r"ref 3, sentence 0 \(sent_id 30\): 7 is not a string",
  _refs_of_another_data_set: r"ref 3: ann_id 77 is not in .*--annotations",
  _missing_folder: r"--refer_root .*contains no folder refcoco",
  _missing_images: r"--images .*no such folder",
}


@pytest.mark.parametrize("damage", list(_DAMAGES))
def test_invalid_input_is_one_error_and_leaves_nothing(tmp_path, damage):
  layout = make_layout(tmp_path)
  damage(layout)
  with pytest.raises(InputError, match=_DAMAGES[damage]):
    prepare.main(layout.arguments(tmp_path / "new" / "data"))
  assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
  ("option", "value", "message"),
  [
    ("--instances", "cocoa", r"unknown proposer; use one of coco, custom, felz"),
    ("--instances", "coco:", r"missing file"),
    ("--instances", "coco:nowhere.json", r"COCO annotations nowhere\.json: no such file"),
    ("--max_instances", "65", r"--max_instances 65"),
    ("--annotations", "nowhere.json", r"nowhere\.json: no such file"),
  ],
)
def test_an_invalid_option_is_named_and_leaves_nothing(tmp_path, option, value, message):
  layout = make_layout(tmp_path)
  with pytest.raises(InputError, match=message):
    prepare.main(layout.arguments(tmp_path / "data", option, value))
  assert not (tmp_path / "data").exists()


def test_options_of_another_data_set_are_usage_errors(tmp_path, capsys):
  with pytest.raises(SystemExit) as caught:
    prepare.main(_shapes(tmp_path, "--images", "photos"))
  assert caught.value.code == 2
  assert "--images cannot be used with --dataset shapes" in capsys.readouterr().err


def test_the_command_prints_one_line_and_exits_2(tmp_path):
  layout = make_layout(tmp_path)
  _corrupt_photo(layout)
  command = [sys.executable, "-m", "input_pipeline.prepare", *layout.arguments(tmp_path / "data")]
  checkout = pathlib.Path(__file__).parents[2]
  done = subprocess.run(command, cwd=checkout, capture_output=True, text=True, check=False)
  assert done.returncode == 2
  # On a busy machine there is a line of progress, too.
  expected = ("warning: ", "train: ")
  errors = [line for line in done.stderr.splitlines() if line and not line.startswith(expected)]
  assert len(errors) == 1
  assert errors[0].startswith("error: image ")
  assert not (tmp_path / "data").exists()


def test_an_interrupt_keeps_the_earlier_data_and_nothing_else(tmp_path, monkeypatch):
  layout = make_layout(tmp_path)
  prepare.main(layout.arguments(tmp_path / "data"))
  before = _hashes(tmp_path / "data")
  annotated_image = refer.RefReader.annotated_image

  def interrupted(self, split, *arguments):
    if split == "testB":
      raise KeyboardInterrupt
    return annotated_image(self, split, *arguments)

  monkeypatch.setattr(refer.RefReader, "annotated_image", interrupted)
  with pytest.raises(KeyboardInterrupt):
    prepare.main(layout.arguments(tmp_path / "data", "--overwrite", "--max_instances", "1"))
  assert _hashes(tmp_path / "data") == before
  assert [path.name for path in (tmp_path / "data").iterdir()] == [storage.BUILDER_NAME]


def test_no_temporary_file_stays_behind(tmp_path, monkeypatch):
  temporary = tmp_path / "temporary"
  temporary.mkdir()
  monkeypatch.setattr(tempfile, "tempdir", str(temporary))
  few = ["--train_scenes", "2", "--eval_scenes", "1"]
  prepare.main(["--dataset", "shapes", "--data_dir", str(tmp_path / "data"), *few])
  assert not list(temporary.iterdir())


def test_overwrite_replaces(tmp_path):
  layout = make_layout(tmp_path)
  prepare.main(layout.arguments(tmp_path / "data"))
  prepare.main(layout.arguments(tmp_path / "data", "--overwrite", "--max_instances", "1"))
  (record,) = _read(tmp_path / "data", "refcoco_unc", "val").values()
  assert record.instances.masks.shape == (1, HEIGHT, WIDTH)
  assert [path.name for path in (tmp_path / "data").iterdir()] == [storage.BUILDER_NAME]


def test_leftovers_of_a_killed_process_are_removed_and_a_live_one_is_not_disturbed(tmp_path):
  abandoned = tmp_path / ".incomplete-abandoned"
  (abandoned / "some").mkdir(parents=True)
  folder = storage.dataset_dir
  with storage.staging(str(tmp_path), "shapes") as living:
    assert not abandoned.exists()
    with storage.staging(str(tmp_path), "refcoco_unc") as other:
      pathlib.Path(folder(other, "refcoco_unc")).mkdir(parents=True)
    assert pathlib.Path(living).is_dir()
    pathlib.Path(folder(living, "shapes")).mkdir(parents=True)
  assert sorted(path.name for path in (tmp_path / storage.BUILDER_NAME).iterdir()) == [
    "refcoco_unc",
    "shapes",
  ]
  assert not list(tmp_path.glob(".incomplete-*"))


def test_leftovers_that_cannot_be_opened_do_no_harm(tmp_path):
  other = tmp_path / ".incomplete-other"
  other.write_text("as forbidden as the folder of another user")
  with storage.staging(str(tmp_path), "shapes") as folder:
    pathlib.Path(storage.dataset_dir(folder, "shapes")).mkdir(parents=True)
  assert pathlib.Path(storage.dataset_dir(str(tmp_path), "shapes")).is_dir() and other.exists()


def test_the_error_for_a_missing_data_set_names_the_command(tmp_path):
  with pytest.raises(InputError, match=r"refcoco\+_unc is not prepared there; run .*prepare"):
    builder.open_dataset(str(tmp_path), "refcoco+_unc")
  with pytest.raises(InputError, match=r"unknown; known: shapes, refcoco_unc"):
    builder.open_dataset(str(tmp_path), "refcoco")


def test_tfds_builds_it_from_its_manual_folder(tmp_path):
  layout = make_layout(tmp_path / "manual")
  made = builder.ReferringSegmentation(config="refcoco_unc", data_dir=tmp_path / "data")
  config = tfds.download.DownloadConfig(manual_dir=layout.root.parent)
  made.download_and_prepare(download_config=config)
  assert sorted(_read(tmp_path / "data", "refcoco_unc", "testA")) == [102]
  metadata = storage.read_metadata(str(tmp_path / "data"), "refcoco_unc") or {}
  assert metadata["instances"] == {"from": "coco", "trained_on": "ground-truth"}


@pytest.mark.parametrize(
  ("dataset", "counts"),
  [
    ("refcoco_unc", {"train": (892, 968), "val": (11, 28), "testA": (6, 16), "testB": (4, 12)}),
    ("refcoco+_unc", {"val": (11, 30), "testA": (6, 15), "testB": (4, 11)}),
    ("refcocog_umd", {"val": (10, 18)}),
    ("refcocog_google", {"val": (13, 13)}),
  ],
)
def test_real_data_is_prepared(dataset, counts, tmp_path, realdata):
  annotations = str(realdata / "coco/annotations/instances_train2014.json")
  arguments = {
    "--dataset": dataset,
    "--refer_root": str(realdata / "refer"),
    "--images": str(realdata / "coco/train2014"),
    "--instances": f"coco:{annotations}",
    "--data_dir": str(tmp_path),
  }
  command = [part for pair in arguments.items() for part in pair]
  if dataset == "refcocog_google":
    with pytest.raises(InputError, match=r"concerns 13 of 13 refs\).*--annotations FILE"):
      prepare.main(command)
    command += ["--annotations", annotations]
  prepare.main(command)
  actual = builder.open_dataset(str(tmp_path), dataset).info.metadata["counts"]
  assert {split: (row["refs"], row["expressions"]) for split, row in actual.items()} == counts
  for record in _read(tmp_path, dataset, "val").values():
    assert record.image == (realdata / "coco/train2014" / record.file_name).read_bytes()
    for ref in record.refs:
      same = (record.instances.masks == ref.target).all(axis=(1, 2))
      assert same.any()
