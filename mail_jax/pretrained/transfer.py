"""Fits the parameters of a trained model of ours to a model of another config or tokenizer."""

import dataclasses
import re
from collections.abc import Mapping

import numpy as np
from ml_collections import ConfigDict

from input_pipeline.common.errors import InputError
from input_pipeline.preprocess.tokenizer import Tokenizer
from mail_jax.config import flatten, to_json
from mail_jax.models.encoder import STACK, block_name
from mail_jax.models.rules import matching, parts
from mail_jax.pretrained import beit3, vilt

Arrays = dict[str, np.ndarray]
Shapes = dict[str, tuple[int, ...]]


@dataclasses.dataclass(frozen=True)
class Side:
  """One of the two models: the one whose parameters are taken over, or the new one."""

  config: ConfigDict
  tokenizer: Tokenizer

  def grid(self) -> int:
    """Returns the patches along one side of an image."""
    return self.config.image_size // self.config.model.patch_size


@dataclasses.dataclass(frozen=True)
class Transfer:
  """What a new model takes over from a trained one.

  Attributes:
    values: by parameter; what is masked in a masked array stays as the new model has it.
    resized: descriptions of those that were changed to fit.
    unused: the other parameters of the trained model.
  """

  values: Arrays
  resized: tuple[str, ...]
  unused: tuple[str, ...]


def transfer(
  trained: Mapping[str, np.ndarray], shapes: Shapes, old: Side, new: Side, leave_out: str = ""
) -> Transfer:
  """Fits parameters, or batch statistics, to a new model.

  Positions are resized as those of ViLT, or in a multiway encoder of BEiT-3; rows of the word
  embedding are found by the text of their word piece, and positions of text and channels of stacked
  masks are taken as far as there are any.

  Args:
    trained: by name.
    shapes: of the new model's, by name.
    old: the trained model.
    new: the new one.
    leave_out: regex of the names that are not taken over; empty for none.

  Raises:
    InputError: a parameter of the same name has a shape that cannot be changed to fit.
  """
  trained, wanted = _split_blocks(trained), _split_shapes(shapes)
  kept = {name for name in trained if not (leave_out and re.search(leave_out, name))}
  values, resized, misfits = {}, [], []
  for name in sorted(kept & wanted.keys()):
    fitted, change = _fit(name, trained[name], wanted[name], old, new)
    if fitted is None:
      misfits.append(name)
    else:
      values[name] = fitted
      resized += [f"{name} ({change})"] if change else []
  deeper = old.config.model.depth != new.config.model.depth
  misfits += [name for name in values if deeper and name.startswith("encoder/")][:1]
  if misfits:
    raise _misfit(misfits, trained, wanted, old.config, new.config)
  unused = tuple(sorted(trained.keys() - values.keys()))
  if new.config.model.scan:
    values = _stack(values, shapes, new.config.model.depth)
  return Transfer(values, tuple(resized), unused)


def check_leave_out(leave_out: str, names: Mapping[str, np.ndarray]) -> None:
  """Checks that the regex `config.init_leave_out` is one, and matches a parameter.

  Raises:
    InputError: it does not.
  """
  names = _split_blocks(names)
  if leave_out and not matching(names, leave_out, "init_leave_out"):
    raise InputError(
      f"config.init_leave_out: {leave_out!r} matches no parameter of the trained model; "
      f"{parts(names)}"
    )


def _fit(
  name: str, value: np.ndarray, shape: tuple[int, ...], old: Side, new: Side
) -> tuple[np.ndarray | None, str]:
  """Returns a parameter in another shape, None if that is impossible, and what was changed."""
  multiway = new.config.model.experts == "multiway"
  resize_positions = beit3.resize_positions if multiway else vilt.resize_positions
  grids = f"{old.grid()} x {old.grid()} to {new.grid()} x {new.grid()} patches"
  if name == "text/words/embedding" and old.tokenizer.to_bytes() != new.tokenizer.to_bytes():
    return _by_text(value, shape, old.tokenizer, new.tokenizer)
  if value.shape == shape:
    return value, ""
  if value.shape[1:] == shape[1:] and name == "image/position":
    return resize_positions(value, new.grid(), new.grid()), grids
  if value.shape[1:] == shape[1:] and name == "mask/position":
    with_class = np.concatenate([value[:1], value])
    return resize_positions(with_class, new.grid(), new.grid())[1:], grids
  if value.shape[1:] == shape[1:] and name == "text/position":
    return _overlap(value, shape), f"{len(value)} to {shape[0]} tokens"
  pixels = new.config.model.patch_size**2
  if name == "mask/patches/kernel" and old.config.model.patch_size**2 == pixels:
    before, after = len(value) // pixels, shape[0] // pixels
    split = value.reshape(pixels, before, -1)
    if split.shape[-1] == shape[-1]:
      fitted = _overlap(split, (pixels, after, shape[-1]))
      return fitted.reshape(shape), f"{before} to {after} instances"
  return None, ""


def _overlap(value: np.ndarray, shape: tuple[int, ...]) -> np.ma.MaskedArray:
  """Returns an array of a shape with a value in its lower corner, and the rest masked."""
  fitted = _blank(shape)
  common = tuple(slice(min(sizes)) for sizes in zip(value.shape, shape, strict=True))
  fitted[common] = value[common]
  return fitted


def _blank(shape: tuple[int, ...]) -> np.ma.MaskedArray:
  return np.ma.masked_array(np.zeros(shape, np.float32), mask=True)


def _by_text(
  value: np.ndarray, shape: tuple[int, ...], old: Tokenizer, new: Tokenizer
) -> tuple[np.ndarray | None, str]:
  if value.shape[1:] != shape[1:]:
    return None, ""
  rows = {piece: row for row, piece in enumerate(old.pieces())}
  fitted, found = _blank(shape), 0
  for row, piece in enumerate(new.pieces()):
    if piece in rows:
      fitted[row] = value[rows[piece]]
      found += 1
  return fitted, f"{found} of {len(fitted)} word pieces by their text, the others are new"


def _misfit(
  names: list[str], trained: Arrays, wanted: Shapes, old: ConfigDict, new: ConfigDict
) -> InputError:
  """Returns the error for parameters that do not fit, with the keys that may be the reason."""
  name, before, after = names[0], flatten(to_json(old.model)), flatten(to_json(new.model))
  keys = ("width", "depth", "heads", "mlp_ratio", "experts", "patch_size", "decoder_widths")
  options = ("mask_tokens", "mask_path", "image_path", "appearance", "neighbours")
  differ = [
    f"config.model.{key}={before[key]!r}"
    for key in (*keys, *options)
    if before.get(key) != after.get(key)
  ]
  if (old.max_instances == 0) != (new.max_instances == 0):
    differ.append(f"config.max_instances={old.max_instances}")
  regex = "|".join(sorted({f"^{name.partition('/')[0]}" for name in names}))
  return InputError(
    f"config.init {new.init!r}: {name} of shape {trained[name].shape} does not fit one of "
    f"{wanted[name]}; the trained model has {', '.join(differ) or 'other sizes'}: use these, or "
    f"let what does not fit start new with --config.init_leave_out='{regex}'"
  )


def _split_blocks(arrays: Mapping[str, np.ndarray]) -> Arrays:
  """Undoes `stack_blocks`; other names stay as they are."""
  return {
    name.replace(STACK, block_name(i)): row
    for name, value in arrays.items()
    for i, row in (enumerate(value) if f"/{STACK}/" in name else [(0, value)])
  }


def _split_shapes(shapes: Shapes) -> Shapes:
  return {
    name.replace(STACK, block_name(i)) if stacked else name: shape[1:] if stacked else shape
    for name, shape in shapes.items()
    for stacked in [f"/{STACK}/" in name]
    for i in range(shape[0] if stacked else 1)
  }


def _stack(values: Arrays, shapes: Shapes, depth: int) -> Arrays:
  """Stacks the blocks; those that were left out are masked."""
  stacked = {}
  for name, shape in shapes.items():
    if f"/{STACK}/" not in name:
      stacked |= {name: values[name]} if name in values else {}
      continue
    names = [name.replace(STACK, block_name(i)) for i in range(depth)]
    each = [values.get(one, _blank(shape[1:])) for one in names]
    if values.keys() >= set(names):
      stacked[name] = np.stack(each)
    elif values.keys() & set(names):
      stacked[name] = np.ma.stack(each)
  return stacked
