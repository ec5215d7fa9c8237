"""RefCOCO's recipe with an encoder of the size of ViT-B, ViT-L or ViT-H: what to plan before renting a pod.

  make plan
  PYTHONPATH=.libtpu .venv/bin/python -m mail_jax.plan --config configs/scale.py:vit_l \
      --topology v5e:4x4 --batch_per_chip 8 --sweep

Widths, depths and heads are those of ViT (arXiv 2010.11929, table 1), at 480 px in bf16. The patch is 32 pixels for all
three: ours must be a power of two, so ViT-H's 14 is not to be had. `vit_b` is `configs/refcoco.py:unc` and starts from
ViLT's weights; the others have none to start from. None of them has been trained here.
docs/reports/performance.md has what they need; docs/guides/scale.md explains `mail_jax.plan` and `--config.mesh.fsdp`.
"""

from ml_collections import ConfigDict

from configs import refcoco
from input_pipeline.common.errors import InputError

# width, depth, heads
SIZES = {"vit_b": (768, 12, 12), "vit_l": (1024, 24, 16), "vit_h": (1280, 32, 16)}


def get_config(size: str = "vit_b") -> ConfigDict:
  """Returns the recipe for a size: `vit_b`, `vit_l` or `vit_h`."""
  if size not in SIZES:
    raise InputError(f"configs/scale.py:{size}: the sizes are {', '.join(SIZES)}")
  c = refcoco.get_config("unc")
  c.model.width, c.model.depth, c.model.heads = SIZES[size]
  if size != "vit_b":
    c.init = ""
    c.tokenizer = "wordpiece:vocab.txt"  # BERT's
    c.vocab_size = 30522
  return c
