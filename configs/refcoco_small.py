"""A small model on real photos, from scratch on a CPU: shows that the whole path works on RefCOCO's own layout.

  python -m input_pipeline.prepare --dataset refcoco_unc --refer_root R --images C \
      --instances coco:INSTANCES.json --data_dir data
  python -m mail_jax.train --config configs/refcoco_small.py --data_dir data --workdir runs/refcoco_small
  python -m mail_jax.evaluate --checkpoint runs/refcoco_small --step last --data_dir data \
      --data refcoco_unc/train --data refcoco_unc/val --data refcoco_unc/testA --data refcoco_unc/testB

It is meant for a few hundred photos, which it learns by heart; it does not generalise to new ones.
Results: docs/reports/results.md.
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
  """Returns the recipe."""
  c = base.get_config()
  c.dataset = "refcoco_unc"
  c.minutes = 15.0
  c.image_size = 224
  c.max_instances = 16
  c.vocab_size = 1000
  c.max_tokens = 20
  c.batch_size = 16
  c.eval_batch_size = 16
  c.eval_every = 100_000  # with a handful of evaluation photos, once at the end is enough
  c.log_every = 50
  c.augment.flip = False  # "rightmost" must stay where it is learned by heart
  c.augment.jitter = 0.1
  c.optimizer.warmup_steps = 100
  c.loader.cache = True
  return c
