"""How long a step of training takes, beside the same network in PyTorch:

  python -m benchmarks.train_step --batch_size 4 --config.image_size=384 --config.model.dtype=float32

Ours and each peer start from the same weights and get the same batch; their losses must agree before anything is timed.
Then they take turns (A B A B), and the figures are medians over the turns. A step is all of it: losses, gradients,
clipping, AdamW and the moving average. `--peers` are the twin of `benchmarks/torch_twin.py`, eager, compiled, and on
CPUs with its linear layers through oneDNN. Whoever has a GPU gets it.
"""

import argparse
import statistics
import sys
import tempfile
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from benchmarks import contestants, paired
from input_pipeline.errors import run_command
from mail_jax import chips, flops, sharding
from mail_jax.program import build_program

# Relative difference of the losses of two programs: float32, and with bf16 inside.
TOLERANCE = {"float32": 1e-4, "bfloat16": 2e-2}


def compare(
  args: Any, config: ConfigDict, batch_size: int, argv: list[str]
) -> list[dict[str, Any]]:
  """Measures every contestant at a batch size; rows of the table."""
  names = [contestants.OURS, *args.peers]
  with tempfile.TemporaryDirectory() as folder:
    started: list[contestants.Contestant] = []
    try:
      for name in names:
        started.append(
          contestants.Contestant("benchmarks.train_step", name, folder, batch_size, argv)
        )
        loss = started[-1].ask("start")
        first = loss if name == contestants.OURS else first
        if abs(loss - first) > TOLERANCE[config.model.dtype] * abs(first):
          raise RuntimeError(f"{name} has the loss {loss}, ours is {first}: not the same network")
      runs = {c.name: lambda c=c: c.ask("run", repeats=args.repeats) for c in started}
      times = paired.interleave(runs, args.rounds)
      memory = {c.name: c.ask("memory") for c in started}
    finally:
      for contestant in started:
        contestant.close()
  products = flops.train_step_flops(config)
  peak = chips.peak_flops_of(jax.devices()[0].device_kind, config.model.dtype)
  rows = []
  for name in names:
    seconds = statistics.median(times[name])
    rows.append({
      "batch": batch_size,
      "program": name,
      "ms a step": seconds * 1e3,
      "samples/s": batch_size / seconds,
      "TFLOP/s": products / seconds / 1e12,
      "MFU": f"{products / seconds / peak:.1%}" if peak else None,
      "peak GB": memory[name] / 1e9,
      "ours is so many times as fast": 1 / paired.ratio(times[contestants.OURS], times[name]),
    })  # fmt: skip
  return rows


def serve_ours(config: ConfigDict, folder: str) -> None:
  """Our step, as `mail_jax.train` runs it."""
  mesh = sharding.make_mesh(devices=jax.devices()[:1])
  program = build_program(config, contestants.VOCAB, mesh)
  batch = sharding.global_batch(mesh, contestants.make_batch(config, config.batch_size))
  memory, lr = contestants.jax_memory(), np.float32(config.optimizer.lr)
  held: dict[str, Any] = {}

  def step() -> dict[str, Any]:
    held["state"], metrics = program.step(held["state"], batch, lr)
    return metrics

  def start() -> float:
    held["state"] = program.create()
    contestants.write_variables(folder, jax.device_get(held["state"].variables))
    loss = float(step()["loss"])
    jax.block_until_ready(step())
    memory.reset()
    return loss

  contestants.serve({
    "start": start,
    "run": lambda repeats: contestants.time_repeats(step, lambda m: jax.block_until_ready((m, held["state"])), repeats),
    "memory": memory.bytes,
  })  # fmt: skip


def serve_peer(name: str, config: ConfigDict, folder: str) -> None:
  """The twin's step."""
  import torch

  from benchmarks import torch_twin

  on_gpu = torch.cuda.is_available()
  device = "cuda" if on_gpu else "cpu"
  arrays = contestants.make_batch(config, config.batch_size)
  batch = torch_twin.to_torch(arrays, config.max_instances, device)
  memory = contestants.PeakMemory(torch.cuda.max_memory_allocated if on_gpu else None)
  twin = torch_twin.build(
    config, contestants.VOCAB, contestants.read_variables(folder), name, device
  )
  step = torch_twin.Training(twin, config, compiled=name == "compiled")

  def start() -> float:
    loss = step(batch).item()
    step(batch).item()
    memory.reset()
    return loss

  contestants.serve({
    "start": start,
    "run": lambda repeats: contestants.time_repeats(lambda: step(batch), lambda loss: loss.item(), repeats),
    "memory": memory.bytes,
  })  # fmt: skip


def main(argv: list[str] | None = None) -> None:
  """The command."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  contestants.add_arguments(parser)
  args, config = contestants.parse(parser, argv)
  if args.contestant:
    with config.unlocked():
      config.batch_size = args.batch_size[0]
    if args.contestant == contestants.OURS:
      return serve_ours(config, args.folder)
    return serve_peer(args.contestant, config, args.folder)
  rows = []
  for batch_size in args.batch_size:
    with config.unlocked():
      config.batch_size = batch_size
    rows += compare(args, config, batch_size, sys.argv[1:] if argv is None else argv)
  print(f"{paired.machine()}\n\n{paired.table(rows)}")
  paired.write_json(args.json, {"config": config.to_dict(), "rows": rows})


if __name__ == "__main__":
  run_command(main)
