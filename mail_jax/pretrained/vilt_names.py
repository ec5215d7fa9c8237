"""The table of ViLT's parameter names and ours."""

import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np


class Row(NamedTuple):
  """A row of the table.

  Attributes:
    ours: name of our parameter; `{i}` is the block.
    hugging_face: names of its source tensors in `transformers`, without `vilt.`.
    original: the same in the original Lightning checkpoints, without `transformer.`.
    make: computes our parameter from the source tensors.
    shape: of our parameter; a letter stands for the same number in all rows.
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
    raise ValueError("expected a token of shape [1, 1, d]")
  return x


def _transposed(weight: np.ndarray) -> np.ndarray:
  """Transposes [out, in], as PyTorch has it, to [in, out]."""
  return weight.T


def _patches(weight: np.ndarray) -> np.ndarray:
  """Converts a convolution to a dense layer over patches, flattened with channels last."""
  if weight.ndim != 4 or weight.shape[1] != 3 or weight.shape[2] != weight.shape[3]:
    raise ValueError("not a convolution over square patches with three channels")
  return weight.transpose(2, 3, 1, 0).reshape(-1, weight.shape[0])


def _positions(position: np.ndarray) -> np.ndarray:
  if position.ndim != 3:
    raise ValueError("expected positions of shape [1, n, d]")
  return position[0]


def _text_positions(position: np.ndarray, segments: np.ndarray) -> np.ndarray:
  """Adds the embedding of BERT's segment 0, which every token has, to the positions."""
  if segments.ndim != 2:
    raise ValueError("expected segment embeddings of shape [n, d]")
  return position + segments[0]


def _types(types: np.ndarray) -> np.ndarray:
  """Converts ViLT's types (text, image) to ours (image, mask, text); a mask starts as an image."""
  text, image = types[:2]
  return np.stack([image, image, text])


def _qkv_kernel(*weights: np.ndarray) -> np.ndarray:
  """Converts query, key and value, separate or stacked, to [in, 3, out]."""
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
      ("embeddings.patch_embeddings.projection.weight",), ("patch_embed.proj.weight",),
      _patches, "p d"),
  Row("image/patches/bias", ("embeddings.patch_embeddings.projection.bias",),
      ("patch_embed.proj.bias",), _same, "d"),
  Row("text/words/embedding",
      (f"embeddings.{_TEXT}word_embeddings.weight",), (f"{_TEXT}word_embeddings.weight",),
      _same, "v d"),
  Row("text/position",
      (f"embeddings.{_TEXT}position_embeddings.weight",
       f"embeddings.{_TEXT}token_type_embeddings.weight"),
      (f"{_TEXT}position_embeddings.weight", f"{_TEXT}token_type_embeddings.weight"),
      _text_positions, "l d"),
  Row("text/norm/scale", (f"embeddings.{_TEXT}LayerNorm.weight",), (f"{_TEXT}LayerNorm.weight",),
      _same, "d"),
  Row("text/norm/bias", (f"embeddings.{_TEXT}LayerNorm.bias",), (f"{_TEXT}LayerNorm.bias",),
      _same, "d"),
  Row("type", ("embeddings.token_type_embeddings.weight",), ("token_type_embeddings.weight",),
      _types, "3 d"),
  Row("encoder/norm/scale", ("layernorm.weight",), ("norm.weight",), _same, "d"),
  Row("encoder/norm/bias", ("layernorm.bias",), ("norm.bias",), _same, "d"),
)
BLOCK_TABLE = (
  Row("norm1/scale", (_HF_BLOCK + "layernorm_before.weight",), ("blocks.{i}.norm1.weight",),
      _same, "d"),
  Row("norm1/bias", (_HF_BLOCK + "layernorm_before.bias",), ("blocks.{i}.norm1.bias",), _same, "d"),
  Row("qkv/kernel", tuple(f"{_HF_ATTENTION}{x}.weight" for x in _QKV),
      ("blocks.{i}.attn.qkv.weight",), _qkv_kernel, "d 3 d"),
  Row("qkv/bias", tuple(f"{_HF_ATTENTION}{x}.bias" for x in _QKV), ("blocks.{i}.attn.qkv.bias",),
      _qkv_bias, "3 d"),
  Row("out/kernel",
      (_HF_BLOCK + "attention.output.dense.weight",), ("blocks.{i}.attn.proj.weight",),
      _transposed, "d d"),
  Row("out/bias", (_HF_BLOCK + "attention.output.dense.bias",), ("blocks.{i}.attn.proj.bias",),
      _same, "d"),
  Row("norm2/scale", (_HF_BLOCK + "layernorm_after.weight",), ("blocks.{i}.norm2.weight",),
      _same, "d"),
  Row("norm2/bias", (_HF_BLOCK + "layernorm_after.bias",), ("blocks.{i}.norm2.bias",), _same, "d"),
  Row("mlp_in/kernel", (_HF_BLOCK + "intermediate.dense.weight",), ("blocks.{i}.mlp.fc1.weight",),
      _transposed, "d h"),
  Row("mlp_in/bias", (_HF_BLOCK + "intermediate.dense.bias",), ("blocks.{i}.mlp.fc1.bias",),
      _same, "h"),
  Row("mlp_out/kernel", (_HF_BLOCK + "output.dense.weight",), ("blocks.{i}.mlp.fc2.weight",),
      _transposed, "h d"),
  Row("mlp_out/bias", (_HF_BLOCK + "output.dense.bias",), ("blocks.{i}.mlp.fc2.bias",), _same, "d"),
)
# fmt: on

PREFIX = re.compile(r"^((module|vilt|model|transformer)\.)+")
BLOCK = re.compile(r"^(?:encoder\.layer|blocks)\.(\d+)\.")
# Tensors of the encoder must be in the table; heads, the pooler and position ids need not.
ENCODER = re.compile(
  r"^(embeddings|encoder|blocks|text_embeddings|token_type_embeddings|patch_embed|pos_embed"
  r"|cls_token|layernorm|norm)\b"
)
POSITION_IDS = re.compile(r"(^|\.)(position_ids|token_type_ids)$")


def rows(depth: int) -> Iterator[Row]:
  """Yields the rows for a model with `depth` blocks."""
  yield from TABLE
  for i in range(depth):
    for row in BLOCK_TABLE:
      hugging_face, original = (
        tuple(name.format(i=i) for name in names) for names in (row.hugging_face, row.original)
      )
      yield Row(f"encoder/block{i:02d}/{row.ours}", hugging_face, original, row.make, row.shape)
