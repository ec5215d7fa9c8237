"""What of `config.log` is written beside `metrics.jsonl`."""

from ml_collections import ConfigDict

from input_pipeline.common.errors import InputError
from mail_jax.config import to_json
from mail_jax.distributed import processes
from mail_jax.train.logging import samples, tensorboard, wandb
from mail_jax.train.logging.progress import Progress
from mail_jax.train.logging.samples import FixedSamples
from mail_jax.train.program import Program


def check(config: ConfigDict) -> None:
  """Looks whether it can be had, before anything takes long.

  Raises:
    InputError: a package is missing, or a value cannot be.
  """
  if config.log.images < 0:
    raise InputError(f"config.log.images is {config.log.images}; it must be 0 or more")
  if config.log.tensorboard:
    tensorboard.check_installed()
  if config.log.wandb:
    wandb.check_installed()


def open_sinks(config: ConfigDict, workdir: str, start_step: int, progress: Progress) -> None:
  """Lets the log of a run go to what was asked for, too; on process 0."""
  if not processes.is_main():
    return
  plain = to_json(config)
  if config.log.tensorboard:
    progress.add(tensorboard.TensorBoard(workdir, start_step, plain, progress.rows()))
  if config.log.wandb:
    progress.add(wandb.WandbRun(config.log.wandb, workdir, plain, progress.line))


def fixed(config: ConfigDict, program: Program) -> FixedSamples | None:
  """The samples that are drawn at every evaluation; None where nobody would see them."""
  if not config.log.images or not (config.log.tensorboard or config.log.wandb):
    return None
  predict = samples.make_predict(program.model, program.mesh)
  return FixedSamples(predict, program.mesh, config.eval_split, config.log.images, config.seed)
