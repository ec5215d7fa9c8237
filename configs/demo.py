"""The demo: generated scenes of 96 pixels, the preset `instance`, 15 minutes on 2 CPU cores.

  make demo

or step by step:

  python -m input_pipeline.prepare --dataset shapes --data_dir data
  python -m mail_jax.train --config configs/demo.py --data_dir data --workdir runs/demo
  python -m mail_jax.evaluate --checkpoint runs/demo --data_dir data --data shapes/val

Expect a mean IoU of about 0.86 on val, and 0.76 after the 5 minutes of `make demo`:
docs/reports/results.md.

`configs/demo.py:paper` is the preset `paper` on the same data for the same time.
"""

from ml_collections import ConfigDict

from mail_jax import InputError
from mail_jax.config import recipe


def get_config(preset: str = "instance") -> ConfigDict:
  """Returns the recipe for a preset, `instance` or `paper`."""
  if preset not in ("instance", "paper"):
    raise InputError(f"configs/demo.py:{preset}: the presets are instance and paper")
  c = recipe("base", preset)
  c.minutes = 15.0
  c.max_instances = 10
  c.batch_size = 32
  # The outline is learned long before the relations.
  c.decode_every = 4
  c.optimizer.warmup_steps = 100
  # On all 6,716 expressions of val.
  c.eval_every = 4000
  c.save_every = 1000
  # Every half minute.
  c.log.picture_every = 250
  c.loader.cache = True
  return c
