"""Converts ViLT checkpoints, original ones or those of Hugging Face, to parameters of our model:

python -m mail_jax.pretrained.vilt --checkpoint vilt-b32-mlm --out vilt_b32.safetensors

The file can be read without torch, and contains the vocabulary. A run can start from either:
`--config.init=vilt:vilt-b32-mlm` or `--config.init=vilt:vilt_b32.safetensors`.
"""

import collections
import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
import safetensors.numpy
from jaxtyping import Float32

from input_pipeline.common import atomic_files, untrusted_json
from input_pipeline.common.command_line import COMMANDS, command_parser
from input_pipeline.common.errors import InputError, run_command
from input_pipeline.preprocess.tokenizer import WordPieceTokenizer
from mail_jax.pretrained.vilt_names import BLOCK, ENCODER, POSITION_IDS, PREFIX, Row, rows
from mail_jax.pretrained.weights import Weights, open_weights, read_metadata

FORMAT = "mail_jax vilt 1"
# Of ViT-B, for checkpoints without a config.json.
_HEAD_WIDTH = 64

Parameters = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Pretrained:
  """A converted checkpoint.

  Attributes:
    source: the file it was read from.
    parameters: ours, by name; the grid of positions has the size it has in the checkpoint.
    made_from: the names of the source tensors of each parameter.
    unused: the checkpoint's other tensors: heads, the pooler, position ids.
    heads: number of attention heads.
    vocab: the BERT vocabulary beside the weights; None if there is none.
  """

  source: str
  parameters: Parameters
  made_from: dict[str, tuple[str, ...]]
  unused: tuple[str, ...]
  heads: int
  vocab: bytes | None

  def sizes(self) -> dict[str, int | float]:
    """Returns the values that a config must have for the parameters to fit, by config key."""
    width = self.parameters["image/patches/bias"].shape[0]
    pixels = self.parameters["image/patches/kernel"].shape[0] // 3
    return {
      "model.width": width,
      "model.depth": sum(name.endswith("norm1/scale") for name in self.parameters),
      "model.heads": self.heads,
      "model.patch_size": round(pixels**0.5),
      "model.mlp_ratio": self.parameters["encoder/block00/mlp_in/bias"].shape[0] / width,
    }

  def report(self) -> str:
    """Returns one line per parameter and per unused tensor."""
    lines = [
      f"converted  {name}  {list(value.shape)}  <- {', '.join(self.made_from[name])}"
      for name, value in self.parameters.items()
    ]
    return "\n".join(lines + [f"unused     {name}" for name in self.unused])


def load(path: str | pathlib.Path) -> Pretrained:
  """Loads a ViLT checkpoint.

  Args:
    path: a folder of Hugging Face (`model.safetensors` or `pytorch_model.bin`, `config.json`,
      `vocab.txt`), a file of weights with the names of Hugging Face or of the original Lightning
      checkpoints, or a file written by this module.

  Raises:
    InputError: the file does not exist; a tensor is missing, has an unexpected shape or is an
      unknown part of the encoder; or torch is not installed for a `.bin` or `.ckpt`.
  """
  path = pathlib.Path(path)
  file = _weights_file(path) if path.is_dir() else path
  if file.suffix == ".safetensors" and file.is_file():
    metadata = read_metadata(file)
    if "mail_jax" in metadata:
      return _load_converted(file, metadata)
  with open_weights(file) as weights:
    parameters, made_from, unused = convert(weights, str(file))
  heads = _heads(file.parent / "config.json", parameters["type"].shape[1])
  return Pretrained(str(file), parameters, made_from, unused, heads, read_vocab(file))


def read_vocab(path: str | pathlib.Path) -> bytes | None:
  """Returns the BERT vocabulary beside the weights or in a converted file, or None."""
  path = pathlib.Path(path)
  if (
    path.suffix == ".safetensors"
    and path.is_file()
    and "vocab" in (metadata := read_metadata(path))
  ):
    return metadata["vocab"].encode("utf-8")
  vocab = (path if path.is_dir() else path.parent) / "vocab.txt"
  return vocab.read_bytes() if vocab.is_file() else None


def _weights_file(folder: pathlib.Path) -> pathlib.Path:
  names = ("model.safetensors", "pytorch_model.bin")
  for name in names:
    if (folder / name).is_file():
      return folder / name
  raise InputError(f"{folder}: has neither {' nor '.join(names)}")


def _heads(config: pathlib.Path, width: int) -> int:
  if not config.is_file():
    return max(1, width // _HEAD_WIDTH)
  try:
    return int(untrusted_json.load_file(config)["num_attention_heads"])
  except (ValueError, KeyError, TypeError) as error:
    raise InputError(
      f"{config}: not the config of a ViLT model: num_attention_heads is missing"
    ) from error


def convert(
  weights: Weights, source: str
) -> tuple[Parameters, dict[str, tuple[str, ...]], tuple[str, ...]]:
  """Converts tensors with either set of names, and any prefix.

  Returns:
    Our parameters, the names of the source tensors of each, and the names of unused tensors.

  Raises:
    InputError: see `load`.
  """
  names = {PREFIX.sub("", name): name for name in weights}
  is_hf = "embeddings.cls_token" in names
  if not is_hf and "cls_token" not in names:
    raise InputError(
      f"{source}: not a ViLT checkpoint: has neither embeddings.cls_token (Hugging Face) nor "
      "cls_token (original)"
    )
  numbers = {int(match[1]) for match in map(BLOCK.match, names) if match}
  table = list(rows(max(numbers, default=0) + 1))
  parameters, made_from = {}, {}
  for row in table:
    required = row.hugging_face if is_hf else row.original
    for name in required:
      if name not in names:
        raise InputError(f"{source}: the tensor {name} is missing, the source of {row.ours}")
    made_from[row.ours] = tuple(names[name] for name in required)
    try:
      parameter = row.make(*(weights[name] for name in made_from[row.ours]))
    except (ValueError, IndexError) as error:
      raise _unexpected(
        weights, source, made_from[row.ours], f"cannot convert it to {row.ours}"
      ) from error
    parameters[row.ours] = np.ascontiguousarray(parameter, np.float32)
  _check_shapes(table, parameters, made_from, weights, source)
  used = {name for row in made_from.values() for name in row}
  unused = tuple(name for name in weights if name not in used)
  for name in unused:
    bare = PREFIX.sub("", name)
    if ENCODER.match(bare) and not POSITION_IDS.search(bare):
      raise InputError(
        f"{source}: the tensor {name} belongs to the encoder, but ViLT has no such part"
      )
  return parameters, made_from, unused


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


def resize_positions(
  position: Float32[np.ndarray, "t d"], rows: int, cols: int
) -> Float32[np.ndarray, "u d"]:
  """Resizes position embeddings of a square grid bilinearly with aligned corners, as ViLT does.

  Args:
    position: of the class token, then of the patches, row by row.
    rows, cols: of the new grid.

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
  grid = np.einsum("ri,ijd->rjd", _align_corners(side, rows), grid)
  grid = np.einsum("cj,rjd->rcd", _align_corners(side, cols), grid)
  return np.concatenate([position[:1], grid.reshape(rows * cols, -1)])


def _align_corners(length: int, size: int) -> Float32[np.ndarray, "{size} {length}"]:
  """Returns the weights of `length` samples in `size` new ones; the first and last stay fixed."""
  at = np.arange(size) * (length - 1) / max(1, size - 1)
  return np.maximum(0, 1 - np.abs(at[:, None] - np.arange(length))).astype(np.float32)


def fit(
  pretrained: Pretrained,
  shapes: Mapping[str, tuple[int, ...]],
  grid: tuple[int, int],
) -> Parameters:
  """Fits the parameters to a model.

  Args:
    pretrained: of the same size as the model.
    shapes: of the model's parameters, by name.
    grid: rows and columns of the model's patches.

  Returns:
    The model's parameters that the checkpoint has.

  Raises:
    InputError: the model has more text positions, or another vocabulary, than the checkpoint.
  """
  source, fitted = pretrained.source, {}
  for name, value in pretrained.parameters.items():
    if name == "image/position":
      value = resize_positions(value, *grid)
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


def save(pretrained: Pretrained, path: str) -> None:
  """Writes the converted parameters and the vocabulary as one `.safetensors` file, atomically."""
  metadata = {
    "mail_jax": FORMAT,
    "source": pretrained.source,
    "heads": str(pretrained.heads),
    "made_from": json.dumps(pretrained.made_from),
    "unused": json.dumps(pretrained.unused),
  }
  if pretrained.vocab is not None:
    metadata["vocab"] = pretrained.vocab.decode("utf-8")
  with atomic_files.whole_file(path) as temporary:
    safetensors.numpy.save_file(pretrained.parameters, temporary, metadata)


def _load_converted(path: pathlib.Path, metadata: dict[str, str]) -> Pretrained:
  if metadata["mail_jax"] != FORMAT:
    raise InputError(
      f"{path}: has the format {metadata['mail_jax']!r}, this version reads {FORMAT!r}; convert it "
      "again"
    )
  with open_weights(path) as weights:
    parameters = dict(weights)
  vocab = metadata.get("vocab")
  try:
    made_from = untrusted_json.loads(metadata["made_from"], str(path))
    return Pretrained(
      metadata["source"],
      parameters,
      {name: tuple(names) for name, names in made_from.items()},
      tuple(untrusted_json.loads(metadata["unused"], str(path))),
      int(metadata["heads"]),
      None if vocab is None else vocab.encode("utf-8"),
    )
  except (KeyError, TypeError, AttributeError, ValueError) as error:
    raise InputError(
      f"{path}: metadata of a file that this version has not written ({error!r})"
    ) from error


def main(argv: list[str] | None = None) -> None:
  """Runs the command."""
  parser = command_parser("mail_jax.pretrained.vilt", __doc__)
  parser.add_argument(
    "--checkpoint",
    required=True,
    help="a folder or a file of weights of Hugging Face, or an original Lightning checkpoint",
  )
  parser.add_argument(
    "--vocab", metavar="VOCAB.txt", help="the BERT vocabulary (default: the one beside the weights)"
  )
  parser.add_argument("--out", required=True, metavar="OUT.safetensors", help="the file to write")
  args = parser.parse_args(argv)
  if not args.out.endswith(".safetensors"):
    raise InputError(f"--out {args.out}: the name must end in .safetensors")
  pretrained = load(args.checkpoint)
  if args.vocab:
    try:
      pretrained = dataclasses.replace(pretrained, vocab=pathlib.Path(args.vocab).read_bytes())
    except OSError as error:
      raise InputError(f"--vocab {args.vocab}: {error.strerror}") from error
  if pretrained.vocab is not None:
    WordPieceTokenizer(pretrained.vocab, args.vocab or f"the vocabulary of {args.checkpoint}")
  save(pretrained, args.out)
  print(pretrained.report())
  count = sum(value.size for value in pretrained.parameters.values())
  vocab = "with" if pretrained.vocab is not None else "without a"
  print(
    f"wrote {args.out}: {count / 1e6:.1f} M parameters in {len(pretrained.parameters)} arrays, "
    f"{vocab} vocabulary; {len(pretrained.unused)} tensors unused"
  )
  sizes = ", ".join(f"{key} = {value:g}" for key, value in pretrained.sizes().items())
  print(f"start from it with --config.init=vilt:{args.out} and {sizes}")


if __name__ == "__main__":
  run_command(main, COMMANDS["convert-vilt"].interrupted)
