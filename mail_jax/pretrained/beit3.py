r"""Converts BEiT-3 checkpoints of microsoft/unilm, base and large, to parameters of our model:

python -m mail_jax.pretrained.beit3 --checkpoint beit3_base_patch16_224.pth \
    --out beit3_base.safetensors

The file is smaller, since it has no heads, and contains the tokenizer, `beit3.spm`. A run can start
from either: `--config.init=beit3:beit3_base_patch16_224.pth`, with `beit3.spm` beside it, or
`--config.init=beit3:beit3_base.safetensors`. The variants `_itc` and `_indomain` are read as well.
"""

import dataclasses
import pathlib
import re
from collections.abc import Iterator

import numpy as np
from jaxtyping import Float

from input_pipeline.common.command_line import COMMANDS, command_parser
from input_pipeline.common.errors import InputError, run_command
from input_pipeline.preprocess.tokenizer import Beit3Tokenizer
from mail_jax.pretrained import conversion
from mail_jax.pretrained.conversion import Parameters, Pretrained, Row
from mail_jax.pretrained.layouts import patches, qkv_bias, qkv_kernel, same, token, transposed
from mail_jax.pretrained.weights import open_weights, read_metadata

FORMAT = "mail_jax beit3 1"
TOKENIZER = "beit3.spm"
# BEiT-3's experts, and ours that start from them; those of masks start from the image's.
EXPERTS = {"A": "image", "B": "text"}
# Of base and large.
_HEAD_WIDTH = 64
# Positions from fairseq, whose first two rows stand for padding.
_UNUSED_ROWS = 2
_PREFIX = re.compile(r"^((module|model|beit3)\.)+")
_BLOCK = re.compile(r"^encoder\.layers\.(\d+)\.")
# Tensors of the encoder must be in the table; heads and the token of masked patches need not.
_ENCODER = re.compile(r"^(text_embed|vision_embed(?!\.mask_token$)|encoder)\b")
# Kernel of the bicubic interpolation that everyone resizes BEiT-3's positions with.
_CUBIC = -0.75
_INDOMAIN = (
  "leakage: {source} is of the variant *indomain*, which was trained on the captions of COCO and "
  "Visual Genome; it has seen the photos of RefCOCO's val and test splits"
)


def load(path: str | pathlib.Path) -> Pretrained:
  """Loads a BEiT-3 checkpoint, in the precision that it has.

  Args:
    path: a file of unilm's, a `.safetensors` file with its names, or one written by this module.

  Raises:
    InputError: the file does not exist; a tensor is missing, has an unexpected shape or is an
      unknown part of the encoder; or it is not of the size base or large.
  """
  path = pathlib.Path(path)
  if path.suffix == ".safetensors" and path.is_file():
    metadata = read_metadata(path)
    if "mail_jax" in metadata:
      return conversion.load_converted(path, metadata, FORMAT)
  with open_weights(path) as weights:
    names = {_PREFIX.sub("", name): name for name in weights}
    if "encoder.embed_positions.A.weight" not in names:
      raise InputError(
        f"{path}: not a BEiT-3 checkpoint: has no encoder.embed_positions.A.weight; expected "
        "beit3_base_patch16_224.pth, beit3_large_patch16_224.pth, or a variant of these"
      )
    numbers = {int(match[1]) for match in map(_BLOCK.match, names) if match}
    table = list(rows(max(numbers, default=0) + 1))
    parameters, made_from, unused = conversion.convert(
      weights, names, table, str(path), lambda name: not _ENCODER.match(name)
    )
  heads = max(1, len(parameters["image/patches/bias"]) // _HEAD_WIDTH)
  loaded = Pretrained(str(path), parameters, made_from, unused, heads, read_vocab(path))
  side = loaded.sizes()["model.patch_size"]
  if side != 16:
    raise InputError(f"{path}: has patches of {side} pixels; of BEiT-3, base and large have 16")
  return loaded


def read_vocab(path: str | pathlib.Path) -> bytes | None:
  """Returns the SentencePiece model beside the weights or in a converted file, or None."""
  path = pathlib.Path(path)
  if path.suffix == ".safetensors" and path.is_file():
    vocab = conversion.read_converted_vocab(read_metadata(path))
    if vocab is not None:
      return vocab
  beside = path.parent / TOKENIZER
  return beside.read_bytes() if beside.is_file() else None


def rows(depth: int) -> Iterator[Row]:
  """Yields the table of names for a model with `depth` blocks."""
  yield Row("image/cls", ("vision_embed.cls_token",), token, "1 1 d")
  yield Row("image/position", ("encoder.embed_positions.A.weight",), _positions, "n d")
  yield Row("image/patches/kernel", ("vision_embed.proj.weight",), patches, "p d")
  yield Row("image/patches/bias", ("vision_embed.proj.bias",), same, "d")
  yield Row("text/words/embedding", ("text_embed.weight",), same, "v d")
  yield Row("text/position", ("encoder.embed_positions.B.weight",), _positions, "l d")
  for theirs, ours in EXPERTS.items():
    yield from _norm(f"encoder/{ours}_norm", f"encoder.layer_norm.{theirs}", "d")
    for i in range(depth):
      yield from _block(f"encoder/block{i:02d}/{ours}_", f"encoder.layers.{i}", theirs)


def _block(ours: str, theirs: str, expert: str) -> Iterator[Row]:
  attention = f"{theirs}.self_attn"
  yield from _norm(f"{ours}norm1", f"{attention}_layer_norm.{expert}", "d")
  qkv = [f"{attention}.{part}_proj.{expert}" for part in "qkv"]
  yield Row(f"{ours}qkv/kernel", tuple(f"{x}.weight" for x in qkv), qkv_kernel, "d 3 d")
  yield Row(f"{ours}qkv/bias", tuple(f"{x}.bias" for x in qkv), qkv_bias, "3 d")
  yield from _norm(f"{ours}inner_norm", f"{attention}.inner_attn_ln.{expert}", "d")
  yield from _dense(f"{ours}out", f"{attention}.out_proj.{expert}", "d d")
  yield from _norm(f"{ours}norm2", f"{theirs}.final_layer_norm.{expert}", "d")
  yield from _dense(f"{ours}mlp_in", f"{theirs}.ffn.{expert}.fc1", "d h")
  yield from _norm(f"{ours}mlp_norm", f"{theirs}.ffn.{expert}.ffn_layernorm", "h")
  yield from _dense(f"{ours}mlp_out", f"{theirs}.ffn.{expert}.fc2", "h d")


def _norm(ours: str, theirs: str, size: str) -> Iterator[Row]:
  yield Row(f"{ours}/scale", (f"{theirs}.weight",), same, size)
  yield Row(f"{ours}/bias", (f"{theirs}.bias",), same, size)


def _dense(ours: str, theirs: str, shape: str) -> Iterator[Row]:
  yield Row(f"{ours}/kernel", (f"{theirs}.weight",), transposed, shape)
  yield Row(f"{ours}/bias", (f"{theirs}.bias",), same, shape.split()[1])


def _positions(weight: np.ndarray) -> np.ndarray:
  if weight.ndim != 2:
    raise ValueError("expected positions of shape [n, d]")
  return weight[_UNUSED_ROWS:]


def resize_positions(
  position: Float[np.ndarray, "t d"], rows: int, cols: int
) -> Float[np.ndarray, "u d"]:
  """Resizes position embeddings of a square grid as torch's bicubic interpolation does.

  Half-pixel centres, edges repeated, a = -0.75, no antialiasing.

  Args:
    position: of the class token, then of the patches, row by row.
    rows, cols: of the new grid.

  Raises:
    InputError: the number of patches is not a square.
  """
  return conversion.resize_grid(position.astype(np.float32), rows, cols, _bicubic)


def _bicubic(length: int, size: int) -> Float[np.ndarray, "{size} {length}"]:
  """Returns the weights of `length` samples in `size` new ones."""
  at = (np.arange(size) + 0.5) * (length / size) - 0.5
  taps = np.floor(at)[:, None] + np.arange(-1, 3)
  t = np.abs(at[:, None] - taps)
  near = ((_CUBIC + 2) * t - (_CUBIC + 3)) * t * t + 1
  far = _CUBIC * (((t - 5) * t + 8) * t - 4)
  matrix = np.zeros((size, length))
  columns = np.clip(taps, 0, length - 1).astype(int)
  np.add.at(matrix, (np.arange(size)[:, None], columns), np.where(t <= 1, near, far))
  return matrix.astype(np.float32)


def leakage(path: str | pathlib.Path) -> str | None:
  """Returns a warning about what the weights of a file have seen, by its name; or None."""
  source = pathlib.Path(path)
  if source.suffix == ".safetensors":
    source = pathlib.Path(read_metadata(source).get("source", source))
  return _INDOMAIN.format(source=source.name) if "indomain" in source.name else None


def start_mask_experts(fitted: Parameters, shapes: dict[str, tuple[int, ...]]) -> Parameters:
  """Returns the parameters of the experts for masks, which start as those of the image.

  Args:
    fitted: pretrained parameters, by name.
    shapes: of all parameters of the model.
  """
  masks = {name: re.sub(r"(?<=/)mask_", "image_", name) for name in shapes}
  return {ours: fitted[image] for ours, image in masks.items() if ours != image and image in fitted}


def main(argv: list[str] | None = None) -> None:
  """Runs the command."""
  parser = command_parser("mail_jax.pretrained.beit3", __doc__)
  parser.add_argument("--checkpoint", required=True, help="a .pth file of microsoft/unilm")
  parser.add_argument(
    "--vocab", metavar=TOKENIZER, help="the tokenizer (default: the one beside the weights)"
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
    Beit3Tokenizer(pretrained.vocab, args.vocab or f"{TOKENIZER} beside {args.checkpoint}")
  conversion.save(pretrained, args.out, FORMAT)
  print("\n".join(conversion.describe_saved(pretrained, args.out, "beit3")))
  if warning := leakage(args.out):
    print(warning)


if __name__ == "__main__":
  run_command(main, COMMANDS["convert-beit3"].interrupted)
