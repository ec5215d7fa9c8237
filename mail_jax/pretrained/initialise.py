"""Initialises a run from pretrained weights: `config.init`."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from input_pipeline.common.errors import InputError
from input_pipeline.preprocess.tokenizer import Beit3Tokenizer, Tokenizer, WordPieceTokenizer
from mail_jax.models.build import Tree, path_name
from mail_jax.models.encoder import stack_blocks
from mail_jax.pretrained import beit3, conversion, vilt
from mail_jax.pretrained.conversion import Pretrained, describe_sizes

# Modules that load checkpoints, by the scheme of `config.init`, with a recipe for each.
_SCHEMES = {
  "vilt": (vilt, "configs/refcoco.py is a recipe for ViLT-B/32"),
  "beit3": (beit3, "configs/refcoco_beit3.py:base and :large are recipes for BEiT-3"),
}


def split_init(init: str) -> tuple[str, str]:
  """Returns scheme and path in `vilt:PATH` or `beit3:PATH`.

  Raises:
    InputError: the value has another form.
  """
  scheme, _, path = init.partition(":")
  if scheme not in _SCHEMES or not path:
    raise InputError(
      f"config.init {init!r} is not run:WORKDIR, export:FOLDER, vilt:PATH, beit3:PATH, or empty "
      "for random weights"
    )
  return scheme, path


def read_tokenizer(init: str) -> Tokenizer:
  """Returns the tokenizer that comes with the weights.

  Raises:
    InputError: there is none.
  """
  scheme, path = split_init(init)
  vocab = _SCHEMES[scheme][0].read_vocab(path)
  if vocab is None and scheme == "vilt":
    raise InputError(
      f"config.init: no vocab.txt beside {path}; give BERT's vocabulary with "
      "--config.tokenizer=wordpiece:VOCAB.txt"
    )
  if vocab is None:
    raise InputError(
      f"config.init: no {beit3.TOKENIZER} beside {path}; download it with the weights, or give it "
      f"with --config.tokenizer=beit3:{beit3.TOKENIZER}"
    )
  make = WordPieceTokenizer if scheme == "vilt" else Beit3Tokenizer
  return make(vocab, f"the vocabulary of {init}")


def leakage(init: str) -> str | None:
  """Returns a warning about photos that pretrained weights have seen, or None."""
  scheme, path = split_init(init)
  return beit3.leakage(path) if scheme == "beit3" else None


def load(config: ConfigDict, shapes: Tree) -> dict[str, np.ndarray]:
  """Loads the parameters of `config.init`, fitted to the model; see `fit`."""
  return fit(read(config.init), config, shapes)


def read(init: str) -> Pretrained:
  """Reads the checkpoint of `vilt:PATH` or `beit3:PATH`."""
  scheme, path = split_init(init)
  return _SCHEMES[scheme][0].load(path)


def fit(pretrained: Pretrained, config: ConfigDict, shapes: Tree) -> dict[str, np.ndarray]:
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
  module, recipe = _SCHEMES["vilt" if sizes["model.experts"] == "shared" else "beit3"]
  mismatches = {
    key: value for key, value in sizes.items() if config.model[key.partition(".")[2]] != value
  }
  if mismatches:
    raise InputError(
      f"config.init: the weights of {pretrained.source} need "
      + f"{describe_sizes(mismatches, 'config.')}; {recipe}"
    )
  leaves = jax.tree_util.tree_leaves_with_path(shapes)
  by_name = {path_name(path): leaf.shape for path, leaf in leaves}
  side = config.image_size // config.model.patch_size
  if config.model.scan:
    stacked = stack_blocks(pretrained.parameters)
    pretrained = dataclasses.replace(pretrained, parameters=stacked)
  fitted = conversion.fit(
    pretrained, by_name, lambda position: module.resize_positions(position, side, side)
  )
  return fitted | start_new_parts(fitted, by_name)


def start_new_parts(
  fitted: dict[str, np.ndarray], shapes: dict[str, tuple[int, ...]]
) -> dict[str, np.ndarray]:
  """Initialises new parts of the model from pretrained ones.

  Mask tokens get the magnitude of the image's positions, so that they disturb the pretrained
  encoder little (benchmarks/new_tokens.py measures it). Their type already is that of the image;
  in a multiway encoder their experts start as those of the image.

  Args:
    fitted: pretrained parameters, by name.
    shapes: of all parameters.
  """
  position, new = fitted["image/position"][1:], beit3.start_mask_experts(fitted, shapes)
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
