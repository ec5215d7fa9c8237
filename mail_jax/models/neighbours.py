"""What an instance's neighbours say of it: how many like it lie on each side (ours, not the paper's)."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

SIDES = 6


def on_side(box: Float[Array, "b k 4"], area: Float[Array, "b k"]) -> Float[Array, "b k k 6"]:
  """Whether instance j (third axis) lies left of, right of, above, below i, and is smaller, larger than it: 0 or 1.

  By the centres of the boxes and by areas; instances without any pixel are on no side of others.

  Args:
    box: top, left, bottom, right.
    area: of each mask, in pixels.
  """
  top, left, bottom, right = jnp.moveaxis(box, -1, 0)
  places = jnp.stack([left + right, top + bottom, area], -1)
  ahead = places[:, :, None] > places[:, None]  # of i, beyond that of j
  sides = jnp.stack([ahead, ahead.swapaxes(1, 2)], -1).reshape(*ahead.shape[:3], SIDES)
  return sides * (area > 0).astype(jnp.float32)[:, None, :, None]


class Neighbours(nn.Module):
  """Counts, for each instance, how many others that are like it lie on each side.

  "The second circle from the right" is the circle with one circle on its right: averages, as attention makes them,
  count badly. What "like it" means is learned: exp(-s |e_i - e_j|^2), with vectors e of each head. One more head
  counts every instance.

  Attributes:
    width: of the tokens.
    heads: kinds of likeness.
    head_width: of the vectors that are compared.
    most: counts up to this one are told apart.
  """

  width: int
  heads: int = 8
  head_width: int = 16
  most: int = 3

  @nn.compact
  def __call__(
    self, x: Float[Array, "b k d"], box: Float[Array, "b k 4"], area: Float[Array, "b k"]
  ) -> Float[Array, "b k w"]:
    """Returns what is to be added to each token.

    Args:
      x: a vector for each instance, that says what it looks like.
      box: top, left, bottom, right.
      area: of each mask, in pixels; 0 for slots without an instance, which nobody counts.
    """
    batch, count, _ = x.shape
    x = nn.LayerNorm(epsilon=1e-6, name="norm")(x)
    kinds = nn.DenseGeneral((self.heads, self.head_width), name="kinds")(x)
    sharpness = self.param("sharpness", nn.initializers.constant(2.0), (self.heads,))
    distance = ((kinds[:, :, None] - kinds[:, None]) ** 2).mean(-1)
    like = jnp.exp(-jnp.abs(sharpness) * distance)
    like = jnp.concatenate([like, jnp.ones((batch, count, count, 1))], -1)
    counts = jnp.einsum("bijh,bijs->bihs", like, on_side(box, area))
    # A count of 1 is not half of a count of 2: each number of neighbours has its own feature.
    steps = jnp.arange(self.most + 1, dtype=jnp.float32)
    exact = jax.nn.relu(1 - jnp.abs(counts[..., None] - steps))
    features = jnp.concatenate([exact, counts[..., None] / (self.most + 1)], -1)
    return nn.Dense(self.width, name="project")(features.reshape(batch, count, -1))
