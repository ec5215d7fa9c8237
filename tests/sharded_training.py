"""Three training steps on a mesh of any shape.

`python tests/sharded_training.py FOLDER 8x1 2x4` writes what came out to FOLDER/8x1.npz and so on.
"""

import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tiny_model

from mail_jax import sharding
from mail_jax.optim import path_name
from mail_jax.train_step import TrainState, make_train_step

# Word embeddings of 8 MB: large enough to be cut over the axis `fsdp`.
VOCAB = 2**17
STEPS, BATCH = 3, 8


def make_batch(step: int) -> dict[str, np.ndarray]:
  """Random batch number `step`; one of its rows does not count."""
  config = tiny_model.make_config()
  inputs = tiny_model.make_inputs(config, BATCH, seed=step)
  rng = np.random.default_rng(step)
  return {
    "image": inputs["image"],
    "instances": inputs["planes"],
    "num_instances": rng.integers(0, config.max_instances + 1, BATCH, np.int32),
    "tokens": rng.integers(0, VOCAB, inputs["tokens"].shape, np.int32),
    "num_tokens": inputs["num_tokens"],
    "target": tiny_model.random_boxes(rng, BATCH, config.image_size),
    "weight": (np.arange(BATCH) != step).astype(np.float32),
  }


def zeros(shape: jax.ShapeDtypeStruct) -> jax.Array:
  """What the optimizer begins with, and nothing to compile."""
  return jnp.asarray(np.zeros(shape.shape, shape.dtype))


def train(data: int, fsdp: int) -> dict[str, np.ndarray]:
  """Trains on all devices; returns metrics, variables, and how many pieces the words are cut into."""
  config = tiny_model.make_config()
  model = tiny_model.make(config, VOCAB)
  # With its usual epsilon Adam makes steps of gradients that are zero but for rounding.
  optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1.0, eps=1e-2))
  mesh = sharding.make_mesh(data, fsdp)
  variables = tiny_model.random_variables(config, vocab_size=VOCAB)
  state = TrainState(
    step=jnp.zeros((), jnp.int32),
    variables=variables,
    averaged=variables,
    opt_state=jax.tree.map(zeros, jax.eval_shape(optimizer.init, variables["params"])),
  )
  placed = sharding.state_sharding(mesh, state)
  state = jax.device_put(state, placed)
  spread, same = sharding.batch_sharding(mesh), sharding.replicated(mesh)
  update = make_train_step(
    model,
    optimizer,
    seed=config.seed,
    loss_weights=dict(config.loss),
    instance_dropout=0.2,
    all_instances_dropout=0.2,
    ema_decay=0.9,
  )
  update = jax.jit(
    update,
    in_shardings=(placed, spread, same),
    out_shardings=(placed, same),
    compiler_options=tiny_model.HURRY,
  )
  result = {}
  for step in range(STEPS):
    batch = sharding.global_batch(mesh, make_batch(step))
    state, metrics = update(state, batch, np.float32(1e-3))
    result |= {f"metrics/{step}/{name}": np.asarray(value) for name, value in metrics.items()}
  words = state.variables["params"]["text"]["words"]["embedding"]
  result["pieces"] = np.array(len({str(shard.index) for shard in words.addressable_shards}))
  for path, leaf in jax.tree_util.tree_leaves_with_path((state.variables, state.averaged)):
    result[path_name(path)] = np.asarray(leaf)
  return result


if __name__ == "__main__":
  for shape in sys.argv[2:]:
    np.savez(pathlib.Path(sys.argv[1]) / f"{shape}.npz", **train(*map(int, shape.split("x"))))
