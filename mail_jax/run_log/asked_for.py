"""What of `config.log` is written beside `metrics.jsonl`."""

from ml_collections import ConfigDict

from input_pipeline.errors import InputError
from mail_jax import distributed
from mail_jax.config import to_json
from mail_jax.program import Program
from mail_jax.progress import Progress
from mail_jax.run_log import event_files, fixed_samples, wandb_run
from mail_jax.run_log.fixed_samples import FixedSamples


def check(config: ConfigDict) -> None:
  """Looks whether it can be had, before anything takes long.

  Raises:
    InputError: a package is missing, or a value cannot be.
  """
  if config.log.images < 0:
    raise InputError(f"config.log.images is {config.log.images}; it must be 0 or more")
  if config.log.tensorboard:
    event_files.check_installed()
  if config.log.wandb:
    wandb_run.check_installed()


def open_sinks(config: ConfigDict, workdir: str, start_step: int, progress: Progress) -> None:
  """Lets the log of a run go to what was asked for, too; on process 0."""
  if not distributed.is_main():
    return
  plain = to_json(config)
  if config.log.tensorboard:
    progress.add(event_files.TensorBoard(workdir, start_step, plain, progress.rows()))
  if config.log.wandb:
    progress.add(wandb_run.WandbRun(config.log.wandb, workdir, plain, progress.line))


def fixed(config: ConfigDict, program: Program) -> FixedSamples | None:
  """The samples that are drawn at every evaluation; None where nobody would see them."""
  if not config.log.images or not (config.log.tensorboard or config.log.wandb):
    return None
  predict = fixed_samples.make_predict(program.model, program.mesh)
  return FixedSamples(predict, program.mesh, config.eval_split, config.log.images, config.seed)
