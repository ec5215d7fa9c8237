"""The sinks of `config.log`, which a run logs to besides `metrics.jsonl`."""

from ml_collections import ConfigDict

from input_pipeline.common.errors import InputError
from mail_jax.config import to_json
from mail_jax.distributed import processes
from mail_jax.train.logging import samples, tensorboard, wandb
from mail_jax.train.logging.progress import Progress
from mail_jax.train.logging.samples import FixedSamples
from mail_jax.train.program import Program


def check(config: ConfigDict) -> None:
  """Checks that the sinks can be opened, before anything takes long.

  Raises:
    InputError: a package is missing, or a value is invalid.
  """
  if config.log.images < 0:
    raise InputError(f"config.log.images is {config.log.images}; it must be 0 or more")
  if config.log.tensorboard:
    tensorboard.check_installed()
  if config.log.wandb:
    wandb.check_installed()


def open_sinks(config: ConfigDict, workdir: str, start_step: int, progress: Progress) -> None:
  """Opens the sinks and adds them to the log; on process 0."""
  if not processes.is_main():
    return
  plain = to_json(config)
  if config.log.tensorboard:
    progress.add(tensorboard.TensorBoard(workdir, start_step, plain, progress.rows()))
  if config.log.wandb:
    progress.add(wandb.WandbRun(config.log.wandb, workdir, plain, progress.line))


def fixed_samples(config: ConfigDict, program: Program) -> FixedSamples | None:
  """Returns the samples to draw at every evaluation; None without a sink."""
  if not config.log.images or not (config.log.tensorboard or config.log.wandb):
    return None
  predict = samples.make_predict(program.model, program.mesh)
  return FixedSamples(predict, program.mesh, config.eval_split, config.log.images, config.seed)
