"""Masks that a file has for a data set: found by id or name, counted, never those of others."""

import collections
import json

import numpy as np
import pytest
from PIL import Image
from refer_layout import HEIGHT, WIDTH, make_layout, rectangle

from input_pipeline import records
from input_pipeline.common.errors import InputError
from input_pipeline.prepare import arguments
from input_pipeline.prepare import command as prepare
from input_pipeline.sources import jsonl, readers
from input_pipeline.sources.annotated_images import RecordMaker

IDS = (100, 101, 102, 103)
# The left edge tells images apart.
LEFT = {image_id: 10 * number for number, image_id in enumerate(IDS)}


def _detections(layout, name_of, **wrapper):
  rows = [
    {"image_id": name_of(image_id), "category_id": 47, "score": 0.5}
    | {"segmentation": [rectangle(LEFT[image_id], 5, LEFT[image_id] + 8, 15)]}
    for image_id in IDS
  ]
  path = layout.root / "detections.json"
  path.write_text(json.dumps(wrapper | {"annotations": rows} if wrapper else rows))
  return f"results:{path}"


def _made(layout, spec, **options):
  """Returns the records and notes of all splits, by image id."""
  reader = readers.open_reader("refcoco_unc", str(layout.root))
  maker, found, notes = RecordMaker(spec, **options), {}, collections.Counter()
  for split, ids in reader.splits.items():
    images = [reader.annotated_image(split, image_id, str(layout.images)) for image_id in ids]
    result = maker({"images": [dict(vars(image)) for image in images]})
    notes.update(result.notes)
    assert not result.skipped
    found |= {row.image_id: row for row in map(records.decode_record, result.records)}
  return found, notes


def _by_stem(image_id):
  return f"COCO_train2014_{image_id:012d}"


FORMS = {
  "ids": {"name_of": lambda i: i},
  "floats": {"name_of": float},
  "numbers of file names": {"name_of": lambda i: f"{i:012d}"},
  "stems": {"name_of": _by_stem},
  "file names": {"name_of": lambda i: f"{_by_stem(i)}.jpg"},
  "names of 2017": {"name_of": lambda i: f"images/{i:012d}.jpg"},
  # FiftyOne: new ids, which are those of other images in the data set
  "a list of images": {
    "name_of": lambda i: 203 - i,
    "images": [{"id": 203 - i, "file_name": f"{_by_stem(i)}.jpg"} for i in IDS],
  },
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_each_image_gets_its_own_detections(tmp_path, form):
  layout = make_layout(tmp_path)
  found, notes = _made(layout, _detections(layout, **form))
  assert set(found) == set(IDS) and not notes
  for image_id, record in found.items():
    expected = np.zeros((1, HEIGHT, WIDTH), bool)
    expected[0, 5:15, LEFT[image_id] : LEFT[image_id] + 8] = True
    np.testing.assert_array_equal(record.instances.masks, expected)


def test_annotations_of_a_file_with_other_ids_are_refused_and_not_taken(tmp_path):
  layout = make_layout(tmp_path)
  turned = {row["id"]: row["file_name"] for row in layout.instances["images"]}
  images = [row | {"file_name": turned[203 - row["id"]]} for row in layout.instances["images"]]
  path = tmp_path / "other.json"
  path.write_text(json.dumps(layout.instances | {"images": images}))
  with pytest.raises(InputError, match=r"image 100 is COCO_.*103\.jpg there, but .*100\.jpg here"):
    _made(layout, f"coco:{path}")


def test_what_is_left_out_of_masks_is_counted(tmp_path):
  layout = make_layout(tmp_path)
  first, second, crowd = layout.instances["annotations"][:3]
  first["segmentation"].append([1.0, 2.0, 3.0, 4.0])
  second["segmentation"] = [rectangle(30, 10, WIDTH + 3, 40)]
  extra = crowd | {"id": 5, "iscrowd": 0, "segmentation": [[1, 2, 3, 4]]}
  layout.instances["annotations"].append(extra)
  layout.write()
  found, notes = _made(layout, f"coco:{layout.instances_path}")
  assert notes == {
    "instances: COCO crowd left out": 4,
    "instances: annotation without a mask left out": 1,
    "instances: part with fewer than three points left out": 1,
    "instances: polygon beyond the border clipped": 1,
    "target: part with fewer than three points left out": 1,
    "target: polygon beyond the border clipped": 1,
  }
  target = np.zeros((HEIGHT, WIDTH), bool)
  target[10:40, 30:] = True
  np.testing.assert_array_equal(found[100].refs[1].target, target)
  np.testing.assert_array_equal(found[100].instances.masks[0], target)
  assert len(found[100].instances.masks) == 2


def test_an_image_without_an_entry_is_an_error_with_a_way_out_or_empty_and_counted(tmp_path):
  layout = make_layout(tmp_path)
  spec = _detections(layout, _by_stem)
  path = layout.root / "detections.json"
  path.write_text(json.dumps(json.loads(path.read_text())[:3]))
  with pytest.raises(InputError, match=r"no detection of COCO_.*103\.jpg.*use --allow_empty"):
    _made(layout, spec)
  found, notes = _made(layout, spec, allow_empty=True)
  assert len(found[103].instances.masks) == 0 and len(found[102].instances.masks) == 1
  assert notes == {"instances: image without masks in the file": 1}


def _lines(folder, names, **fields):
  for number, name in enumerate(names):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((20, 30, 3), number, np.uint8)).save(path)
  rows = [{"image": name, "sentences": ["it"], "target": None} | fields for name in names]
  (folder / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
  return str(folder / "mine.jsonl")


def _source(folder, spec, *more):
  data = ["--dataset", f"jsonl:{folder}/mine.jsonl", "--data_dir", f"{folder}/data"]
  args = arguments.parse([*data, "--instances", spec, *more], "")
  return prepare._make_source(args, prepare._describe(args))


def _instances(source):
  return {
    record.file_name: record.instances
    for task in source.tasks("train")
    for record in map(records.decode_record, source.make(task).records)
  }


def test_custom_data_without_ids_finds_masks_by_the_names_of_its_images(tmp_path):
  _lines(tmp_path, ["red/a.png", "blue/b.png"])
  square = [rectangle(2, 3, 12, 13)]
  content = {
    "images": [
      {"id": 7, "file_name": "a.png", "height": 20, "width": 30},
      {"id": 8, "file_name": "b.png", "height": 20, "width": 30},
    ],
    "annotations": [
      {"id": 1, "image_id": 8, "segmentation": square},
      {"id": 2, "image_id": 7, "segmentation": [rectangle(20, 3, 30, 20)]},
    ],
  }
  (tmp_path / "i.json").write_text(json.dumps(content))
  found = _instances(_source(tmp_path, f"coco:{tmp_path}/i.json"))
  assert [int(found[name].masks[0].sum()) for name in ("a.png", "b.png")] == [170, 100]
  rows = [{"image_id": "b", "score": 1, "segmentation": square}]
  (tmp_path / "r.json").write_text(json.dumps(rows))
  found = _instances(_source(tmp_path, f"results:{tmp_path}/r.json", "--allow_empty"))
  assert [len(found[name].masks) for name in ("a.png", "b.png")] == [0, 1]
  (tmp_path / "ids.json").write_text(json.dumps([rows[0] | {"image_id": 1}]))
  with pytest.raises(InputError, match="needs image ids, but the lines of mine have no image_id"):
    _source(tmp_path, f"results:{tmp_path}/ids.json")


def test_folders_of_lines_tell_images_apart_under_any_folder_of_the_file(tmp_path):
  names = ["clip_a/0.png", "clip_b/0.png"]
  _lines(tmp_path, names)
  rows = [
    {"image_id": n, "score": 1, "file_name": f"export/{name}"}
    | {"segmentation": [rectangle(2, 3, 12 + n, 13)]}
    for n, name in enumerate(names)
  ]
  (tmp_path / "r.json").write_text(json.dumps(rows[::-1]))
  source = _source(tmp_path, f"results:{tmp_path}/r.json")
  (task,) = source.tasks("train")
  made = map(records.decode_record, source.make(task).records)
  areas = {record.image: int(record.instances.masks[0].sum()) for record in made}
  assert areas == {(tmp_path / name).read_bytes(): 100 + 10 * n for n, name in enumerate(names)}


def test_two_images_that_a_file_cannot_tell_apart_are_named(tmp_path):
  _lines(tmp_path, ["clip_a/0.png", "clip_b/0.png"])
  rows = [{"image_id": "0", "score": 1, "file_name": "0.png", "segmentation": [[1, 1, 9, 1, 9, 9]]}]
  (tmp_path / "r.json").write_text(json.dumps(rows))
  with pytest.raises(InputError, match=r"clip_./0\.png and .*clip_./0\.png both match image"):
    _source(tmp_path, f"results:{tmp_path}/r.json")


@pytest.mark.parametrize(
  ("orientation", "size", "known"),
  [(1, (30, 30), True), (6, (30, 20), True), (3, (30, 20), False), (6, (30, 30), False)],
)
def test_a_turned_photo_whose_size_does_not_tell_is_refused(tmp_path, orientation, size, known):
  exif = Image.Exif()
  exif[0x0112] = orientation
  Image.new("RGB", size).save(tmp_path / "a.jpg", exif=exif)
  width, height = size[::-1] if orientation > 4 else size
  line = {"image": "a.jpg", "sentences": ["it"], "target": None}
  (tmp_path / "mine.jsonl").write_text(json.dumps(line))
  content = {
    "images": [{"id": 7, "file_name": "a.jpg", "height": height, "width": width}],
    "annotations": [{"id": 1, "image_id": 7, "segmentation": [rectangle(2, 3, 12, 13)]}],
  }
  (tmp_path / "i.json").write_text(json.dumps(content))
  source = _source(tmp_path, f"coco:{tmp_path}/i.json")
  if known:
    assert _instances(source)["a.jpg"].masks[0, 3:13, 2:12].all()
  else:
    with pytest.raises(InputError, match=r"a\.jpg: EXIF rotates it .*stored or the upright"):
      _instances(source)


def test_notes_of_custom_masks_are_counted(tmp_path):
  beyond = {"polygons": [rectangle(2, 3, 33, 13)]}
  path = _lines(tmp_path, ["a.png"], target=beyond, instances=[beyond])
  source = _source(tmp_path, "custom")
  (task,) = source.tasks("train")
  assert source.make(task).notes == {
    "instances: polygon beyond the border clipped": 1,
    "target: polygon beyond the border clipped": 1,
  }
  assert jsonl.JsonlReader(path, "mine").has_instances
