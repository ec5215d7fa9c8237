"""The folder that `mail_jax.export` writes: its files, and checks that they are intact."""

import hashlib
import json
import pathlib
import reprlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
from etils import epath

from input_pipeline import image_hashes
from input_pipeline.common import untrusted_files
from input_pipeline.common.errors import InputError
from input_pipeline.common.untrusted_files import check_no_pointer
from input_pipeline.image_hashes import ImageSet
from mail_jax.export import precision as precisions
from mail_jax.models.build import Tree, path_name
from mail_jax.pretrained.weights import write_safetensors

ABOUT = "config.json"
README = "README.md"
FORMAT = "mail_jax"
# Of the folder's layout; each version also reads the layouts of older ones.
VERSION = 1
# The file or folder of each format. mail_jax itself loads the first; the others also run elsewhere.
PLACES = {
  "safetensors": "model.safetensors",
  "stablehlo": "model.stablehlo",
  "saved_model": "saved_model",
  "onnx": "model.onnx",
  "tensorrt": "model_tensorrt.onnx",
}
# The keys of `config.json` that are read, apart from the format; the others are for people.
_KEYS = {"config": dict, "files": dict, "step": int, "metrics": dict, "tokenizer": dict}
_COPY_AGAIN = "copy the whole folder again"
_PART = 2**24
_SCALE = "scale_of_int8"
# Of arrays in safetensors, by the names there.
_TYPES = {"F32": np.float32, "F16": np.float16, "BF16": jnp.bfloat16, "I8": np.int8}
IMAGES = "training_images.safetensors"
TOKENIZERS = {"wordpiece": "vocab.txt", "sentencepiece": "tokenizer.model", "beit3": "beit3.spm"}


def find(place: epath.Path, named: str) -> tuple[epath.Path, str] | None:
  """Returns the folder and the format of an exported model; None if the path is not one.

  Args:
    place: an exported folder, or the file or folder of one format in it.
    named: the path as the user wrote it.

  Raises:
    InputError: the path is another file of an exported folder, or a format outside of one.
  """
  if (place / ABOUT).is_file():
    return place, "safetensors"
  formats = {name: key for key, name in PLACES.items()}
  beside = (place.parent / ABOUT).is_file()
  if place.name not in formats:
    if beside and place.is_file():
      raise InputError(f"--checkpoint {named}: expected one of {', '.join(formats)}")
    return None
  if beside:
    return place.parent, formats[place.name]
  if place.is_file() or any(place.glob("*/saved_model.pb")):
    raise InputError(
      f"--checkpoint {named}: {ABOUT} is missing beside it; an exported model is a whole folder"
    )
  return None


def read_about(folder: epath.Path) -> dict[str, Any]:
  """Loads and checks the `config.json` of an exported folder.

  Raises:
    InputError: it cannot be read, is not ours, or has a newer version.
  """
  path = folder / ABOUT
  try:
    about = json.loads(path.read_text())
    ours = about["format"] == FORMAT
  except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
    raise InputError(f"{path}: not a model exported by mail_jax ({error!r})") from error
  if not ours:
    raise InputError(f"{path}: not a model exported by mail_jax")
  version = about.get("format_version")
  if not isinstance(version, int) or version > VERSION:
    raise InputError(
      f"{path}: format_version is {version}, this mail_jax reads up to {VERSION}; upgrade mail_jax"
    )
  for key, expected_type in _KEYS.items():
    if not isinstance(about.get(key), expected_type):
      problem = f"{key!r} is {reprlib.repr(about[key])}" if key in about else f"{key!r} is missing"
      raise InputError(f"{path}: {problem}; {_COPY_AGAIN}")
  for name, entry in about["files"].items():
    if not untrusted_files.stays_inside(name):
      raise InputError(f"{path}: the file name {name!r} points outside the folder")
    if not isinstance(entry, list) or [type(x) for x in entry] != [int, str]:
      raise InputError(f"{path}: no size and SHA-256 for {name!r}; {_COPY_AGAIN}")
  if not all(isinstance(about["tokenizer"].get(key), str) for key in ("kind", "file")):
    raise InputError(f"{path}: the tokenizer has no kind or no file; {_COPY_AGAIN}")
  return about


def read_file(folder: epath.Path, about: dict[str, Any], name: str) -> bytes:
  """Reads a file of the folder.

  Raises:
    InputError: it is missing, or its contents are not those that were exported.
  """
  return b"".join(_read_parts(folder, about, name))


def is_intact(folder: epath.Path, about: dict[str, Any], name: str) -> bool:
  """Returns whether a file of the folder is there with the contents that were exported."""
  try:
    for _ in _read_parts(folder, about, name):
      pass
  except InputError:
    return False
  return True


def _read_parts(folder: epath.Path, about: dict[str, Any], name: str) -> Iterator[bytes]:
  """Yields a file of the folder part by part, and checks it at the end."""
  path, size, digest = folder / name, 0, hashlib.sha256()
  if name not in about["files"]:
    raise InputError(f"{path}: not listed in {ABOUT}; {_formats(folder, about)}")
  try:
    with path.open("rb") as file:
      while part := file.read(_PART):
        if not size:
          check_no_pointer(part, str(path))
        size += len(part)
        digest.update(part)
        yield part
  except OSError as error:
    raise InputError(f"{path}: {error.strerror or error}; {_COPY_AGAIN}") from error
  if [size, digest.hexdigest()] != about["files"][name]:
    raise InputError(f"{path}: contents differ from what was exported; {_COPY_AGAIN}")


def read_images(folder: epath.Path, about: dict[str, Any]) -> dict[str, ImageSet] | None:
  """Returns hashes of the images that the model was trained on; None if they are unknown.

  Raises:
    InputError: the file is missing or changed.
  """
  if IMAGES not in about["files"]:
    return None
  return image_hashes.from_bytes(read_file(folder, about, IMAGES), str(folder / IMAGES))


def check_place(folder: epath.Path, about: dict[str, Any], form: str) -> epath.Path:
  """Returns the path of a format's model after checking all of its files.

  Raises:
    InputError: the folder does not have that format, or a file of it is missing or changed.
  """
  place, names = PLACES[form], names_of(about, form)
  if not names:
    raise InputError(f"{folder / place}: not exported; {_formats(folder, about)}")
  for name in names:
    for _ in _read_parts(folder, about, name):
      pass  # Weights may be larger than memory allows for twice.
  return folder / place


def beside(name: str) -> str:
  """Returns the name of the file with the weights that are too large for a model's own file."""
  return f"{name}.data"


def names_of(about: dict[str, Any], form: str) -> list[str]:
  """Returns the names of the files of a format's model."""
  place = PLACES[form]
  files = (place, beside(place))
  return [name for name in about["files"] if name in files or name.startswith(f"{place}/")]


def _formats(folder: epath.Path, about: dict[str, Any]) -> str:
  exported = [form for form in PLACES if names_of(about, form)]
  return (
    f"the folder has {', '.join(exported) or 'no model'}; "
    f"python -m mail_jax.export --checkpoint {folder} makes others from safetensors"
  )


def list_files(folder: pathlib.Path) -> dict[str, list[Any]]:
  """Returns size and SHA-256 of every file but the model card, which may be edited."""
  entries = {}
  for path in sorted(folder.rglob("*")):
    name = path.relative_to(folder).as_posix()
    if path.is_file() and name not in (README, ABOUT):
      with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
      entries[name] = [path.stat().st_size, digest]
  return entries


def write_variables(place: pathlib.Path, variables: Tree, precision: str = "float32") -> None:
  """Writes a `.safetensors` file, by paths such as `params/encoder/norm/scale`.

  Matrices and kernels are in the precision; as `int8`, they have scales, `PATH/scale_of_int8`, to
  multiply them with.
  """
  arrays = {}
  for path, leaf in jax.tree_util.tree_leaves_with_path(variables):
    name, array = path_name(path), np.array(leaf, order="C")
    if precision == "float32" or not precisions.is_reduced(array):
      arrays[name] = array
    elif precision == "int8":
      axes = precisions.leading_axes(array.shape)
      arrays[name], arrays[f"{name}/{_SCALE}"] = precisions.to_int8(array, axes)
    else:
      arrays[name] = precisions.to_half(array, precision, name)
  write_safetensors(place, arrays, {"format": FORMAT})


def variables_from_bytes(data: bytes, shapes: Tree, name: str) -> Tree:
  """Undoes `write_variables`; all are float32 again.

  Args:
    data: the file.
    shapes: structure and shapes of the model's variables.
    name: what to call the file in errors.

  Raises:
    InputError: not an intact `.safetensors` file, or one with other variables.
  """
  try:
    arrays = {
      path: np.frombuffer(entry["data"], _TYPES[entry["dtype"]]).reshape(entry["shape"])
      for path, entry in safetensors.deserialize(data)
    }
  except (safetensors.SafetensorError, KeyError, TypeError, ValueError) as error:
    raise InputError(f"{name}: not an intact .safetensors file ({error})") from error

  def take(path, leaf) -> np.ndarray:
    array = arrays.pop(path_name(path), None)
    if array is None or array.shape != leaf.shape:
      problem = "is missing" if array is None else f"has the shape {array.shape}"
      raise InputError(
        f"{name}: {path_name(path)} {problem}; config.json describes one of shape {leaf.shape}"
      )
    if array.dtype == np.int8:
      scale = arrays.pop(f"{path_name(path)}/{_SCALE}", None)
      if scale is None or np.broadcast_shapes(scale.shape, leaf.shape) != leaf.shape:
        raise InputError(f"{name}: {path_name(path)} has no scales that fit; {_COPY_AGAIN}")
      array = array.astype(np.float32) * scale
    return array.astype(leaf.dtype, copy=False)

  variables = jax.tree_util.tree_map_with_path(take, shapes)
  if arrays:
    raise InputError(
      f"{name}: {min(arrays)} is not a variable of the model that config.json describes"
    )
  return variables
