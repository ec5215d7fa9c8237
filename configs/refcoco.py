"""RefCOCO, RefCOCO+ and RefCOCOg from ViLT-B/32 at 480 px: 40 epochs, batches of 32, on one accelerator or many.

  python -m input_pipeline.prepare --dataset refcoco_unc --refer_root refer --images train2014 \
      --instances coco:refer/refcoco/instances.json --data_dir data
  python -m mail_jax.train --config configs/refcoco.py:unc --config.init=vilt:vilt-b32-mlm \
      --data_dir data --workdir runs/refcoco_unc
  python -m mail_jax.evaluate --checkpoint runs/refcoco_unc --data_dir data \
      --data refcoco_unc/val --data refcoco_unc/testA --data refcoco_unc/testB

The argument is the data set: `unc` (RefCOCO), `refcoco+`, `umd` or `google` (RefCOCOg). `unc,large` has batches of
1024 for a pod. `config.init` takes a folder of Hugging Face, an original checkpoint, or what `mail_jax.pretrained.vilt`
wrote.

To aim at, the paper's overall IoU in percent: RefCOCO 70.13 (val), 71.71 (testA), 66.92 (testB); RefCOCO+ 62.23, 65.92,
56.06; RefCOCOg 62.45 (val, umd), 62.87 (test, umd), 61.81 (val, google). Not reproduced here yet: neither the weights
nor the data set have been at hand (docs/explanation/paper.md). Instance masks from COCO's annotations, as above,
contain the target itself; for numbers to compare, take them from a detector.
"""

from ml_collections import ConfigDict

from configs import base
from input_pipeline.common.errors import InputError

DATASETS = {
  "unc": "refcoco_unc",
  "refcoco+": "refcoco+_unc",
  "umd": "refcocog_umd",
  "google": "refcocog_google",
}


def get_config(argument: str = "unc") -> ConfigDict:
  """Returns the recipe for a data set, with `,large` for the large batch."""
  name, _, size = argument.partition(",")
  if name not in DATASETS or size not in ("", "large"):
    raise InputError(
      f"configs/refcoco.py:{argument}: write one of {', '.join(DATASETS)}, and ',large' after it for large batches"
    )
  c = base.get_config()
  c.dataset = DATASETS[name]
  c.init = "vilt:vilt-b32-mlm"
  c.image_size = 480
  c.max_instances = 16
  # Of the expressions, at most 1 in 1,000 is longer (docs/reports/results.md); ViLT has positions for 40.
  c.max_tokens = 40 if name in ("umd", "google") else 20

  c.epochs = 40.0
  c.batch_size = 32
  c.eval_batch_size = 32
  c.eval_every = 2000
  c.save_every = 1000
  c.best_metric = "oIoU"

  c.model.width, c.model.depth, c.model.heads = 768, 12, 12
  c.model.decoder_widths = (256, 128, 64, 32, 16)
  c.model.dtype = "bfloat16"

  c.optimizer.lr = 5e-5
  # What ViLT knows is changed slowly, what is new learns at ten times its rate.
  c.optimizer.lr_scale = (("^(encoder|image|text|type)", 1.0), (".*", 10.0))
  c.optimizer.warmup_steps = 2000
  c.optimizer.schedule = "polynomial"
  c.optimizer.final = 0.0
  c.optimizer.weight_decay = 0.01
  c.optimizer.clip = 1.0
  c.ema_decay = 0.9995
  c.loader.threads = 8
  c.loader.refs_per_image = 4  # RefCOCO has 2.5 refs an image

  if size == "large":
    c.batch_size = 1024
    c.eval_batch_size = 256
    c.optimizer.lr = 5e-5 * 32**0.5  # Adam: with the root of the batch size
    c.optimizer.warmup_steps = 200
    c.eval_every = c.save_every = 100
    c.ema_decay = 0.99
  return c
