"""An evaluation takes as much memory for large photos as for COCO's, and counts the same."""

import json
import pathlib

import numpy as np
import own_process
import pytest
from PIL import Image

from input_pipeline.common.errors import InputError
from input_pipeline.prepare import command as prepare
from input_pipeline.tf import eval_rows
from mail_jax.evaluate import command, runner
from mail_jax.export import load


def prepare_photos(folder: pathlib.Path, sizes: list[tuple[int, int]], sentences: int) -> str:
  """Prepares photos of some sizes as the split val of `large`, with targets of a quarter each."""
  folder.mkdir(parents=True, exist_ok=True)
  lines = []
  for number, (height, width) in enumerate(sizes):
    small = np.random.default_rng(number).integers(0, 256, (height // 16, width // 16, 3), np.uint8)
    name = f"{number}.jpg"
    Image.fromarray(small).resize((width, height)).save(folder / name)
    x, y = 0.6 * width, 0.7 * height
    polygon = [0.1 * width, 0.1 * height, x, 0.1 * height, x, y, 0.1 * width, y]
    lines.append(
      {
        "image": name,
        "split": "val",
        "sentences": [f"the thing {n}" for n in range(sentences)],
        "target": {"polygons": [polygon]},
        "instances": [{"polygons": [polygon]}],
      }
    )
  (folder / "large.jsonl").write_text("\n".join(map(json.dumps, lines)))
  data = str(folder / "data")
  prepare.main(
    ["--dataset", f"jsonl:{folder / 'large.jsonl'}", "--data_dir", data, "--trained_on", "nothing"]
  )
  return data


def assert_same_counts(rows: list[dict], others: list[dict], apart: int) -> None:
  """Compares counts: the network rounds differently in a batch of another size.

  That may turn pixels whose probability is 0.5 up to rounding.
  """
  assert len(rows) == len(others)
  for row, other in zip(rows, others, strict=True):
    for name in ("intersection", "union", "boundary_intersection", "boundary_union"):
      assert abs(row[name] - other[name]) <= apart


def test_photos_in_smaller_batches_have_the_same_rows(finished_run, tmp_path, monkeypatch):
  sizes = [(96, 128), (160, 112), (320, 272), (96, 96), (128, 288)]
  data, model = prepare_photos(tmp_path, sizes, 3), load.load(str(finished_run))
  together = runner.evaluate_split(model, data, "large/val", 8)
  monkeypatch.setattr(eval_rows, "_COCO_SIDE", 128)
  eval_rows.buckets.cache_clear()
  shapes = [
    batch["original_target"].shape
    for batch in runner.open_batches(model, data, "large/val", batch_size=8)
  ]
  assert {rows for rows, _, _ in shapes} > {8} and len(set(shapes)) > 2
  assert_same_counts(runner.evaluate_split(model, data, "large/val", 8)[1], together[1], 1)
  assert len({row["union"] for row in together[1]}) >= len(sizes)
  eval_rows.buckets.cache_clear()


def test_a_photo_that_alone_is_too_large_is_told_beforehand(shapes_data, monkeypatch):
  side = 96
  needed = side * side * 21
  for free, told in ((None, False), (needed, False), (needed - 1, True)):
    monkeypatch.setattr(runner.memory, "available", lambda free=free: free)
    line = runner.warn_of_large_photos(shapes_data, "shapes/val")
    assert bool(line) == told
  assert f"a photo of {side} x {side} pixels takes about" in line


def test_an_evaluation_out_of_memory_is_one_line(finished_run, shapes_data, monkeypatch):
  def fail(*_):
    raise MemoryError

  monkeypatch.setattr(runner, "evaluate", fail)
  options = ["--checkpoint", str(finished_run), "--data_dir", shapes_data, "--data", "shapes/val"]
  message = r"out of memory; try, in this order: --batch_size 4 in place of 16.*; leave out photos"
  with pytest.raises(InputError, match=message):
    command.main(options)
  with pytest.raises(InputError, match=r"in this order: leave out photos.*\(shapes/val\); end"):
    command.main([*options, "--batch_size", "1"])


@pytest.mark.slow
@pytest.mark.parametrize(
  ("sizes", "sentences"), [([(3024, 4032), (4032, 3024)] * 4, 4), ([(6048, 8064)], 1)]
)
def test_photos_of_12_and_48_megapixels_take_less_than_2_gb(
  sizes, sentences, finished_run, tmp_path
):
  data = prepare_photos(tmp_path, sizes, sentences)
  rows = []
  for batch_size in ("64", "1"):
    out = tmp_path / f"{batch_size}.jsonl"
    code = """
import sys
import own_process
from mail_jax.evaluate import command
command.main(sys.argv[1:])
print(own_process.peak_kilobytes())
"""
    printed = own_process.run(
      code,
      *("--checkpoint", str(finished_run), "--data_dir", data, "--data", "large/val"),
      *("--batch_size", batch_size, "--per_expression", str(out)),
    )
    assert int(printed.splitlines()[-1]) < 2e9 / 1024
    rows.append([json.loads(line) for line in out.read_text().splitlines()])
  assert len(rows[0]) == len(sizes) * sentences
  assert_same_counts(*rows, apart=5)
