"""The demo: generated scenes of 96 px, the `instance` preset, 15 minutes on 2 CPU cores.

  make demo                     (or, by hand:)
  python -m input_pipeline.prepare --dataset shapes --data_dir data
  python -m mail_jax.train --config configs/demo.py --data_dir data --workdir runs/demo
  python -m mail_jax.evaluate --checkpoint runs/demo --data_dir data --data shapes/val

Expect a mean IoU of about 0.84 on val, and 0.74 after 5 minutes: docs/reports/results.md.

`configs/demo.py:paper` is the preset `paper` on the same data and budget.
"""

from ml_collections import ConfigDict

from configs import base
from input_pipeline.common.errors import InputError


def get_config(preset: str = "instance") -> ConfigDict:
  """Returns the recipe for a preset, `instance` or `paper`."""
  c = base.get_config()
  c.minutes = 15.0
  c.max_instances = 10
  c.batch_size = 32
  c.decode_every = 4  # the outline is learned long before the relations
  c.optimizer.warmup_steps = 100
  c.eval_every = 4000  # all 6,716 sentences of val
  c.save_every = 1000
  c.loader.cache = True
  if preset == "paper":
    c = base.paper(c)
  elif preset != "instance":
    raise InputError(f"configs/demo.py:{preset}: the presets are instance and paper")
  return c
