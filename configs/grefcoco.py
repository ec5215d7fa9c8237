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

`configs/grefcoco.py:large` has batches of 1024 for a pod. `:mixed` and `:mixed,large` add RefCOCO,
RefCOCO+ and RefCOCOg (umd), whose expressions have exactly one target, and leave out the images
that any of them evaluates on.
"""

from ml_collections import ConfigDict

from mail_jax import InputError
from mail_jax.config import recipe


def get_config(argument: str = "") -> ConfigDict:
  """Returns the recipe, with `mixed` for four data sets and `large` for the large batch."""
  words = argument.split(",") if argument else []
  if words not in ([], ["large"], ["mixed"], ["mixed", "large"]):
    raise InputError(
      f"configs/grefcoco.py:{argument}: the arguments are mixed, large and mixed,large"
    )
  name = "mixed" if "mixed" in words else "unc"
  c = recipe("refcoco", f"{name},large" if "large" in words else name)
  c.dataset = "grefcoco_unc"
  if "mixed" in words:
    c.dataset = f"{c.dataset}:multi:no_target,refcoco_unc,refcoco+_unc,refcocog_umd"
    # Not the mean over the other data sets, which have no gIoU.
    c.eval_split = "grefcoco_unc/val"
  # All positions of ViLT: expressions for several targets are long.
  c.max_tokens = 40
  c.best_metric = "gIoU"
  c.model.selection = "multi"
  c.model.no_target = True
  return c
