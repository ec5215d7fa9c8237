"""Referring image segmentation with one transformer over masks, image and language.

```python
from mail_jax import Segmenter
```
"""

from typing import TYPE_CHECKING

from input_pipeline.common.errors import InputError

if TYPE_CHECKING:
  from mail_jax.predict.segmenter import Segmentation, Segmenter

__all__ = ["InputError", "Segmentation", "Segmenter"]
__version__ = "0.1.0"


def __getattr__(name: str):
  """Imports the Python API on first use: commands that only print their help need no JAX."""
  if name in __all__:
    from mail_jax.predict import segmenter

    return getattr(segmenter, name)
  raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
