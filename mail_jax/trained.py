"""A trained model from a run's folder, complete in itself: no config is asked from the user."""

import argparse
import dataclasses
import functools
from typing import Any

import jax
from ml_collections import ConfigDict

from input_pipeline import tokenizer as tokenizers
from input_pipeline.errors import InputError
from mail_jax import checkpoint, sharding
from mail_jax.config import from_json, make_model
from mail_jax.models.attention import runs_on
from mail_jax.models.mail import MaIL
from mail_jax.optim import make_optimizer_from
from mail_jax.train_step import create_state


@dataclasses.dataclass(frozen=True)
class Trained:
  """What a checkpoint holds, ready to be applied.

  Attributes:
    config: of the run; its attention is one that runs here.
    model: the network.
    variables: {"params", "batch_stats"}, the moving average where the run kept one, on every device.
    tokenizer: of the run.
    step: updates that the parameters have seen.
  """

  config: ConfigDict
  model: MaIL
  variables: Any
  tokenizer: tokenizers.Tokenizer
  step: int

  def on_one_device(self) -> Any:
    """The variables on the first device of this process alone, for what the others need no part in."""
    return jax.tree.map(lambda x: x.addressable_data(0), self.variables)


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the options that say which checkpoint a command loads: `--checkpoint` and `--which`."""
  parser.add_argument("--checkpoint", required=True, help="the --workdir of a training run")
  parser.add_argument(
    "--which", choices=("best", "last"), default="best", help="which checkpoint (default: best)"
  )


def load(workdir: str, which: str = "best") -> Trained:
  """Loads a checkpoint.

  Args:
    workdir: of the training run; a folder or an address in a bucket.
    which: `best` by the run's metric (the last one where none was evaluated), or `last`; where that one is damaged the
      next best, or the one before, with a warning.

  Raises:
    InputError: no such folder or no whole checkpoint in it.
  """
  checkpoints = checkpoint.Checkpoints(workdir, read_only=True)
  try:
    step = checkpoints.best() if which == "best" else None
    step = checkpoints.latest() if step is None else step
    assert step is not None  # the constructor has looked
    meta = checkpoints.meta(step)
    config = from_json(meta["config"])
    if not runs_on(config.model.backend, jax.default_backend()):
      config.model.backend = "xla"  # a checkpoint of any machine is of use on any other
    tokenizer = tokenizers.from_bytes(checkpoint.unpack_bytes(meta["tokenizer"]))
    model = make_model(config, tokenizer.vocab_size)
    create = functools.partial(
      create_state,
      model,
      make_optimizer_from(config),
      config.image_size,
      config.max_tokens,
      config.seed,
    )
    field = "averaged" if config.ema_decay else "variables"
    shapes = {field: getattr(jax.eval_shape(create), field)}
    everywhere = jax.tree.map(lambda _: sharding.replicated(sharding.make_mesh()), shapes)
    variables = checkpoints.restore(step, checkpoint.abstract_like(shapes, everywhere))[field]
  except (KeyError, FileNotFoundError) as error:
    raise InputError(f"--checkpoint {workdir}: the checkpoint is not complete ({error})") from error
  finally:
    checkpoints.close()
  return Trained(config, model, variables, tokenizer, step)
