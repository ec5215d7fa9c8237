"""MaIL: one transformer over instance masks, an image and an expression (arXiv 2111.10747)."""

import math
import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int, Shaped, UInt8, UInt16

from input_pipeline.common.errors import InputError
from mail_jax.models import embeddings, instances
from mail_jax.models.decoder import Decoder, coordinate_map
from mail_jax.models.encoder import Encoder, pack
from mail_jax.models.mask_selection import MaskSelection, pool_instances


class Output(NamedTuple):
  """What the model says.

  Attributes:
    logits: one a pixel; positive where the referent is. As many examples as were decoded.
    rho: weight of each instance in the decoder, in [0, 1].
    selection_logits: how much each instance is meant; the last one is for "none of them".
    masks: the instance masks that the model saw.
    no_target: positive where nothing in the image is meant; None of a model that does not say (`MaIL.no_target`).
  """

  logits: Float[Array, "c h w"]
  rho: Float[Array, "b k"]
  selection_logits: Float[Array, "b j"]
  masks: Bool[Array, "b k h w"]
  no_target: Float[Array, "b"] | None = None


class MaskTokens(NamedTuple):
  """What the masks become.

  Attributes:
    tokens: some of which count.
    valid: those that do.
    share: how much of each token is whose instance's; None where token k is instance k.
  """

  tokens: Float[Array, "b m d"]
  valid: Bool[Array, "b m"]
  share: Float[Array, "b k m"] | None = None


def empty_where_nothing(
  masks: Bool[Array, "b y x"], no_target: Float[Array, "b"] | None
) -> Bool[Array, "b y x"]:
  """Empties the masks of expressions by which nothing is meant, with a probability above 0.5 (`Output.no_target`)."""
  return masks if no_target is None else masks & (no_target <= 0)[:, None, None]


def find_mask(
  logits: Float[Array, "b y x"], no_target: Float[Array, "b"] | None
) -> Bool[Array, "b y x"]:
  """Where the referent is: the way from logits, perhaps resized, and `Output.no_target` to a mask."""
  return empty_where_nothing(logits > 0, no_target)


def every(x: Shaped[Array, "b ..."], count: int) -> Shaped[Array, "c ..."]:
  """Takes the first of every `count` examples; a batch that is spread over devices stays where it is."""
  return x.reshape(-1, count, *x.shape[1:])[:, 0] if count > 1 else x


# Paths of the parameters that the model reads in its `dtype` alone, so that they need not be given in more: kernels of
# products and convolutions, but for those that are computed in float32.
IN_DTYPE = re.compile(r"^(encoder|image|mask(?!/neighbours)|decoder/stage\d+)/.*kernel$")


class MaIL(nn.Module):
  """The whole network; `configs/base.py` says what each attribute is set to.

  Attributes:
    vocab_size: word pieces of the tokenizer.
    max_tokens: word pieces that there are positions for; a call may have fewer.
    max_instances: K, slots for instance masks; 0 is the bimodal baseline and costs no token.
    width, depth, heads, mlp_ratio, dropout, backend, remat, scan: see `Encoder`.
    pad_to_multiple_of: the sequence is padded to a multiple of so many tokens.
    patch_size: P, a power of two, in pixels.
    mask_tokens: `instance` (one token each, the default) or `stacked` (the paper's figure, as we read it).
    appearance, neighbours: what the token of an instance is made of; see `InstanceEmbedding`.
    selection: `soft`, `hard`, `multi` or `none`; see `mask_selection.select`.
    no_target: whether the model says of each expression whether anything is meant, from the class token.
    mask_path: the selected raw mask joins the decoder's stages and its logits.
    image_path: the raw image joins the decoder's stages.
    decoder_widths: channels of the log2(P) stages.
    norm: `batch` or `group`.
    dtype: of the matrix products and convolutions.
  """

  vocab_size: int
  max_tokens: int
  max_instances: int
  width: int
  depth: int
  heads: int
  patch_size: int
  decoder_widths: tuple[int, ...]
  mlp_ratio: float = 4.0
  dropout: float = 0.0
  mask_tokens: str = "instance"
  appearance: bool = True
  neighbours: bool = True
  selection: str = "hard"
  no_target: bool = False
  mask_path: bool = True
  image_path: bool = True
  norm: str = "batch"
  backend: str = "xla"
  remat: str = "none"
  scan: bool = False
  pad_to_multiple_of: int = 1
  dtype: jnp.dtype = jnp.float32  # pyright: ignore[reportAssignmentType]

  @nn.compact
  def __call__(
    self,
    image: UInt8[Array, "b h w 3"],
    planes: UInt16[Array, "b g h w"],
    valid: Bool[Array, "b k"],
    tokens: Int[Array, "b l"],
    num_tokens: Int[Array, "b"],
    train: bool = False,
    decode_every: int = 1,
    meant: Int[Array, "b"] | Bool[Array, "b k"] | None = None,
  ) -> Output:
    """Segments the referent of each expression.

    Args:
      image: RGB bytes; sides are multiples of the patch size.
      planes: instance masks as bit planes (`input_pipeline.preprocess.bit_planes.packbits`).
      valid: slots that hold an instance.
      tokens: word pieces.
      num_tokens: word pieces that count; the rest is padding.
      train: batch statistics and dropout of training.
      decode_every: decodes one example of each run of so many, the first, and leaves out the logits of the others
        (see `every`); training may do so, for the decoder learns sooner than the selection and costs as much.
      meant: what to decode where training knows it: the instance, k for none of them, or, with `multi`, which of them;
        see `mask_selection.select`.
    """
    self._check()
    rows, cols = image.shape[1] // self.patch_size, image.shape[2] // self.patch_size
    pixels = embeddings.normalise_image(image)
    masks = instances.unpack_planes(planes, self.max_instances) & valid[:, :, None, None]
    # Everything reads the same unpacked bytes; else XLA unpacks them again, as floats, for each reader.
    masks = jax.lax.optimization_barrier(masks)
    coverage = instances.patch_coverage(masks, self.patch_size)

    kind = self.param("type", nn.initializers.truncated_normal(0.5), (3, self.width))
    v_image = embeddings.ImageEmbedding(self.width, self.patch_size, self.dtype, name="image")(
      pixels
    )
    v_text = embeddings.TextEmbedding(self.width, self.vocab_size, self.max_tokens, name="text")(
      tokens
    )
    v_mask = self._mask_tokens(masks, valid, pixels, coverage)
    z_image, z_mask = self._encode(
      v_image + kind[0], v_mask.tokens + kind[1], v_text + kind[2], v_mask.valid, num_tokens, train
    )

    summary, features = z_image[:, 0], z_image[:, 1:]
    m = z_mask if v_mask.share is None else pool_instances(z_mask, v_mask.share)
    selected, rho, selection_logits = self._select(m, features, summary, coverage, valid, meant)
    maps = [
      every(x, decode_every).reshape(-1, rows, cols, self.width) for x in (*selected, features)
    ]
    maps.append(jnp.broadcast_to(coordinate_map(rows, cols), (*maps[0].shape[:3], 8)))
    chosen = None
    if self.mask_path and self.max_instances:
      add = instances.union if self.selection == "multi" else instances.weighted_sum
      chosen = add(every(rho, decode_every), every(masks, decode_every))
    grid = jnp.concatenate(maps, -1)
    logits = self._decode(grid, every(pixels, decode_every), chosen, train)
    no_target = None
    if self.no_target:
      no_target = nn.Dense(1, name="no_target_logit")(summary.astype(jnp.float32))[..., 0]
    return Output(logits, rho, selection_logits, masks, no_target)

  def _check(self) -> None:
    if 2 ** len(self.decoder_widths) != self.patch_size:
      need = math.log2(self.patch_size)
      raise InputError(
        f"model.decoder_widths has {len(self.decoder_widths)} stages; model.patch_size {self.patch_size} needs {need:g}"
      )
    if self.pad_to_multiple_of < 1:
      raise InputError(
        f"model.pad_to_multiple_of is {self.pad_to_multiple_of}; it must be at least 1"
      )
    if self.mask_tokens not in ("instance", "stacked"):
      raise InputError(f"model.mask_tokens {self.mask_tokens!r} is not one of instance, stacked")

  def _mask_tokens(
    self,
    masks: Bool[Array, "b k h w"],
    valid: Bool[Array, "b k"],
    pixels: Float[Array, "b h w 3"],
    coverage: Float[Array, "b k n"],
  ) -> MaskTokens:
    batch, options = masks.shape[0], (self.width, self.patch_size, self.dtype)
    if not self.max_instances:
      return MaskTokens(jnp.zeros((batch, 0, self.width)), jnp.zeros((batch, 0), bool))
    if self.mask_tokens == "instance":
      embed = embeddings.InstanceEmbedding(
        self.width, self.appearance, self.neighbours, dtype=self.dtype, name="mask"
      )  # fmt: skip
      return MaskTokens(embed(masks, pixels), valid)
    tokens = embeddings.StackedMaskEmbedding(*options, name="mask")(masks)
    return MaskTokens(tokens, jnp.ones(tokens.shape[:2], bool), coverage)

  def _encode(self, v_image, v_mask, v_text, mask_valid, num_tokens, train):
    """Encodes [image | mask | text, padding last]; z_L does not enter the decoder (paper: figure)."""
    batch, image_len, mask_len = v_image.shape[0], v_image.shape[1], v_mask.shape[1]
    blocks = {
      name: getattr(self, name)
      for name in ("heads", "mlp_ratio", "dropout", "backend", "dtype", "remat", "scan")
    }
    text_valid = instances.count_valid(num_tokens, v_text.shape[1])
    valid = jnp.concatenate([jnp.ones((batch, image_len), bool), mask_valid, text_valid], 1)
    joined = jnp.concatenate([v_image, v_mask, v_text], 1)
    more = -joined.shape[1] % self.pad_to_multiple_of
    packed, lengths, where = pack(
      jnp.pad(joined, ((0, 0), (0, more), (0, 0))), jnp.pad(valid, ((0, 0), (0, more)))
    )
    encoder = Encoder(depth=self.depth, **blocks, name="encoder")
    encoded = encoder(packed, lengths, train)
    where = where[:, image_len : image_len + mask_len]
    return encoded[:, :image_len], jnp.take_along_axis(encoded, where[..., None], axis=1)

  def _select(self, m, features, summary, coverage, valid, meant):
    """Returns the maps that join F_I in the decoder, rho and the selection logits."""
    if not self.max_instances:
      return [], coverage.sum(-1), jnp.zeros((features.shape[0], 1))
    selection = MaskSelection(self.selection, self.width, name="selection")
    selected, rho, logits = selection(m, features, summary, coverage, valid, meant)
    return [selected], rho, logits

  def _decode(self, grid, pixels, chosen, train):
    guides = [pixels] if self.image_path else []
    if chosen is not None:
      guides.append(chosen[..., None])
      if self.image_path:
        guides.append(instances.likeness(pixels, jax.lax.stop_gradient(chosen)))
    guide = jnp.concatenate(guides, -1) if guides else None
    logits = Decoder(self.decoder_widths, self.norm, self.dtype, name="decoder")(grid, guide, train)
    if chosen is None:
      return logits
    gain = self.param("mask_gain", nn.initializers.constant(2.0), ())
    return logits + gain * (chosen - 0.5)
