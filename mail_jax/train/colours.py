"""Other light and other colours, on the device: what training does to the pixels of a photo."""

import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

# Weights of red, green and blue in a gray value (ITU-R BT.601).
_GRAY = (0.299, 0.587, 0.114)


def change_colours(
  images: UInt8[Array, "b h w 3"], factors: Float[Array, "b 3"]
) -> UInt8[Array, "b h w 3"]:
  """Brightness, then contrast about the mean gray, then saturation, in one pass over the pixels.

  With y = contrast * brightness * x + offset, saturation * y + (1 - saturation) * gray(y) is a weighted sum of x,
  gray(x) and the same offset, because the gray weights sum to 1.

  Args:
    images: RGB bytes.
    factors: of brightness, contrast and saturation; 1 changes nothing.
  """
  brightness, contrast, saturation = (factors[:, i, None, None] for i in range(3))
  red, green, blue = (images[..., i].astype(jnp.float32) for i in range(3))
  gray = _GRAY[0] * red + _GRAY[1] * green + _GRAY[2] * blue
  scale = contrast * brightness
  offset = (1 - contrast) * brightness * gray.mean((1, 2), keepdims=True)
  joint = gray * (scale * (1 - saturation)) + offset
  changed = jnp.stack([x * (scale * saturation) + joint for x in (red, green, blue)], -1)
  return (jnp.clip(changed, 0, 255) + 0.5).astype(jnp.uint8)
