"""Twenty training steps on meshes of any shape, in one process or in several.

`python tests/support/mesh_training.py FOLDER [--process I/N --port PORT] 8x1 2x4:zero1` writes the
results to FOLDER/8x1.npz and so on; with several processes the first one writes. A mesh may have a
sharding rule, and 8x1,2x4 is a run that resumes on another mesh half-way.
"""

import argparse
import pathlib
import tempfile

import jax
import numpy as np
import tiny_model
from ml_collections import ConfigDict

from mail_jax.checkpoints.checkpoint import Checkpoints
from mail_jax.distributed import sharding
from mail_jax.models.build import path_name
from mail_jax.train.program import Program, build_program
from mail_jax.train.step import TrainState

# Word embeddings of 2 MB: large enough to be sharded over the axis `fsdp`, as are the wider layers
# of the encoder.
VOCAB = 2**12
STEPS, BATCH, PEAK = 20, 16, 2e-4


def make_config(data: int = -1, fsdp: int = 1, **changes) -> ConfigDict:
  """The tiny model, with layers worth sharding and all random parts of training."""
  config = tiny_model.make_config(width=128, heads=4)
  config.batch_size = BATCH
  config.mesh.update(data=data, fsdp=fsdp)
  config.augment.update(instance_dropout=0.2, all_instances_dropout=0.2)
  # With seed 0 the input of a ReLU in step 11 is zero but for rounding, and on eight devices it
  # goes the other way.
  config.seed = 1
  # Adam makes whole steps of gradients that are zero but for rounding unless its epsilon is well
  # above them.
  config.optimizer.update(eps=1e-4, clip=1.0)
  config.update(changes)
  return config


def parse(mesh: str) -> ConfigDict:
  """Returns the config of a mesh such as 2x4 or 2x4:zero1."""
  sizes, _, rule = mesh.partition(":")
  config = make_config(*map(int, sizes.split("x")))
  config.sharding_rules = ((".*", rule or "fsdp"),)
  return config


def build(config: ConfigDict) -> Program:
  """Returns the training program of a config on all devices."""
  return build_program(config, VOCAB, sharding.make_mesh(**config.mesh))


def make_batch(config: ConfigDict, step: int) -> dict[str, np.ndarray]:
  """Returns random global batch number `step`; one of its rows is padding."""
  rows = config.batch_size
  inputs = tiny_model.make_inputs(config, rows, seed=step)
  rng = np.random.default_rng(step)
  return {
    "image": inputs["image"],
    "instances": inputs["planes"],
    "num_instances": rng.integers(0, config.max_instances + 1, rows, np.int32),
    "tokens": rng.integers(0, VOCAB, inputs["tokens"].shape, np.int32),
    "num_tokens": inputs["num_tokens"],
    "target": tiny_model.random_boxes(rng, rows, config.image_size),
    # No color jitter: it moves the input of some ReLU to where it is zero but for rounding.
    "jitter_factors": np.ones((rows, 3), np.float32),
    "weight": (np.arange(rows) != step % rows).astype(np.float32),
  }


def train(*configs: ConfigDict, text: bool = False) -> dict[str, np.ndarray]:
  """Trains on all devices.

  Returns metrics and variables, and the bytes that a device holds of the state.

  With several configs, each trains for its part of the steps, and resumes from a checkpoint of the
  previous one. With `text` also the training step of the first as it goes to the compiler and as it
  comes out.
  """
  program = build(configs[0])
  state, result = program.create(), {}
  result["bytes"] = np.array(bytes_on_one_device((state.variables["params"], state.opt_state)))
  if text:
    lowered, compiled = _compile(program)
    result |= {"lowered": np.array(lowered.as_text()), "compiled": np.array(compiled.as_text())}
  for i, config in enumerate(configs):
    if i:
      program = build(config)
      state = _through_checkpoint(state, program)
    compiled = _compile(program)[1]
    mine = jax.process_index() * config.batch_size // jax.process_count()
    rows = slice(mine, mine + config.batch_size // jax.process_count())
    for step in range(STEPS * i // len(configs), STEPS * (i + 1) // len(configs)):
      batch = {name: value[rows] for name, value in make_batch(config, step).items()}
      batch = sharding.global_batch(program.mesh, batch)
      state, metrics = compiled(state, batch, np.float32(PEAK))
      result |= {f"metrics/{step}/{name}": np.asarray(value) for name, value in metrics.items()}
  everywhere = jax.jit(lambda tree: tree, out_shardings=sharding.replicated(program.mesh))
  kept = {"variables": state.variables, "averaged": program.to_evaluate(state)}
  result["evaluated bytes"] = np.array(bytes_on_one_device(kept["averaged"]))
  for path, leaf in jax.tree_util.tree_leaves_with_path(everywhere(kept)):
    result[path_name(path)] = np.asarray(leaf)
  return result


def _compile(program: Program) -> tuple[jax.stages.Lowered, jax.stages.Compiled]:
  rate = jax.ShapeDtypeStruct((), np.float32)
  lowered = program.step.lower(program.shapes, program.batch, rate)
  return lowered, lowered.compile()


def _through_checkpoint(state: TrainState, program: Program) -> TrainState:
  """Saves a state, and restores it as another program has it."""
  with tempfile.TemporaryDirectory() as folder:
    checkpoints = Checkpoints(folder)
    checkpoints.save(1, state, {}, None)
    restored = checkpoints.restore(1, program.shapes)
    checkpoints.close()
  return restored


def bytes_on_one_device(tree) -> int:
  """Returns the bytes of a tree of arrays on the first device of this process."""
  device = jax.local_devices()[0]
  shards = [shard for leaf in jax.tree.leaves(tree) for shard in leaf.addressable_shards]
  return sum(shard.data.nbytes for shard in shards if shard.device == device)


def main() -> None:
  """Runs the command."""
  parser = argparse.ArgumentParser()
  parser.add_argument("folder", type=pathlib.Path)
  parser.add_argument("meshes", nargs="+")
  parser.add_argument("--process", default="0/1")
  parser.add_argument("--port", type=int, default=0)
  parser.add_argument("--text", action="store_true", help="write the programs too")
  args = parser.parse_args()
  index, count = map(int, args.process.split("/"))
  if count > 1:
    jax.distributed.initialize(f"127.0.0.1:{args.port}", count, index)
  for mesh in args.meshes:
    result = train(*map(parse, mesh.split(",")), text=args.text)
    if index == 0:
      np.savez(args.folder / f"{mesh}.npz", **result)


if __name__ == "__main__":
  main()
