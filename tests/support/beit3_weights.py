"""Random weights of a BEiT-3 under the names of microsoft/unilm, and its forward pass in NumPy."""

import io
import math
import pathlib
from collections.abc import Iterable
from typing import Any

import numpy as np
import sentencepiece
import torch_archives

WIDTH, DEPTH, HEADS, PATCH, GRID = 48, 3, 4, 16, 14
POSITIONS = 1024
SENTENCES = ("the left cup", "red dog on the right", "woman with a blue shirt", "zebra near trees")
EXPERTS = "AB"
_erf = np.vectorize(math.erf)


def random_weights(
  width: int = WIDTH,
  depth: int = DEPTH,
  vocab: int = 60,
  grid: int = GRID,
  patch: int = PATCH,
  positions: int = POSITIONS,
  seed: int = 0,
) -> dict[str, np.ndarray]:
  """Returns tensors by the names of `torchscale.model.BEiT3.BEiT3`.

  No value is 0 or 1, as many are in a new model.
  """
  rng = np.random.default_rng(seed)

  def table(*shape: int) -> np.ndarray:
    return rng.normal(0, 0.5, shape).astype(np.float32)

  def dense(name: str, inside: int, outside: int) -> dict[str, np.ndarray]:
    weight = rng.normal(0, inside**-0.5, (outside, inside)).astype(np.float32)
    return {f"{name}.weight": weight, f"{name}.bias": 0.3 * table(outside)}

  def norm(name: str, size: int = width) -> dict[str, np.ndarray]:
    return {f"{name}.weight": 1 + 0.3 * table(size), f"{name}.bias": 0.3 * table(size)}

  kernel = dense("patches", 3 * patch * patch, width)
  weights = {
    "text_embed.weight": table(vocab, width),
    "vision_embed.cls_token": table(1, 1, width),
    "vision_embed.mask_token": table(1, 1, width),
    "vision_embed.proj.weight": kernel["patches.weight"].reshape(width, 3, patch, patch),
    "vision_embed.proj.bias": kernel["patches.bias"],
    "encoder.embed_positions.A.weight": table(2 + 1 + grid**2, width),
    "encoder.embed_positions.B.weight": table(positions, width),
  }
  for e in EXPERTS:
    weights |= norm(f"encoder.layer_norm.{e}")
    for i in range(depth):
      layer = f"encoder.layers.{i}"
      for part in ("q", "k", "v", "out"):
        weights |= dense(f"{layer}.self_attn.{part}_proj.{e}", width, width)
      weights |= norm(f"{layer}.self_attn.inner_attn_ln.{e}")
      weights |= norm(f"{layer}.self_attn_layer_norm.{e}") | norm(f"{layer}.final_layer_norm.{e}")
      weights |= dense(f"{layer}.ffn.{e}.fc1", width, 4 * width)
      weights |= norm(f"{layer}.ffn.{e}.ffn_layernorm", 4 * width)
      weights |= dense(f"{layer}.ffn.{e}.fc2", 4 * width, width)
  return weights


def as_new(weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Returns the same at the scale of an untrained model.

  Small embeddings, norms of 1 and 0, no biases.
  """
  new = {}
  for name, value in weights.items():
    if "norm" in name or "_ln" in name:
      value = np.full_like(value, name.endswith("weight"))
    elif name.endswith("bias"):
      value = np.zeros_like(value)
    elif "embed" in name and "proj" not in name:
      value = value * np.float32(0.04)
    new[name] = value
  return new


def save(
  path: pathlib.Path,
  weights: dict[str, np.ndarray],
  key: str = "model",
  prefix: str = "beit3.",
  heads: bool = True,
) -> pathlib.Path:
  """Writes a `.pth` file as unilm does, with a head."""
  named = {prefix + name: value for name, value in weights.items()}
  if heads and "text_embed.weight" in weights:
    named["mlm_head.weight"] = weights["text_embed.weight"]
    named["mlm_head.bias"] = weights["text_embed.weight"][:, 0].copy()
  return torch_archives.save({key: named}, path)


def train_tokenizer(pieces: int = 50, sentences: Iterable[str] = SENTENCES) -> bytes:
  """Trains a SentencePiece model with the special tokens of `beit3.spm`."""
  model = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(sentences),
    model_writer=model,
    vocab_size=pieces,
    hard_vocab_limit=False,
    minloglevel=2,
  )
  return model.getvalue()


def numpy_forward(
  weights: dict[str, np.ndarray], inputs: dict[str, np.ndarray], heads: int = HEADS
) -> list[np.ndarray]:
  """Returns hidden states of [image | text]: embeddings, after each layer, after the last norms.

  Written from the description of the forward pass alone, in float64.
  """
  w = {name: value.astype(np.float64) for name, value in weights.items()}
  image = inputs["image"] / 127.5 - 1
  batch, height, width = image.shape[:3]
  rows, cols = height // PATCH, width // PATCH
  cut = image.reshape(batch, rows, PATCH, cols, PATCH, 3)
  patches = np.einsum("brycxk,dkyx->brcd", cut, w["vision_embed.proj.weight"])
  patches = patches.reshape(batch, rows * cols, -1) + w["vision_embed.proj.bias"]
  cls = np.broadcast_to(w["vision_embed.cls_token"], (batch, 1, patches.shape[-1]))
  length = inputs["tokens"].shape[1]
  x = np.concatenate([cls, patches, w["text_embed.weight"][inputs["tokens"]]], 1)
  split = 1 + rows * cols
  x[:, :split] += w["encoder.embed_positions.A.weight"][2 : 2 + split]
  x[:, split:] += w["encoder.embed_positions.B.weight"][2 : 2 + length]
  valid = np.ones(x.shape[:2], bool)
  valid[:, split:] = np.arange(length) < inputs["num_tokens"][:, None]
  x = x * valid[..., None]

  def each(function: Any, name: str, y: np.ndarray) -> np.ndarray:
    image, text = (name.replace("{E}", expert) for expert in EXPERTS)
    return np.concatenate([function(image, y[:, :split]), function(text, y[:, split:])], 1)

  def norm(name: str, y: np.ndarray) -> np.ndarray:
    y = (y - y.mean(-1, keepdims=True)) / np.sqrt(y.var(-1, keepdims=True) + 1e-5)
    return y * w[f"{name}.weight"] + w[f"{name}.bias"]

  def dense(name: str, y: np.ndarray) -> np.ndarray:
    return y @ w[f"{name}.weight"].T + w[f"{name}.bias"]

  states = [x]
  depth = sum(name.endswith("self_attn.q_proj.A.bias") for name in w)
  for i in range(depth):
    layer = f"encoder.layers.{i}"
    y = each(norm, f"{layer}.self_attn_layer_norm.{{E}}", x)
    q, k, v = (
      each(dense, f"{layer}.self_attn.{part}_proj.{{E}}", y).reshape(*y.shape[:2], heads, -1)
      for part in "qkv"
    )
    scores = np.einsum("btne,bsne->bnts", q * q.shape[-1] ** -0.5, k)
    scores = np.where(valid[:, None, None], scores, -np.inf)
    scores = np.exp(scores - scores.max(-1, keepdims=True))
    y = np.einsum("bnts,bsne->btne", scores / scores.sum(-1, keepdims=True), v).reshape(x.shape)
    y = each(norm, f"{layer}.self_attn.inner_attn_ln.{{E}}", y)
    x = x + each(dense, f"{layer}.self_attn.out_proj.{{E}}", y)
    y = each(norm, f"{layer}.final_layer_norm.{{E}}", x)
    y = each(dense, f"{layer}.ffn.{{E}}.fc1", y)
    y = each(norm, f"{layer}.ffn.{{E}}.ffn_layernorm", y * (1 + _erf(y / 2**0.5)) / 2)
    x = x + each(dense, f"{layer}.ffn.{{E}}.fc2", y)
    states.append(x)
  return [*states, each(norm, "encoder.layer_norm.{E}", x)]
