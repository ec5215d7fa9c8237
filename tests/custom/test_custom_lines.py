"""Lines that mean something else than they seem to: read rightly, refused, or warned of."""

import gzip
import json
import unicodedata

import custom_files
import numpy as np
import pytest
from custom_files import SQUARE, line, write_lines, write_photo
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco_mask

from input_pipeline.common.errors import InputError
from input_pipeline.custom import command, masks, scan, schema
from input_pipeline.custom.schema import LineError
from input_pipeline.sources.jsonl import JsonlReader

HEIGHT, WIDTH = SIZE = (custom_files.HEIGHT, custom_files.WIDTH)


@pytest.fixture
def folder(tmp_path):
  write_photo(tmp_path / "a.png")
  write_photo(tmp_path / "b.png", seed=1)
  return tmp_path


def problems_of(folder, *rows, **options):
  """Returns the problems of a file."""
  return scan.scan(write_lines(folder / "mine.jsonl", *rows), **options).problems


def the_problem(folder, *rows):
  (problem,) = problems_of(folder, *rows)
  return problem


# Polygons.


def test_shares_of_the_sides_are_asked_about(folder):
  for polygon in ([0.1, 0.2, 0.9, 0.2, 0.5, 0.7], [0, 0, 1, 0, 1, 1, 0, 1]):
    problem = the_problem(folder, line(target={"polygons": [polygon]}))
    assert not problem.warning and "fractions of the sides, multiply" in problem.message
  assert problems_of(folder, line(target={"polygons": [[0, 0, 2, 0, 2, 2, 0, 2]]})) == []


@pytest.mark.parametrize(
  ("polygons", "kinds", "pixels"),
  [
    # A slip beyond the border.
    ([[20, 5, 32, 5, 32, 9, 20, 9]], ["polygon beyond the border clipped"], 40),
    (
      [[2, 3, 12, 3, 12, 13, 2, 13], [4, 4, 5, 5]],
      ["part with fewer than three points left out"],
      100,
    ),
    ([2, 3, 12, 3, 12, 13, 2, 13], [], 100),
    ([[[2, 3], [12, 3], [12, 13], [2, 13]]], [], 100),
  ],
)
def test_polygons_of_tools_are_read_and_what_changes_is_warned_of(folder, polygons, kinds, pixels):
  scanned = scan.scan(
    write_lines(folder / "mine.jsonl", line(target={"polygons": polygons})), str(folder)
  )
  assert [row.area for row in scanned.lines] == [pixels]
  assert [problem.kind for problem in scanned.warnings()] == kinds
  assert scanned.errors() == []


# Masks in files.


def save(path, values, mode=None):
  Image.fromarray(values, mode).save(path)
  return {"png": path.name}


def blob(value=255):
  values = np.zeros(SIZE, np.uint8)
  values[4:14, 5:21] = value
  return values


@pytest.mark.parametrize("value", [1, 7, 255])
def test_a_mask_of_one_value_is_clear(folder, value):
  target = save(folder / "m.png", blob(value))
  scanned = scan.scan(write_lines(folder / "mine.jsonl", line(target=target)))
  assert scanned.problems == [] and next(iter(scanned.lines)).area == 160


def faint_noise(values):
  values[17] = np.arange(WIDTH) % 5


def gradient(values):
  values[4:14, 5:21] = 96 + np.arange(160).reshape(10, 16)


@pytest.mark.parametrize(
  ("damage", "covered", "half"), [(faint_noise, 184, 160), (gradient, 160, 128)]
)
def test_shades_of_grey_are_warned_of_with_counts(folder, damage, covered, half):
  values = blob()
  damage(values)
  target = save(folder / "m.png", values)
  problem = the_problem(folder, line(target=target))
  assert problem.warning and problem.kind == "mask with several values"
  assert f"all {covered} non-zero pixels count as covered" in problem.message
  assert f"only {half} exceed 127" in problem.message
  scanned = scan.scan(str(folder / "mine.jsonl"))
  assert next(iter(scanned.lines)).area == covered == np.count_nonzero(values)


def test_a_mask_that_went_through_jpeg_is_warned_of(folder):
  Image.fromarray(blob()).resize((300, 200)).save(folder / "m.jpg", quality=60)
  with Image.open(folder / "m.jpg") as damaged:
    values = np.asarray(damaged.resize((WIDTH, HEIGHT), Image.Resampling.NEAREST)).copy()
  assert len(np.unique(values)) > 4
  problem = the_problem(folder, line(target=save(folder / "m.png", values)))
  assert problem.warning and f"all {np.count_nonzero(values)} non-zero pixels" in problem.message


@pytest.mark.parametrize("mode", ["L", "P", "I;16"])
def test_a_map_of_labels_is_asked_about(folder, mode):
  labels = np.zeros(SIZE, np.uint16)
  labels[2:8, 2:8], labels[10:14, 3:9], labels[:, 25:] = 1, 2, 30
  image = Image.fromarray(labels if mode == "I;16" else labels.astype(np.uint8))
  if mode == "P":
    image.putpalette([k for n in range(256) for k in (n, 0, 255 - n)])
  image.save(folder / "m.png")
  problem = the_problem(folder, line(target={"png": "m.png"}))
  assert not problem.warning and 'such as "value": 30, or use only 0 and 255' in str(problem)
  assert "0 on 440 pixels, 30 on 100 pixels, 1 on 36 pixels, 2 on 24 pixels" in str(problem)
  for value, area in ((1, 36), (2, 24), (30, 100)):
    write_lines(folder / "mine.jsonl", line(target={"png": "m.png", "value": value}))
    assert next(iter(scan.scan(str(folder / "mine.jsonl")).lines)).area == area


def test_a_value_that_no_pixel_has_is_told_with_those_there_are(folder):
  target = save(folder / "m.png", blob(7)) | {"value": 1}
  problems = problems_of(folder, line(target=target))
  assert [problem.kind for problem in problems] == ["empty mask", "mask without its value"]
  assert "m.png has no pixels of value 1, only 0, 7" in problems[1].message


def test_a_mask_without_background_is_asked_about(folder):
  target = save(folder / "m.png", blob(1) + 1)
  assert "has 2 values (1 on 440 pixels, 2 on 160 pixels)" in str(
    the_problem(folder, line(target=target))
  )


@pytest.mark.parametrize(("mode", "channel"), [("RGBA", "A"), ("LA", "A"), ("RGB", "B")])
def test_a_mask_with_alpha_or_colours_has_a_way_out(folder, mode, channel):
  image = Image.new("RGBA", (WIDTH, HEIGHT), (200, 0, 0, 0))
  image.putalpha(Image.fromarray(blob(128)))
  image.convert(mode).save(folder / "m.png")
  problem = the_problem(folder, line(target={"png": "m.png"}))
  assert f"Image.open('m.png').getchannel('{channel}')" in problem.message


def test_a_mask_of_the_stored_pixels_of_a_turned_photo_is_told_so(folder):
  exif = Image.Exif()
  exif[0x0112] = 6
  write_photo(folder / "turned.jpg", exif=exif)
  problem = the_problem(folder, line("turned.jpg", target=save(folder / "m.png", blob())))
  assert "m.png is 30 x 20, but the image is 20 x 30; EXIF rotates" in problem.message


# Files that are not lines in UTF-8.

ENCODINGS = ("utf-16", "utf-16-le", "utf-16-be", "utf-8-sig", "utf-32")


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_lines_in_any_encoding_are_all_read(folder, encoding):
  rows = [line(sentences=[f"käse {n}"], target=[SQUARE] * (n % 2)) for n in range(8)]
  text = "".join(json.dumps(row, ensure_ascii=False) + "\r\n" for row in rows)
  (folder / "mine.jsonl").write_bytes(text.encode(encoding))
  reader = JsonlReader(str(folder / "mine.jsonl"), "mine", skip=True)
  ((image_id,),) = reader.splits.values()
  refs = reader.annotated_image("train", image_id, str(folder)).refs
  assert [ref["sentences"] for ref in refs] == [[f"käse {n}"] for n in range(8)]
  assert [ref["segmentations"] for ref in refs] == [[SQUARE] * (n % 2) for n in range(8)]


def test_packed_and_joined_lines_are_read(folder):
  rows = [json.dumps(line(sentences=[str(n)])) + "\n" for n in range(3)]
  (folder / "mine.jsonl").write_bytes(gzip.compress("".join(rows).encode()))
  assert len(scan.scan(str(folder / "mine.jsonl")).lines) == 3
  # Files with byte order marks, one behind the other.
  (folder / "mine.jsonl").write_bytes(b"".join(row.encode("utf-8-sig") for row in rows))
  assert len(scan.scan(str(folder / "mine.jsonl")).lines) == 3
  reader = JsonlReader(str(folder / "mine.jsonl"), "mine")
  ((image_id,),) = reader.splits.values()
  assert len(reader.annotated_image("train", image_id, str(folder)).refs) == 3


@pytest.mark.parametrize(
  ("text", "message"),
  [
    (json.dumps([line(), line()]), "a JSON list; .*jq -c"),
    (json.dumps([line(), line()], indent=2), "a JSON list; .*jq -c"),
    (json.dumps(line(), indent=2), "an object over several lines"),
  ],
)
def test_other_files_are_refused_in_one_line_even_if_errors_are_skipped(folder, text, message):
  (folder / "mine.json").write_text(text)
  for read in (scan.scan, lambda path: JsonlReader(path, "mine", skip=True)):
    with pytest.raises(InputError, match=message):
      read(str(folder / "mine.json"))


# Paths.


def test_one_photo_in_several_spellings_is_one_photo(folder):
  write_photo(folder / "photos" / unicodedata.normalize("NFD", "Öl 1.png"))
  spellings = ["photos/Öl 1.png", "photos\\Öl 1.png", "./photos//Öl 1.png", "Photos/ÖL 1.PNG"]
  rows = [line(path, sentences=[str(n)]) for n, path in enumerate(spellings)]
  scanned = scan.scan(write_lines(folder / "mine.jsonl", *rows))
  assert scanned.problems == [] and len(scanned.lines) == 4
  assert {row.image for row in scanned.lines} == {unicodedata.normalize("NFD", spellings[0])}
  # Also as a leak between splits, and of a mask in a file.
  save(folder / "M.png", blob())
  rows = [line("a.png"), line(".\\a.png", split="val", target={"png": ".\\m.PNG"})]
  assert [problem.kind for problem in problems_of(folder, *rows)] == [
    "ambiguous expression",
    "image in two splits",
  ]


def test_spellings_that_fit_several_files_are_not_guessed(folder):
  for name in ("C.png", "c.PNG"):
    write_photo(folder / name)
  assert the_problem(folder, line("c.png")).kind == "image is missing"


@pytest.mark.parametrize(
  ("path", "message"),
  [
    ("https://host.example/a.png", "is a URL; download the file"),
    ("C:\\photos\\a.png", "write a path relative to"),
    ("\\\\server\\photos\\a.png", "write a path relative to"),
    ("..\\a.png", "no such file"),
    ("nothing\\a.png", "no such file"),
  ],
)
def test_paths_that_lead_nowhere_say_so(folder, path, message):
  assert message in the_problem(folder, line(path)).message


# Keys of other tools.


@pytest.mark.parametrize(
  ("key", "value", "replaced", "right"),
  [
    ("sentence", "x", "sentences", "'sentences'"),
    ("caption", "x", "sentences", "'sentences'"),
    ("text", ["x"], "sentences", "'sentences'"),
    ("Referring_Expression", "x", "sentences", "'sentences'"),
    ("image_path", "a.png", "image", "'image'"),
    ("file_name", "a.png", "image", "'image'"),
    ("bbox", [1, 2, 3, 4], "target", "'target', a mask such as"),
    ("mask", "m.png", "target", "'target', a mask such as"),
    ("segmentation", [[1, 2, 3, 4, 5, 6]], "target", "'target', a mask such as"),
    ("mask_path", "m.png", "target", "'target', a mask such as"),
  ],
)
def test_keys_of_other_tools_lead_to_the_right_one(key, value, replaced, right):
  fields = line()
  del fields[replaced]
  _, problems = schema.parse(1, json.dumps(fields | {key: value}))
  (problem,) = problems
  assert f"unknown key {key!r}; did you mean {right}" in problem.message


@pytest.mark.parametrize(
  "mask",
  [
    {"segmentation": [[1, 2, 3, 4, 5, 6]]},
    {"bbox": [1, 2, 3, 4]},
    {"size": [20, 30], "counts": "abc"},
    {"mask": "m.png"},
    {"path": "m.png"},
  ],
)
def test_keys_of_masks_of_other_tools_lead_to_the_right_ones(mask):
  _, problems = schema.parse(1, json.dumps(line(target=mask)))
  assert {problem.kind for problem in problems} == {"unknown key"}
  assert all('a mask is {"polygons": [[x, y, x, y, ...]]}' in str(p) for p in problems)


def test_a_key_like_none_of_ours_gets_the_list():
  for key in ("id", "colour", "weight"):
    _, (problem,) = schema.parse(1, json.dumps(line(**{key: 1})))
    assert "allowed keys: image, sentences, target" in problem.message


# Annotations by their ids.


def write_coco(path, images, segmentation=None, **fields):
  """Writes a COCO file with an annotation of each image, with the same id."""
  rows = [
    {"id": i, "image_id": i, "segmentation": segmentation or SQUARE["polygons"]} | fields
    for i in images
  ]
  images = [
    {"id": i, "file_name": name, "height": size[0], "width": size[1]}
    for i, (name, size) in images.items()
  ]
  path.write_text(json.dumps({"images": images, "annotations": rows}), encoding="utf-8-sig")
  return str(path)


def test_an_annotation_of_another_folder_is_refused(folder):
  for clip in "ab":
    write_photo(folder / f"clip_{clip}" / "frame_0.png", seed=ord(clip))
  images = {1: ("clip_a/frame_0.png", SIZE), 2: ("clip_b/frame_0.png", SIZE)}
  options = {"annotations": write_coco(folder / "coco.json", images)}
  (problem,) = problems_of(folder, line("clip_b/frame_0.png", target={"ann_id": 1}), **options)
  assert "belongs to image 'clip_a/frame_0.png', not to 'clip_b/frame_0.png'" in problem.message
  assert problems_of(folder, line("clip_b/frame_0.png", target={"ann_id": 2}), **options) == []


def test_an_annotation_is_of_the_image_whose_name_fits_best(folder):
  for name in ("c.png", "C.png", "x/c.png"):
    write_photo(folder / name)
  images = {1: ("c.png", SIZE), 2: ("C.png", SIZE), 3: ("x/c.png", SIZE)}
  options = {"annotations": write_coco(folder / "coco.json", images)}
  for path, own in (("c.png", 1), ("C.png", 2), ("x/c.png", 3)):
    for ann_id in images:
      problems = problems_of(folder, line(path, target={"ann_id": ann_id}), **options)
      assert [p.kind for p in problems] == ["unknown annotation"] * (ann_id != own)


def test_annotations_of_one_image_are_for_one_photo(folder):
  for clip in "ab":
    write_photo(folder / f"clip_{clip}" / "frame_0.png", seed=ord(clip))
  images = {1: ("frame_0.png", SIZE), 2: ("frame_0.png", SIZE)}
  options = {"annotations": write_coco(folder / "coco.json", images)}
  rows = [
    line("clip_a/frame_0.png", target={"ann_id": 1}),
    line("clip_b/frame_0.png", target={"ann_id": 1}),
    line("clip_a/frame_0.png", target={"ann_id": 2}),
    line("clip_a/frame_0.png", target={"ann_ids": [1, 2]}),
  ]
  problems = problems_of(folder, *rows, **options)
  assert [(problem.line, problem.kind) for problem in problems] == [
    (2, "annotations of several images"),
    (3, "annotations of several images"),
    (4, "annotations of several images"),
  ]


def test_an_annotation_of_a_resized_copy_is_refused(folder):
  for size, hint in (((40, 60), ""), ((30, 20), "; EXIF rotates the image")):
    annotations = write_coco(folder / "coco.json", {1: ("a.png", size)})
    (problem,) = problems_of(folder, line(target={"ann_id": 1}), annotations=annotations)
    assert problem.kind == "mask has another size"
    expected = f"annotation 1 is for {size[1]} x {size[0]}, but the image is 30 x 20{hint}"
    assert expected in problem.message
    masks.open_coco.cache_clear()


def test_an_annotation_of_a_photo_turned_in_place_is_warned_of(folder):
  exif = Image.Exif()
  exif[0x0112] = 3
  write_photo(folder / "turned.jpg", exif=exif)
  annotations = write_coco(folder / "coco.json", {1: ("turned.jpg", SIZE)})
  (problem,) = problems_of(
    folder, line("turned.jpg", target={"ann_id": 1}), annotations=annotations
  )
  assert problem.warning and problem.kind == "annotation of a rotated image"


def test_annotations_with_nan_and_a_byte_order_mark_are_read(folder):
  annotations = write_coco(folder / "coco.json", {1: ("a.png", SIZE)}, area=float("nan"))
  assert problems_of(folder, line(target={"ann_id": 1}), annotations=annotations) == []


def test_annotations_are_found_by_the_url_of_cocos_server(folder):
  write_photo(folder / "photos" / "000000000033.jpg")
  row = {"id": 33, "height": HEIGHT, "width": WIDTH}
  row["coco_url"] = "http://images.cocodataset.org/train2017/000000000033.jpg"
  annotation = {"id": 5, "image_id": 33, "segmentation": SQUARE["polygons"]}
  (folder / "lvis.json").write_text(json.dumps({"images": [row], "annotations": [annotation]}))
  target = {"ann_id": 5}
  options = {"annotations": str(folder / "lvis.json")}
  assert problems_of(folder, line("photos/000000000033.jpg", target=target), **options) == []


# What lines share.


def test_an_expression_with_two_targets_is_warned_of(folder):
  other = {"polygons": [[15, 3, 25, 3, 25, 13]]}
  runs = coco_mask.merge(coco_mask.frPyObjects(SQUARE["polygons"], *SIZE))
  same = {"rle": {"size": list(SIZE), "counts": runs["counts"].decode()}}
  rows = [
    line(sentences=["a cup", "The left cup"]),
    line(sentences=["the  LEFT cup"], target=other),
    line(sentences=["the left cup"], target=same),
    line("b.png", sentences=["the left cup"], target=other),
    line(sentences=["a cup"], target=None),
  ]
  problems = problems_of(folder, *rows)
  assert [(p.line, p.kind, p.warning) for p in problems] == [
    (2, "ambiguous expression", True),
    (5, "ambiguous expression", True),
  ]
  assert "'the  LEFT cup' has another target on line 1 for a.png" in problems[0].message


def test_a_split_that_is_nearly_called_train_is_warned_of(folder):
  rows = [line(split="Training"), line("b.png", split="val")]
  assert the_problem(folder, *rows).message == (
    "there is no split train, but a split Training; rename it"
  )


@pytest.mark.parametrize("name", ["valid", "Validation", "dev", "VAL"])
def test_a_split_that_is_nearly_called_val_is_warned_of(folder, name, capsys):
  rows = [line(), line("b.png", split=name)]
  problem = the_problem(folder, *rows)
  assert problem.warning and f"--config.eval_split={name}" in problem.message
  command.main(["validate", str(folder / "mine.jsonl")])
  assert "there is no split val" in capsys.readouterr().out
  assert problems_of(folder, *rows, line("b.png", split="val"))[0].kind == "image in two splits"


_TEXTS = [
  "🐈 left of 🐕",
  "الكوب الأحمر",
  "x" * 25_000,
  "two\nlines",
  'a "quoted" cup',
  "a\u200bcup",
]


def test_odd_texts_are_valid_and_drawn(folder):
  rows = [line(sentences=[text]) for text in _TEXTS]
  assert problems_of(folder, *rows) == []
  command.main(["draw", str(folder / "mine.jsonl"), "--out", str(folder / "drawn.png")])
  with Image.open(folder / "drawn.png") as sheet:
    assert sheet.width > WIDTH
  assert the_problem(folder, line(sentences=["\u200b\u200d"])).kind == "empty expression"


def _change(value, how, factor):
  """Scales, swaps, shifts or nests the polygons of a sound mask."""
  points = np.asarray(value[0], float).reshape(-1, 2)
  changed = {
    "scaled": points * factor,
    "divided": points / [WIDTH, HEIGHT],
    "swapped": points[:, ::-1] * factor,
    "shifted": points + factor * 5,
    "as pairs": points,
    "flat": points,
  }[how]
  if how == "as pairs":
    return changed.tolist(), changed
  flat = changed.ravel().tolist()
  return (flat if how == "flat" else [flat]), changed


@given(
  how=st.sampled_from(["scaled", "divided", "swapped", "shifted", "as pairs", "flat"]),
  factor=st.sampled_from([0.5, 1, 2, 3]),
)
def test_changed_polygons_cover_what_they_enclose_or_are_refused(how, factor):
  value, points = _change(SQUARE["polygons"], how, factor)
  try:
    pixels, warnings = masks.read({"polygons": value}, *SIZE)
  except LineError as error:
    assert how == "divided" or points.max(0)[0] > WIDTH or points.max(0)[1] > HEIGHT, error
    return
  assert how != "divided"
  (x0, y0), (x1, y1) = points.min(0), points.max(0)
  expected = np.zeros(SIZE, bool)
  expected[round(y0) : round(y1), round(x0) : round(x1)] = True
  assert np.array_equal(pixels, expected) or factor == 0.5
  assert bool(warnings) == (x1 > WIDTH + 1 or y1 > HEIGHT + 1)
