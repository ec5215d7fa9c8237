"""From a checkpoint of another project to parameters of our model, by a table of names."""

import base64
import collections
import dataclasses
import json
import pathlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from input_pipeline.common import atomic_files, untrusted_json
from input_pipeline.common.errors import InputError
from mail_jax.pretrained.weights import Weights, open_weights, write_safetensors

Parameters = dict[str, np.ndarray]


class Row(NamedTuple):
  """A row of the table.

  Attributes:
    ours: name of our parameter.
    sources: names of its source tensors, without a prefix.
    make: computes our parameter from the source tensors.
    shape: of our parameter; a letter stands for the same number in all rows.
  """

  ours: str
  sources: tuple[str, ...]
  make: Callable[..., np.ndarray]
  shape: str


@dataclasses.dataclass(frozen=True)
class Pretrained:
  """A converted checkpoint.

  Attributes:
    source: the file it was read from.
    parameters: ours, by name; the grid of positions has the size it has in the checkpoint.
    made_from: the names of the source tensors of each parameter.
    unused: the checkpoint's other tensors: heads, the pooler, position ids.
    heads: number of attention heads.
    vocab: the file of the tokenizer; None if there is none.
  """

  source: str
  parameters: Parameters
  made_from: dict[str, tuple[str, ...]]
  unused: tuple[str, ...]
  heads: int
  vocab: bytes | None

  def sizes(self) -> dict[str, int | float | str]:
    """Returns the values that a config must have for the parameters to fit, by config key."""
    width = self.parameters["image/patches/bias"].shape[0]
    pixels = self.parameters["image/patches/kernel"].shape[0] // 3
    found = (re.match(r"encoder/block\d+/(?:image_)?mlp_in/bias", name) for name in self.parameters)
    hidden = [match[0] for match in found if match]
    return {
      "model.width": width,
      "model.depth": len(hidden),
      "model.heads": self.heads,
      "model.patch_size": round(pixels**0.5),
      "model.mlp_ratio": self.parameters[hidden[0]].shape[0] / width,
      "model.experts": "multiway" if "image_mlp_in" in hidden[0] else "shared",
    }

  def report(self) -> str:
    """Returns one line per parameter and per unused tensor."""
    lines = [
      f"converted  {name}  {list(value.shape)}  <- {', '.join(self.made_from[name])}"
      for name, value in self.parameters.items()
    ]
    return "\n".join(lines + [f"unused     {name}" for name in self.unused])


def describe_sizes(sizes: Mapping[str, int | float | str], prefix: str = "") -> str:
  """Returns values of a config as text, such as `model.width = 768`."""
  return ", ".join(
    f"{prefix}{key} = {value if isinstance(value, str) else f'{value:g}'}"
    for key, value in sizes.items()
  )


def convert(
  weights: Weights,
  names: Mapping[str, str],
  table: Sequence[Row],
  source: str,
  ignored: Callable[[str], bool],
) -> tuple[Parameters, dict[str, tuple[str, ...]], tuple[str, ...]]:
  """Converts tensors, in the precision that they have.

  Args:
    weights: an open file.
    names: the name of each tensor in the file, by its name without a prefix.
    table: of all parameters that the checkpoint has.
    source: the file, for errors.
    ignored: whether the model works without the tensor of a name without a prefix.

  Returns:
    Our parameters, the names of the source tensors of each, and the names of unused tensors.

  Raises:
    InputError: a tensor is missing, has an unexpected shape, or is an unknown part of the encoder.
  """
  parameters, made_from = {}, {}
  for row in table:
    for name in row.sources:
      if name not in names:
        raise InputError(f"{source}: the tensor {name} is missing, the source of {row.ours}")
    made_from[row.ours] = tuple(names[name] for name in row.sources)
    sources = [weights[name] for name in made_from[row.ours]]
    try:
      parameter = row.make(*sources)
    except (ValueError, IndexError) as error:
      raise _unexpected(
        weights, source, made_from[row.ours], f"cannot convert it to {row.ours}"
      ) from error
    # The source need not stay in memory.
    parameters[row.ours] = np.array(parameter, order="C")
  _check_shapes(table, parameters, made_from, weights, source)
  used = {name for row in made_from.values() for name in row}
  unused = {bare: name for bare, name in names.items() if name not in used}
  for bare, name in unused.items():
    if not ignored(bare):
      raise InputError(
        f"{source}: the tensor {name} belongs to the encoder, which has no such part here"
      )
  return parameters, made_from, tuple(unused.values())


def _check_shapes(table: Sequence[Row], parameters: Parameters, made_from, weights, source) -> None:
  """Checks the shapes; each letter of the table stands for the size that most parameters have."""
  votes: dict[str, collections.Counter[int]] = collections.defaultdict(collections.Counter)
  for row in table:
    for letter, size in zip(row.shape.split(), parameters[row.ours].shape, strict=False):
      votes[letter][size] += 1
  for row in table:
    expected = [
      int(letter) if letter.isdigit() else votes[letter].most_common(1)[0][0]
      for letter in row.shape.split()
    ]
    shape = list(parameters[row.ours].shape)
    if shape != expected:
      reason = f"{row.ours} would be {shape} instead of {expected}"
      raise _unexpected(weights, source, made_from[row.ours], reason)


def _unexpected(weights: Weights, source: str, names: Sequence[str], reason: str) -> InputError:
  shapes = ", ".join(f"{name} {list(weights.shapes[name])}" for name in names)
  return InputError(f"{source}: unexpected shape of {shapes}: {reason}")


def resize_grid(
  position: Float[np.ndarray, "t d"],
  rows: int,
  cols: int,
  matrix: Callable[[int, int], Float[np.ndarray, "size length"]],
) -> Float[np.ndarray, "u d"]:
  """Resizes position embeddings of a square grid.

  Args:
    position: of the class token, then of the patches, row by row.
    rows, cols: of the new grid.
    matrix: (length, size) -> the weights of `length` samples in `size` new ones.

  Raises:
    InputError: the number of patches is not a square.
  """
  side = round((len(position) - 1) ** 0.5)
  if side * side != len(position) - 1:
    raise InputError(
      f"image/position: {len(position) - 1} positions are not a square grid of patches"
    )
  if (rows, cols) == (side, side):
    return position
  grid = position[1:].reshape(side, side, -1)
  grid = np.einsum("ri,ijd->rjd", matrix(side, rows), grid)
  grid = np.einsum("cj,rjd->rcd", matrix(side, cols), grid)
  return np.concatenate([position[:1], grid.reshape(rows * cols, -1)])


def fit(
  pretrained: Pretrained,
  shapes: Mapping[str, tuple[int, ...]],
  resize: Callable[[np.ndarray], np.ndarray],
) -> Parameters:
  """Fits the parameters to a model.

  Args:
    pretrained: of the same size as the model.
    shapes: of the model's parameters, by name.
    resize: fits the positions of the image.

  Returns:
    The model's parameters that the checkpoint has.

  Raises:
    InputError: the model has more text positions, or another vocabulary, than the checkpoint.
  """
  source, fitted = pretrained.source, {}
  for name, value in pretrained.parameters.items():
    if name == "image/position":
      value = resize(value)
    elif name == "text/position":
      length = shapes[name][0]
      if length > len(value):
        raise InputError(
          f"config.max_tokens {length}: {source} has positions for {len(value)} tokens"
        )
      value = value[:length]
    elif name == "text/words/embedding" and len(value) != shapes[name][0]:
      raise InputError(
        f"config.tokenizer: has {shapes[name][0]} ids, but {source} has embeddings for {len(value)}"
      )
    # Splits off an axis for the heads.
    fitted[name] = value.reshape(shapes[name])
  return fitted


def save(pretrained: Pretrained, path: str, form: str) -> None:
  """Writes the converted parameters and the tokenizer as one `.safetensors` file, atomically."""
  metadata = {
    "mail_jax": form,
    "source": pretrained.source,
    "heads": str(pretrained.heads),
    "made_from": json.dumps(pretrained.made_from),
    "unused": json.dumps(pretrained.unused),
  }
  if pretrained.vocab is not None:
    metadata["vocab"] = base64.b64encode(pretrained.vocab).decode()
  with atomic_files.whole_file(path) as temporary:
    write_safetensors(temporary, pretrained.parameters, metadata)


def load_converted(path: pathlib.Path, metadata: dict[str, str], form: str) -> Pretrained:
  """Reads a file that `save` wrote in this format.

  Raises:
    InputError: it has another format, or is damaged.
  """
  if metadata["mail_jax"] != form:
    raise InputError(
      f"{path}: has the format {metadata['mail_jax']!r}, not {form!r}; convert it again, or give "
      "--config.init the scheme of its model"
    )
  with open_weights(path) as weights:
    parameters = dict(weights)
  try:
    made_from = untrusted_json.loads(metadata["made_from"], str(path))
    return Pretrained(
      metadata["source"],
      parameters,
      {name: tuple(names) for name, names in made_from.items()},
      tuple(untrusted_json.loads(metadata["unused"], str(path))),
      int(metadata["heads"]),
      read_converted_vocab(metadata),
    )
  except (KeyError, TypeError, AttributeError, ValueError) as error:
    raise InputError(
      f"{path}: metadata of a file that this version has not written ({error!r})"
    ) from error


def read_converted_vocab(metadata: Mapping[str, str]) -> bytes | None:
  """Returns the file of the tokenizer in the metadata of a converted file, or None."""
  return base64.b64decode(metadata["vocab"]) if "vocab" in metadata else None


def describe_saved(pretrained: Pretrained, path: str, scheme: str) -> Iterable[str]:
  """Yields what the commands print about a file that they have written."""
  yield pretrained.report()
  count = sum(value.size for value in pretrained.parameters.values())
  vocab = "with" if pretrained.vocab is not None else "without a"
  yield (
    f"wrote {path}: {count / 1e6:.1f} M parameters in {len(pretrained.parameters)} arrays, "
    f"{vocab} vocabulary; {len(pretrained.unused)} tensors unused"
  )
  sizes = describe_sizes(pretrained.sizes())
  yield f"start from it with --config.init={scheme}:{path} and {sizes}"
