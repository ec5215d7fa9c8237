"""Random weights of a ViLT under the names of Hugging Face and of the original checkpoints."""

import json
import pathlib
from collections.abc import Sequence

import numpy as np
import safetensors.numpy

WIDTH, DEPTH, HEADS, PATCH, VOCAB, LENGTH, GRID = 48, 3, 4, 32, 60, 40, 12
WORDS = ("the", "left", "right", "##most", "star", "ring", "red", "green", "a", "of")
VOCABULARY = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS)


def random_weights(
  width: int = WIDTH,
  depth: int = DEPTH,
  patch: int = PATCH,
  vocab: int = VOCAB,
  length: int = LENGTH,
  grid: int = GRID,
  seed: int = 0,
) -> dict[str, np.ndarray]:
  """Returns tensors by the names of `transformers.ViltModel`.

  No value is 0 or 1, as many are in a new model.
  """
  rng = np.random.default_rng(seed)

  def table(*shape: int) -> np.ndarray:
    return rng.normal(0, 0.5, shape).astype(np.float32)

  def dense(name: str, inside: int, outside: int) -> dict[str, np.ndarray]:
    weight = rng.normal(0, inside**-0.5, (outside, inside)).astype(np.float32)
    return {f"{name}.weight": weight, f"{name}.bias": 0.3 * table(outside)}

  def norm(name: str) -> dict[str, np.ndarray]:
    return {f"{name}.weight": 1 + 0.3 * table(width), f"{name}.bias": 0.3 * table(width)}

  text = "embeddings.text_embeddings"
  patches = dense("patches", 3 * patch * patch, width)
  weights = {
    "embeddings.cls_token": table(1, 1, width),
    "embeddings.position_embeddings": table(1, 1 + grid * grid, width),
    "embeddings.patch_embeddings.projection.weight": patches["patches.weight"].reshape(
      width, 3, patch, patch
    ),
    "embeddings.patch_embeddings.projection.bias": patches["patches.bias"],
    f"{text}.word_embeddings.weight": table(vocab, width),
    f"{text}.position_embeddings.weight": table(length, width),
    f"{text}.token_type_embeddings.weight": table(2, width),
    **norm(f"{text}.LayerNorm"),
    "embeddings.token_type_embeddings.weight": table(2, width),
    **norm("layernorm"),
    **dense("pooler.dense", width, width),
  }
  for i in range(depth):
    block = f"encoder.layer.{i}"
    for part in ("query", "key", "value"):
      weights |= dense(f"{block}.attention.attention.{part}", width, width)
    weights |= dense(f"{block}.attention.output.dense", width, width)
    weights |= dense(f"{block}.intermediate.dense", width, 4 * width)
    weights |= dense(f"{block}.output.dense", 4 * width, width)
    weights |= norm(f"{block}.layernorm_before") | norm(f"{block}.layernorm_after")
  return weights


def as_new(weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Returns the same at the scale of an untrained model.

  Small embeddings, norms of 1 and 0, no biases.
  """
  new = {}
  for name, value in weights.items():
    if "norm" in name.lower():
      value = np.full_like(value, name.endswith("weight"))
    elif name.endswith("bias"):
      value = np.zeros_like(value)
    elif name.startswith("embeddings") and "projection" not in name:
      value = value * np.float32(0.04)
    new[name] = value
  return new


def as_original(weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Returns the same tensors under the names of the Lightning checkpoints, with stacked qkv."""
  exchange = (
    ("embeddings.text_embeddings.", "text_embeddings."),
    ("embeddings.token_type_embeddings.", "token_type_embeddings."),
    ("embeddings.patch_embeddings.projection.", "transformer.patch_embed.proj."),
    ("embeddings.cls_token", "transformer.cls_token"),
    ("embeddings.position_embeddings", "transformer.pos_embed"),
    ("layernorm.", "transformer.norm."),
    ("encoder.layer.", "transformer.blocks."),
    (".attention.output.dense.", ".attn.proj."),
    (".intermediate.dense.", ".mlp.fc1."),
    (".output.dense.", ".mlp.fc2."),
    (".layernorm_before.", ".norm1."),
    (".layernorm_after.", ".norm2."),
  )
  renamed = {}
  for name, value in weights.items():
    if ".attention.attention." in name:
      if ".query." not in name:
        continue
      parts = [weights[name.replace(".query.", f".{part}.")] for part in ("query", "key", "value")]
      name = name.replace("attention.attention.query", "attn.qkv")
      value = np.concatenate(parts)
    for old, new in exchange:
      if name.startswith(old) or (old.startswith(".") and old in name):
        name = name.replace(old, new, 1)
    renamed[name] = value
  return renamed


def write_folder(
  folder: pathlib.Path,
  weights: dict[str, np.ndarray],
  heads: int = HEADS,
  vocab: Sequence[str] | None = VOCABULARY,
) -> pathlib.Path:
  """Writes a folder in the layout of Hugging Face."""
  folder.mkdir(parents=True, exist_ok=True)
  safetensors.numpy.save_file(weights, folder / "model.safetensors")
  (folder / "config.json").write_text(
    json.dumps({"model_type": "vilt", "num_attention_heads": heads})
  )
  if vocab:
    (folder / "vocab.txt").write_text("".join(word + "\n" for word in vocab), encoding="utf-8")
  return folder
