r"""RefCOCO, RefCOCO+ and RefCOCOg from ViLT-B/32 at 480 pixels: 40 epochs, batches of 32.

  python -m input_pipeline.prepare --dataset refcoco_unc --refer_root refer --images train2014 \
      --instances coco:refer/refcoco/instances.json --data_dir data
  python -m mail_jax.train --config configs/refcoco.py:unc --config.init=vilt:vilt-b32-mlm \
      --data_dir data --workdir runs/refcoco_unc
  python -m mail_jax.evaluate --checkpoint runs/refcoco_unc --data_dir data \
      --data refcoco_unc/val --data refcoco_unc/testA --data refcoco_unc/testB

The argument is the dataset: `unc` (RefCOCO), `refcoco+`, `umd` or `google` (RefCOCOg); or `mixed`,
RefCOCO, RefCOCO+ and RefCOCOg (umd) by size for 20 epochs, without the images that any of them
evaluates on. `unc,large` has batches of 1024 for a pod. `config.init` takes a Hugging Face folder,
an original checkpoint, or the output of `mail_jax.pretrained.vilt`.

The paper's overall IoU, in percent: RefCOCO 70.13 (val), 71.71 (testA), 66.92 (testB); RefCOCO+
62.23, 65.92, 56.06; RefCOCOg 62.45 (val, umd), 62.87 (test, umd), 61.81 (val, google). Not
reproduced here: neither the weights nor the dataset were available (docs/explanation/paper.md).
Instance masks from COCO's annotations, as above, contain the target itself; for comparable numbers
take them from a detector.
"""

from ml_collections import ConfigDict

from mail_jax import InputError
from mail_jax.config import recipe

DATASETS = {
  "unc": "refcoco_unc",
  "refcoco+": "refcoco+_unc",
  "umd": "refcocog_umd",
  "google": "refcocog_google",
  "mixed": "refcoco_unc,refcoco+_unc,refcocog_umd",
}

# The parameters that ViLT's checkpoints have.
PRETRAINED = "^(encoder|image|text|type)"


def get_config(argument: str = "unc") -> ConfigDict:
  """Returns the recipe for a dataset, with `,large` for the large batch."""
  name, _, size = argument.partition(",")
  if name not in DATASETS or size not in ("", "large"):
    raise InputError(
      f"configs/refcoco.py:{argument}: the arguments are {', '.join(DATASETS)}, each with ',large' "
      "after it for large batches"
    )
  c = recipe("base")
  c.dataset = DATASETS[name]
  c.init = "vilt:vilt-b32-mlm"
  c.image_size = 480
  c.max_instances = 16
  # At most 1 in 1,000 expressions is longer (docs/reports/results.md); ViLT has 40 positions.
  c.max_tokens = 20 if name in ("unc", "refcoco+") else 40

  # An epoch of the mixture is as long as three.
  c.epochs = 20.0 if name == "mixed" else 40.0
  c.batch_size = 32
  c.eval_batch_size = 32
  c.eval_every = 2000
  c.save_every = 1000
  c.best_metric = "oIoU"

  c.model.width, c.model.depth, c.model.heads = 768, 12, 12
  c.model.decoder_widths = (256, 128, 64, 32, 16)
  c.model.dtype = "bfloat16"

  c.optimizer.lr = 5e-5
  # Pretrained parameters change slowly, new ones ten times as fast.
  c.optimizer.lr_scale = ((PRETRAINED, 1.0), (".*", 10.0))
  c.optimizer.warmup_steps = 2000
  c.optimizer.schedule = "polynomial"
  c.optimizer.final = 0.0
  c.optimizer.weight_decay = 0.01
  c.optimizer.clip = 1.0
  c.ema_decay = 0.9995
  # Masks of the training photos are better than those at test time, even a detector's.
  c.augment.mask_noise = 0.5
  c.loader.threads = 8
  # RefCOCO has 2.5 refs per image.
  c.loader.refs_per_image = 4

  if size == "large":
    c.batch_size = 1024
    c.eval_batch_size = 256
    # With Adam the learning rate grows with the square root of the batch size; that of new
    # parameters only to 1e-3, above which the demo learns less (docs/reports/results.md).
    c.optimizer.lr = 5e-5 * 32**0.5
    c.optimizer.lr_scale = ((PRETRAINED, 1.0), (".*", 1e-3 / c.optimizer.lr))
    c.optimizer.warmup_steps = 200
    c.eval_every = c.save_every = 100
    c.ema_decay = 0.99
  return c
