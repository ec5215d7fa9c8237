"""Converts ViLT checkpoints, original ones or those of Hugging Face, to parameters of our model:

python -m mail_jax.pretrained.vilt --checkpoint vilt-b32-mlm --out vilt_b32.safetensors

The file can be read without torch, and contains the vocabulary. A run can start from either:
`--config.init=vilt:vilt-b32-mlm` or `--config.init=vilt:vilt_b32.safetensors`.
"""

import dataclasses
import pathlib

import numpy as np
from jaxtyping import Float32

from input_pipeline.common import untrusted_json
from input_pipeline.common.command_line import COMMANDS, command_parser
from input_pipeline.common.errors import InputError, run_command
from input_pipeline.common.untrusted_files import check_pulled
from input_pipeline.preprocess.tokenizer import WordPieceTokenizer
from mail_jax.pretrained import conversion
from mail_jax.pretrained.conversion import Parameters, Pretrained
from mail_jax.pretrained.vilt_names import BLOCK, ENCODER, POSITION_IDS, PREFIX, rows
from mail_jax.pretrained.weights import Weights, open_weights, read_metadata

FORMAT = "mail_jax vilt 1"
# Of ViT-B, for checkpoints without a config.json.
_HEAD_WIDTH = 64


def load(path: str | pathlib.Path) -> Pretrained:
  """Loads a ViLT checkpoint.

  Args:
    path: a folder of Hugging Face (`model.safetensors` or `pytorch_model.bin`, whole or with an
      index of several files, `config.json`, `vocab.txt` or `tokenizer.json`), a file of weights
      with the names of Hugging Face or of the original Lightning checkpoints, or a file written by
      this module.

  Raises:
    InputError: the file does not exist; a tensor is missing, has an unexpected shape or is an
      unknown part of the encoder.
  """
  path = pathlib.Path(path)
  check_exists(path)
  file = _weights_file(path) if path.is_dir() else path
  if file.suffix == ".safetensors" and file.is_file():
    metadata = read_metadata(file)
    if "mail_jax" in metadata:
      return conversion.load_converted(file, metadata, FORMAT)
  with open_weights(file) as weights:
    parameters, made_from, unused = convert(weights, str(file))
  heads = _heads(file.parent / "config.json", parameters["type"].shape[1])
  return Pretrained(str(file), parameters, made_from, unused, heads, read_vocab(file))


def check_exists(path: pathlib.Path) -> None:
  """Raises an `InputError` if there is no such folder or file, with the command that gets it."""
  if not path.exists():
    name = path.name if path.name.startswith("vilt-") else "vilt-b32-mlm"
    raise InputError(
      f"{path}: there is no such folder or file; `hf download dandelin/{name} --local-dir {path}` "
      "(pip install huggingface_hub) gets the weights"
    )


def read_vocab(path: str | pathlib.Path) -> bytes | None:
  """Returns the BERT vocabulary beside the weights or in a converted file, or None.

  Raises:
    InputError: there are no such weights, or the vocabulary is not BERT's.
  """
  path = pathlib.Path(path)
  check_exists(path)
  if (
    path.suffix == ".safetensors"
    and path.is_file()
    and "vocab" in (metadata := read_metadata(path))
  ):
    return conversion.read_converted_vocab(metadata)
  folder = path if path.is_dir() else path.parent
  for name in ("vocab.txt", "tokenizer.json"):
    if (folder / name).is_file():
      return _read_vocab_file(folder / name)
  return None


def _read_vocab_file(path: pathlib.Path) -> bytes:
  """Returns the word pieces in `vocab.txt` or `tokenizer.json`, one a line."""
  check_pulled(path, str(path))
  if path.suffix != ".json":
    return path.read_bytes()
  content = untrusted_json.load_file(path)
  model = content.get("model") if isinstance(content, dict) else None
  vocab = model.get("vocab") if isinstance(model, dict) else None
  if not isinstance(vocab, dict) or sorted(map(str, vocab.values())) != sorted(
    map(str, range(len(vocab)))
  ):
    raise InputError(f"{path}: its model is not WordPiece, BERT's; give a vocab.txt")
  return "".join(f"{piece}\n" for piece in sorted(vocab, key=vocab.__getitem__)).encode()


def _weights_file(folder: pathlib.Path) -> pathlib.Path:
  names = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
  )
  for name in names:
    if (folder / name).is_file():
      return folder / name
  raise InputError(f"{folder}: has none of {', '.join(names)}")


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
  """Converts tensors with either set of names, and any prefix, to float32.

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
  table = list(rows(max(numbers, default=0) + 1, is_hf))
  parameters, made_from, unused = conversion.convert(weights, names, table, source, _is_ignored)
  parameters = {name: np.asarray(value, np.float32) for name, value in parameters.items()}
  return parameters, made_from, unused


def _is_ignored(name: str) -> bool:
  return not ENCODER.match(name) or POSITION_IDS.search(name) is not None


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
  return conversion.resize_grid(position, rows, cols, _align_corners)


def _align_corners(length: int, size: int) -> Float32[np.ndarray, "{size} {length}"]:
  """Returns the weights of `length` samples in `size` new ones; the first and last stay fixed."""
  at = np.arange(size) * (length - 1) / max(1, size - 1)
  return np.maximum(0, 1 - np.abs(at[:, None] - np.arange(length))).astype(np.float32)


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
      vocab = _read_vocab_file(pathlib.Path(args.vocab))
      pretrained = dataclasses.replace(pretrained, vocab=vocab)
    except OSError as error:
      raise InputError(f"--vocab {args.vocab}: {error.strerror}") from error
  if pretrained.vocab is not None:
    WordPieceTokenizer(pretrained.vocab, args.vocab or f"the vocabulary of {args.checkpoint}")
  conversion.save(pretrained, args.out, FORMAT)
  print("\n".join(conversion.describe_saved(pretrained, args.out, "vilt")))


if __name__ == "__main__":
  run_command(main, COMMANDS["convert-vilt"].interrupted)
