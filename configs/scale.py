r"""RefCOCO's recipe with an encoder of the size of ViT-B, ViT-L or ViT-H, to plan for a pod.

  make plan
  PYTHONPATH=.libtpu .venv/bin/python -m mail_jax.plan --config configs/scale.py:vit_l \
      --topology v5e:4x4 --batch_per_chip 8 --sweep

Widths, depths and heads are those of ViT (arXiv 2010.11929, table 1), at 480 pixels in bfloat16.
All three have patches of 32 pixels: the side must be a power of two, which ViT-H's 14 is not.
`vit_b` is `configs/refcoco.py:unc` and starts from ViLT's weights; the others start from random
weights. None of them has been trained. docs/guides/scale.md shows what they need, and when
`--config.mesh.fsdp` pays off.
"""

from ml_collections import ConfigDict

from mail_jax import InputError
from mail_jax.config import recipe

# Width, depth and heads.
SIZES = {"vit_b": (768, 12, 12), "vit_l": (1024, 24, 16), "vit_h": (1280, 32, 16)}


def get_config(size: str = "vit_b") -> ConfigDict:
  """Returns the recipe for a size: `vit_b`, `vit_l` or `vit_h`."""
  if size not in SIZES:
    raise InputError(f"configs/scale.py:{size}: the sizes are {', '.join(SIZES)}")
  c = recipe("refcoco", "unc")
  c.model.width, c.model.depth, c.model.heads = SIZES[size]
  if size != "vit_b":
    c.init = ""
    # BERT's vocabulary.
    c.tokenizer = "wordpiece:vocab.txt"
    c.vocab_size = 30522
  return c
