r"""RefCOCO, RefCOCO+ and RefCOCOg from BEiT-3 at 384 or 480 pixels: 30 epochs, batches of 32.

  python -m input_pipeline.prepare --dataset refcoco_unc --refer_root refer --images train2014 \
      --instances results:detections.json --data_dir data
  python -m mail_jax.pretrained.beit3 --checkpoint beit3_base_patch16_224.pth \
      --out beit3_base.safetensors
  python -m mail_jax.train --config configs/refcoco_beit3.py:base,unc \
      --config.init=beit3:beit3_base.safetensors --data_dir data --workdir runs/refcoco_beit3
  python -m mail_jax.evaluate --checkpoint runs/refcoco_beit3 --data_dir data \
      --data refcoco_unc/val --data refcoco_unc/testA --data refcoco_unc/testB --protocol oneref

The arguments are the size, `base` or `large`; the dataset, `unc` (RefCOCO), `refcoco+`, `umd` or
`google` (RefCOCOg), or `mixed`, all three without the images that any of them evaluates on; and
`480` for images of 480 pixels instead of 384: `large,umd,480`. Beside the weights has to be their
tokenizer, `beit3.spm`.

With `frozen`, such as `base,unc,frozen`, 10 epochs train what is new, and keep no gradients and no
optimizer state of the rest. A run of all parameters continues from it with
`--config.init=run:runs/frozen`: OneRef's two stages.

After those who lead from these weights: C3VG (arXiv 2501.06710) and InstanceVG have a learning rate
of 5e-5 for the encoder and ten times that for what is new, 3 epochs of warm-up, drop path 0.1 and
batches of 32; OneRef (arXiv 2410.08021) mirrors no images, since it costs accuracy.

What it costs, by `mail_jax.plan` with 8 examples per chip (2026-12-01): 30 epochs of `mixed`, at
most 3.8 M samples, take base at 384 pixels 35 minutes on v5e:4x4 by the compiler's estimate,
without collectives, and 5.7 GB per chip. On h100:8 their traffic alone takes 7 minutes (3.7 GB per
GPU), at 480 pixels 9 (4.2 GB), and large at 384 pixels 19 (10.2 GB). A batch of 32 fills 4 chips;
more chips need a larger batch or take longer.

To beat, overall IoU in percent, trained on one dataset: OneRef-B 77.55, 80.96, 73.53 (RefCOCO val,
testA, testB), 70.82, 74.53, 64.06 (RefCOCO+), 70.68, 70.61 (RefCOCOg umd val, test). On all three
together, whose training photos include the others' evaluation photos: C3VG, base, 80.89, 83.18,
77.86; 74.68, 77.96, 68.95; 74.43, 76.39; DeRIS-L 85.41, 86.49, 82.87; 79.01, 82.34, 74.41; 77.65,
80.12. Not run: neither the weights nor the full data were available.
"""

from ml_collections import ConfigDict

from mail_jax import InputError
from mail_jax.config import recipe

# The parameters that BEiT-3's checkpoints have, and the experts of masks.
PRETRAINED = "^(encoder|image|text)"
DATASETS = {
  "unc": "refcoco_unc",
  "refcoco+": "refcoco+_unc",
  "umd": "refcocog_umd",
  "google": "refcocog_google",
  "mixed": "refcoco_unc,refcoco+_unc,refcocog_umd",
}
# Width, depth and heads.
SIZES = {"base": (768, 12, 12), "large": (1024, 24, 16)}


def get_config(argument: str = "base,unc") -> ConfigDict:
  """Returns the recipe for a size and a dataset, with `,480` for larger images and `,frozen`."""
  size, _, rest = argument.partition(",")
  name, *options = rest.split(",")
  if size not in SIZES or name not in DATASETS or {*options} - {"384", "480", "frozen"}:
    raise InputError(
      f"configs/refcoco_beit3.py:{argument}: the arguments are base or large, then "
      f"{', '.join(DATASETS)}, then perhaps 480 and frozen, as in large,umd,480"
    )
  c = recipe("base")
  c.dataset = DATASETS[name]
  c.init = f"beit3:beit3_{size}.safetensors"
  c.image_size = 480 if "480" in options else 384
  c.max_instances = 16
  c.max_tokens = 32 if name in ("unc", "refcoco+") else 64

  c.epochs = 30.0
  c.batch_size = 32
  c.eval_batch_size = 32
  c.eval_every = 2000
  c.save_every = 1000
  c.best_metric = "oIoU"

  c.model.width, c.model.depth, c.model.heads = SIZES[size]
  c.model.experts = "multiway"
  c.model.drop_path = 0.1
  c.model.patch_size = 16
  c.model.decoder_widths = (256, 128, 64, 32)
  c.model.dtype = "bfloat16"

  c.optimizer.lr = 5e-5
  # Pretrained parameters change slowly, new ones ten times as fast.
  c.optimizer.lr_scale = ((PRETRAINED, 1.0), (".*", 10.0))
  # 3 epochs of RefCOCO.
  c.optimizer.warmup_steps = 4000
  c.optimizer.schedule = "cosine"
  c.optimizer.final = 0.01
  c.optimizer.weight_decay = 1e-4
  c.optimizer.clip = 1.0
  c.ema_decay = 0.9995
  c.augment.flip = False
  c.augment.scale = (0.7, 1.3)
  # Masks of the training photos are better than those at test time, even a detector's.
  c.augment.mask_noise = 0.5
  c.loader.threads = 8
  # RefCOCO has 2.5 refs per image.
  c.loader.refs_per_image = 4

  if name == "mixed":
    # Epochs are three times as long.
    c.eval_every = 6000
    c.optimizer.warmup_steps = 12_000

  if "frozen" in options:
    c.epochs = 10.0
    c.optimizer.lr = 2.5e-4
    c.optimizer.lr_scale = ((PRETRAINED, 0.0), (".*", 1.0))
    c.optimizer.warmup_steps = 500
    c.model.drop_path = 0.0
  return c
