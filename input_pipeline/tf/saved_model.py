"""Models as TensorFlow SavedModels: StableHLO in XLA's own operation, with weights as variables."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from input_pipeline.common.errors import InputError

try:
  import tensorflow as tf

  # jax2tf takes the operation from there, too.
  from tensorflow.compiler.tf2xla.python import xla
except ImportError as error:
  raise InputError("SavedModels need TensorFlow: pip install tensorflow") from error

SIGNATURE = "serving_default"


@dataclasses.dataclass(frozen=True)
class Program:
  """A function of weights and inputs, to be compiled, as `jax.export` describes it.

  Attributes:
    module: StableHLO, serialised as a portable artifact of a version that TensorFlow supports.
    version: of the calling convention.
    platforms: that it runs on, by the names of `jax.export`.
    kept: indices of the arguments that the function uses, weights first, then inputs.
    outputs: shapes and dtypes by name, in the order of the results; symbolic sizes are dynamic.
  """

  module: bytes
  version: int
  platforms: tuple[str, ...]
  kept: tuple[int, ...]
  outputs: Mapping[str, Any]


def write(
  path: str, program: Program, weights: Mapping[str, np.ndarray], inputs: Mapping[str, Any]
) -> None:
  """Writes a program with its weights, as the signature `serving_default`.

  Args:
    path: the folder to create.
    program: takes the weights and then the inputs.
    weights: by name, in the order of the arguments.
    inputs: shapes and dtypes by name, in the order of the arguments; symbolic sizes are dynamic.
  """
  module = tf.Module()
  # A module's attributes are saved with it.
  module.weights = [
    tf.Variable(value, name=name, trainable=False) for name, value in weights.items()
  ]

  def run(*arrays):
    arguments = [*module.weights, *arrays]
    results: Any = xla.call_module(
      [tf.convert_to_tensor(arguments[i]) for i in program.kept],
      version=program.version,
      module=program.module,
      Sout=[_sizes(spec) for spec in program.outputs.values()],
      Tout=[tf.as_dtype(np.dtype(spec.dtype)) for spec in program.outputs.values()],
      platforms=[platform.upper() for platform in program.platforms],
    )
    return dict(zip(program.outputs, results, strict=True))

  specs = [
    tf.TensorSpec(_sizes(spec), tf.as_dtype(np.dtype(spec.dtype)), name)
    for name, spec in inputs.items()
  ]
  module.run = tf.function(run, input_signature=specs, autograph=False)
  tf.saved_model.save(module, path, signatures={SIGNATURE: module.run})


def _sizes(spec: Any) -> list[int | None]:
  return [size if isinstance(size, int) else None for size in spec.shape]


def load(path: str, inputs: Sequence[str]) -> Callable[..., dict[str, np.ndarray]]:
  """Loads a SavedModel of `write`, as a function of NumPy arrays in the order of `inputs`."""
  loaded: Any = tf.saved_model.load(path)

  def run(*arrays: np.ndarray) -> dict[str, np.ndarray]:
    tensors = {name: tf.constant(array) for name, array in zip(inputs, arrays, strict=True)}
    # Refers to `loaded`, for its variables live as long as it does.
    outputs = loaded.signatures[SIGNATURE](**tensors)
    return {name: value.numpy() for name, value in outputs.items()}

  return run
