r"""Measures the cost of boundaries in an evaluation:

  python -m benchmarks.boundary --checkpoint runs/demo --data_dir data --data shapes/val
  python -m benchmarks.boundary --checkpoint runs/demo --data_dir data --data shapes/val \
      --sentences 128 --photo 480x640

Runs the part of an evaluation on the device, including the model, with and without boundaries on
the same batches. They take turns (A B A B), and the figures are medians over the turns, of wall
time and of CPU time of all cores, which other load disturbs less. --photo sets the size of every
image, and its target is stretched to it. Reading the records is left out, so the fraction of a
whole evaluation is smaller.
"""

import argparse
import dataclasses
import statistics
import time
from collections.abc import Iterator

import jax
import numpy as np

from benchmarks import paired
from input_pipeline.common.errors import InputError, run_command
from input_pipeline.preprocess import nearest_indices
from mail_jax.evaluate import runner
from mail_jax.evaluate.protocols import ORIGINAL
from mail_jax.evaluate.segmentation import make_measure
from mail_jax.export import load
from mail_jax.models.build import HostBatch

_CANVAS = 64  # the sides of a canvas are multiples of it, as the loader makes them


def stretch(batch: HostBatch, height: int, width: int) -> HostBatch:
  """Sets the size of every image of a batch and stretches its target."""
  sides = [-(-side // _CANVAS) * _CANVAS for side in (height, width)]
  target = np.zeros((len(batch["original_target"]), *sides), bool)
  for row, old, size in zip(target, batch["original_target"], batch["original_size"], strict=True):
    rows, cols = (
      nearest_indices(int(n), side) for n, side in zip(size, (height, width), strict=True)
    )
    row[:height, :width] = old[np.ix_(rows, cols)]
  size = np.full_like(batch["original_size"], (height, width))
  return batch | {"original_target": target, "original_size": size}


def _batches(args: argparse.Namespace, model: load.LoadedModel) -> Iterator[HostBatch]:
  for batch in runner.open_batches(model, args.data_dir, args.data, args.sentences):
    arrays = {name: value for name, value in batch.items() if name != "meta"}
    yield stretch(arrays, *args.photo) if args.photo else arrays


def _size(text: str) -> tuple[int, int]:
  try:
    height, width = (int(side) for side in text.split("x"))
  except ValueError as error:
    raise InputError(f"--photo {text}: write HEIGHTxWIDTH, such as 480x640") from error
  return height, width


def main(argv: list[str] | None = None) -> None:
  """Runs the command."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  load.add_arguments(parser)
  parser.add_argument("--data_dir", required=True)
  parser.add_argument("--data", required=True, metavar="NAME/SPLIT")
  parser.add_argument("--sentences", type=int, default=512)
  parser.add_argument("--photo", type=_size, metavar="HEIGHTxWIDTH")
  parser.add_argument("--rounds", type=int, default=9)
  parser.add_argument("--json", metavar="FILE")
  args = parser.parse_args(argv)
  model = load.load(args.checkpoint, args.step)
  held = [jax.device_put(model.complete(batch)) for batch in _batches(args, model)]
  variables = jax.device_put(model.on_one_device())
  protocols = {
    "without boundaries": dataclasses.replace(ORIGINAL, boundary=False),
    "with boundaries": ORIGINAL,
  }
  measures = {
    name: jax.jit(make_measure(model.model, protocol, model.apply))
    for name, protocol in protocols.items()
  }

  cores: dict[str, list[float]] = {name: [] for name in measures}

  def run(name: str) -> float:
    began = time.process_time()
    seconds = paired.seconds(
      lambda: jax.block_until_ready([measures[name](variables, batch) for batch in held])
    )
    cores[name].append(time.process_time() - began)
    return seconds

  compiled = {name: run(name) for name in measures}
  times = paired.interleave({name: lambda name=name: run(name) for name in measures}, args.rounds)
  first = next(iter(measures))
  count = sum(int((batch["index"] >= 0).sum()) for batch in held)
  rows = [
    {
      "what": name,
      "ms a sentence": 1000 * statistics.median(seconds) / count,
      "of that without": f"{paired.ratio(seconds, times[first]):.1%}",
      "core ms a sentence": 1000 * statistics.median(cores[name][1:]) / count,
      "of those without": f"{paired.ratio(cores[name][1:], cores[first][1:]):.1%}",
      "first pass, s": compiled[name],
    }
    for name, seconds in times.items()
  ]
  print(f"{paired.machine()}\n\n{paired.table(rows)}")
  paired.write_json(args.json, {"sentences": count, "rows": rows})


if __name__ == "__main__":
  run_command(main)
