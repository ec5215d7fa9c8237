"""Initialises a run from pretrained weights: `config.init`."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from input_pipeline.common.errors import InputError
from mail_jax.models.build import Tree, path_name
from mail_jax.models.encoder import stack_blocks
from mail_jax.pretrained import vilt


def vilt_path(init: str) -> str:
  """Returns the path in `vilt:PATH`.

  Raises:
    InputError: the value has another form.
  """
  scheme, _, path = init.partition(":")
  if scheme != "vilt" or not path:
    raise InputError(
      f"config.init {init!r} is not run:WORKDIR, export:FOLDER, vilt:PATH, or empty for random "
      "weights"
    )
  return path


def read_vocab(init: str) -> bytes:
  """Returns the BERT vocabulary that comes with the weights.

  Raises:
    InputError: there is none.
  """
  path = vilt_path(init)
  vocab = vilt.read_vocab(path)
  if vocab is None:
    raise InputError(
      f"config.init: no vocab.txt beside {path}; give BERT's vocabulary with "
      "--config.tokenizer=wordpiece:VOCAB.txt"
    )
  return vocab


def load(config: ConfigDict, shapes: Tree) -> dict[str, np.ndarray]:
  """Loads the parameters of `config.init`, fitted to the model; see `fit`."""
  return fit(vilt.load(vilt_path(config.init)), config, shapes)


def fit(pretrained: vilt.Pretrained, config: ConfigDict, shapes: Tree) -> dict[str, np.ndarray]:
  """Fits pretrained parameters to a model.

  Args:
    pretrained: a checkpoint.
    config: a whole config.
    shapes: of the model's parameters, from `jax.eval_shape`.

  Returns:
    Arrays by parameter name; new parts of the model are partly missing.

  Raises:
    InputError: the weights belong to a model of another size.
  """
  sizes = pretrained.sizes()
  mismatches = {
    key: value for key, value in sizes.items() if config.model[key.partition(".")[2]] != value
  }
  if mismatches:
    raise InputError(
      f"config.init: the weights of {pretrained.source} need "
      + ", ".join(f"config.{key} = {value:g}" for key, value in mismatches.items())
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
  """Initialises new parts of the model from pretrained ones.

  Mask tokens get the magnitude of the image's positions, so that they disturb the pretrained
  encoder little (benchmarks/new_tokens.py measures it). Their type already is that of the image.

  Args:
    fitted: pretrained parameters, by name.
    shapes: of all parameters.
  """
  position, new = fitted["image/position"][1:], {}
  if "mask/position" in shapes:
    new["mask/position"] = position
  if "mask/norm/scale" in shapes:
    magnitude = np.sqrt(np.mean(position**2))
    new["mask/norm/scale"] = np.full(shapes["mask/norm/scale"], magnitude, np.float32)
  return new


def place(params: Tree, values: dict[str, np.ndarray]) -> Tree:
  """Replaces parameters by values, with the same shardings.

  The others, and what is masked in a masked array, stay as they are.
  """

  def choose(path, leaf: jax.Array) -> jax.Array:
    value = values.get(path_name(path))
    if value is None:
      return leaf

    def spread(array: np.ndarray) -> jax.Array:
      return jax.make_array_from_callback(leaf.shape, leaf.sharding, lambda index: array[index])

    new = spread(np.ma.getdata(value).astype(leaf.dtype))
    if not np.ma.is_masked(value):
      return new
    keep = jax.jit(jnp.where, out_shardings=leaf.sharding)
    return keep(spread(np.ma.getmaskarray(value)), leaf, new)

  return jax.tree_util.tree_map_with_path(choose, params)


def summary(params: Tree, values: dict[str, np.ndarray]) -> str:
  """Returns one line: how many parameters were loaded, and which parts are new."""
  sizes = {path_name(path): x.size for path, x in jax.tree_util.tree_leaves_with_path(params)}
  loaded = sum(int(np.ma.count(value)) for value in values.values())
  new = {name.partition("/")[0] for name in sizes.keys() - values.keys()}
  return (
    f"{loaded / 1e6:.2f} M of {sum(sizes.values()) / 1e6:.2f} M parameters loaded; "
    f"new: {', '.join(sorted(new)) or 'nothing'}"
  )
