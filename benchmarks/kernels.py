r"""Measures the time of a training step by kind of kernel or by part of the model:

  python -m benchmarks.kernels --batch_size 32
  python -m benchmarks.kernels --batch_size 4 --by part --config.image_size=384 \
      --config.model.dtype=float32

Profiles a few steps with JAX's profiler and sums the kernels on the device. On CPUs several run at
once, so the sum can exceed the time of the step.
"""

import argparse
import collections
import pathlib
import re
import tempfile

import jax
import numpy as np

from benchmarks import contestants, paired
from input_pipeline.common.errors import run_command
from mail_jax.distributed import sharding
from mail_jax.plan import hlo, parts
from mail_jax.train.program import build_program

STEPS = 3
# The first pattern found in the name of a kernel decides; XLA names fusions after their content.
KINDS = (
  ("attention", r"flash|fmha|sdpa|mha_"),
  ("convolutions", r"conv(?!ert)|cudnn|wgrad|dgrad|fprop"),
  ("matrix products", r"gemm|cutlass|cublas|nvjet|xmma|dot|ynn"),
  ("copies and transpositions", r"copy|transpose|memcpy|memset"),
  ("reductions", r"reduce"),
  ("other fusions", r"fusion|loop|input|wrapped"),
)
# Parts of the encoder: its products, by the path of the operation, and what lies between them.
PRODUCTS = r"/(\w+_)?(qkv|out|mlp_in|mlp_out)/.*dot_general"


def kind_of(kernel: str) -> str:
  """Returns the kind of a kernel by its name."""
  return next((kind for kind, pattern in KINDS if re.search(pattern, kernel.lower())), "others")


def parts_of(program: str) -> dict[str, str]:
  """Returns the part that each kernel of a compiled program belongs to, by its name."""
  module = hlo.parse(program)
  find, found = parts.finder(module), {}
  for instruction, _ in module.walk(into_fusions=False):
    part = find(instruction)
    if part == "encoder":
      product = re.search(PRODUCTS, instruction.attributes)
      part += f": {'products of qkv, out and the MLP' if product else 'attention and the rest'}"
    found[instruction.name] = part
  return found


def kernels(folder: str) -> dict[str, tuple[float, int]]:
  """Sums seconds and calls of each kernel in the newest profile of a folder."""
  newest = sorted(pathlib.Path(folder).rglob("*.xplane.pb"))[-1]
  found: dict[str, tuple[float, int]] = collections.defaultdict(lambda: (0.0, 0))
  planes = list(jax.profiler.ProfileData.from_file(str(newest)).planes)
  on_device = [plane for plane in planes if re.match(r"/device:(GPU|TPU)", plane.name)]
  for plane in on_device or planes:
    for line in plane.lines:
      if on_device and not re.search(r"Stream|XLA Ops", line.name):
        continue
      for event in line.events:
        # On CPUs the host's own events are between those of the kernels, which are named as in the
        # program.
        if on_device or re.fullmatch(r"[a-z][a-z_\-]*(\.\d+)?", event.name):
          seconds, calls = found[event.name]
          found[event.name] = seconds + event.duration_ns / 1e9, calls + 1
  return found


def main(argv: list[str] | None = None) -> None:
  """Runs the command."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  contestants.add_arguments(parser)
  parser.add_argument("--by", choices=("kind", "part"), default="kind")
  args, config = contestants.parse(parser, argv)
  with config.unlocked():
    config.batch_size = args.batch_size[0]
  mesh = sharding.make_mesh(devices=jax.devices()[:1])
  program = build_program(config, contestants.VOCAB, mesh)
  batch = sharding.global_batch(mesh, contestants.make_batch(config, config.batch_size))
  state, lr = program.create(), np.float32(config.optimizer.lr)
  for _ in range(2):
    state, _ = jax.block_until_ready(program.step(state, batch, lr))
  part_of = parts_of(program.step.lower(state, batch, lr).compile().as_text())
  with tempfile.TemporaryDirectory() as folder:
    with jax.profiler.trace(folder):
      for _ in range(STEPS):
        state, _ = jax.block_until_ready(program.step(state, batch, lr))
    totals = kernels(folder)
  groups: dict[str, list[float]] = collections.defaultdict(lambda: [0.0, 0.0])
  for name, (seconds, calls) in totals.items():
    by_part = part_of.get(name, parts.UNATTRIBUTED)
    group = groups[kind_of(name) if args.by == "kind" else by_part]
    group[0] += seconds / STEPS
    group[1] += calls / STEPS
  total = sum(seconds for seconds, _ in groups.values())
  rows = [
    {
      args.by: group, "ms per step": seconds * 1e3, "share": f"{seconds / total:.1%}",
      "kernels": round(calls),
    }
    for group, (seconds, calls) in sorted(groups.items(), key=lambda item: -item[1][0])
  ]  # fmt: skip
  print(f"{paired.machine()}\n\n{paired.table(rows)}")
  paired.write_json(args.json, {"config": config.to_dict(), "rows": rows})


if __name__ == "__main__":
  run_command(main)
