"""Attention over sequences with padding: one function, several backends."""

import re
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from input_pipeline.common.errors import InputError

# Words for `model.backend`.
BACKENDS = ("auto", "xla", "cudnn", "tpu")
# Platforms of the kernels, by JAX's names; the others run everywhere.
_PLATFORM = {"cudnn": "gpu", "tpu": "tpu"}
# What cuDNN's kernel takes: the compute capability from which GPUs have it, and sizes of a head.
_CUDNN_CAPABILITY, _CUDNN_HEAD, _CUDNN_HEAD_MULTIPLE = 8, 128, 8
# Lanes of a TPU's vectors; the kernel works on blocks of up to four times as many tokens.
_LANES = 128
# The kernel's block sizes; at our lengths there is a single row of blocks, so all are the same.
_BLOCK_SIDES = (
  "block_q", "block_k", "block_k_major",
  "block_q_dkv", "block_q_major_dkv", "block_k_dkv", "block_k_major_dkv",
  "block_q_dq", "block_k_dq", "block_k_major_dq",
)  # fmt: skip


def attend(
  query: Float[Array, "b t n e"],
  key: Float[Array, "b t n e"],
  value: Float[Array, "b t n e"],
  valid: Bool[Array, "b t"],
  backend: str = "xla",
  order: Int[Array, "b u"] | None = None,
) -> Float[Array, "b t n e"]:
  """Computes scaled dot-product attention with padding masked out.

  Args:
    query: one vector per token and head.
    key: likewise.
    value: likewise.
    valid: False for padding; it comes last, unless `order` is given.
    backend: from `choose_backend`. `xla` runs everywhere; `cudnn` is the fused kernel for NVIDIA
      GPUs, in bfloat16; `tpu` is JAX's flash attention for TPUs, called by each device for its
      examples.
    order: from `read_valid_first`; only `cudnn` needs it.

  Returns:
    One vector per token and head; at padding it is finite and undefined.
  """
  if backend == "xla":
    return _attend_xla(query, key, value, valid)
  if backend == "tpu":
    return _attend_tpu(query, key, value, valid)
  return _attend_cudnn(query, key, value, valid, order)


def read_valid_first(
  valid: Bool[Array, "b t"], start: int, backend: str
) -> Int[Array, "b u"] | None:
  """Returns the order in which a backend reads keys and values whose padding does not come last.

  Args:
    valid: False for padding, which only occurs from `start` on.
    start: number of tokens that keep their place.
    backend: see `attend`.

  Returns:
    Indices of the tokens from `start` on, counted from there; None if the backend needs no order.
  """
  return jnp.argsort(~valid[:, start:], axis=1, stable=True) if backend == "cudnn" else None


@jax.custom_vjp
def _attend_xla(query, key, value, valid):
  return _attend_xla_forward(query, key, value, valid)[0]


def _attend_xla_forward(query, key, value, valid):
  # Weights are divided by their sum last, where they are fewest.
  query = query * query.shape[-1] ** -0.5
  scores = jnp.einsum("btne,bsne->bnst", query, key, preferred_element_type=jnp.float32)
  scores += jnp.where(valid, 0.0, -1e9)[:, None, :, None]
  weights = jnp.exp(scores - scores.max(2, keepdims=True))
  total = weights.sum(2).swapaxes(1, 2)[..., None]
  # Without the barrier a TPU computes the products again for each use of the weights.
  weights = jax.lax.optimization_barrier(weights)
  out = (_weigh("bnst,bsne->btne", weights, value) / total).astype(value.dtype)
  return out, (query, key, value, weights, total, out)


def _attend_xla_backward(kept, gradient):
  query, key, value, weights, total, out = kept
  gradient = gradient / total
  mean = (gradient * out).sum(-1).swapaxes(1, 2)[:, :, None]
  gradient = gradient.astype(value.dtype)
  of_weights = jnp.einsum("btne,bsne->bnst", gradient, value, preferred_element_type=jnp.float32)
  of_scores = weights * (of_weights - mean)
  of_query = _weigh("bnst,bsne->btne", of_scores, key) * query.shape[-1] ** -0.5
  of_key = _weigh("bnst,btne->bsne", of_scores, query)
  of_value = _weigh("bnst,btne->bsne", weights, gradient)
  return of_query.astype(query.dtype), of_key.astype(key.dtype), of_value.astype(value.dtype), None


def _weigh(einsum, weights, vectors):
  """Sums vectors in float32, with weights rounded to their type."""
  weights = weights.astype(vectors.dtype)
  return jnp.einsum(einsum, weights, vectors, preferred_element_type=jnp.float32)


_attend_xla.defvjp(_attend_xla_forward, _attend_xla_backward)


def _attend_cudnn(query, key, value, valid, order):
  # The kernel takes lengths, not masks. The order of keys does not matter, so queries stay.
  lengths = valid.sum(1, dtype=jnp.int32)
  queries = lengths
  if order is not None:
    queries = jnp.full_like(lengths, query.shape[1])
    key, value = (_reorder(x, order) for x in (key, value))
  return jax.nn.dot_product_attention(
    query,
    key,
    value,
    query_seq_lengths=queries,
    key_value_seq_lengths=lengths,
    implementation="cudnn",
  )


def _reorder(x: Float[Array, "b t n e"], order: Int[Array, "b u"]) -> Float[Array, "b t n e"]:
  start = x.shape[1] - order.shape[1]
  moved = jnp.take_along_axis(x[:, start:], order[..., None, None], axis=1)
  return jnp.concatenate([x[:, :start], moved], 1)


def _attend_tpu(query, key, value, valid):
  # XLA cannot partition the kernel, so each device calls it for its examples.
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty:
    return _attend_tpu_alone(query, key, value, valid)
  spread = PartitionSpec(mesh.axis_names)
  return jax.shard_map(_attend_tpu_alone, in_specs=spread, out_specs=spread, check_vma=False)(
    query, key, value, valid
  )


def _attend_tpu_alone(query, key, value, valid):
  # Other platforms may have no such kernel to import.
  from jax.experimental.pallas.ops.tpu import flash_attention as tpu

  tokens = query.shape[1]
  padded = -(-tokens // _LANES) * _LANES
  block = max(size for size in range(_LANES, 5 * _LANES, _LANES) if padded % size == 0)
  query, key, value = (
    jnp.pad(x, ((0, 0), (0, padded - tokens), (0, 0), (0, 0))).swapaxes(1, 2)
    for x in (query, key, value)
  )
  # Tokens attend within their segment. Padding is a separate segment, so that no row is empty.
  segment = jnp.pad(valid.astype(jnp.int32), ((0, 0), (0, padded - tokens)))
  out = tpu.flash_attention(
    query,
    key,
    value,
    segment_ids=tpu.SegmentIds(segment, segment),
    sm_scale=query.shape[-1] ** -0.5,
    block_sizes=tpu.BlockSizes(**dict.fromkeys(_BLOCK_SIDES, block), block_b=1),
  )
  return out.swapaxes(1, 2)[:, :tokens]


def runs_on(backend: str, platform: str) -> bool:
  """Returns whether a backend runs on a platform, such as `cpu`, `gpu` or `tpu`."""
  return _PLATFORM.get(backend, platform) == platform


def choose_backend(word: str, device: Any, dtype: jnp.dtype, head_size: int) -> str:
  """Resolves `model.backend`: `auto` is the fastest backend for a device.

  That is cuDNN's kernel where it runs and XLA's attention elsewhere: a TPU's kernel works on
  multiples of 128 tokens, more than our sequences have, and does not pay.

  Args:
    word: one of `BACKENDS`.
    device: of JAX, or of a topology to compile for.
    dtype: of queries, keys and values.
    head_size: their components.

  Raises:
    InputError: the word is unknown, or names a kernel that does not run there.
  """
  if word not in BACKENDS:
    raise InputError(f"model.backend {word!r} is not one of {', '.join(BACKENDS)}")
  if not runs_on(word, device.platform):
    raise InputError(
      f"config.model.backend {word!r} does not run on {device.platform}; set it to 'auto'"
    )
  misses = _missing_for_cudnn(device, dtype, head_size)
  if word == "cudnn" and misses:
    raise InputError(f"config.model.backend 'cudnn' needs {misses}; set it to 'auto'")
  if word != "auto":
    return word
  return "xla" if misses else "cudnn"


def _missing_for_cudnn(device: Any, dtype: jnp.dtype, head_size: int) -> str:
  """Returns what cuDNN's kernel lacks; empty if it runs (JAX's `check_is_flash_attention`)."""
  if device.platform != "gpu":
    return "an NVIDIA GPU"
  # AMD's have a name, such as gfx90a.
  capability = re.match(r"\d+", str(getattr(device, "compute_capability", "")))
  if not capability or int(capability[0]) < _CUDNN_CAPABILITY:
    return f"an NVIDIA GPU of compute capability {_CUDNN_CAPABILITY}.0 or later"
  if dtype != jnp.bfloat16:
    return "config.model.dtype bfloat16"
  if head_size % _CUDNN_HEAD_MULTIPLE or head_size > _CUDNN_HEAD:
    return (
      f"heads of at most {_CUDNN_HEAD} components, a multiple of {_CUDNN_HEAD_MULTIPLE}, where "
      f"config.model.width / config.model.heads is {head_size}"
    )
  return ""
