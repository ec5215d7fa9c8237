"""Evaluation gives equal rows for any number of processes and any batch size."""

import itertools
import json
import pathlib
from typing import Any

import evaluated_by_several
import numpy as np
import pytest
import several_processes
import tiny_run

from input_pipeline.prepare import command as prepare
from input_pipeline.tf import builder
from mail_jax.evaluate import runner
from mail_jax.evaluate.segmentation import SegmentationEvaluator
from mail_jax.export import load
from mail_jax.train import command as train

SCRIPT = str(tiny_run.CHECKOUT / "tests" / "support" / "evaluated_by_several.py")
# Batch sizes for each number of processes and of devices that each has.
Sizes = dict[tuple[int, int], list[int]]


class Evaluated:
  """Results of a number of processes, by batch size and split."""

  def __init__(self, folder: pathlib.Path, count: int):
    self.rows = [dict(np.load(folder / f"{index}.npz")) for index in range(count)]
    self.lines = [(folder / f"{index}.jsonl").read_text() for index in range(count)]
    self._read = [json.loads((folder / f"{index}.json").read_text()) for index in range(count)]

  def read(self, key: str) -> list[list[list[int]]]:
    """Returns the expressions (image, ref, number) that each process read."""
    return [share[key] for share in self._read]


def evaluate(
  folder: pathlib.Path,
  run: pathlib.Path,
  data_dir: str,
  names: list[str],
  sizes: Sizes,
  limit: int | None,
) -> dict[tuple[int, int], Evaluated]:
  """Evaluates with numbers of processes, devices and batch sizes, all at the same time."""
  started, found = {}, {}
  for (count, devices), batch_sizes in sizes.items():
    out = folder / f"{count}x{devices}"
    out.mkdir()
    options = ["--checkpoint", str(run), "--data_dir", data_dir, "--data", *names]
    options += ["--batch_sizes", *map(str, batch_sizes), "--out", str(out)]
    options += ["--limit", str(limit)] if limit else []
    environment = several_processes.devices(devices)
    started[out, count] = several_processes.start(count, SCRIPT, *options, environment=environment)
    found[count, devices] = out, count
  for processes in started.values():
    assert {process.code for process in processes.wait(3600)} == {0}
  return {key: Evaluated(*where) for key, where in found.items()}


def expressions(data_dir: str, name: str, limit: int | None = None) -> list[list[int]]:
  """Returns every expression of a split, in the order of the records, read by TFDS."""
  dataset, _, split = name.partition("/")
  records = builder.open_dataset(data_dir, dataset).as_dataset(split=split)
  return [
    [int(record["image_id"]), int(ref_id), index]
    for record in records
    for ref_id, texts in zip(record["refs"]["ref_id"], record["refs"]["sentences"], strict=True)
    for index in range(len(texts))
  ][:limit]


def check_every_expression_came_once(
  actual: dict[tuple[int, int], Evaluated], sizes: Sizes, name: str, expected: list[list[int]]
) -> None:
  for (count, devices), evaluated in actual.items():
    for size in sizes[count, devices]:
      shares = evaluated.read(f"{size}/{name}")
      assert list(itertools.chain(*shares)) == expected
      assert len(shares) == count and all(shares), "every process has a share"
      for rows in evaluated.rows:
        assert len(rows[f"{size}/{name}/union"]) == len(expected)


def check_all_processes_found_the_same(found: dict[tuple[int, int], Evaluated]) -> None:
  for evaluated in found.values():
    for other in evaluated.rows[1:]:
      assert other.keys() == evaluated.rows[0].keys()
      for name, values in evaluated.rows[0].items():
        np.testing.assert_array_equal(other[name], values, err_msg=name)


def check_the_same_pixels_are_counted(
  found: dict[tuple[int, int], Evaluated], sizes: Sizes, name: str
) -> str:
  """Compares every integer with that of one process and the first batch size."""
  first = _rows(found[1, 1], sizes[1, 1][0], name)
  different = compared = close = 0
  for places, size in [(key, size) for key in sizes for size in sizes[key]]:
    rows = _rows(found[places], size, name)
    close = max(close, int(np.maximum(first["close"], rows["close"]).sum()))
    different += count_differences(rows, first, (name, places, size))
    compared += 4 * len(rows["union"])
  union, total = int(first["union"].sum()), len(first["union"])
  assert len(set(first["union"].tolist())) > total / 4, "the expressions can hardly be told apart"
  assert (first["boundary_union"] < first["union"]).any(), "all masks are outline alone"
  assert close < union / 100, "so many pixels at the threshold would hide anything"
  return (
    f"{name}: {total} expressions, sum I {first['intersection'].sum()}, sum U {union}; {close} "
    f"pixels within 1e-4 of the threshold; {different} of {compared} integers differ"
  )


def check_rows_are_gathered(
  actual: dict[tuple[int, int], Evaluated], name: str, expected: list[list[int]]
) -> None:
  """Checks that every process has equal rows of all expressions, in the order of the data."""
  keys = ("image_id", "ref_id", "expression_index")
  texts = set()
  for evaluated in actual.values():
    assert len(set(evaluated.lines)) == 1
    rows = [json.loads(line) for line in evaluated.lines[0].splitlines()]
    assert [[row[key] for key in keys] for row in rows] == expected
    assert [row["index"] for row in rows] == list(range(len(expected)))
    assert {row["data"] for row in rows} == {name}
    texts.add(tuple((row["expression"], row["area"], row["height"], row["cut"]) for row in rows))
  assert len(texts) == 1


def count_differences(rows: dict[str, Any], first: dict[str, Any], where: Any) -> int:
  """Counts the integers that differ; none by more than the pixels near the threshold."""
  tolerated, different = np.maximum(first["close"], rows["close"]), 0
  # An ambiguous pixel is in at most as many boundaries as there are pixels within their distance.
  diagonal = np.hypot(rows["height"], rows["width"])
  around = (2 * np.maximum(1, np.round(0.02 * diagonal)) + 1) ** 2
  for column in ("intersection", "union", "boundary_intersection", "boundary_union"):
    error = np.abs(rows[column] - first[column])
    reach = around if column.startswith("boundary") else 1
    assert (error <= reach * tolerated).all(), (where, column)
    different += int((error > 0).sum())
  for column in ("height", "width", "area", "cut"):
    np.testing.assert_array_equal(rows[column], first[column])
  return different


def _rows(evaluated: Evaluated, size: int, name: str) -> dict[str, np.ndarray]:
  prefix = f"{size}/{name}/"
  rows = evaluated.rows[0]
  return {key.removeprefix(prefix): rows[key] for key in rows if key.startswith(prefix)}


def test_the_numbers_of_processes_and_devices_and_the_batch_size_change_nothing(
  finished_run, shapes_data, tmp_path
):
  name, sizes, limit = "shapes/val", {(1, 1): [32], (3, 2): [7, 1]}, 40
  expected = expressions(shapes_data, name, limit)
  assert len(expected) == limit
  actual = evaluate(tmp_path, finished_run, shapes_data, [name], sizes, limit)
  check_every_expression_came_once(actual, sizes, name, expected)
  check_all_processes_found_the_same(actual)
  check_rows_are_gathered(actual, name, expected)
  print(check_the_same_pixels_are_counted(actual, sizes, name))


def test_the_order_of_expressions_changes_no_integer(finished_run, shapes_data):
  model = load.load(str(finished_run), "last")
  measure = evaluated_by_several.make_measure(model)
  batches = list(runner.open_batches(model, shapes_data, "shapes/val", 40, 8))
  assert len(batches) == 5
  fields = [{k: v for k, v in batch.items() if k != "meta"} for batch in batches]
  whole = {name: np.concatenate([batch[name] for batch in fields]) for name in fields[0]}
  order = np.random.default_rng(0).permutation(40)
  shuffled = [
    {name: values[rows] for name, values in whole.items()} for rows in order.reshape(4, 10)
  ]
  actual = []
  for these in (fields, shuffled):
    evaluator = SegmentationEvaluator(measure, lambda these=these: these)
    dict(evaluator.run(model.variables))
    actual.append(evaluator.rows)
  count_differences(*actual, "shuffled")
  np.testing.assert_allclose(*(rows["oracle_iou"] for rows in actual), rtol=0)
  assert len(set(actual[0]["union"].tolist())) > 10, "the expressions can hardly be told apart"


@pytest.mark.slow
def test_on_real_images_processes_devices_and_batch_size_change_nothing(realdata, tmp_path):
  annotations = realdata / "coco/annotations/instances_train2014.json"
  data_dir, run = str(tmp_path / "data"), tmp_path / "run"
  prepare.main(
    [
      *("--dataset", "refcoco_unc", "--refer_root", str(realdata / "refer")),
      *("--images", str(realdata / "coco/train2014"), "--instances", f"coco:{annotations}"),
      *("--data_dir", data_dir),
    ]
  )
  overrides = {"dataset": "refcoco_unc", "steps": 60, "image_size": 96, "max_instances": 16}
  words = [f"--config.{key}={value}" for key, value in overrides.items()]
  train.main(tiny_run.arguments(data_dir, run, *words, "--config.eval_split="))
  names = [f"refcoco_unc/{split}" for split in ("train", "val", "testA", "testB")]
  sizes = {places: [32, 1, 7] for places in ((1, 1), (1, 4), (2, 2), (3, 1))}
  actual = evaluate(tmp_path, run, data_dir, names, sizes, None)
  check_all_processes_found_the_same(actual)
  check_rows_are_gathered(actual, names[-1], expressions(data_dir, names[-1]))
  for name in names:
    check_every_expression_came_once(actual, sizes, name, expressions(data_dir, name))
    print(check_the_same_pixels_are_counted(actual, sizes, name))
