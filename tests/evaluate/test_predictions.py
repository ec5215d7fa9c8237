"""Masks of other models: read, matched with expressions, and judged; no model runs."""

import dataclasses
import gzip
import json
import pathlib
from typing import Any

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco_mask
from scipy import ndimage

from input_pipeline import records
from input_pipeline.common.errors import InputError
from mail_jax.evaluate import given_masks, matching, predictions, protocols
from mail_jax.evaluate.matching import Question

SIZES = ((20, 30), (33, 17), (64, 48))
SENTENCES = (("the left cup", "Red  cup", "cup"), ("dog",), ("the cat", "cat on the mat"))
DATA = "pets/val"


def draw(seed: int, size: tuple[int, int]) -> np.ndarray:
  """Returns a blob without symmetry."""
  noise = np.random.default_rng(seed).normal(size=size)
  return ndimage.gaussian_filter(noise, 2) > 0.03


QUESTIONS = [
  Question(DATA, 100 + image, f"photos/{image}.jpg", 7 * image - 3, number, sentence)
  for image, sentences in enumerate(SENTENCES)
  for number, sentence in enumerate(sentences)
]
TARGETS = [draw(0, SIZES[q.image_id - 100]) for q in QUESTIONS]
PREDICTED = [draw(1 + n, target.shape) for n, target in enumerate(TARGETS)]


def runs(mask: np.ndarray) -> dict[str, Any]:
  encoded = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
  return {"size": list(mask.shape), "counts": encoded["counts"].decode()}


def entry(n: int, **changes: Any) -> dict[str, Any]:
  question = QUESTIONS[n]
  row = {"ref_id": question.ref_id, "expression_index": question.expression_index}
  row |= {"segmentation": runs(PREDICTED[n])} | changes
  return {key: value for key, value in row.items() if value is not None}


def entries() -> list[dict[str, Any]]:
  return [entry(n) for n in range(len(QUESTIONS))]


def judge(
  rows: Any, protocol: str = "original", allow_missing: bool = False, name: str = "masks.json"
) -> tuple[list[dict[str, Any]], list[str]]:
  """Judges predictions, given as what is in a JSON file."""
  found = predictions.parse(json.dumps(rows).encode(), name)
  encoded = [records.encode_target(target) for target in TARGETS]
  protocol_of = protocols.find(protocol)
  return given_masks.evaluate(found, QUESTIONS, encoded, protocol_of, name, allow_missing)


def outline(mask: np.ndarray) -> np.ndarray:
  side = 2 * max(1, round(0.02 * np.hypot(*mask.shape))) + 1
  return mask & ~ndimage.minimum_filter(mask, side, mode="constant", cval=0)


def check(rows: list[dict[str, Any]], masks: list[np.ndarray]) -> None:
  """Compares counts at the image's size with brute force."""
  for row, mask, target in zip(rows, masks, TARGETS, strict=True):
    both, either = (mask & target).sum(), (mask | target).sum()
    assert (row["intersection"], row["union"]) == (both, either)
    assert row["area"] == target.sum() and [row["height"], row["width"]] == [*target.shape]
    edges = outline(mask), outline(target)
    assert row["boundary_intersection"] == (edges[0] & edges[1]).sum()
    assert row["boundary_union"] == (edges[0] | edges[1]).sum()


def test_masks_get_the_counts_of_brute_force_and_no_columns_of_instances():
  rows, lines = judge(entries())
  check(rows, PREDICTED)
  assert not lines
  assert {"selected", "oracle_iou", "cut", "no_target_probability"}.isdisjoint(rows[0])
  assert [(row["data"], row["index"], row["ref_id"]) for row in rows[:4]] == [
    (DATA, 0, -3), (DATA, 1, -3), (DATA, 2, -3), (DATA, 3, 4),
  ]  # fmt: skip


@pytest.mark.parametrize("name", [name for name in protocols.PROTOCOLS if name != "original"])
def test_other_protocols_compare_masks_that_were_resized_like_targets(name):
  rows, (said,) = judge(entries(), name)
  assert said.startswith("masks.json: 6 masks: ") and f"{name} resizes" in said
  protocol = protocols.find(name)
  for row, mask, target in zip(rows, PREDICTED, TARGETS, strict=True):
    mask, true = protocol.fit(mask), protocol.fit(target)
    assert (row["intersection"], row["union"]) == ((mask & true).sum(), (mask | true).sum())
    assert row["area"] == target.sum() and "boundary_union" not in row


def test_a_mask_of_the_protocols_square_is_compared_as_it_is():
  square = draw(5, (480, 480))
  given = [entry(0, segmentation=runs(square)), *entries()[1:]]
  rows, lines = judge(given, "lavt")
  true = np.asarray(Image.fromarray(TARGETS[0]).resize((480, 480), Image.Resampling.NEAREST))
  assert rows[0]["intersection"] == (square & true).sum()
  assert lines == [
    "masks.json: 1 mask: of 480 x 480 pixels, compared as it is",
    "masks.json: 5 masks: resized like the target; lavt resizes logits, so that only masks of "
    "480 x 480 pixels give the numbers of its paper",
  ]
  with pytest.raises(InputError, match=r"entry 1: segmentation: .*\[480, 480\].*\[20, 30\]"):
    judge(given)


def test_an_image_of_the_protocols_size_is_not_resized_and_nothing_is_said():
  target, mask = draw(1, (320, 320)), draw(2, (320, 320))
  found = predictions.parse(json.dumps([entry(0, segmentation=runs(mask))]).encode(), "x.json")
  (row,), lines = given_masks.evaluate(
    found, QUESTIONS[:1], [records.encode_target(target)], protocols.find("c3vg"), "x.json"
  )
  assert (row["intersection"], row["union"]) == ((mask & target).sum(), (mask | target).sum())
  assert not lines


# One prediction can say in several ways which expression it is for.


def named(n: int, way: str) -> dict[str, Any]:
  question = QUESTIONS[n]
  ref, text = {"ref_id": question.ref_id}, question.expression
  keys = {
    "index": ref | {"expression_index": question.expression_index},
    "text of numbers": {"ref_id": f"{question.ref_id}", "expression_index": f"{n and 0}"},
    "sentence": ref | {"sentence": f" {text.upper()} "},
    "sent_id": ref | {"sent_id": 1000 + n},
    "image": {"image": question.file_name, "number": 9, "line": 3, "expression": text},
    "another folder": {"file_name": f"C:\\x\\{question.file_name}", "sent": text},
    "image_id": {"image_id": question.image_id, "sentence": text},
  }
  if way == "text of numbers":
    keys[way]["expression_index"] = float(question.expression_index)
  return keys[way] | {"mask": runs(PREDICTED[n]), "overlay": "/etc/passwd"}


WAYS = ("index", "text of numbers", "sentence", "image", "another folder", "image_id")


@hypothesis.given(
  st.lists(st.sampled_from(WAYS), min_size=len(QUESTIONS), max_size=len(QUESTIONS)),
  st.permutations(range(len(QUESTIONS))),
)
@hypothesis.settings(max_examples=30, deadline=None)
def test_order_and_names_change_nothing(ways, order):
  assert judge([named(n, ways[n]) for n in order])[0] == judge(entries())[0]


def test_one_name_of_two_images_is_ambiguous():
  twins = [
    dataclasses.replace(question, file_name=f"{folder}/0.jpg")
    for question, folder in zip(QUESTIONS[2:4], "ab", strict=True)
  ]
  given = [{"image": "0.jpg", "sentence": "cup", "mask": runs(PREDICTED[2])}]
  found = predictions.parse(json.dumps(given).encode(), "x.json")
  with pytest.raises(
    InputError, match=r"^x\.json, entry 1: .*0\.jpg matches both a/0\.jpg and b/0\.jpg"
  ):
    matching.match(found, twins, "x.json")
  found = predictions.parse(json.dumps([given[0] | {"image": "y/b/0.jpg"}]).encode(), "x.json")
  with pytest.raises(InputError, match=r"expression 'cup'; there it is 'dog'"):
    matching.match(found, twins, "x.json")


def test_sent_ids_count_in_their_order_if_all_are_there():
  given = [named(n, "sent_id") for n in range(len(QUESTIONS))]
  assert judge(given[::-1])[0] == judge(entries())[0]
  with pytest.raises(InputError, match=r"ref -3 has 3 expressions, but the file 2 sent_ids"):
    judge(given[1:], allow_missing=True)


@hypothesis.given(st.permutations(range(len(QUESTIONS))), st.sampled_from([(0,), (1,), (0, 1)]))
@hypothesis.settings(max_examples=20, deadline=None)
def test_flipped_and_exchanged_masks_get_the_numbers_of_those_pixels(order, axes):
  flipped = [np.flip(mask, axes) for mask in PREDICTED]
  check(judge([entry(n, segmentation=runs(flipped[n])) for n in order])[0], flipped)


@hypothesis.given(
  st.integers(0, len(QUESTIONS) - 1), st.sampled_from(["turn", "double", "halve", "crop", "pad"])
)
@hypothesis.settings(max_examples=30, deadline=None)
def test_a_mask_of_another_size_is_an_error_with_both_sizes(n, change):
  mask = PREDICTED[n]
  other = {
    "turn": np.rot90(mask),
    "double": mask.repeat(2, 0).repeat(2, 1),
    "halve": mask[::2, ::2],
    "crop": mask[:-1],
    "pad": np.pad(mask, 1),
  }[change]
  given = entries()
  given[n] = entry(n, segmentation=runs(other))
  sizes = [rf"\[{height}, {width}\]" for height, width in (other.shape, mask.shape)]
  for protocol in protocols.PROTOCOLS:
    with pytest.raises(InputError, match=f"entry {n + 1}: .*{sizes[0]}.*{sizes[1]}") as caught:
      judge(given, protocol)
    assert ("rotated" in str(caught.value)) == (change == "turn")


def test_missing_predictions_are_counted_or_count_as_empty_masks():
  with pytest.raises(
    InputError,
    match=r"masks\.json: 2 of 6 expressions have no prediction: pets/val, ref -3, expression 1 "
    r"\('Red  cup'\); pets/val, ref 4, expression 0 .*--allow_missing",
  ):
    judge([entry(n) for n in (0, 2, 4, 5)])
  rows, lines = judge([entry(n) for n in (0, 2, 4, 5)], allow_missing=True)
  empty = [np.zeros_like(mask) if n in (1, 3) else mask for n, mask in enumerate(PREDICTED)]
  check(rows, empty)
  assert len(lines) == 1 and "2 of 6 expressions" in lines[0] and "empty masks" in lines[0]


def test_a_sentence_asked_twice_of_an_image_has_one_answer():
  double = [named(0, "image"), named(0, "image") | {"line": 8}]
  rest = [named(n, "image") for n in range(1, len(QUESTIONS))]
  assert judge(double + rest)[0] == judge(entries())[0]
  double[1]["mask"] = runs(~PREDICTED[0])
  with pytest.raises(InputError, match=r"entry 2: a second prediction for pets/val, ref -3, exp"):
    judge(double + rest)


def without(key: str, **changes: Any) -> dict[str, Any]:
  return {k: v for k, v in (entry(0) | changes).items() if k != key}


@pytest.mark.parametrize(
  ("first", "message"),
  [
    (entry(1), r"entry 2: a second prediction for pets/val, ref -3, expression 1, after .*entry 1"),
    (
      entry(0, ref_id=99),
      r"masks\.json: 1 of 6 predictions are not for pets/val; the first: .*entry 1: ref 99",
    ),
    (entry(0, expression_index=3), r"expression_index is 3, but ref -3 has 3 expressions"),
    (entry(0, expression_index=-1), r"expression_index is -1"),
    (entry(0, ref_id=1.5), r"entry 1: ref_id is 1\.5, which is not a whole number"),
    (entry(0, ref_id=True), r"ref_id is True"),
    (entry(0, expression_index="first"), r"expression_index is 'first'"),
    (entry(0, sentence="dog"), r"entry 1: expression 'dog'; there it is 'the left cup'"),
    (without("expression_index"), r"ref -3 has 3 expressions; add expression_index"),
    (without("ref_id"), r"entry 1: names no expression; write ref_id and expression_index"),
    (without("ref_id", sentence="dog"), r"entry 1: has neither ref_id nor one of image, file_name"),
    (entry(0, sentence=5), r"entry 1: expression is 5|entry 1: sentence is 5, which is not text"),
    (entry(0, image="1.jpg"), r"ref -3 is of image photos/0\.jpg, but .* for photos/1\.jpg"),
    (entry(0, image="9.jpg"), r"not for pets/val; .*no image named 9\.jpg"),
    (without("ref_id", image_id=7, sentence="cup"), r"not for pets/val; .*image 7"),
    (without("segmentation"), r"entry 1: has none of mask, segmentation, rle; write the mask as"),
    (entry(0, rle=runs(PREDICTED[0])), r"entry 1: has segmentation and rle"),
    (
      entry(0, segmentation=np.random.default_rng(0).random((20, 30)).tolist()),
      r"entry 1: segmentation is a list of rows of numbers; threshold probabilities",
    ),
    (entry(0, segmentation=TARGETS[0].astype(int).tolist()), r"a list of rows of numbers"),
    (entry(0, segmentation="masks/0.png"), r"entry 1: segmentation: .*got str"),
    (entry(0, segmentation={"size": [20, 30]}), r"entry 1: segmentation: .*counts is missing"),
    (entry(0, no_target_probability=0.2), r"1 of 6 predictions have a no_target_probability"),
    (entry(0, no_target_probability=2), r"no_target_probability is 2; it must be between"),
    ([1], r"entry 1: not a JSON object"),
  ],
)  # fmt: skip
def test_what_is_wrong_with_a_prediction_is_named_with_its_place(first, message):
  with pytest.raises(InputError, match=message) as caught:
    judge([first, *entries()[1:]])
  assert "\n" not in str(caught.value)


def test_no_mask_and_parts_left_out_are_said():
  polygons = [[2, 3, 12, 3, 12, 13, 2, 13], [1, 1, 5, 5], [25, 15, 32, 15, 32, 18, 25, 18]]
  given = [entry(0, segmentation=polygons), entry(1, segmentation=[]), *entries()[2:]]
  rows, lines = judge(given)
  expected = np.zeros((20, 30), bool)
  expected[3:13, 2:12] = expected[15:18, 25:] = True
  check(rows, [expected, np.zeros((20, 30), bool), *PREDICTED[2:]])
  assert sorted(lines) == [
    "masks.json: 1 mask: no mask given, counted as an empty one",
    "masks.json: 1 mask: part with fewer than three points left out",
    "masks.json: 1 mask: polygon beyond the border clipped",
  ]


def test_a_predicted_absence_empties_the_mask_and_keeps_its_union():
  given = [entry(n, no_target_probability=0.9 if n == 2 else 0.5) for n in range(len(QUESTIONS))]
  rows, _ = judge(given)
  check(rows, [np.zeros_like(mask) if n == 2 else mask for n, mask in enumerate(PREDICTED)])
  assert rows[2]["raw_union"] == (PREDICTED[2] | TARGETS[2]).sum()
  rows, _ = judge(given[1:], allow_missing=True)
  assert rows[0]["no_target_probability"] == 1 and rows[0]["raw_union"] == TARGETS[0].sum()
  assert rows[2]["raw_union"] == (PREDICTED[2] | TARGETS[2]).sum()


# Files.


def read(path: pathlib.Path) -> list[dict[str, Any]]:
  encoded = [records.encode_target(target) for target in TARGETS]
  found = predictions.read(str(path))
  return given_masks.evaluate(found, QUESTIONS, encoded, protocols.ORIGINAL, str(path))[0]


def test_lists_lines_and_wrapped_lists_in_any_encoding_are_the_same(tmp_path):
  lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in entries())
  files = {
    "list.json": json.dumps(entries()).encode(),
    "pretty.json": json.dumps(entries(), indent=2).encode(),
    "wrapped.json": json.dumps({"model": "x", "predictions": entries()}).encode(),
    "coco.json": json.dumps({"images": [], "annotations": entries()}, indent=1).encode(),
    "lines.jsonl": lines.encode(),
    "windows.jsonl": b"\xef\xbb\xbf" + lines.replace("\n", "\r\n").encode(),
    "utf16.jsonl": lines.encode("utf-16"),
    "lines.jsonl.gz": gzip.compress(lines.encode()),
  }
  for name, data in files.items():
    (tmp_path / name).write_bytes(data)
    check(read(tmp_path / name), PREDICTED)


@pytest.mark.parametrize(
  ("data", "message"),
  [
    (b"", r"x\.json: invalid JSON .*; write a JSON list, or one object per line"),
    (b"[]", r"x\.json: has no predictions"),
    (b"3", r"x\.json: a int; expected a list of predictions"),
    (b"\x80\x04K\x00.", r"x\.json: "),
    (b'{"a": 1}\n{"a": ', r"x\.json, line 2: invalid JSON"),
    (b"[[", r"x\.json: invalid JSON"),
  ],
)
def test_files_that_are_something_else_are_named(tmp_path, data, message):
  (tmp_path / "x.json").write_bytes(data)
  with pytest.raises(InputError, match=message):
    read(tmp_path / "x.json")


def write_pngs(folder: pathlib.Path) -> pathlib.Path:
  folder.mkdir()
  for n, (question, mask) in enumerate(zip(QUESTIONS, PREDICTED, strict=True)):
    image = Image.fromarray(mask.astype(np.uint8) * (255 if n % 2 else 1))
    if n == 0:
      image = Image.fromarray(mask)  # 1 bit
    if n == 2:
      image = image.convert("P")
    image.save(folder / f"{question.ref_id}_{question.expression_index}.png")
  return folder


def test_a_folder_of_pngs_has_a_mask_per_ref_and_expression(tmp_path, capsys):
  folder = write_pngs(tmp_path / "masks")
  (folder / "notes.txt").write_text("mine")
  check(read(folder), PREDICTED)
  assert f"{folder}: 1 file left out, not called REFID_INDEX.png: notes.txt" in (
    capsys.readouterr().out
  )


def test_the_folder_of_predict_is_its_rows(tmp_path, capsys):
  rows = [named(n, "image") for n in range(len(QUESTIONS))]
  (tmp_path / "predictions.jsonl").write_text("\n".join(map(json.dumps, rows)))
  Image.new("L", (3, 3)).save(tmp_path / "0-1.png")
  check(read(tmp_path), PREDICTED)
  assert "reading predictions.jsonl" in capsys.readouterr().out


def grey(mask: np.ndarray) -> Image.Image:
  return Image.fromarray(
    (mask * np.linspace(1, 200, mask.size).reshape(mask.shape)).astype(np.uint8)
  )


@pytest.mark.parametrize(
  ("image", "message"),
  [
    (grey(PREDICTED[0]), r"-3_0\.png: has \d+ values from 0 to \d+; a mask has 0 and 1, or"),
    (Image.fromarray(PREDICTED[0] * np.uint8(128)), r"has 2 values from 0 to 128"),
    (Image.new("RGB", (30, 20)), r"has colours or transparency"),
    (Image.new("LA", (30, 20)), r"has colours or transparency"),
    (Image.new("L", (20, 30)), r"is 20 x 30, but the image is 30 x 20; was it turned"),
    (Image.new("L", (60, 40)), r"is 60 x 40, but the image is 30 x 20$"),
  ],
)  # fmt: skip
def test_pngs_that_are_no_masks_are_named(tmp_path, image, message):
  folder = write_pngs(tmp_path / "masks")
  image.save(folder / "-3_0.png")
  with pytest.raises(InputError, match=message):
    read(folder)


def test_pngs_that_are_something_else_or_elsewhere_are_refused(tmp_path):
  folder = write_pngs(tmp_path / "masks")
  outside = tmp_path / "4_0.png"
  (folder / "4_0.png").rename(outside)
  (folder / "4_0.png").symlink_to(outside)
  with pytest.raises(InputError, match=r"4_0\.png.* leaves the folder"):
    read(folder)
  (folder / "4_0.png").unlink()
  Image.open(outside).convert("RGB").save(folder / "4_0.png", "JPEG")
  with pytest.raises(InputError, match=r"4_0\.png: it is JPEG; write masks as PNG"):
    read(folder)
  (folder / "4_0.png").write_bytes(outside.read_bytes()[:60])
  with pytest.raises(InputError, match=r"4_0\.png: cannot be read"):
    read(folder)
  (folder / "4_0.png").rename(folder / "dog.png")
  with pytest.raises(InputError, match=r"called REFID_INDEX\.png, .*but dog\.png is called other"):
    read(folder)
  with pytest.raises(InputError, match=r"No such file"):
    read(tmp_path / "nowhere.json")


def test_no_path_in_a_file_is_opened(tmp_path):
  secret = tmp_path / "-3_0.png"
  Image.fromarray(PREDICTED[0]).save(secret)
  for key in ("png", "mask", "segmentation"):
    given = [without("segmentation", **{key: str(secret)}), *entries()[1:]]
    with pytest.raises(InputError, match=r"entry 1: (mask|segmentation|has none)"):
      judge(given)
