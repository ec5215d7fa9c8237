"""The table of ViLT's parameter names and ours."""

import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from mail_jax.pretrained.conversion import Row
from mail_jax.pretrained.layouts import patches, qkv_bias, qkv_kernel, same, token, transposed


class Both(NamedTuple):
  """A row of the table, with both sets of names.

  Attributes:
    ours: name of our parameter; `{i}` is the block.
    hugging_face: names of its source tensors in `transformers`, without `vilt.`.
    original: the same in the original Lightning checkpoints, without `transformer.`.
    make: see `conversion.Row`.
    shape: likewise.
  """

  ours: str
  hugging_face: tuple[str, ...]
  original: tuple[str, ...]
  make: Callable[..., np.ndarray]
  shape: str


def _positions(position: np.ndarray) -> np.ndarray:
  if position.ndim != 3:
    raise ValueError("expected positions of shape [1, n, d]")
  return position[0]


def _text_positions(position: np.ndarray, segments: np.ndarray) -> np.ndarray:
  """Adds the embedding of BERT's segment 0, which every token has, to the positions."""
  if segments.ndim != 2:
    raise ValueError("expected segment embeddings of shape [n, d]")
  return np.asarray(position, np.float32) + np.asarray(segments[0], np.float32)


def _types(types: np.ndarray) -> np.ndarray:
  """Converts ViLT's types (text, image) to ours (image, mask, text); a mask starts as an image."""
  text, image = types[:2]
  return np.stack([image, image, text])


_TEXT = "text_embeddings."
_HF_BLOCK, _HF_ATTENTION = "encoder.layer.{i}.", "encoder.layer.{i}.attention.attention."
_QKV = ("query", "key", "value")

# fmt: off
TABLE = (
  Both("image/cls", ("embeddings.cls_token",), ("cls_token",), token, "1 1 d"),
  Both("image/position", ("embeddings.position_embeddings",), ("pos_embed",), _positions, "n d"),
  Both("image/patches/kernel",
      ("embeddings.patch_embeddings.projection.weight",), ("patch_embed.proj.weight",),
      patches, "p d"),
  Both("image/patches/bias", ("embeddings.patch_embeddings.projection.bias",),
      ("patch_embed.proj.bias",), same, "d"),
  Both("text/words/embedding",
      (f"embeddings.{_TEXT}word_embeddings.weight",), (f"{_TEXT}word_embeddings.weight",),
      same, "v d"),
  Both("text/position",
      (f"embeddings.{_TEXT}position_embeddings.weight",
       f"embeddings.{_TEXT}token_type_embeddings.weight"),
      (f"{_TEXT}position_embeddings.weight", f"{_TEXT}token_type_embeddings.weight"),
      _text_positions, "l d"),
  Both("text/norm/scale", (f"embeddings.{_TEXT}LayerNorm.weight",), (f"{_TEXT}LayerNorm.weight",),
      same, "d"),
  Both("text/norm/bias", (f"embeddings.{_TEXT}LayerNorm.bias",), (f"{_TEXT}LayerNorm.bias",),
      same, "d"),
  Both("type", ("embeddings.token_type_embeddings.weight",), ("token_type_embeddings.weight",),
      _types, "3 d"),
  Both("encoder/norm/scale", ("layernorm.weight",), ("norm.weight",), same, "d"),
  Both("encoder/norm/bias", ("layernorm.bias",), ("norm.bias",), same, "d"),
)
BLOCK_TABLE = (
  Both("norm1/scale", (_HF_BLOCK + "layernorm_before.weight",), ("blocks.{i}.norm1.weight",),
      same, "d"),
  Both("norm1/bias", (_HF_BLOCK + "layernorm_before.bias",), ("blocks.{i}.norm1.bias",), same, "d"),
  Both("qkv/kernel", tuple(f"{_HF_ATTENTION}{x}.weight" for x in _QKV),
      ("blocks.{i}.attn.qkv.weight",), qkv_kernel, "d 3 d"),
  Both("qkv/bias", tuple(f"{_HF_ATTENTION}{x}.bias" for x in _QKV), ("blocks.{i}.attn.qkv.bias",),
      qkv_bias, "3 d"),
  Both("out/kernel",
      (_HF_BLOCK + "attention.output.dense.weight",), ("blocks.{i}.attn.proj.weight",),
      transposed, "d d"),
  Both("out/bias", (_HF_BLOCK + "attention.output.dense.bias",), ("blocks.{i}.attn.proj.bias",),
      same, "d"),
  Both("norm2/scale", (_HF_BLOCK + "layernorm_after.weight",), ("blocks.{i}.norm2.weight",),
      same, "d"),
  Both("norm2/bias", (_HF_BLOCK + "layernorm_after.bias",), ("blocks.{i}.norm2.bias",), same, "d"),
  Both("mlp_in/kernel", (_HF_BLOCK + "intermediate.dense.weight",), ("blocks.{i}.mlp.fc1.weight",),
      transposed, "d h"),
  Both("mlp_in/bias", (_HF_BLOCK + "intermediate.dense.bias",), ("blocks.{i}.mlp.fc1.bias",),
      same, "h"),
  Both("mlp_out/kernel", (_HF_BLOCK + "output.dense.weight",), ("blocks.{i}.mlp.fc2.weight",),
      transposed, "h d"),
  Both("mlp_out/bias", (_HF_BLOCK + "output.dense.bias",), ("blocks.{i}.mlp.fc2.bias",), same, "d"),
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


def rows(depth: int, is_hf: bool) -> Iterator[Row]:
  """Yields the rows for a model with `depth` blocks, with either set of names."""
  for row in TABLE:
    yield Row(row.ours, row.hugging_face if is_hf else row.original, row.make, row.shape)
  for i in range(depth):
    for row in BLOCK_TABLE:
      sources = row.hugging_face if is_hf else row.original
      ours = f"encoder/block{i:02d}/{row.ours}"
      yield Row(ours, tuple(name.format(i=i) for name in sources), row.make, row.shape)
