r"""gRefCOCO from ViLT-B/32: expressions with several targets, one, or none. Based on `refcoco`.

  python -m input_pipeline.prepare --dataset grefcoco_unc --refer_root refer --images train2014 \
      --instances coco:refer/grefcoco/instances.json --data_dir data
  python -m mail_jax.train --config configs/grefcoco.py --config.init=vilt:vilt-b32-mlm \
      --data_dir data --workdir runs/grefcoco
  python -m mail_jax.evaluate --checkpoint runs/grefcoco --data_dir data --data grefcoco_unc/val \
      --data grefcoco_unc/testA --data grefcoco_unc/testB

Each instance is selected or not independently of the others (`multi`), and an output says whether
there is a target. The best checkpoint has the best gIoU. Not run on the full data. Instance masks
from COCO's annotations, as above, contain the targets themselves; for comparable numbers take them
from a detector.

`configs/grefcoco.py:large` has batches of 1024 for a pod.
"""

from ml_collections import ConfigDict

from mail_jax import InputError
from mail_jax.config import recipe


def get_config(size: str = "") -> ConfigDict:
  """Returns the recipe, with `large` for the large batch."""
  if size not in ("", "large"):
    raise InputError(f"configs/grefcoco.py:{size}: the only argument is large")
  c = recipe("refcoco", f"unc,{size}" if size else "unc")
  c.dataset = "grefcoco_unc"
  # All positions of ViLT: expressions for several targets are long.
  c.max_tokens = 40
  c.best_metric = "gIoU"
  c.model.selection = "multi"
  c.model.no_target = True
  return c
