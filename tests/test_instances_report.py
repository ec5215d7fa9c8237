"""`python -m input_pipeline.instances report`: its figures, its page, and what it refuses."""

import base64
import dataclasses
import hashlib
import html.parser
import io
import json
import pathlib
import re
import subprocess
import sys
import weakref

import half_records
import numpy as np
import pytest
import tiny_run
from PIL import Image
from pycocotools import mask as coco_masks

from input_pipeline import drawing, example, records, storage, stored_records
from input_pipeline.errors import InputError
from input_pipeline.instances import __main__ as command
from input_pipeline.instances import report, report_page
from input_pipeline.instances.ceiling import Ceiling, Match, match_refs, size_of
from input_pipeline.instances.gallery import Gallery, Picture

THRESHOLDS = (0.5, 0.75, 0.9)
SIZES = ("small", "medium", "large")


def _instances(masks: np.ndarray, source: str = "coco") -> records.Instances:
  count = len(masks)
  scores, categories = np.ones(count, np.float32), np.zeros(count, np.int32)
  return records.Instances(masks, scores, categories, source, "ground-truth")


def _record(
  image_id: int,
  instances: np.ndarray,
  targets: np.ndarray,
  sentence: str = "that one",
  source: str = "coco",
) -> records.ImageRecord:
  """A grey photo with these masks."""
  height, width = targets.shape[1:]
  buffer = io.BytesIO()
  Image.new("RGB", (width, height), "grey").save(buffer, "PNG")
  refs = tuple(
    records.Ref(100 * image_id + i, (i,), target, (sentence,)) for i, target in enumerate(targets)
  )
  return records.ImageRecord(
    buffer.getvalue(),
    image_id,
    f"{image_id}.png",
    height,
    width,
    _instances(instances, source),
    refs,
  )


def _boxes(rng: np.random.Generator, count: int, height: int, width: int) -> np.ndarray:
  """Boxes of all sizes with holes in them."""
  masks = np.zeros((count, height, width), bool)
  for mask in masks:
    top, left = rng.integers(height - 8), rng.integers(width - 8)
    mask[top : rng.integers(top + 8, height + 1), left : rng.integers(left + 8, width + 1)] = True
  return masks & (rng.random(masks.shape) < 0.97)


def _random_records(count: int, seed: int = 0) -> list[records.ImageRecord]:
  """Images whose targets are their instances, some of them damaged; some images have no instance."""
  rng = np.random.default_rng(seed)
  made = []
  for image_id in range(count):
    height, width = rng.integers(160, 300, 2)
    instances = _boxes(rng, int(rng.integers(0, 20)), height, width)
    targets = _boxes(rng, int(rng.integers(1, 4)), height, width)
    for target in targets[: len(instances)]:
      mask = rng.choice(instances)
      target[:] = mask & (rng.random(mask.shape) < rng.choice([0.6, 0.8, 1.0]))
    made.append(_record(image_id, instances, targets))
  return made


def _encode(masks: np.ndarray) -> list:
  return [coco_masks.encode(np.asfortranarray(mask.astype(np.uint8))) for mask in masks]


def _reference(record: records.ImageRecord) -> list[tuple[float, int]]:
  """Best IoU and area of each target, by pycocotools."""
  targets, instances = _encode([ref.target for ref in record.refs]), _encode(record.instances.masks)
  areas = [int(area) for area in coco_masks.area(targets)]
  if not instances:
    return [(0.0, area) for area in areas]
  ious = coco_masks.iou(instances, targets, [0] * len(targets))
  return [(float(max(ious[:, i])), area) for i, area in enumerate(areas)]


def _measure(rows: list[records.ImageRecord], gallery: Gallery | None = None) -> dict:
  fields = map(example.encode_record, rows)
  return report.measure("refcoco_unc/val", fields, gallery or Gallery()).figures()


def _of_size(area: int) -> str:
  return "small" if area < 32 * 32 else "medium" if area < 96 * 96 else "large"


def test_the_figures_are_those_of_a_loop_over_pycocotools():
  rows = _random_records(60)
  figures = _measure(rows)
  best = [pair for record in rows for pair in _reference(record)]
  for group in ("all", *SIZES):
    ious = [iou for iou, area in best if group in ("all", _of_size(area))]
    assert figures[group]["refs"] == len(ious) > 5
    assert figures[group]["mIoU"] == pytest.approx(sum(ious) / len(ious))
    for threshold in THRESHOLDS:
      reached = sum(iou >= threshold for iou in ious) / len(ious)
      assert figures[group][f"P@{threshold}"] == pytest.approx(reached)
  assert len({round(figures["all"][f"P@{threshold}"], 3) for threshold in THRESHOLDS}) == 3
  assert figures["images"] == 60
  counts = [len(record.instances.masks) for record in rows]
  assert figures["instances_per_image"] == pytest.approx(sum(counts) / 60)
  assert figures["images_without_instances"] == counts.count(0) > 0


def test_the_instance_named_is_the_one_that_fits_best():
  for record in _random_records(20, seed=1):
    targets = _encode([ref.target for ref in record.refs])
    ious = coco_masks.iou(_encode(record.instances.masks), targets, [0] * len(targets))
    for i, match in enumerate(match_refs(record)):
      if match.instance is None:
        assert not len(ious) or not ious[:, i].any()
      else:
        assert ious[match.instance, i] == pytest.approx(ious[:, i].max())


def test_targets_that_are_instances_reach_1_in_everything():
  rng = np.random.default_rng(0)
  rows = []
  for image_id in range(5):
    masks = _boxes(rng, 18, 120, 140)
    rows.append(_record(image_id, masks, masks[[17, 3]]))
  figures = _measure(rows)
  expected = {"refs": 10, "mIoU": 1.0, "P@0.5": 1.0, "P@0.75": 1.0, "P@0.9": 1.0}
  assert figures["all"] == expected


def test_a_target_without_instances_counts_0():
  masks = _boxes(np.random.default_rng(0), 1, 50, 60)
  figures = _measure([_record(1, masks, masks), _record(2, masks[:0], masks)])
  assert figures["all"] == {"refs": 2, "mIoU": 0.5, "P@0.5": 0.5, "P@0.75": 0.5, "P@0.9": 0.5}
  assert (figures["images_without_instances"], figures["instances_per_image"]) == (1, 0.5)


def test_a_precision_includes_its_border():
  target = np.zeros((1, 10, 20), bool)
  target[0, :, :10] = True
  instance = target.copy()
  instance[0, 9] = False  # 90 of 100 pixels
  figures = _measure([_record(1, instance, target)])["all"]
  assert (figures["mIoU"], figures["P@0.9"]) == (0.9, 1.0)


def test_a_ref_without_a_target_is_left_out():
  masks = _boxes(np.random.default_rng(0), 2, 50, 60)
  targets = np.stack([masks[0], np.zeros_like(masks[0])])
  gallery = Gallery()
  figures = _measure([_record(1, masks, targets), _record(2, masks, targets[1:])], gallery)
  assert (figures["all"]["refs"], figures["all"]["mIoU"]) == (1, 1.0)
  assert (figures["images"], figures["refs_without_target"]) == (2, 2)
  assert [picture.ref for picture in gallery.worst() + gallery.random()] == [0, 0]


@pytest.mark.parametrize(
  ("area", "size"),
  [
    (1, "small"),
    (32 * 32 - 1, "small"),
    (32 * 32, "medium"),
    (96 * 96 - 1, "medium"),
    (96 * 96, "large"),
    (10**9, "large"),
  ],
)
def test_the_sizes_are_those_of_coco(area, size):
  assert size_of(area) == size


def test_a_size_that_no_target_has_gives_no_figures():
  masks = np.ones((1, 50, 60), bool)
  empty = {"refs": 0, "mIoU": None, "P@0.5": None, "P@0.75": None, "P@0.9": None}
  figures = _measure([_record(1, masks, masks)])
  assert [figures["small"], figures["large"]] == [empty, empty]
  assert figures["medium"]["refs"] == 1


def test_masks_of_several_origins_are_counted_for_each():
  masks = np.ones((1, 5, 6), bool)
  figures = _measure([_record(i, masks, masks, source="abb"[i]) for i in range(3)])
  assert figures["origins"] == [
    {"instances_from": "b", "instances_trained_on": "ground-truth", "images": 2},
    {"instances_from": "a", "instances_trained_on": "ground-truth", "images": 1},
  ]


# What is drawn.


def _matches(*ious: float) -> list[Match]:
  return [Match(iou, 0, 9) for iou in ious]


def _drawn(pictures: list[Picture]) -> list[tuple[int, int]]:
  return [(picture.fields["image_id"], picture.ref) for picture in pictures]


def test_the_worst_are_the_worst_and_of_equals_the_first():
  rng = np.random.default_rng(0)
  ious = rng.integers(0, 5, (200, 3)) / 4
  gallery = Gallery(20)
  for i, row in enumerate(ious):
    gallery.add("a/b", {"image_id": i}, _matches(*row))
  worst = sorted((row.min(), i, row.argmin()) for i, row in enumerate(ious))[:20]
  assert _drawn(gallery.worst()) == [(i, ref) for _, i, ref in worst]
  assert len({iou for iou, _, _ in worst}) < 20


def test_the_random_ones_are_drawn_without_regard_to_their_iou():
  good, bad = Gallery(20), Gallery(20)
  for i in range(1000):
    good.add("a/b", {"image_id": i}, _matches(1.0, 1.0))
    bad.add("a/b", {"image_id": i}, _matches(0.1 * (i % 7), 0.5))
  drawn = _drawn(good.random())
  assert drawn == _drawn(bad.random())
  images = [image for image, _ in drawn]
  assert len(set(images)) == 20
  assert {ref for _, ref in drawn} == {0, 1}
  assert min(images) < 250
  assert max(images) > 750


class _Fields(dict):
  """A record's fields that can be watched."""


def test_records_that_are_not_drawn_are_not_kept():
  record = _random_records(1)[0]
  watched, alive = [], []

  def stored():
    for i in range(200):
      fields = _Fields(example.encode_record(dataclasses.replace(record, image_id=i)))
      watched.append(weakref.ref(fields))
      yield fields
      alive.append(sum(reference() is not None for reference in watched))

  report.measure("a/b", stored(), Gallery(3))
  assert max(alive) <= 3 + 3 + 2


def test_every_mask_has_a_colour_the_best_a_yellow_and_the_target_a_white_outline():
  photo = np.full((60, 90, 3), 100, np.uint8)
  masks = np.zeros((3, 60, 90), bool)
  masks[0, 5:25, 5:40] = masks[1, 30:55, 5:40] = masks[2, 10:50, 50:85] = True
  drawn = drawing.instance_overlay(photo, masks, masks[1], best=2)
  white, yellow = (drawn == 255).all(-1), (drawn == drawing.CHOSEN).all(-1)
  assert white.any()
  assert yellow.any()
  assert not (white & ~masks[1]).any()
  assert not (yellow & ~masks[2]).any()
  insides = {tuple(drawn[y, x]) for y, x in ((15, 20), (42, 20), (30, 67))}
  assert len(insides) == 3
  assert (100, 100, 100) not in insides
  assert tuple(drawn[2, 2]) == (100, 100, 100)
  # Where the best mask is the target, both are seen.
  both = drawing.instance_overlay(photo, masks, masks[2], best=2)
  assert (both == 255).all(-1).any()
  assert (both == drawing.CHOSEN).all(-1).any()


def test_a_small_mask_is_seen_on_a_large_one():
  photo = np.full((60, 90, 3), 100, np.uint8)
  small, large = np.zeros((2, 60, 90), bool)
  small[20:40, 30:60], large[5:55, 5:85] = True, True
  target = np.zeros((60, 90), bool)
  alone = drawing.instance_overlay(photo, small[None], target)[30, 45].astype(int)
  drawn = drawing.instance_overlay(photo, np.stack([small, large]), target).astype(int)
  inside, around = drawn[30, 45], drawn[10, 45]
  assert abs(inside - alone).sum() < abs(inside - around).sum()


def _pictures(record: records.ImageRecord) -> list[Picture]:
  """One for each ref."""
  fields, matches = example.encode_record(record), match_refs(record)
  return [Picture("a/b", fields, ref, match) for ref, match in enumerate(matches)]


def test_a_photo_shows_the_ref_that_it_is_drawn_for():
  masks = np.zeros((2, 240, 480), bool)
  masks[0, 20:200, 20:220] = masks[1, 20:200, 260:460] = True
  for ref, picture in enumerate(_pictures(_record(1, masks[::-1], masks))):
    drawn = report_page.draw(picture)
    white, yellow = (drawn == 255).all(-1), (drawn == drawing.CHOSEN).all(-1)
    assert 500 < white.sum() < yellow.sum()
    assert not ((white | yellow) & ~masks[ref]).any()


def test_a_caption_says_which_mask_is_best_or_why_none_is():
  left, right = np.zeros((2, 1, 50, 60), bool)
  left[..., :30], right[..., 30:] = True, True
  both = np.concatenate([left, right])
  pictures = [
    picture
    for instances, targets in ((both, right), (left, right), (left[:0], right))
    for picture in _pictures(_record(7, instances, targets))
  ]
  page = report_page.page({}, pictures, [])
  captions = re.findall(r"<figcaption><p>(.*?)</p>", page)
  assert captions == [
    "<strong>IoU 1.00</strong>, the best of 2 masks is number 2",
    "<strong>IoU 0.00</strong>, no mask of 1 overlaps the target",
    "<strong>IoU 0.00</strong>, the image has no mask",
  ]
  assert page.count("a/b, image 7, ref 700; target of 1,500 pixels (medium)") == 3


# What is stored is read again.


def test_stored_records_are_what_was_written(tmp_path):
  half_records.write(str(tmp_path))
  assert stored_records.splits(str(tmp_path), half_records.NAME) == {
    "testA": 9,
    "train": 9,
    "val": 9,
  }
  read = list(stored_records.read(str(tmp_path), half_records.NAME, "val"))
  assert sorted(fields["image_id"] for fields in read) == list(range(1, 10))
  for fields in read:
    expected = half_records.RECORDS[fields["image_id"] - 1]
    stored = example.encode_record(expected)
    assert fields.keys() == stored.keys()
    assert fields["refs"] == stored["refs"]
    found = example.decode_record(fields)
    np.testing.assert_array_equal(found.instances.masks, expected.instances.masks)
    np.testing.assert_array_equal(found.instances.scores, expected.instances.scores)
    for ref, other in zip(found.refs, expected.refs, strict=True):
      np.testing.assert_array_equal(ref.target, other.target)
      assert (ref.ref_id, ref.ann_ids) == (other.ref_id, other.ann_ids)
      assert ref.sentences == other.sentences
    assert (found.image, found.file_name) == (expected.image, expected.file_name)
    assert (found.height, found.width) == (expected.height, expected.width)


def test_a_damaged_file_of_records_is_named(tmp_path):
  half_records.write(str(tmp_path))
  (path,) = tmp_path.rglob("*-val.tfrecord-*")
  path.write_bytes(path.read_bytes()[:-100])
  with pytest.raises(InputError, match=r"refcoco_unc/val: a file of records is damaged; prepare"):
    list(stored_records.read(str(tmp_path), half_records.NAME, "val"))


# The command.


@dataclasses.dataclass(frozen=True)
class Report:
  """What one run left behind."""

  data_dir: str
  printed: str
  written: dict
  page: str


def _run(data_dir: str, folder: pathlib.Path, capsys, *more: str) -> Report:
  paths = [str(folder / "report.json"), str(folder / "report.html")]
  command.main(["report", "--data_dir", data_dir, "--json", paths[0], "--html", paths[1], *more])
  printed = capsys.readouterr().out
  written, page = (pathlib.Path(path).read_text(encoding="utf-8") for path in paths)
  return Report(data_dir, printed, json.loads(written), page)


@pytest.fixture
def shapes_report(shapes_data, tmp_path, capsys) -> Report:
  return _run(shapes_data, tmp_path, capsys)


class _Parsed(html.parser.HTMLParser):
  """A page as a browser takes it apart."""

  def __init__(self, page: str):
    super().__init__()
    self.tags: list[tuple[str, dict]] = []
    self.texts: dict[str, list[str]] = {}
    self.feed(page)
    self.close()

  def handle_starttag(self, tag, attrs):
    self.tags.append((tag, dict(attrs)))

  def handle_data(self, data):
    if self.tags and data.strip():
      self.texts.setdefault(self.tags[-1][0], []).append(data)


def test_the_table_the_json_and_the_page_agree(shapes_report):
  splits = shapes_report.written["splits"]
  assert sorted(splits) == [f"shapes/{s}" for s in ("testA", "testB", "testC", "train", "val")]
  lines = iter(shapes_report.printed.splitlines()[1:])
  cells = _Parsed(shapes_report.page).texts["td"]
  for name, figures in splits.items():
    for group in ("all", *SIZES):
      label, *values = next(lines).split()
      assert label == (name if group == "all" else group)
      row = figures[group]
      shares = [row[key] for key in ("mIoU", "P@0.5", "P@0.75", "P@0.9")]
      expected = [str(row["refs"]), *("-" if x is None else f"{100 * x:.2f}" for x in shares)]
      if group == "all":
        counts = figures["images"], figures["images_without_instances"]
        expected += [str(counts[0]), f"{figures['instances_per_image']:.1f}", str(counts[1]), "-"]
      assert values == expected
      assert cells[: len(values)] == values
      del cells[: len(values)]
  assert not cells
  for name, row in (storage.read_metadata(shapes_report.data_dir, "shapes") or {})[
    "counts"
  ].items():
    found = splits[f"shapes/{name}"]
    assert (found["images"], found["all"]["refs"]) == (row["records"], row["refs"])
    assert sum(found[size]["refs"] for size in SIZES) == row["refs"]


def test_all_three_say_that_it_is_a_ceiling_and_where_masks_came_from(shapes_report):
  sentence = "the ceiling of any method that only picks a mask"
  assert sentence in shapes_report.written["ceiling"]
  assert shapes_report.printed.count(sentence) == shapes_report.page.count(sentence) == 1
  origin = shapes_report.written["splits"]["shapes/val"]["origins"][0]
  text = f"from {origin['instances_from']}, trained on {origin['instances_trained_on']} (72 images)"
  assert f"shapes: masks {text}" in shapes_report.printed
  assert f"shapes: masks {text}" in shapes_report.page


def test_the_page_shows_the_worst_of_all_images(shapes_report):
  ious = [
    min(iou for iou, _ in _reference(example.decode_record(fields)))
    for split in stored_records.splits(shapes_report.data_dir, "shapes")
    for fields in stored_records.read(shapes_report.data_dir, "shapes", split)
  ]
  worst, random = shapes_report.page.split("<h2>")[1:]
  assert (worst[:15], random[:16]) == ("50 worst images", "50 random images")
  shown = re.findall(r"<strong>IoU ([\d.]+)</strong>", worst)
  assert shown == [f"{iou:.2f}" for iou in sorted(ious)[:50]]
  assert shown[0] < shown[-1] < f"{max(ious):.2f}"
  assert random.count("<figure>") == random.count("<strong>IoU ") == 50


def test_the_page_needs_nothing_but_itself_and_allows_nothing_else(shapes_report):
  assert "http://" not in shapes_report.page
  assert "https://" not in shapes_report.page
  assert "url(" not in shapes_report.page
  parsed = _Parsed(shapes_report.page)
  assert {tag for tag, _ in parsed.tags}.isdisjoint({"script", "link", "iframe", "object", "base"})
  pictures = 0
  for tag, attributes in parsed.tags:
    assert not any(name.startswith("on") or name in ("href", "style") for name in attributes)
    if "src" in attributes:
      assert tag == "img"
      kind, _, data = attributes["src"].partition(",")
      assert kind == "data:image/jpeg;base64"
      with Image.open(io.BytesIO(base64.b64decode(data))) as picture:
        picture.load()
        assert picture.size == (480, 480)
      pictures += 1
  assert pictures == 100
  (policy,) = [
    a["content"] for _, a in parsed.tags if a.get("http-equiv") == "Content-Security-Policy"
  ]
  (style,) = parsed.texts["style"]
  digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
  allowed = dict(rule.split(" ", 1) for rule in policy.split("; "))
  assert allowed.pop("default-src") == "'none'"
  assert allowed.pop("style-src") == f"'sha256-{digest}'"
  assert allowed.pop("img-src") == "data:"
  assert set(allowed.values()) == {"'none'"}


def test_what_strangers_wrote_stays_text():
  masks = np.ones((1, 20, 30), bool)
  sentence = "</li><script>alert('x')</script> & \"<img src=x onerror=y>\""
  record = _record(1, masks, masks, sentence, source="<b>me</b>")
  record = dataclasses.replace(record, file_name='"><script src=x>')
  fields, ceiling, gallery = example.encode_record(record), Ceiling(), Gallery()
  ceiling.add(record.instances, match_refs(record))
  gallery.add("<i>a</i>/b", fields, match_refs(record))
  page = report_page.page({"<i>a</i>/b": ceiling.figures()}, gallery.worst(), gallery.random())
  parsed = _Parsed(page)
  tags = [tag for tag, _ in parsed.tags]
  assert not {"script", "b", "i"} & set(tags)
  assert tags.count("img") == 2
  assert all(a["src"].startswith("data:") for tag, a in parsed.tags if tag == "img")
  assert parsed.texts["li"] == [sentence] * 2
  assert [a["alt"][:16] for tag, a in parsed.tags if tag == "img"] == ['"><script src=x>'] * 2


def test_the_same_data_gives_the_same_page(shapes_report, tmp_path, capsys):
  again = _run(shapes_report.data_dir, tmp_path, capsys)
  assert again == shapes_report


def test_all_that_is_prepared_is_reported_unless_names_are_given(shapes_data, tmp_path, capsys):
  half_records.write(str(tmp_path))
  (tmp_path / storage.BUILDER_NAME / "shapes").symlink_to(
    pathlib.Path(shapes_data) / storage.BUILDER_NAME / "shapes"
  )

  def reported(*more: str) -> set[str]:
    command.main(["report", "--data_dir", str(tmp_path), *more])
    printed = capsys.readouterr().out
    return {name for name in storage.CONFIGS if f"\n{name}/val" in printed}

  assert reported() == {"shapes", "refcoco_unc"}
  assert reported("--dataset", "refcoco_unc") == {"refcoco_unc"}
  assert reported("--dataset", "refcoco_unc", "shapes") == {"shapes", "refcoco_unc"}


def test_the_time_an_image_took_is_shown_where_it_was_measured(tmp_path, capsys):
  half_records.write(str(tmp_path))
  assert storage.read_timing(str(tmp_path), half_records.NAME) == {}
  timing = pathlib.Path(storage.dataset_dir(str(tmp_path), half_records.NAME)) / "timing.json"
  timing.write_text('{"val": 0.25}')
  assert storage.read_timing(str(tmp_path), half_records.NAME) == {"val": 0.25}
  command.main(["report", "--data_dir", str(tmp_path), "--json", str(tmp_path / "r.json")])
  ends = {
    line.split()[0]: line.split()[-1] for line in capsys.readouterr().out.splitlines() if line
  }
  assert (ends["refcoco_unc/val"], ends["refcoco_unc/train"]) == ("0.250", "-")
  splits = json.loads((tmp_path / "r.json").read_text())["splits"]
  assert splits["refcoco_unc/val"]["seconds_per_image"] == 0.25
  assert splits["refcoco_unc/train"]["seconds_per_image"] is None
  timing.write_text('["val"]')
  with pytest.raises(InputError, match=r"timing\.json cannot be read .*--overwrite"):
    storage.read_timing(str(tmp_path), half_records.NAME)


def test_a_photo_that_cannot_be_drawn_is_named_and_the_figures_are_there(tmp_path, capsys):
  half_records.write(str(tmp_path))  # one picture of testA is cut short
  with pytest.raises(InputError, match=r"image picture_6\.png cannot be decoded"):
    _run(str(tmp_path), tmp_path, capsys)
  assert "refcoco_unc/testA" in capsys.readouterr().out
  assert "refcoco_unc/testA" in json.loads((tmp_path / "report.json").read_text())["splits"]
  assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize(
  ("options", "message"),
  [
    (
      ["--data_dir", "nowhere"],
      r"--data_dir nowhere: no data set is prepared there; run .*prepare",
    ),
    (["--dataset", "refcoco"], r"'refcoco': unknown; the known ones are shapes, refcoco_unc"),
    (
      ["--dataset", "shapes", "refcoco_unc"],
      r"--dataset refcoco_unc: not prepared in .*; prepared there: shapes",
    ),
    (["--json", "nowhere/r.json"], r"nowhere/r\.json: the folder nowhere does not exist"),
    (["--html", "nowhere/r.html"], r"nowhere/r\.html: the folder nowhere does not exist"),
    (["--html", "folder"], r"folder is a folder; name a file in it"),
    (["--json", "file/r.json"], r"file/r\.json: the folder file does not exist"),
  ],
)
def test_what_is_wrong_is_said_before_the_work(
  shapes_data, tmp_path, monkeypatch, options, message
):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(report, "measure", None)
  pathlib.Path("folder").mkdir()
  pathlib.Path("file").touch()
  with pytest.raises(InputError, match=message) as caught:
    command.main(["report", "--data_dir", shapes_data, *options])
  assert "\n" not in str(caught.value)
  assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "folder"]


def test_the_command_prints_one_line_and_exits_with_2(tmp_path, monkeypatch):
  monkeypatch.setenv("PYTHONPATH", str(tiny_run.CHECKOUT))
  done = subprocess.run(
    [sys.executable, "-m", "input_pipeline.instances", "report", "--data_dir", "nowhere"],
    cwd=tmp_path,
    capture_output=True,
    text=True,
    check=False,
  )
  assert (done.returncode, done.stdout) == (2, "")
  (line,) = done.stderr.splitlines()
  assert line.startswith("error: --data_dir nowhere: ")
