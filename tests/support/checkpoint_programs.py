"""Programs that tests of checkpoints run in other processes.

`python tests/support/checkpoint_programs.py NAME FOLDER`.
"""

import functools
import os
import pathlib
import resource
import sys
import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tiny_model
from jax.sharding import Mesh

from input_pipeline.common.errors import InputError
from mail_jax.checkpoints import checkpoint, manifest
from mail_jax.distributed import sharding
from mail_jax.models.build import path_name
from mail_jax.train.program import build_program
from mail_jax.train.step import TrainState

# Word embeddings of 8 MB: large enough to be sharded over the axis `fsdp`.
VOCAB = 2**17


def shapes(mesh: Mesh, rule: str = "zero1") -> TrainState:
  """Returns shapes and shardings of the state of a tiny model."""
  config = tiny_model.make_config()
  config.sharding_rules = ((".*", rule),)
  config.batch_size = config.eval_batch_size = 8
  return build_program(config, VOCAB, mesh).shapes


@functools.cache
def random_bits(name: str, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
  """Returns numbers of random bits, many kinds of NaN among them, that depend on the name alone."""
  rng = np.random.default_rng(zlib.crc32(name.encode()))
  return np.frombuffer(rng.bytes(int(np.prod(shape)) * dtype.itemsize), dtype).reshape(shape)


def draw(path: Any, leaf: Any) -> np.ndarray:
  """Returns the values that the tests save for an array of the state."""
  return random_bits(path_name(path), leaf.shape, np.dtype(leaf.dtype))


def differences(state: TrainState) -> list[str]:
  """Returns the names of the arrays that differ in any bit from `draw`."""
  leaves = jax.tree_util.tree_leaves_with_path(state)
  assert len(leaves) > 100
  return [path_name(path) for path, leaf in leaves if leaf.tobytes() != draw(path, leaf).tobytes()]


def save_on_eight(folder: pathlib.Path) -> None:
  """Saves the same state from 1 x 8 and from 8 x 1 devices, and restores all on 2 x 4."""
  other = shapes(sharding.make_mesh(2, 4))
  for data, fsdp, rule, shards in ((1, 8, "fsdp", 8), (8, 1, "fsdp", 1), (8, 1, "zero1", 8)):
    placed = shapes(sharding.make_mesh(data, fsdp), rule)
    state = jax.tree_util.tree_map_with_path(
      lambda path, x: jax.device_put(draw(path, x), x.sharding), placed
    )
    words = state.variables["params"]["text"]["words"]["embedding"]
    assert len({str(shard.index) for shard in words.addressable_shards}) == shards
    checkpoints = checkpoint.Checkpoints(str(folder / f"{data}x{fsdp}-{rule}"))
    checkpoints.save(1, state, {}, None)
    restored = checkpoints.restore(checkpoints.latest() or 0, other)
    assert jax.tree.map(lambda x: x.sharding, restored) == jax.tree.map(lambda x: x.sharding, other)
    assert differences(jax.device_get(restored)) == []
    checkpoints.close()


def die_while_saving(folder: pathlib.Path) -> None:
  """Dies when the second checkpoint is written, but not yet marked as complete."""
  checkpoints = checkpoint.Checkpoints(str(folder))
  checkpoints.save(1, {"weight": jnp.ones(3)}, {}, None)
  checkpoints.latest()
  manifest.write = lambda *_: os._exit(9)
  checkpoints.save(2, {"weight": jnp.ones(3)}, {}, None)
  checkpoints.close()


def fill_the_disk(folder: pathlib.Path) -> None:
  """Saves a checkpoint, and another one with file sizes limited to 100 kB."""
  checkpoints = checkpoint.Checkpoints(str(folder))
  state = {"weight": jnp.asarray(np.random.default_rng(0).random(100_000, np.float32))}
  checkpoints.save(1, state, {}, None)
  checkpoints.latest()
  before = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
  checkpoints.save(2, state, {}, None)
  try:
    checkpoints.save(3, state, {}, None)
  except InputError as error:
    print(error)
  resource.setrlimit(resource.RLIMIT_FSIZE, before)  # coverage writes its data at the end.


def share(_: pathlib.Path) -> None:
  """Runs as one of two processes with four devices each.

  They save, one finds damage, and both resume from the same step.
  """
  place, process, address = (
    sys.argv[2],
    int(sys.argv[3]),
    sys.argv[4],
  )  # The folder may be in a bucket.
  jax.distributed.initialize(address, 2, process)
  assert (jax.process_count(), jax.device_count()) == (2, 8)
  mesh = sharding.make_mesh(1, 8)
  state = {"weight": jax.device_put(np.arange(16, dtype=np.float32), sharding.batch_sharding(mesh))}
  checkpoints = checkpoint.Checkpoints(place)
  for step, score in ((1, 0.5), (2, 0.25), (3, None)):
    checkpoints.save(step, state, {"step": step}, None if score is None else {"mIoU": score})
  checkpoints.close()
  if process == 1:  # As the disk of a single machine may return it.

    def check(path, part, parts):
      assert (part, parts) == (1, 2)
      if path.name == "3":
        raise manifest.DamagedError("unreadable here")

    manifest.check = check
  checkpoints = checkpoint.Checkpoints(place)
  print("latest", checkpoints.latest(), "best", checkpoints.best())
  restored = checkpoints.restore(2, state)["weight"]
  assert restored.sharding == state["weight"].sharding
  for shard in restored.addressable_shards:
    np.testing.assert_array_equal(shard.data, np.arange(16)[shard.index])
  checkpoints.save(3, state, {"step": 3}, {"mIoU": 0.75})
  print("latest", checkpoints.latest(), "best", checkpoints.best())
  checkpoints.close()


if __name__ == "__main__":
  {f.__name__: f for f in (save_on_eight, die_while_saving, fill_the_disk, share)}[sys.argv[1]](
    pathlib.Path(sys.argv[2])
  )
