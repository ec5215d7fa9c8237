"""The model of a config: its network, its variables and their names, its inputs."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from ml_collections import ConfigDict

from input_pipeline.common.errors import InputError
from input_pipeline.preprocess.bit_planes import num_planes
from mail_jax.models import attention, instances
from mail_jax.models.mail import IN_OPERANDS, MaIL, ModelOptions, Output

Tree = Any
"""A nest of arrays, as JAX has them."""
Variables = Any
"""What a model computes with: {"params": Tree, "batch_stats": Tree}."""
INPUTS = ("image", "instances", "num_instances", "tokens", "num_tokens")
"""The fields of a batch that the model reads, in the order of an exported model's arguments."""
Batch = dict[str, jax.Array]
"""Examples on the devices, by the names in docs/reference/formats.md."""
HostBatch = dict[str, Any]
"""Examples on the host, as NumPy arrays by the same names; `meta` describes them."""


def make_model(
  config: ConfigDict, vocab_size: int, device: Any = None, operands: DTypeLike | None = None
) -> MaIL:
  """Builds the model of a config.

  Args:
    config: a whole config.
    vocab_size: word pieces of the tokenizer (it may have fewer than `config.vocab_size`).
    device: that the model will run on, which decides what `model.backend = "auto"` is; by default
      JAX's first one.
    operands: dtype of the operands of the encoder's matrix products, while all else is float32; by
      default, `config.model.dtype` is the dtype of both.

  Raises:
    InputError: the options of the config do not fit together.
  """
  if config.image_size % config.model.patch_size:
    raise InputError(
      f"config.image_size {config.image_size} is not a multiple of config.model.patch_size "
      f"{config.model.patch_size}"
    )
  fields = dict(config.model)
  fields["backend"] = choose_backend_from(config, device)
  fields["dtype"] = jnp.dtype(fields["dtype"])
  if operands is not None:
    fields |= {"dtype": jnp.dtype(jnp.float32), "operands": jnp.dtype(operands)}
  return MaIL(
    ModelOptions(**fields),
    vocab_size=vocab_size,
    max_tokens=config.max_tokens,
    max_instances=config.max_instances,
  )


def choose_backend_from(config: ConfigDict, device: Any = None) -> str:
  """Returns the attention of a whole config on a device; see `attention.choose_backend`."""
  dtype = config.model.dtype
  if dtype not in ("float32", "bfloat16"):
    raise InputError(f"config.model.dtype {dtype!r} is not one of float32, bfloat16")
  return attention.choose_backend(
    config.model.backend,
    jax.devices()[0] if device is None else device,
    jnp.dtype(dtype),
    config.model.width // config.model.heads,
  )


def input_specs(config: ConfigDict, rows: Any) -> dict[str, jax.ShapeDtypeStruct]:
  """Returns shapes and dtypes of the fields of a batch that the model reads.

  Args:
    config: a whole config.
    rows: number of examples, or a symbol of `jax.export`.
  """
  size = config.image_size
  shapes = {
    "image": ((rows, size, size, 3), jnp.uint8),
    "instances": ((rows, num_planes(config.max_instances), size, size), jnp.uint16),
    "num_instances": ((rows,), jnp.int32),
    "tokens": ((rows, config.max_tokens), jnp.int32),
    "num_tokens": ((rows,), jnp.int32),
  }
  return {name: jax.ShapeDtypeStruct(*shape) for name, shape in shapes.items()}


def init_variables(model: MaIL, config: ConfigDict) -> Variables:
  """Draws the initial parameters with `config.seed`."""
  specs = input_specs(config, 1)
  inputs = {name: jnp.zeros(spec.shape, spec.dtype) for name, spec in specs.items()}
  variables = model.init(
    jax.random.key(config.seed),
    inputs["image"],
    inputs["instances"],
    jnp.zeros((1, model.max_instances), bool),
    inputs["tokens"],
    jnp.ones((1,), jnp.int32),
  )
  return {"params": variables["params"], "batch_stats": variables.get("batch_stats", {})}


def prepare_variables(model: MaIL, variables: Variables) -> Variables:
  """Returns variables with the kernels in the dtype in which the model multiplies them.

  Where that is not their own, it would convert them for every batch.
  """
  operands = model.options.operands
  if operands is None:
    return variables

  def convert(path: tuple, x: jax.Array) -> jax.Array:
    return x.astype(operands) if IN_OPERANDS.match(path_name(path)) else x

  params = jax.tree_util.tree_map_with_path(convert, variables["params"])
  return {**variables, "params": params}


def apply_model(model: MaIL, variables: Variables, batch: Mapping[str, jax.Array]) -> Output:
  """Runs the model on a batch, as at test time."""
  valid = instances.count_valid(batch["num_instances"], model.max_instances)
  return model.apply(
    variables, batch["image"], batch["instances"], valid, batch["tokens"], batch["num_tokens"]
  )  # pyright: ignore[reportReturnType]


def path_name(path: tuple) -> str:
  """Returns the name of a leaf: its keys joined by slashes, as in `encoder/block00/qkv/kernel`."""
  return jax.tree_util.keystr(path, simple=True, separator="/")
