"""PhraseCut from ViLT-B/32: phrases for one or many regions of Visual Genome's photos; otherwise `configs/refcoco.py`.

  python -m input_pipeline.prepare --dataset phrasecut --refer_root PhraseCutDataset/data \
      --images PhraseCutDataset/data/VGPhraseCut_v0/images --instances huggingface:MODEL --data_dir data
  python -m mail_jax.train --config configs/phrasecut.py --config.init=vilt:vilt-b32-mlm \
      --data_dir data --workdir runs/phrasecut
  python -m mail_jax.evaluate --checkpoint runs/phrasecut --data_dir data --data phrasecut/val --data phrasecut/test

A phrase means every instance that it fits, so that each instance has a gate of its own (`multi`). `val` lacks the
images of `miniv`, as its file does; the best checkpoint is that of the best mean IoU on `val`. Instance masks come from
a detector: there are no annotations of all objects. Not run here: the data has not been at hand.

`configs/phrasecut.py:large` has batches of 1024 for a pod.
"""

from ml_collections import ConfigDict

from configs import refcoco
from input_pipeline.common.errors import InputError


def get_config(size: str = "") -> ConfigDict:
  """Returns the recipe, with `large` for the large batch."""
  if size not in ("", "large"):
    raise InputError(f"configs/phrasecut.py:{size}: write nothing, or large")
  c = refcoco.get_config(f"unc,{size}" if size else "unc")
  c.dataset = "phrasecut"
  c.epochs = 10.0  # seven times RefCOCO's refs
  c.best_metric = "mIoU"
  c.model.selection = "multi"
  return c
