"""Trains a model, or resumes a run:

python -m mail_jax.train --config demo --data_dir data --workdir runs/demo
python -m mail_jax.train --config demo:paper --config.minutes=5 --data_dir data --workdir runs/paper

Run the same command again after an interruption: it resumes from the last checkpoint. On SIGTERM it
saves before it ends.
"""

from input_pipeline.common.command_line import command_parser
from input_pipeline.common.errors import memory_errors
from mail_jax.config import add_config_argument, load_config, parse_overrides
from mail_jax.distributed import processes
from mail_jax.hardware import memory as hardware_memory
from mail_jax.train import memory
from mail_jax.train.data import open_data
from mail_jax.train.logging import progress
from mail_jax.train.loop import Trainer
from mail_jax.train.resume import archive_existing, kept_tokenizer, lock


def main(argv: list[str] | None = None) -> None:
  """Runs the command."""
  parser = command_parser("mail_jax.train", __doc__)
  add_config_argument(parser)
  parser.add_argument("--data_dir", required=True, help="folder that input_pipeline.prepare wrote")
  parser.add_argument(
    "--workdir",
    required=True,
    help="folder of the checkpoints and logs; an existing run is resumed",
  )
  parser.add_argument(
    "--archive_existing",
    action="store_true",
    help="move a run with other settings to WORKDIR.1, .2, ...",
  )
  parser.add_argument(
    "--changed_data",
    action="store_true",
    help="resume although the training data has changed, such as after adding images",
  )
  processes.add_arguments(parser)
  args, rest = parse_overrides(parser, argv)
  config = load_config(args.config, rest)
  # Before the processes wait for each other.
  progress.check(config)
  processes.initialize(args)
  data = open_data(config, args.data_dir, kept_tokenizer(args.workdir, config))
  if args.archive_existing:
    with lock(args.workdir):
      moved = archive_existing(args.workdir, config, data)
    data = open_data(config, args.data_dir) if moved else data
  free = hardware_memory.available()
  with memory_errors(lambda: memory.ways_out(config, data.tokenizer.vocab_size, free)):
    Trainer(config, args.workdir, data, args.changed_data).run()
