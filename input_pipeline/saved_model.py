"""Models as SavedModels of TensorFlow, through jax2tf: the same StableHLO that `jax.export` makes, with the weights as
variables beside it."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

SIGNATURE = "serving_default"


def write(
  path: str,
  function: Callable[..., Mapping[str, Any]],
  variables: Any,
  inputs: Mapping[str, Any],
  platforms: Sequence[str],
) -> None:
  """Writes a function of JAX.

  Args:
    path: the folder to be made.
    function: (variables, *inputs) -> outputs by name.
    variables: a nest of arrays.
    inputs: shapes and dtypes by name, in the order of the arguments; their first axis is any number of examples.
    platforms: where it will run, in the names of `jax.export`.
  """
  import tensorflow as tf
  from jax.experimental import jax2tf

  converted = jax2tf.convert(
    function,
    polymorphic_shapes=[None, *["b, ..."] * len(inputs)],
    with_gradient=False,
    native_serialization_platforms=tuple(platforms),
  )
  module, held = tf.Module(), tf.nest.map_structure(tf.Variable, variables)
  module.held = tf.nest.flatten(held)  # what a module has is what is saved
  specs = [
    tf.TensorSpec((None, *spec.shape[1:]), tf.as_dtype(np.dtype(spec.dtype)), name)
    for name, spec in inputs.items()
  ]
  run = tf.function(functools.partial(converted, held), input_signature=specs, autograph=False)
  module.run = run
  tf.saved_model.save(module, path, signatures={SIGNATURE: run})


def load(path: str, inputs: Sequence[str]) -> Callable[..., dict[str, np.ndarray]]:
  """Opens what `write` wrote, as a function of NumPy arrays in the order of `inputs`."""
  import tensorflow as tf

  loaded: Any = tf.saved_model.load(path)
  signature = loaded.signatures[SIGNATURE]

  def run(*arrays: np.ndarray) -> dict[str, np.ndarray]:
    given = {name: tf.constant(array) for name, array in zip(inputs, arrays, strict=True)}
    return {name: value.numpy() for name, value in signature(**given).items()}

  run.keep = loaded  # pyright: ignore[reportFunctionMemberAccess]  # its variables live as long as it does
  return run
