"""How a run starts from weights that others trained: `config.init`."""

import dataclasses

import jax
import numpy as np
from ml_collections import ConfigDict

from input_pipeline.common.errors import InputError
from mail_jax.models.encoder import stack_blocks
from mail_jax.models.parameters import Tree, path_name
from mail_jax.pretrained import vilt


def vilt_path(init: str) -> str:
  """The path in `vilt:PATH`.

  Raises:
    InputError: it is something else.
  """
  kind, _, path = init.partition(":")
  if kind != "vilt" or not path:
    raise InputError(f"config.init {init!r} is not vilt:PATH, or empty for random weights")
  return path


def read_vocab(init: str) -> bytes:
  """BERT's vocabulary as it came with the weights.

  Raises:
    InputError: none came with them.
  """
  path = vilt_path(init)
  vocab = vilt.read_vocab(path)
  if vocab is None:
    raise InputError(
      f"config.init: no vocab.txt beside {path}; name BERT's with --config.tokenizer=wordpiece:VOCAB.txt"
    )
  return vocab


def load(config: ConfigDict, shapes: Tree) -> dict[str, np.ndarray]:
  """Loads the parameters that `config.init` names, fitted to the model; see `fit`."""
  return fit(vilt.load(vilt_path(config.init)), config, shapes)


def fit(pretrained: vilt.Pretrained, config: ConfigDict, shapes: Tree) -> dict[str, np.ndarray]:
  """Fits pretrained parameters to a model.

  Args:
    pretrained: a checkpoint.
    config: a whole config.
    shapes: of the model's parameters, as `jax.eval_shape` gives them.

  Returns:
    Arrays by the names of the parameters; those of the new parts are not all among them.

  Raises:
    InputError: no such weights, or weights of a model of another size.
  """
  sizes = pretrained.sizes()
  wrong = {
    key: value for key, value in sizes.items() if config.model[key.partition(".")[2]] != value
  }
  if wrong:
    raise InputError(
      f"config.init: the weights of {pretrained.source} need "
      + ", ".join(f"config.{key} = {value:g}" for key, value in wrong.items())
      + "; configs/refcoco.py is a recipe for ViLT-B/32"
    )
  leaves = jax.tree_util.tree_leaves_with_path(shapes)
  by_name = {path_name(path): leaf.shape for path, leaf in leaves}
  side = config.image_size // config.model.patch_size
  if config.model.scan:
    stacked = stack_blocks(pretrained.parameters)
    pretrained = dataclasses.replace(pretrained, parameters=stacked)
  fitted = vilt.fit(pretrained, by_name, (side, side))
  return fitted | start_new_parts(fitted, by_name)


def start_new_parts(
  fitted: dict[str, np.ndarray], shapes: dict[str, tuple[int, ...]]
) -> dict[str, np.ndarray]:
  """What the new parts take over from the pretrained ones; the type of a mask is the image's already.

  Mask tokens are as large as the image's positions, so that they disturb what the encoder knows little
  (benchmarks/new_tokens.py measures it).

  Args:
    fitted: pretrained parameters, by name.
    shapes: of all parameters.
  """
  position, started = fitted["image/position"][1:], {}
  if "mask/position" in shapes:
    started["mask/position"] = position
  if "mask/norm/scale" in shapes:
    size = np.sqrt(np.mean(position**2))
    started["mask/norm/scale"] = np.full(shapes["mask/norm/scale"], size, np.float32)
  return started


def place(params: Tree, values: dict[str, np.ndarray]) -> Tree:
  """Puts values into the parameters, each where the old one lies; the others stay as they are."""

  def choose(path, leaf: jax.Array) -> jax.Array:
    value = values.get(path_name(path))
    if value is None:
      return leaf
    value = np.asarray(value, leaf.dtype)
    return jax.make_array_from_callback(leaf.shape, leaf.sharding, lambda index: value[index])

  return jax.tree_util.tree_map_with_path(choose, params)


def summary(params: Tree, values: dict[str, np.ndarray]) -> str:
  """One line: how many parameters were loaded, and which parts are new."""
  sizes = {path_name(path): x.size for path, x in jax.tree_util.tree_leaves_with_path(params)}
  loaded = sum(sizes[name] for name in values)
  new = {name.partition("/")[0] for name in sizes.keys() - values.keys()}
  return (
    f"{loaded / 1e6:.2f} M of {sum(sizes.values()) / 1e6:.2f} M parameters loaded; "
    f"new: {', '.join(sorted(new)) or 'nothing'}"
  )
