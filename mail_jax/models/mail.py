"""MaIL: one transformer over instance masks, an image and an expression (arXiv 2111.10747)."""

import dataclasses
import math
import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int, Shaped, UInt, UInt8

from input_pipeline.common.errors import InputError
from mail_jax.models import embeddings, instances
from mail_jax.models.decoder import Decoder, coordinate_map, find_tile
from mail_jax.models.encoder import EXPERTS, SHARED, Encoder, pack
from mail_jax.models.folding import depth_to_space, fold_planes
from mail_jax.models.mask_selection import MaskSelection, pool_instances


class Output(NamedTuple):
  """The output of the model.

  Attributes:
    tiles: one logit per pixel, positive inside the referent, with the tiles of the image in the
      channels (`space_to_depth`); as many examples as were decoded.
    rho: weight of each instance in the decoder, in [0, 1].
    selection_logits: one per instance, and the one of "none of them" last.
    planes: the instance masks that the model saw, as bit planes.
    no_target: positive where the expression has no target; None for a model without this output.
  """

  tiles: Float[Array, "c y x d"]
  rho: Float[Array, "b k"]
  selection_logits: Float[Array, "b j"]
  planes: UInt[Array, "b g h w"]
  no_target: Float[Array, "b"] | None = None

  @property
  def logits(self) -> Float[Array, "c h w"]:
    """The logits as a map of pixels."""
    tiles = jnp.asarray(self.tiles)  # Outputs may be on the host.
    return depth_to_space(tiles, math.isqrt(tiles.shape[-1]))[..., 0]


class MaskTokens(NamedTuple):
  """Tokens of the masks.

  Attributes:
    tokens: one vector per token.
    valid: False for padding.
    share: fraction of each token that belongs to each instance; None if token k is instance k.
  """

  tokens: Float[Array, "b m d"]
  valid: Bool[Array, "b m"]
  share: Float[Array, "b k m"] | None = None


def empty_without_target(
  masks: Bool[Array, "b y x"], no_target: Float[Array, "b"] | None
) -> Bool[Array, "b y x"]:
  """Empties the masks of expressions without a target, by `Output.no_target` above 0."""
  return masks if no_target is None else masks & (no_target <= 0)[:, None, None]


def find_mask(
  logits: Float[Array, "b y x"], no_target: Float[Array, "b"] | None
) -> Bool[Array, "b y x"]:
  """Returns the mask of the referent, from logits, perhaps resized, and `Output.no_target`."""
  return empty_without_target(logits > 0, no_target)


def subsample(x: Shaped[Array, "b ..."], count: int) -> Shaped[Array, "c ..."]:
  """Returns the first of every `count` examples; a sharded batch stays on its devices."""
  return x.reshape(x.shape[0] // count, count, *x.shape[1:])[:, 0] if count > 1 else x


# Names of the parameters that the model only reads in its `dtype`: the kernels, except for those of
# products that are computed in float32. They can be passed in that type.
IN_DTYPE = re.compile(r"^(encoder|image|mask(?!/neighbours)|decoder/stage\d+)/.*kernel$")
# Those that it only reads in `ModelOptions.operands`.
IN_OPERANDS = re.compile(r"^encoder/.*kernel$")
# The parameter of which the model only reads the rows of its input's tokens.
LOOKED_UP = "text/words/embedding"


@dataclasses.dataclass(frozen=True)
class ModelOptions:
  """The section `model` of a config, of which `configs/base.py` describes every key.

  Attributes:
    operands: dtype of the operands of the encoder's matrix products; None for `dtype`.
  """

  width: int
  depth: int
  heads: int
  patch_size: int
  decoder_widths: tuple[int, ...]
  mlp_ratio: float = 4.0
  experts: str = "shared"
  dropout: float = 0.0
  drop_path: float = 0.0
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
  operands: jnp.dtype | None = None

  def __post_init__(self):
    """Raises InputError if options do not fit together."""
    if 2 ** len(self.decoder_widths) != self.patch_size:
      need = math.log2(self.patch_size)
      raise InputError(
        f"model.decoder_widths has {len(self.decoder_widths)} stages; model.patch_size "
        f"{self.patch_size} needs {need:g}"
      )
    if self.pad_to_multiple_of < 1:
      raise InputError(
        f"model.pad_to_multiple_of is {self.pad_to_multiple_of}; it must be at least 1"
      )
    if self.experts not in EXPERTS:
      raise InputError(f"model.experts {self.experts!r} is not one of {', '.join(EXPERTS)}")
    if not 0 <= self.drop_path < 1:
      raise InputError(f"model.drop_path is {self.drop_path}; it must be at least 0 and below 1")
    if self.mask_tokens not in ("instance", "stacked"):
      raise InputError(f"model.mask_tokens {self.mask_tokens!r} is not one of instance, stacked")


class MaIL(nn.Module):
  """The whole network.

  Attributes:
    options: see `configs/base.py`.
    vocab_size: word pieces of the tokenizer.
    max_tokens: number of positions for word pieces; a call may have fewer.
    max_instances: K, slots for instance masks; 0 is the bimodal baseline and costs no token.
  """

  options: ModelOptions
  vocab_size: int
  max_tokens: int
  max_instances: int

  @nn.compact
  def __call__(
    self,
    image: UInt8[Array, "b h w 3"],
    planes: UInt[Array, "b g h w"],
    valid: Bool[Array, "b k"],
    tokens: Int[Array, "b l"],
    num_tokens: Int[Array, "b"],
    train: bool = False,
    decode_every: int = 1,
    target_instance: Int[Array, "b"] | Bool[Array, "b k"] | None = None,
  ) -> Output:
    """Segments the referent of each expression.

    Args:
      image: RGB bytes; sides are multiples of the patch size.
      planes: instance masks as bit planes.
      valid: slots that hold an instance.
      tokens: ids of word pieces, padding last.
      num_tokens: word pieces that are not padding.
      train: dropout is on, and normalisation uses batch statistics.
      decode_every: decodes the first of this many examples, and returns no tiles for the others
        (see `subsample`). For training: the decoder learns sooner than the selection and costs as
        much.
      target_instance: replaces the selected instance in the decoder, in training: its number, k for
        none of them, or with `multi` selection a flag per instance. See `mask_selection.select`.
    """
    options = self.options
    width = options.width
    rows, cols = (size // options.patch_size for size in image.shape[1:3])
    planes = instances.clear_slots(planes, valid)

    v_image = embeddings.ImageEmbedding(width, options.patch_size, options.dtype, name="image")(
      image
    )
    shared = options.experts == "shared"
    v_text = embeddings.TextEmbedding(
      width, self.vocab_size, self.max_tokens, norm=shared, name="text"
    )(tokens)
    v_mask, coverage = self._embed_masks(planes, valid, image)
    if shared:
      types = self.param("type", nn.initializers.truncated_normal(0.5), (3, width))
      v_image, v_text = v_image + types[0], v_text + types[2]
      v_mask = v_mask._replace(tokens=v_mask.tokens + types[1])
    z_image, z_mask = self._encode(v_image, v_mask, v_text, num_tokens, train)

    summary, features = z_image[:, 0], z_image[:, 1:]
    m = z_mask if v_mask.share is None else pool_instances(z_mask, v_mask.share)
    if self.max_instances:
      selection = MaskSelection(options.selection, width, name="selection")
      selected, rho, selection_logits = selection(
        m, features, summary, coverage, valid, target_instance
      )
      maps = [selected, features]
    else:
      rho, selection_logits = coverage.sum(-1), jnp.zeros((features.shape[0], 1))
      maps = [features]
    maps = [subsample(x, decode_every).reshape(-1, rows, cols, width) for x in maps]
    maps.append(jnp.broadcast_to(coordinate_map(rows, cols), (*maps[0].shape[:3], 8)))
    image, planes_decoded, rho_decoded = (subsample(x, decode_every) for x in (image, planes, rho))
    tiles = self._decode(jnp.concatenate(maps, -1), image, planes_decoded, rho_decoded, train)
    no_target = None
    if options.no_target:
      no_target = nn.Dense(1, name="no_target_logit")(summary.astype(jnp.float32))[..., 0]
    return Output(tiles, rho, selection_logits, planes, no_target)

  def _embed_masks(
    self,
    planes: UInt[Array, "b g h w"],
    valid: Bool[Array, "b k"],
    image: UInt8[Array, "b h w 3"],
  ) -> tuple[MaskTokens, Float[Array, "b k n"]]:
    """Returns the tokens of the masks and the coverage of patches by instances."""
    options, batch = self.options, planes.shape[0]
    if not self.max_instances:
      none, nowhere = jnp.zeros((batch, 0, options.width)), jnp.zeros((batch, 0), bool)
      return MaskTokens(none, nowhere), jnp.zeros((batch, 0, 1))
    if options.mask_tokens == "instance":
      embed = embeddings.InstanceEmbedding(
        options.width,
        options.patch_size,
        options.appearance,
        options.neighbours,
        dtype=options.dtype,
        name="mask",
      )
      tokens, coverage = embed(planes, image, self.max_instances)
      return MaskTokens(tokens, valid), coverage
    coverage = instances.patch_coverage(
      planes, self.max_instances, options.patch_size, options.dtype
    )
    tokens = embeddings.StackedMaskEmbedding(
      options.width, options.patch_size, options.dtype, name="mask"
    )(planes, self.max_instances)
    return MaskTokens(tokens, jnp.ones(tokens.shape[:2], bool), coverage), coverage

  def _encode(
    self,
    v_image: Float[Array, "b t d"],
    v_mask: MaskTokens,
    v_text: Float[Array, "b l d"],
    num_tokens: Int[Array, "b"],
    train: bool,
  ) -> tuple[Float[Array, "b t d"], Float[Array, "b m d"]]:
    """Encodes [image | mask | text]; the decoder does not get z_L (paper: figure)."""
    options = self.options
    batch, image_len, mask_len = v_image.shape[0], v_image.shape[1], v_mask.tokens.shape[1]
    # JAX refuses odd lengths for cuDNN's kernel in training.
    multiple = math.lcm(options.pad_to_multiple_of, 2 if options.backend == "cudnn" else 1)
    more = -(image_len + mask_len + v_text.shape[1]) % multiple
    v_text = jnp.pad(v_text, ((0, 0), (0, more), (0, 0)))
    text_valid = instances.count_valid(num_tokens, v_text.shape[1])
    valid = jnp.concatenate([jnp.ones((batch, image_len), bool), v_mask.valid, text_valid], 1)
    parts = {"image": v_image, "mask": v_mask.tokens, "text": v_text}
    parts = {name: x.astype(options.dtype) for name, x in parts.items() if x.shape[1]}

    def encoder(*experts: str) -> Encoder:
      return Encoder(
        options.depth,
        options.heads,
        options.mlp_ratio,
        options.dropout,
        options.backend,
        options.dtype,
        options.operands,
        options.remat,
        options.scan,
        experts,
        options.drop_path,
        name="encoder",
      )

    if options.experts == "multiway":
      z_image, *rest = encoder(*parts)(list(parts.values()), valid, train)
      return z_image, rest[0] if mask_len else z_image[:, :0]
    packed, lengths, where = pack(jnp.concatenate(list(parts.values()), 1), valid)
    counts = jnp.arange(packed.shape[1]) < lengths[:, None]
    [encoded] = encoder(SHARED)([packed], counts, train)
    where = where[:, image_len : image_len + mask_len]
    return encoded[:, :image_len], jnp.take_along_axis(encoded, where[..., None], axis=1)

  def _decode(
    self,
    grid: Float[Array, "c rows cols f"],
    image: UInt8[Array, "c h w 3"],
    planes: UInt[Array, "c g h w"],
    rho: Float[Array, "c k"],
    train: bool,
  ) -> Float[Array, "c y x d"]:
    options = self.options
    tile = find_tile(options.patch_size)
    photo, chosen, guides, order = None, None, [], (0, 1, 2)
    if options.image_path:
      photo = embeddings.normalise_image(fold_planes(jnp.moveaxis(image, -1, 1), tile))
      guides = [photo]
    if options.mask_path and self.max_instances:
      chosen = instances.chosen_tiles(planes, rho, tile)
      if options.selection == "multi":
        chosen = instances.union(chosen)
      guides, order = [chosen], (0,)
    if photo is not None and chosen is not None:
      likeness = instances.likeness(photo, jax.lax.stop_gradient(chosen))
      guides, order = [jnp.concatenate([photo, likeness], -1), chosen], (0, 1, 2, 4, 3)
    decoder = Decoder(
      options.decoder_widths, options.norm, options.dtype, order, tile, name="decoder"
    )
    tiles = decoder(grid, guides, train)
    if chosen is None:
      return tiles
    gain = self.param("mask_gain", nn.initializers.constant(2.0), ())
    return tiles + gain * (chosen - 0.5)
