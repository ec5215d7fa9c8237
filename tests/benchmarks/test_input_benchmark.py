"""`benchmarks.input` on a few generated scenes."""

import argparse
import importlib.util
import json

import mixed_photos
import numpy as np
import pytest

from benchmarks import input as benchmark

PEER_NEEDS = ("torch", "cv2", "transformers")


@pytest.fixture(scope="module")
def vocab(tmp_path_factory):
  words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz"]
  words += [f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz"]
  path = tmp_path_factory.mktemp("words") / "vocab.txt"
  path.write_text("\n".join(words) + "\n")
  return str(path)


def _command(data_dir, vocab, *more):
  return [
    *("--data_dir", data_dir, "--dataset", "shapes", "--vocab", vocab, "--image_size", "64"),
    *("--batch_size", "2", "--batches", "2", "--rounds", "2", "--compare", "4", *more),
  ]


def test_without_torch_only_ours_is_measured(shapes_data, vocab, tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  benchmark.main(_command(shapes_data, vocab, "--json", str(tmp_path / "r.json")))
  assert "only ours is measured: the peer needs torch, cv2, transformers" in capsys.readouterr().out
  record = json.loads((tmp_path / "r.json").read_text())
  assert len(record["rows"]) == 4 and benchmark.PEER not in record["rates"]
  assert all(row["times the peer"] is None for row in record["rows"])
  assert all(len(values) == 2 and min(values) > 0 for values in record["rates"].values())
  assert shapes_data not in json.dumps(record)


def test_a_mixture_is_compared_with_the_single_data_set(vocab, tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  data_dir, out = mixed_photos.write(tmp_path / "photos"), tmp_path / "r.json"
  more = ["--dataset", "one", "--mixture", "one,two,three", "--json", str(out), "--no_cache"]
  benchmark.main(_command(data_dir, vocab, *more))
  assert "resident memory after each round" in capsys.readouterr().out
  record = json.loads(out.read_text())
  times = {row["loader"]: row["times the single data set"] for row in record["rows"]}
  assert len(times) == 6 and len(record["resident_mb"]) == 2
  for name, value in times.items():
    assert (value is None) == (not name.endswith(benchmark.MIXED))
    if value is not None:
      mixed, single = record["rates"][name], record["rates"][name.removesuffix(benchmark.MIXED)]
      assert value == pytest.approx(np.median(np.divide(mixed, single)))


def test_the_peer_gives_what_ours_does(shapes_data, vocab, tmp_path):
  for name in PEER_NEEDS:
    pytest.importorskip(name)
  args = argparse.Namespace(data_dir=shapes_data, dataset="shapes", vocab=vocab, annotations=None)
  args.__dict__.update(image_size=64, max_instances=16, max_tokens=12, compare=6)
  pairs = list(benchmark.stored(args, tmp_path))
  from benchmarks import torch_input

  samples = torch_input.Samples([row for _, row in pairs], 64, 16)
  apart = [benchmark._compare(pairs[n][0], samples, n, args) for n in range(6)]
  assert 0 < np.mean(apart) < benchmark.PHOTO_TOLERANCE
  with pytest.raises(AssertionError, match="differ"):
    benchmark._compare(pairs[0][0], samples, 1, args)  # the next ref of that image


def test_cpu_time_counts_what_is_computed():
  before = benchmark.cpu_seconds()
  rate, milliseconds = benchmark.measure(
    (np.linalg.norm(np.ones(1 << 18)) for _ in range(100)), count=20, batch_size=2
  )
  assert benchmark.cpu_seconds() >= before
  assert rate > 0 and milliseconds >= 0
