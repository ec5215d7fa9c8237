"""Blocks in which each modality is by itself, before the joint ones: `model.separate_blocks`."""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from mail_jax.models.encoder import Encoder, pack

# Names of the three stacks of blocks, in the order of the tokens.
MODALITIES = ("image", "mask", "text")


class SeparateBlocks(nn.Module):
  """Three stacks of blocks with parameters of their own; a token attends only to tokens of its modality.

  Attributes:
    blocks: keywords of `Encoder` for one stack.
    pad_to_multiple_of: each sequence is padded to a multiple of so many tokens.
  """

  blocks: dict[str, Any]
  pad_to_multiple_of: int = 1

  @nn.compact
  def __call__(
    self,
    v_image: Float[Array, "b t d"],
    v_mask: Float[Array, "b m d"],
    v_text: Float[Array, "b l d"],
    mask_valid: Bool[Array, "b m"],
    num_tokens: Int[Array, "b"],
    train: bool = False,
  ) -> tuple[Float[Array, "b t d"], Float[Array, "b m d"], Float[Array, "b l d"]]:
    """Encodes each modality; what stands at the padding means nothing.

    Args:
      v_image: the class token and the patches.
      v_mask: tokens of the masks, wherever they lie; there may be no place for any.
      v_text: word pieces, padding last.
      mask_valid: tokens of the masks that count.
      num_tokens: word pieces that count.
      train: whether dropout is on.
    """
    patches = jnp.full(v_image.shape[0], v_image.shape[1], jnp.int32)
    v_image = self._encode("image", v_image, patches, train)
    v_text = self._encode("text", v_text, num_tokens, train)
    if v_mask.shape[1]:
      packed, lengths, where = pack(v_mask, mask_valid)
      packed = self._encode("mask", packed, lengths, train)
      v_mask = jnp.take_along_axis(packed, where[..., None], axis=1)
    return v_image, v_mask, v_text

  def _encode(self, name, tokens, lengths, train):
    count = tokens.shape[1]
    padded = jnp.pad(tokens, ((0, 0), (0, -count % self.pad_to_multiple_of), (0, 0)))
    # A sequence without a token has one of padding: not every backend is finite where nobody is attended to.
    stack = Encoder(**self.blocks, final_norm=False, name=name)
    return stack(padded, jnp.maximum(lengths, 1), train)[:, :count]
