"""The function that an exported model computes: five arrays in, logits and scores out."""

import copy
import functools
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from mail_jax.models import instances
from mail_jax.models.build import INPUTS, apply_model, init_variables, input_specs
from mail_jax.models.encoder import STACK, block_name
from mail_jax.models.mail import MaIL, Output
from mail_jax.models.mask_selection import select
from mail_jax.models.parameters import Variables

Named = Mapping[str, jax.Array]


def make_forward(model: MaIL) -> Callable[..., dict[str, jax.Array]]:
  """Returns the function (variables, *INPUTS) -> outputs by name, all float32.

  The outputs are `logits` [b, s, s], `selection_logits` [b, k + 1] (the last one for "none of the
  instances") and, if the model predicts it, `no_target` [b].
  """

  def forward(variables: Variables, *inputs: jax.Array) -> dict[str, jax.Array]:
    output = apply_model(model, variables, dict(zip(INPUTS, inputs, strict=True)))
    named = {"logits": output.logits, "selection_logits": output.selection_logits}
    if output.no_target is not None:
      named["no_target"] = output.no_target
    return {name: value.astype(jnp.float32) for name, value in named.items()}

  return forward


def without_loop(config: ConfigDict, variables: Variables) -> tuple[ConfigDict, Variables]:
  """Unrolls the loop over blocks of a model with `model.scan`, for formats without loops.

  Args:
    config: a whole config.
    variables: of its model.

  Returns:
    The config and the variables of the same model without the loop.
  """
  if not config.model.scan:
    return config, variables
  config = copy.deepcopy(config)
  config.model.scan = False
  encoder = dict(variables["params"]["encoder"])
  stacked = encoder.pop(STACK)
  for i in range(config.model.depth):
    encoder[block_name(i)] = jax.tree.map(lambda x, i=i: x[i], stacked)
  return config, variables | {"params": variables["params"] | {"encoder": encoder}}


def output_specs(model: MaIL, config: ConfigDict, batch: int) -> dict[str, jax.ShapeDtypeStruct]:
  """Returns shapes and dtypes of the outputs for a batch size."""
  variables = jax.eval_shape(functools.partial(init_variables, model, config))
  return jax.eval_shape(make_forward(model), variables, *input_specs(config, batch).values())


def as_output(model: MaIL, named: Named, batch: Mapping[str, jax.Array]) -> Output:
  """Completes the outputs of an exported model to those of the network itself."""
  valid = instances.count_valid(batch["num_instances"], model.max_instances)
  masks = instances.unpack_bit_planes(batch["instances"], model.max_instances)
  scores = named["selection_logits"]
  rho = jnp.zeros((scores.shape[0], 0))
  if model.max_instances:
    rho = select(scores[:, :-1], scores[:, -1], valid, model.options.selection)
  shown = masks & valid[:, :, None, None]
  return Output(named["logits"], rho, scores, shown, named.get("no_target"))
