"""A run so small that it takes seconds.

A recipe for `mail_jax.train`, and the command line for it.
"""

import json
import pathlib
from typing import Any

from ml_collections import ConfigDict

from mail_jax.config import recipe

CHECKOUT = pathlib.Path(__file__).parents[2]
STEPS, EVAL_EVERY, SAVE_EVERY = 24, 8, 4
# What a clock measured; everything else in a log is repeatable.
_CLOCKED = ("samples_per_second", "data_wait", "mfu", "seconds")


def get_config() -> ConfigDict:
  """Returns the recipe: every part of the default model, each as small as it can be."""
  c = recipe("base")
  c.image_size, c.max_instances, c.max_tokens, c.vocab_size = 32, 8, 16, 320
  c.steps, c.batch_size, c.eval_batch_size, c.eval_expressions = STEPS, 8, 16, 40
  c.eval_every, c.save_every, c.log_every = EVAL_EVERY, SAVE_EVERY, 1
  c.model.width, c.model.depth, c.model.heads = 32, 1, 2
  c.model.patch_size, c.model.decoder_widths = 8, (16, 8, 8)
  c.optimizer.warmup_steps = 5
  return c


def arguments(data_dir: str, workdir: pathlib.Path, *more: str) -> list[str]:
  """Returns the command line of `mail_jax.train`."""
  return ["--config", __file__, "--data_dir", data_dir, "--workdir", str(workdir), *more]


def rows(workdir: pathlib.Path) -> list[dict[str, Any]]:
  """Returns the rows of a run's `metrics.jsonl`."""
  return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def log(workdir: pathlib.Path) -> list[dict[str, Any]]:
  """Returns the rows of a run's log without what a clock measured."""
  return without_clock((workdir / "metrics.jsonl").read_text().splitlines())


def without_clock(lines: list[str]) -> list[dict[str, Any]]:
  """Returns the rows in lines of a log without what a clock measured."""
  found = [json.loads(line) for line in lines]
  return [{key: row[key] for key in row if key not in _CLOCKED} for row in found]


def steps_kept(workdir: pathlib.Path) -> list[int]:
  """Returns the steps of the checkpoints that a run's folder holds."""
  return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir())
