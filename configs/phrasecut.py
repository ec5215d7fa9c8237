r"""PhraseCut from ViLT-B/32: phrases for regions of Visual Genome's images. Based on `refcoco`.

  python -m input_pipeline.prepare --dataset phrasecut --refer_root PhraseCutDataset/data \
      --images PhraseCutDataset/data/VGPhraseCut_v0/images --instances huggingface:MODEL \
      --data_dir data
  python -m mail_jax.train --config configs/phrasecut.py --config.init=vilt:vilt-b32-mlm \
      --data_dir data --workdir runs/phrasecut
  python -m mail_jax.evaluate --checkpoint runs/phrasecut --data_dir data --data phrasecut/val \
      --data phrasecut/test

A phrase refers to every instance that it fits, so each instance is selected or not independently of
the others (`multi`). `val` does not contain the images of `miniv`, as in the published files. The
best checkpoint has the best mean IoU on `val`. Instance masks come from a detector, because not all
objects are annotated. Not run: the dataset was not available.

`configs/phrasecut.py:large` has batches of 1024 for a pod.
"""

from ml_collections import ConfigDict

from mail_jax import InputError
from mail_jax.config import recipe


def get_config(size: str = "") -> ConfigDict:
  """Returns the recipe, with `large` for the large batch."""
  if size not in ("", "large"):
    raise InputError(f"configs/phrasecut.py:{size}: the only argument is large")
  c = recipe("refcoco", f"unc,{size}" if size else "unc")
  c.dataset = "phrasecut"
  # Seven times as many refs as in RefCOCO.
  c.epochs = 10.0
  c.best_metric = "mIoU"
  c.model.selection = "multi"
  return c
