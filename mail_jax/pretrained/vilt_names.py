"""From ViLT's names to ours: one table."""

import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np


class Row(NamedTuple):
  """One line of the table.

  Attributes:
    ours: name of our parameter; `{i}` is the block.
    hugging_face: names of the tensors that it is made from in `transformers`, without `vilt.`.
    original: the same in the Lightning checkpoints, without `transformer.`.
    make: makes it of them.
    shape: of ours; a letter is the same number wherever it stands.
  """

  ours: str
  hugging_face: tuple[str, ...]
  original: tuple[str, ...]
  make: Callable[..., np.ndarray]
  shape: str


def _same(x: np.ndarray) -> np.ndarray:
  return x


def _token(x: np.ndarray) -> np.ndarray:
  if x.ndim != 3:
    raise ValueError("not a batch of one token")
  return x


def _transposed(weight: np.ndarray) -> np.ndarray:
  """PyTorch's [out, in] as [in, out]."""
  return weight.T


def _patches(weight: np.ndarray) -> np.ndarray:
  """A convolution's [out, colour, row, column] as a dense layer over patches that are flattened channels last."""
  if weight.ndim != 4 or weight.shape[1] != 3 or weight.shape[2] != weight.shape[3]:
    raise ValueError("not a convolution of square patches of three colours")
  return weight.transpose(2, 3, 1, 0).reshape(-1, weight.shape[0])


def _positions(position: np.ndarray) -> np.ndarray:
  if position.ndim != 3:
    raise ValueError("not a batch of one row of positions")
  return position[0]


def _text_positions(position: np.ndarray, kind: np.ndarray) -> np.ndarray:
  """BERT's segment 0 is added to every word, so it belongs to the positions."""
  if kind.ndim != 2:
    raise ValueError("no table of segments")
  return position + kind[0]


def _kinds(kind: np.ndarray) -> np.ndarray:
  """ViLT's (text, image) as ours (image, mask, text); a mask starts as an image."""
  text, image = kind[:2]
  return np.stack([image, image, text])


def _qkv_kernel(*weights: np.ndarray) -> np.ndarray:
  """Query, key and value, apart or stacked, as [in, 3, out]."""
  weight = np.concatenate(weights)
  return weight.reshape(3, -1, weight.shape[1]).transpose(2, 0, 1)


def _qkv_bias(*biases: np.ndarray) -> np.ndarray:
  return np.concatenate(biases).reshape(3, -1)


_TEXT = "text_embeddings."
_HF_BLOCK, _HF_ATTENTION = "encoder.layer.{i}.", "encoder.layer.{i}.attention.attention."
_QKV = ("query", "key", "value")

# fmt: off
TABLE = (
  Row("image/cls", ("embeddings.cls_token",), ("cls_token",), _token, "1 1 d"),
  Row("image/position", ("embeddings.position_embeddings",), ("pos_embed",), _positions, "n d"),
  Row("image/patches/kernel",
      ("embeddings.patch_embeddings.projection.weight",), ("patch_embed.proj.weight",), _patches, "p d"),
  Row("image/patches/bias", ("embeddings.patch_embeddings.projection.bias",), ("patch_embed.proj.bias",), _same, "d"),
  Row("text/words/embedding",
      (f"embeddings.{_TEXT}word_embeddings.weight",), (f"{_TEXT}word_embeddings.weight",), _same, "v d"),
  Row("text/position",
      (f"embeddings.{_TEXT}position_embeddings.weight", f"embeddings.{_TEXT}token_type_embeddings.weight"),
      (f"{_TEXT}position_embeddings.weight", f"{_TEXT}token_type_embeddings.weight"), _text_positions, "l d"),
  Row("text/norm/scale", (f"embeddings.{_TEXT}LayerNorm.weight",), (f"{_TEXT}LayerNorm.weight",), _same, "d"),
  Row("text/norm/bias", (f"embeddings.{_TEXT}LayerNorm.bias",), (f"{_TEXT}LayerNorm.bias",), _same, "d"),
  Row("type", ("embeddings.token_type_embeddings.weight",), ("token_type_embeddings.weight",), _kinds, "3 d"),
  Row("encoder/norm/scale", ("layernorm.weight",), ("norm.weight",), _same, "d"),
  Row("encoder/norm/bias", ("layernorm.bias",), ("norm.bias",), _same, "d"),
)
BLOCK_TABLE = (
  Row("norm1/scale", (_HF_BLOCK + "layernorm_before.weight",), ("blocks.{i}.norm1.weight",), _same, "d"),
  Row("norm1/bias", (_HF_BLOCK + "layernorm_before.bias",), ("blocks.{i}.norm1.bias",), _same, "d"),
  Row("qkv/kernel", tuple(f"{_HF_ATTENTION}{x}.weight" for x in _QKV),
      ("blocks.{i}.attn.qkv.weight",), _qkv_kernel, "d 3 d"),
  Row("qkv/bias", tuple(f"{_HF_ATTENTION}{x}.bias" for x in _QKV), ("blocks.{i}.attn.qkv.bias",), _qkv_bias, "3 d"),
  Row("out/kernel",
      (_HF_BLOCK + "attention.output.dense.weight",), ("blocks.{i}.attn.proj.weight",), _transposed, "d d"),
  Row("out/bias", (_HF_BLOCK + "attention.output.dense.bias",), ("blocks.{i}.attn.proj.bias",), _same, "d"),
  Row("norm2/scale", (_HF_BLOCK + "layernorm_after.weight",), ("blocks.{i}.norm2.weight",), _same, "d"),
  Row("norm2/bias", (_HF_BLOCK + "layernorm_after.bias",), ("blocks.{i}.norm2.bias",), _same, "d"),
  Row("mlp_in/kernel", (_HF_BLOCK + "intermediate.dense.weight",), ("blocks.{i}.mlp.fc1.weight",), _transposed, "d h"),
  Row("mlp_in/bias", (_HF_BLOCK + "intermediate.dense.bias",), ("blocks.{i}.mlp.fc1.bias",), _same, "h"),
  Row("mlp_out/kernel", (_HF_BLOCK + "output.dense.weight",), ("blocks.{i}.mlp.fc2.weight",), _transposed, "h d"),
  Row("mlp_out/bias", (_HF_BLOCK + "output.dense.bias",), ("blocks.{i}.mlp.fc2.bias",), _same, "d"),
)
# fmt: on

PREFIX = re.compile(r"^((module|vilt|model|transformer)\.)+")
BLOCK = re.compile(r"^(?:encoder\.layer|blocks)\.(\d+)\.")
# What is part of the encoder must be in the table; the heads, the pooler and counters of positions need not.
ENCODER = re.compile(
  r"^(embeddings|encoder|blocks|text_embeddings|token_type_embeddings|patch_embed|pos_embed|cls_token|layernorm|norm)\b"
)
COUNTERS = re.compile(r"(^|\.)(position_ids|token_type_ids)$")


def rows(depth: int) -> Iterator[Row]:
  """The whole table of a model with so many blocks."""
  yield from TABLE
  for i in range(depth):
    for row in BLOCK_TABLE:
      hugging_face, original = (
        tuple(name.format(i=i) for name in names) for names in (row.hugging_face, row.original)
      )
      yield Row(f"encoder/block{i:02d}/{row.ours}", hugging_face, original, row.make, row.shape)
