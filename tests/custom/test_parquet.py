"""Parquet files in the layouts of RefCOCO-M, lmms-lab, jxu124 and Ref-L4, written by pyarrow."""

import io
import json

import numpy as np
import pyarrow as pa
import pytest
from custom_files import covered as covered_by
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pyarrow import parquet as pq
from pycocotools import mask as coco_mask

from input_pipeline.common import untrusted_files
from input_pipeline.common.errors import InputError
from input_pipeline.custom import command, scan
from input_pipeline.custom.converters import embedded

HEIGHT, WIDTH = 40, 50
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
MASK = pa.struct([("counts", pa.string()), ("size", pa.list_(pa.int32()))])
REFCOCO_M = pa.schema(
  [
    ("image", IMAGE),
    ("image_id", pa.int64()),
    ("file_name", pa.string()),
    (
      "samples",
      pa.list_(
        pa.struct(
          [
            ("id", pa.int64()),
            ("image_id", pa.int64()),
            ("category", pa.string()),
            ("supercategory", pa.string()),
            ("label", pa.string()),
            ("sentences", pa.list_(pa.string())),
            ("bbox", pa.list_(pa.float32())),
            ("mask", MASK),
          ]
        )
      ),
    ),
  ]
)
LMMS = pa.schema(
  [
    ("question_id", pa.string()),
    ("image", IMAGE),
    ("question", pa.string()),
    ("answer", pa.list_(pa.string())),
    ("segmentation", pa.list_(pa.float32())),
    ("bbox", pa.list_(pa.float32())),
    ("iscrowd", pa.int8()),
    ("file_name", pa.string()),
  ]
)
JXU124 = pa.schema(
  [
    ("sent_ids", pa.list_(pa.int64())),
    ("file_name", pa.string()),
    ("ann_id", pa.int64()),
    ("ref_id", pa.int64()),
    ("image_id", pa.int64()),
    ("split", pa.string()),
    (
      "sentences",
      pa.list_(
        pa.struct(
          [
            ("raw", pa.string()),
            ("sent", pa.string()),
            ("sent_id", pa.int64()),
            ("tokens", pa.list_(pa.string())),
          ]
        )
      ),
    ),
    ("category_id", pa.int64()),
    ("raw_anns", pa.string()),
    ("raw_image_info", pa.string()),
    ("raw_sentences", pa.string()),
    ("image_path", pa.string()),
    ("bbox", pa.list_(pa.float64())),
    ("captions", pa.list_(pa.string())),
    ("global_image_id", pa.string()),
    ("anns_id", pa.string()),
  ]
)
REF_L4 = pa.schema(
  [
    ("id", pa.int64()),
    ("caption", pa.string()),
    ("bbox", pa.list_(pa.float64())),
    ("bbox_area", pa.float64()),
    ("bbox_id", pa.string()),
    ("ori_category_id", pa.string()),
    ("image_id", pa.string()),
    ("height", pa.int64()),
    ("width", pa.int64()),
    ("file_name", pa.string()),
    ("is_rewrite", pa.bool_()),
    ("split", pa.string()),
  ]
)


def coco_name(number):
  return f"COCO_train2014_{number:012}.jpg"


def covered(target):
  return covered_by(target, HEIGHT, WIDTH)


def photo(seed=0, size=(HEIGHT, WIDTH), kind="JPEG", **options):
  """Returns the bytes of an image of noise."""
  pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
  file = io.BytesIO()
  Image.fromarray(pixels).save(file, kind, **options)
  return file.getvalue()


def polygon(x, y, width, height):
  return [x, y, x + width, y, x + width, y + height, x, y + height]


def pixels_of(x, y, width, height):
  mask = np.zeros((HEIGHT, WIDTH), bool)
  mask[y : y + height, x : x + width] = True
  return mask


def runs(mask):
  encoded = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
  return {"counts": encoded["counts"].decode(), "size": list(mask.shape)}


def sample(number, sentences, mask, **fields):
  encoded = runs(mask) if isinstance(mask, np.ndarray) else mask
  return {"id": number, "image_id": 42, "sentences": sentences, "mask": encoded} | fields


def refcoco_m(*samples, data=None, number=42, **fields):
  image = {"bytes": photo(number, kind="PNG") if data is None else data, "path": None}
  row = {"image": image, "image_id": number, "file_name": coco_name(number)}
  return row | {"samples": list(samples)} | fields


def lmms(number, answer, rectangle, **fields):
  return {
    "question_id": str(900 + number),
    "image": {"bytes": photo(number), "path": coco_name(number)},
    "question": "Describe the region.",
    "answer": answer,
    "segmentation": polygon(*rectangle),
    "bbox": list(rectangle),
    "iscrowd": 0,
    "file_name": coco_name(number).replace(".jpg", "_3.jpg"),
  } | fields


def jxu124(ref_id, texts, segmentation, number=42, split="testA", **fields):
  annotation = {"id": 700 + ref_id, "image_id": number, "bbox": [5.0, 6.0, 10.0, 12.0]}
  info = {"id": number, "file_name": coco_name(number), "height": HEIGHT, "width": WIDTH}
  return {
    "sent_ids": [1],
    "file_name": coco_name(number).replace(".jpg", f"_{ref_id}.jpg"),
    "ann_id": 700 + ref_id,
    "ref_id": ref_id,
    "image_id": number,
    "split": split,
    "sentences": [
      {"raw": text.upper(), "sent": text, "sent_id": n, "tokens": text.split()}
      for n, text in enumerate(texts)
    ],
    "category_id": 1,
    "raw_anns": json.dumps(annotation | {"segmentation": segmentation, "iscrowd": 0}),
    "raw_image_info": json.dumps(info),
    "raw_sentences": "[]",
    "image_path": f"coco/train2014/{coco_name(number)}",
    "bbox": [5.0, 6.0, 15.0, 18.0],  # two corners
    "captions": texts,
  } | fields


def ref_l4(number, caption, file_name, rectangle, **fields):
  return {
    "id": number,
    "caption": caption,
    "bbox": list(map(float, rectangle)),
    "bbox_area": float(rectangle[2] * rectangle[3]),
    "image_id": "coco_42",
    "height": HEIGHT,
    "width": WIDTH,
    "file_name": file_name,
    "is_rewrite": False,
    "split": "val",
  } | fields


def write(path, schema, *rows, group=100):
  path.parent.mkdir(parents=True, exist_ok=True)
  pq.write_table(pa.Table.from_pylist(list(rows), schema), path, row_group_size=group)
  return path


def convert(source, *options, out=None, others=()):
  folder = source if source.is_dir() else source.parent
  out = out or folder / "mine.jsonl"
  sources = map(str, [source, *others])
  arguments = [*sources, "--from", "parquet", "--out", str(out), "--overwrite"]
  command.main(["convert", *arguments, *options])
  return [json.loads(line) for line in out.read_text().splitlines()]


def test_refcoco_m_has_the_masks_and_photos_that_went_in(tmp_path, capsys):
  left, right = pixels_of(3, 4, 9, 20), pixels_of(30, 1, 15, 33)
  left[4, 3] = False
  png = photo(42, kind="PNG")
  write(
    tmp_path / "data/validation-00000-of-00002.parquet",
    REFCOCO_M,
    refcoco_m(
      sample(1, ["left guy", "Left guy"], left), sample(2, ["the right one"], right), data=png
    ),
  )
  write(
    tmp_path / "data/validation-00001-of-00002.parquet",
    REFCOCO_M,
    refcoco_m(sample(3, ["a dog"], right, image_id=43), number=43),
  )
  first, second, third = convert(tmp_path)
  assert first == {
    "image": "mine_images/COCO_train2014_000000000042.png",
    "split": "val",
    "image_id": 42,
    "sentences": ["left guy", "Left guy"],  # its mIoU counts both
    "target": {"rle": runs(left)},
  }
  np.testing.assert_array_equal(covered(first["target"]), left)
  np.testing.assert_array_equal(covered(second["target"]), right)
  assert (third["image_id"], third["sentences"]) == (43, ["a dog"])
  assert (tmp_path / first["image"]).read_bytes() == png
  assert scan.scan(str(tmp_path / "mine.jsonl")).problems == []
  out = capsys.readouterr().out
  assert "3 lines, 4 expressions, 2 images" in out
  assert "note: split val from the name of the file (2)" in out


def test_lmms_labs_polygons_answers_and_splits(tmp_path, capsys):
  once = lmms(7, ["the cup", "cup left"], (5, 6, 10, 12))
  part = lmms(8, ["the cat"], (1, 2, 20, 30), segmentation=polygon(1, 2, 5, 30))
  write(tmp_path / "data/val-00000-of-00001.parquet", LMMS, once, once, part, group=2)
  write(tmp_path / "data/testA-00000-of-00001.parquet", LMMS, lmms(9, ["dog"], (0, 0, 50, 40)))
  test_a, val = convert(tmp_path)
  assert (test_a["split"], val["split"]) == ("testA", "val")
  assert val["image"] == f"mine_images/{coco_name(7)}"
  assert (tmp_path / val["image"]).read_bytes() == photo(7)
  assert (val["image_id"], val["sentences"]) == (7, ["the cup", "cup left"])
  np.testing.assert_array_equal(covered(val["target"]), pixels_of(5, 6, 10, 12))
  assert covered(test_a["target"]).all()
  out = capsys.readouterr().out
  repeated = "duplicate row (same image, mask and expressions)"
  assert f"{repeated} (1: val-00000-of-00001.parquet row 2)" in out
  assert "does not fill its box, so it is only part of the object (1: val-00000-of-00001" in out


def test_equal_expressions_of_two_objects_of_a_photo_stay_two_targets(tmp_path):
  rows = lmms(7, ["man"], (5, 6, 10, 12)), lmms(7, ["man"], (30, 2, 8, 9))
  first, second = convert(write(tmp_path / "val.parquet", LMMS, *rows))
  assert covered(first["target"]).sum() == 120
  assert covered(second["target"]).sum() == 72


def test_jxu124_takes_its_masks_from_cocos_json_and_photos_from_images(tmp_path):
  triangle, square = [[5, 6, 15, 6, 5, 18]], [polygon(20, 3, 10, 10), polygon(35, 3, 5, 5)]
  source = write(
    tmp_path / "hub/test-00000-of-00001-82af0c1b600890ac.parquet",
    JXU124,
    jxu124(1, ["the lady", "blue shirt"], triangle),
    jxu124(2, ["two"], square, split="testB"),
  )
  photos = tmp_path / "mscoco/images/train2014"
  photos.mkdir(parents=True)
  (photos / coco_name(42)).write_bytes(photo())
  out = tmp_path / "mine.jsonl"
  lady, two = convert(source, "--images", str(tmp_path), out=out)
  assert lady == {
    "image": f"mscoco/images/train2014/{coco_name(42)}",
    "split": "testA",  # the file is called test
    "image_id": 42,
    "sentences": ["THE LADY", "BLUE SHIRT"],
    "target": {"polygons": triangle},
  }
  assert (two["split"], two["target"]) == ("testB", {"polygons": square})
  expected = pixels_of(20, 3, 10, 10) | pixels_of(35, 3, 5, 5)
  np.testing.assert_array_equal(covered(two["target"]), expected)
  assert [problem.kind for problem in scan.scan(str(out)).problems] == ["image in two splits"]


def test_several_files_whose_rows_say_the_split(tmp_path):
  rows = [jxu124(n, ["one"], [polygon(1, 2, 9, 9)], 40 + n, split) for n, split in enumerate("ab")]
  files = [write(tmp_path / f"{row['ref_id']}.parquet", JXU124, row) for row in rows]
  for row in rows:
    (tmp_path / coco_name(row["image_id"])).write_bytes(photo())
  first, second = convert(files[0], others=files[1:])
  assert (first["split"], first["image_id"]) == ("a", 40)
  assert (second["split"], second["image_id"]) == ("b", 41)


def test_ref_l4_has_boxes_of_photos_of_two_data_sets(tmp_path, capsys):
  source = write(
    tmp_path / "ref-l4-val.parquet",
    REF_L4,
    ref_l4(1, "An old camera\nin the middle.", coco_name(42), (5, 6, 10, 12)),
    ref_l4(2, "the same, said otherwise", coco_name(42), (5, 6, 10, 12)),
    ref_l4(3, "a tram", "objects365_v2_00900001.jpg", (0, 0, 50, 20), image_id="o365_1"),
  )
  with pytest.raises(InputError, match=r"box without a mask \(use --boxes to convert it\) \(3: "):
    convert(source)
  (tmp_path / coco_name(42)).write_bytes(photo())
  (tmp_path / "objects365_v2_00900001.jpg").write_bytes(photo(1))
  camera, tram = convert(source, "--boxes")
  assert camera["sentences"] == ["An old camera\nin the middle.", "the same, said otherwise"]
  assert (camera["image_id"], camera["split"]) == (42, "val")
  np.testing.assert_array_equal(covered(camera["target"]), pixels_of(5, 6, 10, 12))
  assert "image_id" not in tram
  np.testing.assert_array_equal(covered(tram["target"]), pixels_of(0, 0, 50, 20))
  corners = ref_l4(1, "x", coco_name(42), (5, 6, 10, 12), bbox=[5.0, 6.0, 15.0, 18.0])
  with pytest.raises(InputError, match=r"row 1, column bbox: width times height of .* 120.0"):
    convert(write(tmp_path / "val.parquet", REF_L4, corners), "--boxes")


MASKED = pixels_of(3, 4, 9, 20)


@pytest.mark.parametrize(
  ("row", "message"),
  [
    (
      refcoco_m(sample(1, ["a"], MASKED), data=b"no image"),
      "column image: the bytes are not an im",
    ),
    (refcoco_m(sample(1, ['["a"]'], MASKED)), "column sentences: .* is not an expression"),
    (refcoco_m(sample(1, ["a"], MASKED), data=b""), "column image: the bytes are empty"),
    (
      refcoco_m(sample(1, ["a"], MASKED.T)),
      "column mask: run lengths .*is it the mask of another image",
    ),
    (
      refcoco_m(sample(1, ["a"], MASKED), sample(1, ["b"], ~MASKED)),
      "column id: 1 is also the id of another object in val.parquet row 1",
    ),
    (refcoco_m(sample(1, ["a"], MASKED, image_id=43)), "column image_id: 43, but the row also"),
    (
      refcoco_m(sample(1, ["a"], {"counts": "?", "size": [HEIGHT, WIDTH]})),
      "column mask: ",
    ),
  ],
)
def test_errors_name_file_row_and_column(tmp_path, row, message):
  source = write(tmp_path / "val.parquet", REFCOCO_M, row)
  with pytest.raises(InputError, match=rf"^{source}: row 1, {message}"):
    convert(source)
  assert sorted(path.name for path in tmp_path.iterdir()) == ["val.parquet"]


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"raw_anns": "{'id': 1}"}, "column raw_anns: not JSON"),
    ({"raw_anns": "[1]"}, "column raw_anns: .* is not a JSON object"),
    ({"ann_id": 1}, "column ann_id: 1, but the row also says 701"),
    ({"image_path": coco_name(43)}, "column raw_anns: 43, but the row also says 42"),
    ({"split": "a b"}, "column split: 'a b' may only contain letters"),
    ({"raw_image_info": '{"height": 40, "width": -1}'}, "column height: invalid size -1 x 40"),
    ({"raw_image_info": None}, "column raw_anns: the size of the image is unknown"),
  ],
)
def test_contradictions_within_a_row_are_errors(tmp_path, change, message):
  row = jxu124(1, ["a"], [polygon(1, 2, 9, 9)]) | change
  source = write(tmp_path / "val.parquet", JXU124, row)
  with pytest.raises(InputError, match=f"row 1, {message}"):
    convert(source)


@pytest.mark.parametrize("value", [7, [1], True, 1.5])
@pytest.mark.parametrize("column", ["raw_anns", "raw_image_info", "in samples"])
def test_a_column_of_json_that_is_something_else_is_named(tmp_path, column, value):
  row = jxu124(1, ["a"], [polygon(1, 2, 9, 9)])
  if column == "in samples":
    row = {"samples": [{"caption": "a", "raw_anns": value}], "image_path": row["image_path"]}
    column = "raw_anns"
  else:
    row |= {column: value}
  source = tmp_path / "val.parquet"
  pq.write_table(pa.Table.from_pylist([row]), source)
  with pytest.raises(InputError, match=f"row 1, column {column}: .* is not a JSON object"):
    convert(source)


def test_missing_columns_are_named_with_those_there_are(tmp_path):
  for gone, message in (
    ("answer", r"no column of expressions \(samples, .*; the columns are .*name it with --text"),
    ("file_name", None),
  ):
    row = lmms(7, ["the cup"], (5, 6, 10, 12))
    del row[gone]
    source = write(tmp_path / "val.parquet", LMMS.remove(LMMS.get_field_index(gone)), row)
    if message is None:
      assert (
        convert(source, out=tmp_path / "named.jsonl")[0]["image"] == f"named_images/{coco_name(7)}"
      )
    else:
      with pytest.raises(InputError, match=message):
        convert(source)
  named = {"image": {"bytes": photo()}, "what": "the cup", "rle": runs(MASKED)}
  schema = pa.schema([("image", IMAGE), ("what", pa.string()), ("rle", MASK)])
  source = write(tmp_path / "some.parquet", schema, named)
  (line,) = convert(source, "--text", "what", "--split", "val")
  np.testing.assert_array_equal(covered(line["target"]), MASKED)
  assert line["split"] == "val"


@pytest.mark.parametrize(
  ("path", "split"),
  [
    ("val/0000.parquet", "val"),
    ("refcoco_testB.parquet", "testB"),
    ("my_test_data/part.parquet", "train"),
    ("train-or-test.parquet", "train"),
  ],
)
def test_the_split_is_that_of_the_name_if_it_says_one(tmp_path, capsys, path, split):
  write(tmp_path / "x" / path, LMMS, lmms(7, ["the cup"], (5, 6, 10, 12)))
  (line,) = convert(tmp_path / "x")
  assert line["split"] == split
  known = f"split {split} from the name of the file (1" in capsys.readouterr().out
  assert known == (split != "train")


SHAPES = pixels_of(5, 6, 10, 12) | pixels_of(30, 2, 8, 9)


@pytest.mark.parametrize(
  ("kind", "value"),
  [
    (pa.list_(pa.list_(pa.float64())), [polygon(5, 6, 10, 12), polygon(30, 2, 8, 9)]),
    (pa.string(), json.dumps([polygon(5, 6, 10, 12), polygon(30, 2, 8, 9)])),
    (pa.string(), json.dumps(runs(SHAPES))),
    (pa.list_(MASK), [runs(pixels_of(5, 6, 10, 12)), runs(pixels_of(30, 2, 8, 9))]),
    (
      pa.struct([("size", pa.list_(pa.int64())), ("counts", pa.list_(pa.int64()))]),
      {
        "size": [HEIGHT, WIDTH],
        "counts": np.diff(np.flatnonzero(np.diff(np.r_[2, SHAPES.T.ravel(), 2]))).tolist(),
      },
    ),
  ],
)
@pytest.mark.parametrize("sentences", ["the cups", ["the cups"], [{"raw": "the cups"}]])
def test_masks_and_expressions_in_every_form_of_a_column(tmp_path, kind, value, sentences):
  text = pa.array([sentences]).type
  schema = pa.schema([("image", pa.binary()), ("caption", text), ("segmentation", kind)])
  row = {"image": photo(), "caption": sentences, "segmentation": value}
  (line,) = convert(write(tmp_path / "dev.parquet", schema, row))
  assert (line["split"], line["sentences"]) == ("val", ["the cups"])
  np.testing.assert_array_equal(covered(line["target"]), SHAPES)
  assert (tmp_path / line["image"]).read_bytes() == photo()


def test_a_box_of_an_unknown_layout_is_not_guessed(tmp_path):
  schema = pa.schema([("image", IMAGE), ("text", pa.string()), ("bbox", pa.list_(pa.int64()))])
  row = {"image": {"bytes": photo()}, "text": "the cup", "bbox": [5, 6, 15, 18]}
  source = write(tmp_path / "val.parquet", schema, row)
  with pytest.raises(
    InputError, match="column bbox: may be x, y, width and height, or two corners"
  ):
    convert(source, "--boxes")


def test_photos_are_named_by_name_or_content_and_never_mixed_up(tmp_path):
  schema = pa.schema([("image", IMAGE), ("text", pa.string()), ("mask", MASK)])

  def row(data, path, text):
    return {"image": {"bytes": data, "path": path}, "text": text, "mask": runs(MASKED)}

  data = [photo(seed, kind="PNG") for seed in range(3)]
  source = write(
    tmp_path / "val.parquet",
    schema,
    row(data[0], "clip/frame.png", "a"),
    row(data[1], "clip/frame.png", "b"),
    row(data[2], None, "c"),
    row(data[0], "clip/frame.png", "d"),
    row(data[2], "../../outside.png", "e"),
  )
  lines = convert(source)
  names = {text: line["image"] for line in lines for text in line["sentences"]}
  found = {text: (tmp_path / name).read_bytes() for text, name in names.items()}
  assert found == {"a": data[0], "b": data[1], "c": data[2], "d": data[0], "e": data[2]}
  assert names["a"] == names["d"] == "mine_images/clip/frame.png"
  assert names["e"] == "mine_images/outside.png"
  other = refcoco_m(sample(2, ["b"], MASKED), data=photo(5))
  source = write(tmp_path / "test.parquet", REFCOCO_M, refcoco_m(sample(1, ["a"], MASKED)), other)
  with pytest.raises(InputError, match="row 2, column image: a different image is already named"):
    convert(source, out=tmp_path / "two.jsonl")
  assert not list(tmp_path.glob("two*"))


def test_files_that_are_not_parquet_say_so(tmp_path):
  bad = tmp_path / "val.parquet"
  bad.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\n")
  with pytest.raises(InputError, match="only a Git LFS pointer; get the file itself"):
    convert(bad)
  bad.write_text("{}")
  with pytest.raises(InputError, match=f"{bad}: not a parquet file"):
    convert(bad)
  write(bad, LMMS, lmms(7, ["the cup"], (5, 6, 10, 12)))
  bad.write_bytes(bad.read_bytes()[:-50])
  with pytest.raises(InputError, match=r"val.parquet: damaged after row 0 \("):
    convert(bad)
  (tmp_path / "empty").mkdir()
  with pytest.raises(InputError, match=r"no \.parquet file in this folder"):
    convert(tmp_path / "empty")
  write(bad, LMMS)
  with pytest.raises(InputError, match="no expression could be converted: no rows"):
    convert(bad)


@pytest.mark.parametrize("export_format", ["coco", "label-studio"])
def test_a_parquet_file_is_recognised(tmp_path, export_format):
  source = write(tmp_path / "val.parquet", LMMS, lmms(7, ["the cup"], (5, 6, 10, 12)))
  with pytest.raises(InputError, match="this looks like parquet; use --from parquet"):
    command.main(
      ["convert", "--from", export_format, str(source), "--out", str(tmp_path / "mine.jsonl")]
    )


def test_validate_says_how_parquet_becomes_lines(tmp_path):
  source = write(tmp_path / "val.parquet", LMMS, lmms(7, ["the cup"], (5, 6, 10, 12)))
  with pytest.raises(InputError, match=r"a parquet file; convert it with .*convert --from parquet"):
    scan.scan(str(source))


def test_a_folder_that_was_not_written_by_convert_is_not_replaced(tmp_path):
  source = write(tmp_path / "val.parquet", LMMS, lmms(7, ["the cup"], (5, 6, 10, 12)))
  convert(source)
  convert(source)
  (tmp_path / "mine_images/own.jpg").write_bytes(b"precious")
  with pytest.raises(InputError, match=r"--overwrite would delete other files, such as own.jpg"):
    convert(source)
  assert (tmp_path / "mine_images/own.jpg").read_bytes() == b"precious"
  assert (tmp_path / f"mine_images/{coco_name(7)}").exists()
  with pytest.raises(InputError, match=r"the images are in .* remove --images"):
    convert(source, "--images", str(tmp_path), out=tmp_path / "other.jsonl")


def test_a_photo_turned_by_exif_has_its_mask_upright_or_is_refused(tmp_path, capsys):
  exif = Image.Exif()
  exif[0x0112] = 6
  turned = photo(1, size=(WIDTH, HEIGHT), exif=exif)
  source = write(
    tmp_path / "val.parquet", REFCOCO_M, refcoco_m(sample(1, ["a"], MASKED), data=turned)
  )
  (line,) = convert(source)
  np.testing.assert_array_equal(covered(line["target"]), MASKED)
  assert scan.scan(str(tmp_path / "mine.jsonl")).problems == []
  assert (
    "note: image rotated by EXIF; masks are for the upright image (1" in capsys.readouterr().out
  )
  write(source, REFCOCO_M, refcoco_m(sample(1, ["a"], MASKED.T), data=turned))
  with pytest.raises(InputError, match=r"column mask: .*is it the mask of another image"):
    convert(source)


@st.composite
def tables(draw):
  """Returns rows of photos with samples, in random order and row groups; and pixels by sentence."""
  rows, expected = [], {}
  for number in range(1, draw(st.integers(1, 4)) + 1):
    samples = []
    for _ in range(draw(st.integers(0, 3))):
      x, y = draw(st.integers(0, WIDTH - 1)), draw(st.integers(0, HEIGHT - 1))
      mask = pixels_of(x, y, draw(st.integers(1, WIDTH)), draw(st.integers(1, HEIGHT)))
      if any((mask == pixels).all() and n == number for n, pixels in expected.values()):
        continue
      texts = [f"sentence {len(expected) + n}" for n in range(draw(st.integers(1, 3)))]
      samples.append(sample(100 * number + len(samples), texts, mask, image_id=number))
      expected |= dict.fromkeys(texts, (number, mask))
    rows.append(refcoco_m(*samples, number=number))
  change = draw(st.sampled_from(["none", "swap", "scale"]))
  return draw(st.permutations(rows)), draw(st.integers(1, 3)), change, expected


@settings(max_examples=40, deadline=None)
@given(tables())
def test_each_sentence_has_its_own_pixels_of_its_own_photo_or_there_is_an_error(
  tmp_path_factory, sound
):
  rows, group, change, expected = sound
  folder = tmp_path_factory.mktemp("hub")
  for row in rows:
    # The photo is not the one that the masks are for.
    if change == "swap":
      row["image"] = {"bytes": photo(row["image_id"], (WIDTH, HEIGHT)), "path": None}
    if change == "scale":
      row["image"] = {"bytes": photo(row["image_id"], (2 * HEIGHT, 2 * WIDTH)), "path": None}
  source = write(folder / "val.parquet", REFCOCO_M, *rows, group=group)
  if change != "none" or not expected:
    with pytest.raises(InputError):
      convert(source)
    return
  found = {}
  for line in convert(source):
    data = (folder / line["image"]).read_bytes()
    assert data == photo(line["image_id"], kind="PNG")
    for sentence in line["sentences"]:
      assert sentence not in found
      found[sentence] = (line["image_id"], covered(line["target"]))
  assert sorted(found) == sorted(expected)
  for sentence, (number, pixels) in expected.items():
    assert found[sentence][0] == number
    np.testing.assert_array_equal(found[sentence][1], pixels)


def test_a_file_is_read_as_its_rows_are(tmp_path, monkeypatch):
  """So that memory does not grow with the file; with all read ahead, it would."""
  rows = [refcoco_m(sample(n, ["a"], MASKED, image_id=n), number=n) for n in range(400)]
  source = write(tmp_path / "val.parquet", REFCOCO_M, *rows, group=20)
  read, at_images = [], []

  class Counted(io.FileIO):
    def read(self, size=-1):
      data = super().read(size)
      read.append(len(data))
      return data

  class Counting(embedded.EmbeddedImages):
    def add(self, *arguments):
      at_images.append(sum(read))
      return super().add(*arguments)

  monkeypatch.setattr(untrusted_files, "open_file", lambda path, name: Counted(path))
  monkeypatch.setattr(embedded, "EmbeddedImages", Counting)
  assert len(convert(source)) == len(at_images) == 400
  size = source.stat().st_size
  assert at_images[0] < 0.2 * size < 0.8 * size < at_images[-1]
