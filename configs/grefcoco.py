"""gRefCOCO from ViLT-B/32: expressions that mean several objects, one, or none; otherwise `configs/refcoco.py`.

  python -m input_pipeline.prepare --dataset grefcoco_unc --refer_root refer --images train2014 \
      --instances coco:refer/grefcoco/instances.json --data_dir data
  python -m mail_jax.train --config configs/grefcoco.py --config.init=vilt:vilt-b32-mlm \
      --data_dir data --workdir runs/grefcoco
  python -m mail_jax.evaluate --checkpoint runs/grefcoco --data_dir data --data grefcoco_unc/val \
      --data grefcoco_unc/testA --data grefcoco_unc/testB

Every instance has a gate of its own (`multi`), and an output says whether anything is meant. The best checkpoint is
that of the best gIoU. Not run here on the full data. Instance masks from COCO's annotations, as above, contain the
targets themselves; for numbers to compare, take them from a detector.

`configs/grefcoco.py:large` has batches of 1024 for a pod.
"""

from ml_collections import ConfigDict

from configs import refcoco
from input_pipeline.common.errors import InputError


def get_config(size: str = "") -> ConfigDict:
  """Returns the recipe, with `large` for the large batch."""
  if size not in ("", "large"):
    raise InputError(f"configs/grefcoco.py:{size}: write nothing, or large")
  c = refcoco.get_config(f"unc,{size}" if size else "unc")
  c.dataset = "grefcoco_unc"
  c.max_tokens = 40  # as many as ViLT has positions; expressions for several objects are long
  c.best_metric = "gIoU"
  c.model.selection = "multi"
  c.model.no_target = True
  return c
