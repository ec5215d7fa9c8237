"""Evaluation gives the same, sentence by sentence, for any number of processes and any batch size."""

import itertools
import json
import os
import pathlib

import numpy as np
import pytest
import several_processes
import tiny_run

from input_pipeline import builder, prepare
from mail_jax import train

SCRIPT = str(tiny_run.CHECKOUT / "tests" / "evaluated_by_several.py")
Sizes = dict[int, list[int]]  # batch sizes for each number of processes


class Evaluated:
  """What so many processes found, at each batch size, of each split."""

  def __init__(self, folder: pathlib.Path, count: int):
    self.rows = [dict(np.load(folder / f"{index}.npz")) for index in range(count)]
    self._read = [json.loads((folder / f"{index}.json").read_text()) for index in range(count)]

  def read(self, key: str) -> list[list[list[int]]]:
    """The sentences (image, ref, number) that each process read."""
    return [share[key] for share in self._read]


def evaluate(
  folder: pathlib.Path,
  run: pathlib.Path,
  data_dir: str,
  names: list[str],
  sizes: Sizes,
  limit: int | None,
) -> dict[int, Evaluated]:
  """Evaluates by so many processes, of one device each, at these batch sizes; all at the same time."""
  started = {}
  for count in sizes:
    (folder / str(count)).mkdir()
    options = ["--checkpoint", str(run), "--data_dir", data_dir, "--data", *names]
    options += ["--batch_sizes", *map(str, sizes[count]), "--out", str(folder / str(count))]
    options += ["--limit", str(limit)] if limit else []
    started[count] = several_processes.start(count, SCRIPT, *options)
  for processes in started.values():
    assert {process.code for process in processes.wait(3600)} == {0}
  return {count: Evaluated(folder / str(count), count) for count in sizes}


def sentences(data_dir: str, name: str, limit: int | None = None) -> list[list[int]]:
  """Every sentence of a split, in the order of the records, read by TFDS."""
  dataset, _, split = name.partition("/")
  records = builder.open_dataset(data_dir, dataset).as_dataset(split=split)
  return [
    [int(record["image_id"]), int(ref_id), index]
    for record in records
    for ref_id, texts in zip(record["refs"]["ref_id"], record["refs"]["sentences"], strict=True)
    for index in range(len(texts))
  ][:limit]


def check_every_sentence_came_once(
  found: dict[int, Evaluated], sizes: Sizes, name: str, expected: list[list[int]]
) -> None:
  for count, evaluated in found.items():
    for size in sizes[count]:
      shares = evaluated.read(f"{size}/{name}")
      assert list(itertools.chain(*shares)) == expected
      assert len(shares) == count and all(shares), "every process has a share"
      for rows in evaluated.rows:
        assert len(rows[f"{size}/{name}/union"]) == len(expected)


def check_all_processes_found_the_same(found: dict[int, Evaluated]) -> None:
  for evaluated in found.values():
    for other in evaluated.rows[1:]:
      assert other.keys() == evaluated.rows[0].keys()
      for name, values in evaluated.rows[0].items():
        np.testing.assert_array_equal(other[name], values, err_msg=name)


def check_the_same_pixels_are_counted(found: dict[int, Evaluated], sizes: Sizes, name: str) -> str:
  """Compares every integer with that of one process and the first batch size; returns the figures."""
  first = _rows(found, 1, sizes[1][0], name)
  different = compared = close = 0
  for count, size in [(n, size) for n in sizes for size in sizes[n]]:
    rows = _rows(found, count, size, name)
    tolerated = np.maximum(first["close"], rows["close"])
    close = max(close, int(tolerated.sum()))
    for column in ("intersection", "union"):
      error = np.abs(rows[column] - first[column])
      assert (error <= tolerated).all(), (name, count, size, column)
      different += int((error > 0).sum())
      compared += len(error)
  union, total = int(first["union"].sum()), len(first["union"])
  assert len(set(first["union"].tolist())) > total / 4, "the sentences can hardly be told apart"
  assert close < union / 100, "so many pixels at the threshold would hide anything"
  return (
    f"{name}: {total} sentences, sum I {first['intersection'].sum()}, sum U {union}; {close} pixels within 1e-4 of the "
    f"threshold; {different} of {compared} integers differ"
  )


def _rows(found: dict[int, Evaluated], count: int, size: int, name: str) -> dict[str, np.ndarray]:
  prefix = f"{size}/{name}/"
  rows = found[count].rows[0]
  return {key.removeprefix(prefix): rows[key] for key in rows if key.startswith(prefix)}


def test_any_number_of_processes_and_any_batch_size_find_the_same(
  finished_run, shapes_data, tmp_path, monkeypatch
):
  # Compilation is most of the time.
  monkeypatch.setenv("XLA_FLAGS", f"{os.environ['XLA_FLAGS']} --xla_cpu_use_fusion_emitters=false")
  name, sizes, limit = "shapes/val", {1: [32], 2: [7], 3: [1]}, 40
  expected = sentences(shapes_data, name, limit)
  assert len(expected) == limit
  found = evaluate(tmp_path, finished_run, shapes_data, [name], sizes, limit)
  check_every_sentence_came_once(found, sizes, name, expected)
  check_all_processes_found_the_same(found)
  print(check_the_same_pixels_are_counted(found, sizes, name))


@pytest.mark.slow
def test_on_real_photos_any_number_of_processes_and_any_batch_size_find_the_same(
  realdata, tmp_path
):
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
  sizes = {count: [32, 1, 7] for count in (1, 2, 3)}
  found = evaluate(tmp_path, run, data_dir, names, sizes, None)
  check_all_processes_found_the_same(found)
  for name in names:
    check_every_sentence_came_once(found, sizes, name, sentences(data_dir, name))
    print(check_the_same_pixels_are_counted(found, sizes, name))
