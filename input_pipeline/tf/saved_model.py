"""Models as SavedModels of TensorFlow: StableHLO inside the operation that XLA made for it, its weights beside it."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from input_pipeline.common.errors import InputError

try:
  import tensorflow as tf
  from tensorflow.compiler.tf2xla.python import xla  # where jax2tf has the operation from, too
except ImportError as error:
  raise InputError(
    "a SavedModel is written and read with TensorFlow: pip install tensorflow"
  ) from error

SIGNATURE = "serving_default"


@dataclasses.dataclass(frozen=True)
class Program:
  """A compiled-to-be function of weights and inputs, as `jax.export` describes it.

  Attributes:
    module: StableHLO, serialised as a portable artifact of a version that TensorFlow knows.
    version: of the calling convention.
    platforms: where it runs, in the names of `jax.export`.
    kept: of weights and inputs, in this order, those that the function takes; it has no use for the others.
    outputs: shapes and dtypes by name, in the order of the results; a size that is no number is any.
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
    path: the folder to be made.
    program: takes the weights and then the inputs.
    weights: by name, in the order of the arguments.
    inputs: shapes and dtypes by name, in the order of the arguments; a size that is no number is any.
  """
  module = tf.Module()
  # What a module has is what is saved.
  module.held = [tf.Variable(value, name=name, trainable=False) for name, value in weights.items()]

  def run(*arrays):
    given = [*module.held, *arrays]
    results: Any = xla.call_module(
      [tf.convert_to_tensor(given[i]) for i in program.kept],
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
  """Opens what `write` wrote, as a function of NumPy arrays in the order of `inputs`."""
  loaded: Any = tf.saved_model.load(path)

  def run(*arrays: np.ndarray) -> dict[str, np.ndarray]:
    given = {name: tf.constant(array) for name, array in zip(inputs, arrays, strict=True)}
    # Variables live as long as what was loaded does.
    return {key: value.numpy() for key, value in loaded.signatures[SIGNATURE](**given).items()}

  return run
