r"""A small model on real images, from random weights on a CPU: checks the path from RefCOCO files.

  python -m input_pipeline.prepare --dataset refcoco_unc --refer_root R --images C \
      --instances coco:INSTANCES.json --data_dir data
  python -m mail_jax.train --config configs/refcoco_small.py --data_dir data \
      --workdir runs/refcoco_small
  python -m mail_jax.evaluate --checkpoint runs/refcoco_small --step last --data_dir data \
      --data refcoco_unc/train --data refcoco_unc/val --data refcoco_unc/testA \
      --data refcoco_unc/testB

For a few hundred images, which it memorises; it does not generalise to new ones. Results:
docs/reports/results.md.

`configs/refcoco_small.py:mixed` trains on RefCOCO, RefCOCO+ and RefCOCOg (umd) together, without
the images that any of them evaluates on.
"""

from ml_collections import ConfigDict

from mail_jax import InputError
from mail_jax.config import recipe


def get_config(data: str = "") -> ConfigDict:
  """Returns the recipe, with `mixed` for three data sets."""
  if data not in ("", "mixed"):
    raise InputError(f"configs/refcoco_small.py:{data}: the only argument is mixed")
  c = recipe("base")
  c.dataset = "refcoco_unc,refcoco+_unc,refcocog_umd" if data else "refcoco_unc"
  c.minutes = 15.0
  c.image_size = 224
  c.max_instances = 16
  c.vocab_size = 1000
  c.max_tokens = 20
  c.batch_size = 16
  c.eval_batch_size = 16
  # With few images to evaluate on, once at the end is enough.
  c.eval_every = 100_000
  c.log_every = 50
  # Memorised expressions such as "rightmost" must keep their side.
  c.augment.flip = False
  c.augment.jitter = 0.1
  c.optimizer.warmup_steps = 100
  c.loader.cache = True
  return c
