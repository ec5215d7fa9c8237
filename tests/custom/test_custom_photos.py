"""Exports and photos: a mask is for the photo that was annotated, or the command says what differs.

What comes out is decoded by pycocotools and compared with rectangles that NumPy turns.
"""

import json
import pathlib
import tempfile
import unicodedata
import urllib.parse

import custom_files
import numpy as np
import pytest
from custom_files import write_photo
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco_mask

from input_pipeline.common.errors import InputError
from input_pipeline.custom import command, scan

HEIGHT, WIDTH = custom_files.HEIGHT, custom_files.WIDTH
# x0, y0, x1, y1
BOX = (3, 2, 11, 7)

# From stored to upright pixels, as the EXIF standard describes its orientations.
UPRIGHT = {
  1: lambda a: a,
  2: lambda a: a[:, ::-1],
  3: lambda a: a[::-1, ::-1],
  4: lambda a: a[::-1],
  5: lambda a: a.T,
  6: lambda a: np.rot90(a, -1),
  7: lambda a: a[::-1, ::-1].T,
  8: lambda a: np.rot90(a),
}


def polygon(box=BOX):
  x0, y0, x1, y1 = box
  return [[x0, y0, x1, y0, x1, y1, x0, y1]]


def drawn(size, box=BOX):
  mask = np.zeros(size, bool)
  mask[box[1] : box[3], box[0] : box[2]] = True
  return mask


def runs(mask):
  encoded = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
  return {"size": list(mask.shape), "counts": encoded["counts"].decode()}


def image_row(image_id, file_name, size=(HEIGHT, WIDTH), **fields):
  return {"id": image_id, "file_name": file_name, "height": size[0], "width": size[1]} | fields


def export(*images, segmentation=None):
  """Returns a COCO file with an annotation of each image."""
  rows = [
    {
      "id": n,
      "image_id": image["id"],
      "segmentation": segmentation or polygon(),
      "caption": f"the box {n}",
    }
    for n, image in enumerate(images, 1)
  ]
  return {"images": list(images), "annotations": rows}


def convert(folder, content, *options, name="export.json", export_format="coco"):
  """Converts an export and returns the lines."""
  (folder / name).parent.mkdir(parents=True, exist_ok=True)
  (folder / name).write_text(json.dumps(content))
  return convert_files(folder, folder / name, "--from", export_format, *options)


def convert_files(folder, *arguments):
  out = folder / "mine.jsonl"
  command.main(["convert", *map(str, arguments), "--out", str(out), "--overwrite"])
  return [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]


def decoded(target, size):
  """Returns the pixels of a line's target."""
  if "polygons" in target:
    return coco_mask.decode(
      coco_mask.merge(coco_mask.frPyObjects(target["polygons"], *size))
    ).astype(bool)
  assert target["rle"]["size"] == list(size)
  return coco_mask.decode(target["rle"]).astype(bool)


def write_turned(path, size, orientation):
  exif = Image.Exif()
  exif[0x0112] = orientation
  write_photo(path, size, exif=exif)


def test_a_resized_copy_is_refused_or_its_masks_are_scaled(tmp_path):
  write_photo(tmp_path / "a.png", (2 * HEIGHT, 2 * WIDTH))
  message = r"^a\.png: the export is for 30 x 20 pixels, but the image has 60 x 40: .*--rescale$"
  expected = drawn((2 * HEIGHT, 2 * WIDTH), [2 * v for v in BOX])
  for segmentation in (polygon(), runs(drawn((HEIGHT, WIDTH)))):
    content = export(image_row(1, "a.png"), segmentation=segmentation)
    with pytest.raises(InputError, match=message):
      convert(tmp_path, content)
    assert not (tmp_path / "mine.jsonl").exists()
    (line,) = convert(tmp_path, content, "--rescale")
    assert np.array_equal(decoded(line["target"], expected.shape), expected)
    (tmp_path / "mine.jsonl").unlink()


@pytest.mark.parametrize("size", [(HEIGHT, WIDTH + 7), (2 * HEIGHT, WIDTH), (WIDTH, HEIGHT)])
def test_a_cropped_or_squeezed_photo_is_refused_even_if_masks_are_to_be_scaled(tmp_path, size):
  write_photo(tmp_path / "a.png", size)
  with pytest.raises(InputError, match=f"for 30 x 20 pixels, .* has {size[1]} x {size[0]}; use"):
    convert(tmp_path, export(image_row(1, "a.png")), "--rescale")


def test_other_photos_of_another_size_are_counted(tmp_path):
  for name in "abc":
    write_photo(tmp_path / f"{name}.png", (HEIGHT, WIDTH) if name == "b" else (9, 9))
  content = export(*(image_row(n, f"{name}.png") for n, name in enumerate("abc")))
  with pytest.raises(InputError, match=r"^a\.png: .*\(similarly for 1 other image\)$"):
    convert(tmp_path, content)


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_masks_for_the_pixels_of_a_turned_photo_as_stored(tmp_path, orientation):
  write_turned(tmp_path / "a.jpg", (HEIGHT, WIDTH), orientation)
  expected = UPRIGHT[orientation](drawn((HEIGHT, WIDTH)))
  content = export(image_row(1, "a.jpg"))
  message = "30 x 20 pixels, but the image has 20 x 30 upright and 30 x 20 as stored"
  with pytest.raises(InputError, match=f"{message}.*--exif stored"):
    convert(tmp_path, content)
  (line,) = convert(tmp_path, content, "--exif", "stored")
  assert np.array_equal(decoded(line["target"], expected.shape), expected)
  # With the size of the upright photo there is nothing to ask.
  (line,) = convert(tmp_path, export(image_row(1, "a.jpg", (WIDTH, HEIGHT))))
  assert line["target"] == {"polygons": polygon()}


@pytest.mark.parametrize(("orientation", "size"), [(3, (HEIGHT, WIDTH)), (6, (24, 24))])
def test_a_turned_photo_whose_size_does_not_tell_is_asked_about(tmp_path, orientation, size):
  write_turned(tmp_path / "a.jpg", size, orientation)
  content = export(image_row(1, "a.jpg", size))
  with pytest.raises(
    InputError, match="upright or the stored pixels; add --exif upright or --exif stored"
  ):
    convert(tmp_path, content)
  (line,) = convert(tmp_path, content, "--exif", "upright")
  assert line["target"] == {"polygons": polygon()}
  (line,) = convert(tmp_path, content, "--exif", "stored")
  assert np.array_equal(decoded(line["target"], size), UPRIGHT[orientation](drawn(size)))


def test_one_name_in_two_folders_is_refused(tmp_path):
  for clip in "ab":
    write_photo(tmp_path / "images" / f"clip_{clip}" / "frame_0.png", seed=ord(clip))
  with pytest.raises(InputError, match=r"both images/clip_a/frame_0.png and images/clip_b/"):
    convert(tmp_path, export(image_row(1, "frame_0.png")))
  (line,) = convert(tmp_path, export(image_row(1, "clip_b/frame_0.png")))
  assert line["image"] == "images/clip_b/frame_0.png"
  options = ["--images", str(tmp_path / "images" / "clip_a")]
  (line,) = convert(tmp_path, export(image_row(1, "frame_0.png")), *options)
  assert line["image"] == "images/clip_a/frame_0.png"


def test_photos_of_another_clip_are_no_stand_in(tmp_path, capsys):
  write_photo(tmp_path / "clip_b" / "frame_0.png")
  (line,) = convert(tmp_path, export(image_row(1, "clip_a/frame_0.png")))
  assert line["image"] == "clip_a/frame_0.png"
  assert "there is clip_b/frame_0.png" in capsys.readouterr().err
  assert [p.kind for p in scan.scan(str(tmp_path / "mine.jsonl")).errors()] == ["image is missing"]


def test_two_names_for_one_photo_are_refused(tmp_path):
  write_photo(tmp_path / "frame_0.png")
  content = export(image_row(1, "clip_a/frame_0.png"), image_row(2, "clip_b/frame_0.png"))
  message = "clip_a/frame_0.png and clip_b/frame_0.png in the export both match frame_0.png"
  with pytest.raises(InputError, match=message):
    convert(tmp_path, content)


def test_one_name_for_two_images_is_refused(tmp_path):
  write_photo(tmp_path / "frame_0.png")
  content = export(image_row(4, "frame_0.png"), image_row(9, "frame_0.png"))
  with pytest.raises(InputError, match=r"frame_0.png is .*both image 4 and image 9"):
    convert(tmp_path, content)


@pytest.mark.parametrize(
  ("name", "file"),
  [
    (unicodedata.normalize("NFC", "Café.png"), unicodedata.normalize("NFD", "Café.png")),
    ("dsc_7.jpg", "DSC_7.JPG"),
    ("https://cdn.example/trip/two%20cups.png?sig=9", "two cups.png"),
    ("C:\\Users\\me\\trip\\cup.png", "trip/cup.png"),
  ],
)
def test_photos_are_found_in_the_spelling_of_tools(tmp_path, name, file):
  write_photo(tmp_path / file)
  (line,) = convert(tmp_path, export(image_row(1, name)))
  assert line["image"] == file
  assert scan.scan(str(tmp_path / "mine.jsonl")).problems == []


def test_a_target_of_several_regions_is_said(tmp_path, capsys):
  write_photo(tmp_path / "a.png")
  content = export(image_row(1, "a.png"))
  other = {"id": 2, "segmentation": polygon((15, 3, 20, 9)), "caption": "The  box 1"}
  content["annotations"].append(content["annotations"][0] | other)
  (line,) = convert(tmp_path, content)
  assert line["target"] == [{"polygons": polygon()}, {"polygons": polygon((15, 3, 20, 9))}]
  assert "note: several regions merged into one target (1: a.png)" in capsys.readouterr().out


@pytest.mark.parametrize(
  "lost",
  [
    {"segmentation": [[15, 3, 20, 3, 200, 9]]},
    {"segmentation": [], "bbox": [15, 3, 5, 6]},
    {"segmentation": [[15, 3, 20, 3, 20, 9, 7]]},
  ],
)
def test_a_target_is_never_without_the_regions_that_are_left_out(tmp_path, capsys, lost):
  write_photo(tmp_path / "a.png")
  content = export(image_row(1, "a.png"))
  (row,) = content["annotations"]
  row["captions"] = [row.pop("caption"), "both boxes"]
  content["annotations"].append(row | {"id": 2, "captions": ["Both  boxes"]} | lost)
  (line,) = convert(tmp_path, content)
  assert (line["sentences"], line["target"]) == (["the box 1"], {"polygons": polygon()})
  assert "incomplete target (a region was left out) (1: a.png)" in capsys.readouterr().out
  row["captions"] = ["both boxes"]
  (tmp_path / "mine.jsonl").unlink()
  with pytest.raises(InputError, match=r"no expression is left; skipped: .*annotation 2"):
    convert(tmp_path, content)
  assert not (tmp_path / "mine.jsonl").exists()


def test_nor_is_one_of_label_studio(tmp_path):
  write_photo(tmp_path / "a.png")
  sizes = {"original_width": WIDTH, "original_height": HEIGHT, "image_rotation": 0}
  points = [[10, 10], [40, 10], [40, 60], [10, 60]]
  box = {"x": 50, "y": 10, "width": 30, "height": 30, "rotation": 0}
  result = [
    {"id": "r", "type": "polygonlabels", "value": {"points": points}} | sizes,
    {"id": "r", "type": "textarea", "value": {"text": ["both cups", "a cup"]}} | sizes,
    {"id": "s", "type": "rectanglelabels", "value": box} | sizes,
    {"id": "s", "type": "textarea", "value": {"text": ["both cups"]}} | sizes,
  ]
  tasks = [{"data": {"image": "a.png"}, "annotations": [{"result": result}]}]
  (line,) = convert(tmp_path, tasks, export_format="label-studio")
  assert line["sentences"] == ["a cup"]
  lines = convert(tmp_path, tasks, "--boxes", export_format="label-studio")
  assert [(line["sentences"], len(line["target"])) for line in lines] == [
    (["both cups"], 2),
    (["a cup"], 1),
  ]


def test_images_of_lvis_are_found_by_their_url(tmp_path):
  write_photo(tmp_path / "photos" / "000000000021.png")
  row = image_row(21, "") | {"coco_url": "http://images.cocodataset.org/val2017/000000000021.png"}
  del row["file_name"]
  (line,) = convert(tmp_path, export(row))
  assert (line["image"], line["image_id"]) == ("photos/000000000021.png", 21)


def test_label_studio_renames_what_is_uploaded(tmp_path):
  write_photo(tmp_path / "photos" / "our trip (2).png")
  sizes = {"original_width": WIDTH, "original_height": HEIGHT, "image_rotation": 0}
  points = [[10, 10], [40, 10], [40, 60], [10, 60]]
  result = [
    {"id": "r", "type": "polygonlabels", "value": {"points": points}} | sizes,
    {"id": "r", "type": "textarea", "value": {"text": ["the cup"]}} | sizes,
  ]
  tasks = [{"data": {"image": "/data/upload/4/89abcdef-our_trip_2.png"}}]
  tasks[0]["annotations"] = [{"result": result}]
  (line,) = convert(tmp_path, tasks, export_format="label-studio")
  assert line["image"] == "photos/our trip (2).png"


def test_exports_of_several_subsets_become_one_data_set(tmp_path, capsys):
  for split in ("train", "valid"):
    # Both have the same name and id.
    write_photo(tmp_path / split / "photo.png", seed=ord(split[0]))
    (tmp_path / split / "coco.json").write_text(json.dumps(export(image_row(0, "photo.png"))))
  files = [tmp_path / split / "coco.json" for split in ("train", "valid")]
  lines = convert_files(tmp_path, *files, "--from", "coco")
  assert [(line["image"], line["split"]) for line in lines] == [
    ("train/photo.png", "train"),
    ("valid/photo.png", "val"),
  ]
  assert not any("image_id" in line for line in lines)
  assert "image_id left out" in capsys.readouterr().out
  scanned = scan.scan(str(tmp_path / "mine.jsonl"))
  assert scanned.problems == [] and scanned.lines.one("SELECT count(DISTINCT id) FROM images") == 2
  (tmp_path / "other").mkdir()
  files[1].rename(tmp_path / "other" / "coco.json")
  with pytest.raises(InputError, match=r"other/coco\.json: no split, such as train or valid"):
    convert_files(tmp_path, files[0], tmp_path / "other" / "coco.json", "--from", "coco")


def test_joined_lines_of_two_exports_are_told_what_to_leave_out(tmp_path):
  for name in "ab":
    write_photo(tmp_path / f"{name}.png", seed=ord(name))
  rows = [custom_files.line(f"{name}.png", image_id=0) for name in "ab"]
  (problem,) = scan.scan(custom_files.write_lines(tmp_path / "all.jsonl", *rows)).problems
  assert "remove image_id" in str(problem) and "a.png" in str(problem)


_SPELLINGS = [
  str,
  lambda name: f"https://host.example/x/{urllib.parse.quote(name)}?v=1",
  lambda name: "D:\\data\\" + name.replace("/", "\\"),
  lambda name: unicodedata.normalize("NFD", name),
  str.upper,
]


@settings(max_examples=40, deadline=None)
@given(
  orientation=st.sampled_from([1, 1, *range(2, 9)]),
  annotated_upright=st.booleans(),
  scale=st.sampled_from([1, 1, 2]),
  as_runs=st.booleans(),
  declared=st.sampled_from([True, True, False]),
  name=st.sampled_from(["photo.png", "trip/Käse 1.png", "a/b/c.png"]),
  spell=st.sampled_from(_SPELLINGS),
  options=st.lists(st.sampled_from(["--rescale", "--exif"]), unique=True),
)
def test_masks_are_those_that_were_drawn_or_the_export_is_refused(
  orientation, annotated_upright, scale, as_runs, declared, name, spell, options
):
  """An object is drawn on a photo, which is turned, scaled and renamed before it is converted."""
  size = (HEIGHT, WIDTH)
  if annotated_upright and orientation >= 5:
    size = (WIDTH, HEIGHT)
  mask = drawn(size)
  on_disk = np.kron(mask, np.ones((scale, scale), bool)).astype(bool)
  expected = on_disk if annotated_upright else UPRIGHT[orientation](on_disk)
  row = image_row(1, spell(name), size)
  if not declared:
    del row["height"], row["width"]
  arguments = ["--rescale"] * ("--rescale" in options)
  if "--exif" in options:
    arguments += ["--exif", "upright" if annotated_upright else "stored"]
  with tempfile.TemporaryDirectory() as root:
    folder = pathlib.Path(root)
    write_turned(folder / name, (HEIGHT * scale, WIDTH * scale), orientation)
    content = export(row, segmentation=runs(mask) if as_runs else polygon())
    try:
      (line,) = convert(folder, content, *arguments)
    except InputError:
      assert orientation != 1 or scale != 1
      return
    (summary,) = scan.scan(str(folder / "mine.jsonl")).lines
  assert (line["image"], summary.size) == (name, expected.shape)
  if scale != 1 and not declared and not as_runs:
    # Nothing tells that the photo had another size.
    return
  assert np.array_equal(decoded(line["target"], expected.shape), expected)
