# ruff: noqa: D102  (forward() is what its class says)
"""MaIL in PyTorch, written as is usual today, only to compare our speed with.

The transformer is `transformers`' ViLT with PyTorch's fused attention; the rest is `torch.nn`,
channels first. `torch_weights.load` copies our parameters; then both compute the same
(`tests/benchmarks/test_torch_twin.py`).
"""

import math
from typing import Any

import numpy as np
import torch  # pyright: ignore[reportMissingImports]
import torch.nn.functional as F  # pyright: ignore[reportMissingImports]
from ml_collections import ConfigDict
from torch import nn  # pyright: ignore[reportMissingImports]
from transformers import ViltConfig  # pyright: ignore[reportMissingImports]
from transformers.models.vilt.modeling_vilt import (  # pyright: ignore[reportMissingImports]
  ViltLayer,
  ViltSelfAttention,
)

from input_pipeline.preprocess import bit_planes

# As in `mail_jax.models`: resolutions of an instance's views, octaves of its box, kinds of
# neighbours.
CROP, FRAME, PIXELS, OCTAVES = 16, 12, 8, 5
HEADS, HEAD_WIDTH, MOST = 8, 16, 3

Batch = dict[str, torch.Tensor]


class FusedAttention(ViltSelfAttention):
  """ViLT's attention through PyTorch's fused kernels, which `transformers` lacks for ViLT."""

  def forward(self, hidden_states, attention_mask=None, head_mask=None, output_attentions=False):
    batch, length, width = hidden_states.shape
    query, key, value = (
      layer(hidden_states).view(batch, length, self.num_attention_heads, -1).transpose(1, 2)
      for layer in (self.query, self.key, self.value)
    )
    y = F.scaled_dot_product_attention(query, key, value, attn_mask=attention_mask)
    return (y.transpose(1, 2).reshape(batch, length, width),)


class Encoder(nn.Module):
  """ViLT's blocks and the last LayerNorm."""

  def __init__(self, width: int, depth: int, heads: int, mlp_ratio: float):
    super().__init__()
    config = ViltConfig(
      hidden_size=width, num_attention_heads=heads, intermediate_size=int(width * mlp_ratio),
      layer_norm_eps=1e-6, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    self.layers = nn.ModuleList(ViltLayer(config) for _ in range(depth))
    for layer in self.layers:
      fused = FusedAttention(config)
      layer.attention.attention = fused  # pyright: ignore[reportAttributeAccessIssue]
    self.norm = nn.LayerNorm(width, eps=1e-6)

  def forward(self, x: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    mask = valid[:, None, None, :]
    for layer in self.layers:
      x = layer(x, mask)[0]
    return self.norm(x)


class InstanceEmbedding(nn.Module):
  """One token per instance.

  From its crop, its box, its full-frame view, the image inside it, and its neighbours.
  """

  def __init__(self, width: int):
    super().__init__()
    sizes = {
      "crop": CROP**2, "frame": FRAME**2, "box": 7 + 12 * OCTAVES,
      "pixels": 3 * PIXELS**2, "colour": 3, "texture": 6,
    }  # fmt: skip
    self.groups = nn.ModuleDict({name: nn.Linear(n, 2 * width) for name, n in sizes.items()})
    self.project = nn.Linear(2 * width, width)
    self.neighbours = Neighbours(width)
    self.norm = nn.LayerNorm(width, eps=1e-6)

  def forward(self, masks: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
    box, area, groups = self.look(masks, pixels)
    hidden = sum(layer(groups[name]) for name, layer in self.groups.items()) / len(groups) ** 0.5
    x = self.project(F.gelu(hidden, approximate="tanh"))
    return self.norm(x + self.neighbours(x, box, area))

  @torch.no_grad()
  def look(self, masks: torch.Tensor, pixels: torch.Tensor):
    """Returns boxes, areas and features of the instances, all without gradient."""
    inside = masks.to(pixels.dtype)
    box = boxes(masks)
    height, width = masks.shape[-2:]
    rows = crop_weights(box[..., 0], box[..., 2], CROP, height)
    cols = crop_weights(box[..., 1], box[..., 3], CROP, width)
    crop = rows @ inside @ cols.mT
    frame = F.adaptive_avg_pool2d(inside, FRAME)
    seen = F.avg_pool2d(crop, CROP // PIXELS)[:, :, None]
    rows = crop_weights(box[..., 0], box[..., 2], PIXELS, height)
    cols = crop_weights(box[..., 1], box[..., 3], PIXELS, width)
    lines = torch.einsum("bkiy,bcyx->bkcix", rows, pixels)
    seen = seen * (lines @ cols.mT[:, :, None])
    colour, texture = colour_and_texture(pixels, inside)
    groups = {
      "crop": crop * 2 - 1, "frame": frame * 2 - 1, "box": box_features(box, height, width),
      "pixels": 2 * seen, "colour": 2 * colour, "texture": texture,
    }  # fmt: skip
    return box, inside.sum((2, 3)), {name: x.flatten(2) for name, x in groups.items()}


class Neighbours(nn.Module):
  """Counts the similar instances on each side of an instance."""

  def __init__(self, width: int):
    super().__init__()
    self.norm = nn.LayerNorm(width, eps=1e-6)
    self.kinds = nn.Linear(width, HEADS * HEAD_WIDTH)
    self.sharpness = nn.Parameter(torch.full((HEADS,), 2.0))
    self.project = nn.Linear((HEADS + 1) * 6 * (MOST + 2), width)

  def forward(self, x: torch.Tensor, box: torch.Tensor, area: torch.Tensor) -> torch.Tensor:
    batch, count, _ = x.shape
    kinds = self.kinds(self.norm(x)).view(batch, count, HEADS, HEAD_WIDTH)
    distance = (kinds[:, :, None] - kinds[:, None]).square().mean(-1)
    like = torch.exp(-self.sharpness.abs() * distance)
    like = torch.cat([like, torch.ones_like(like[..., :1])], -1)
    top, left, bottom, right = box.unbind(-1)
    places = torch.stack([left + right, top + bottom, area], -1)
    ahead = places[:, :, None] > places[:, None]
    sides = torch.stack([ahead, ahead.transpose(1, 2)], -1).flatten(3).to(like.dtype)
    sides = sides * (area > 0)[:, None, :, None]
    counts = torch.einsum("bijh,bijs->bihs", like, sides)[..., None]
    exact = F.relu(1 - (counts - torch.arange(MOST + 1, device=x.device)).abs())
    return self.project(torch.cat([exact, counts / (MOST + 1)], -1).flatten(2))


class Selection(nn.Module):
  """Selects an instance."""

  def __init__(self, width: int):
    super().__init__()
    self.score_in, self.score_out = nn.Linear(2 * width, width), nn.Linear(width, 1)
    self.null = nn.Linear(width, 1)

  def forward(self, m, features, summary, coverage, valid, target_instance=None):
    inside = coverage @ features / coverage.sum(-1, keepdim=True).clamp(min=1e-6)
    hidden = F.gelu(self.score_in(torch.cat([m, inside], -1)), approximate="tanh")
    scores = self.score_out(hidden)[..., 0].float().masked_fill(~valid, -1e9)
    logits = torch.cat([scores, self.null(summary).float()], 1)
    soft = logits.softmax(1)[:, :-1] * valid
    best = logits.argmax(1) if target_instance is None else target_instance
    hard = F.one_hot(best, logits.shape[1])[:, :-1].to(soft.dtype)
    rho = soft + (hard - soft).detach()
    return (rho[..., None] * coverage).transpose(1, 2) @ m, rho, logits


class Decoder(nn.Module):
  """3x3 convolutions and doublings, with the image and the chosen mask as guides."""

  def __init__(self, channels: int, guides: int, widths: tuple[int, ...]):
    super().__init__()
    self.convs, self.norms = nn.ModuleList(), nn.ModuleList()
    for i, width in enumerate(widths):
      joins = guides * (4 if i == len(widths) - 1 else 1)
      self.convs.append(nn.Conv2d(channels + joins, width, 3, padding=1, bias=False))
      self.norms.append(nn.BatchNorm2d(width))
      channels = width
    self.logits, self.detail = nn.Conv2d(channels, 1, 1), nn.Conv2d(channels, 4, 3, padding=1)

  def forward(self, x: torch.Tensor, guide: torch.Tensor) -> torch.Tensor:
    last = len(self.convs) - 1
    for i, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
      if i:
        x = double(x)
      join = F.pixel_unshuffle(guide, 2) if i == last else F.avg_pool2d(guide, 2 ** (last + 1 - i))
      x = F.relu(norm(conv(torch.cat([x, join.to(x.dtype)], 1))))
    return (double(self.logits(x)) + F.pixel_shuffle(self.detail(x), 2))[:, 0].float()


class Twin(nn.Module):
  """The `instance` preset: [image | mask | text] tokens, hard selection, image and mask paths."""

  def __init__(self, config: ConfigDict, vocab_size: int):
    super().__init__()
    model, size = config.model, config.image_size
    self.patch, self.count, width = model.patch_size, config.max_instances, model.width
    self.patches = nn.Conv2d(3, width, self.patch, stride=self.patch)
    self.cls = nn.Parameter(torch.zeros(1, 1, width))
    self.position = nn.Parameter(torch.zeros(1 + (size // self.patch) ** 2, width))
    self.words = nn.Embedding(vocab_size, width)
    self.text_position = nn.Parameter(torch.zeros(config.max_tokens, width))
    self.text_norm = nn.LayerNorm(width, eps=1e-12)
    self.kind = nn.Parameter(torch.zeros(3, width))
    self.mask = InstanceEmbedding(width)
    self.encoder = Encoder(width, model.depth, model.heads, model.mlp_ratio)
    self.selection = Selection(width)
    self.decoder = Decoder(2 * width + 8, 5, tuple(model.decoder_widths))
    self.gain = nn.Parameter(torch.tensor(2.0))
    self.register_buffer("coordinates", coordinates(size // self.patch))

  def forward(self, batch: Batch, target_instance: torch.Tensor | None = None):
    """Returns the logits of the pixels and of the selection."""
    pixels = batch["image"].permute(0, 3, 1, 2).float() / 127.5 - 1
    masks = batch["masks"] & batch["valid"][:, :, None, None]
    rows = pixels.shape[2] // self.patch
    coverage = F.avg_pool2d(masks.float(), self.patch).flatten(2)
    image = self.patches(pixels).flatten(2).transpose(1, 2)
    image = torch.cat([self.cls.expand(len(image), -1, -1), image], 1) + self.position
    text = self.text_norm(self.words(batch["tokens"]) + self.text_position)
    x = torch.cat(
      [image + self.kind[0], self.mask(masks, pixels) + self.kind[1], text + self.kind[2]], 1
    )
    text_valid = torch.arange(text.shape[1], device=text.device) < batch["num_tokens"][:, None]
    valid = torch.cat(
      [torch.ones_like(image[..., 0], dtype=torch.bool), batch["valid"], text_valid], 1
    )
    z = self.encoder(x, valid)
    summary, features, m = (
      z[:, 0],
      z[:, 1 : image.shape[1]],
      z[:, image.shape[1] :][:, : self.count],
    )
    selected, rho, choice = self.selection(
      m, features, summary, coverage, batch["valid"], target_instance
    )
    chosen = (rho[:, :, None, None] * masks).sum(1, keepdim=True)
    maps = (
      torch.cat([selected, features.to(selected.dtype)], -1)
      .transpose(1, 2)
      .unflatten(2, (rows, -1))
    )
    where: torch.Tensor = self.coordinates  # pyright: ignore[reportAssignmentType]
    maps = torch.cat([maps, where.expand(len(maps), -1, -1, -1).to(maps.dtype)], 1)
    guide = torch.cat([pixels, chosen, likeness(pixels, chosen.detach())], 1)
    return self.decoder(maps, guide) + self.gain * (chosen[:, 0] - 0.5), choice


def double(x: torch.Tensor) -> torch.Tensor:
  """Doubles the resolution bilinearly, like `folding.double_line` along both axes."""
  return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)


def coordinates(side: int) -> torch.Tensor:
  """Returns [1, 8, side, side]: sides, centre and size of each cell."""
  low = torch.arange(side) / side * 2 - 1
  top, left = torch.meshgrid(low, low, indexing="ij")
  step = torch.full_like(top, 2 / side)
  parts = [left, top, left + step, top + step, left + step / 2, top + step / 2, step / 2, step / 2]
  return torch.stack(parts)[None]


def boxes(masks: torch.Tensor) -> torch.Tensor:
  """Returns top, left, bottom, right in pixels, like `instances.boxes`."""
  sides = []
  for occupied in (masks.any(3), masks.any(2)):
    occupied = occupied.to(torch.uint8)
    sides.append((occupied.argmax(-1), occupied.shape[-1] - occupied.flip(-1).argmax(-1)))
  (top, bottom), (left, right) = sides
  return torch.stack([top, left, bottom, right], -1).float()


def crop_weights(low: torch.Tensor, high: torch.Tensor, bins: int, size: int) -> torch.Tensor:
  """Averages over equal bins, like `instances.crop_weights`."""
  step = ((high - low) / bins).clamp(min=1e-6)[..., None, None]
  start = low[..., None, None] + step * torch.arange(bins, device=low.device)[:, None]
  pixel = torch.arange(size, device=low.device)
  return (torch.minimum(start + step, pixel + 1) - torch.maximum(start, pixel)).clamp(min=0) / step


def box_features(box: torch.Tensor, height: int, width: int) -> torch.Tensor:
  """Returns the features of a box, like `instances.box_features`."""
  top, left, bottom, right = (box / torch.tensor([height, width] * 2, device=box.device)).unbind(-1)
  tall, wide = bottom - top, right - left
  linear = torch.stack([top, left, bottom, right, tall, wide], -1) * 2 - 1
  log_area = (tall * wide).clamp(min=1e-4).log() / 4 + 1
  angles = (
    linear[..., None] * (math.pi / 2 * 2.0 ** torch.arange(OCTAVES, device=box.device))
  ).flatten(2)
  return 1.5 * torch.cat([linear, log_area[..., None], angles.sin(), angles.cos()], -1)


def colour_and_texture(pixels: torch.Tensor, inside: torch.Tensor):
  """Summarises the pixels inside, like `appearance.colour_and_texture`."""
  down = (pixels[:, :, 2:] - pixels[:, :, :-2])[..., 1:-1]
  right = (pixels[..., 2:] - pixels[..., :-2])[:, :, 1:-1]
  pairs = ((right, right), (down, down), (right, down))
  tensor = F.pad(torch.stack([(a * b).sum(1) for a, b in pairs], 1), (1, 1, 1, 1))
  maps = torch.cat([pixels, pixels.square(), tensor], 1).flatten(2)
  mean = inside.flatten(2) @ maps.mT / inside.sum((2, 3))[..., None].clamp(min=1)
  colour, square, tensor = mean.split([3, 3, 3], -1)
  xx, yy, xy = tensor.unbind(-1)
  half, gap = (xx + yy) / 2, (((xx - yy) / 2).square() + xy.square()).sqrt()
  stripes = [
    2 * (half - gap).clamp(min=0).sqrt(),
    2 * (half + gap).sqrt(),
    3 * gap / half.clamp(min=1e-6),
  ]
  deviation = (square - colour.square()).clamp(min=0).sqrt()
  return colour, torch.cat([4 * deviation, torch.stack(stripes, -1)], -1)


def likeness(pixels: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
  """Returns the similarity of each pixel, like `instances.likeness`."""
  area = weights.sum((2, 3), keepdim=True)
  mean = (pixels * weights).sum((2, 3), keepdim=True) / area.clamp(min=1e-6)
  return torch.exp(-4.0 * (pixels - mean).square().sum(1, keepdim=True)) * (area > 0)


def loss_of(twin: nn.Module, batch: Batch) -> torch.Tensor:
  """Returns BCE, Dice and selection loss, each with weight 1."""
  target, masks = batch["target"], batch["masks"] & batch["valid"][:, :, None, None]
  both = (masks & target[:, None]).sum((2, 3))
  iou = both / (masks.sum((2, 3)) + target.sum((1, 2))[:, None] - both).clamp(min=1)
  target_instance = torch.where(iou.max(1).values > 0.5, iou.argmax(1), iou.shape[1])
  logits, choice = twin(batch, target_instance)
  truth = target.float()
  bce = F.binary_cross_entropy_with_logits(logits, truth)
  share = logits.sigmoid()
  overlap, total = (share * truth).sum((1, 2)), share.sum((1, 2)) + truth.sum((1, 2))
  dice = (1 - (2 * overlap + 1) / (total + 1)).mean()
  hit = (iou > 0.5).float()
  right = torch.cat([hit, 1 - hit.amax(1, keepdim=True)], 1)
  return bce + dice + F.cross_entropy(choice, right / right.sum(1, keepdim=True))


class Training:
  """A training step: fused AdamW, clipping, and the moving average."""

  def __init__(self, twin: Twin, config: ConfigDict, compiled: bool = False):
    self.twin, self.config = twin.train(), config
    o = config.optimizer
    decayed = [p for p in twin.parameters() if p.ndim > 1]
    others = [p for p in twin.parameters() if p.ndim <= 1]
    self.optimizer = torch.optim.AdamW(
      [
        {"params": decayed, "weight_decay": o.weight_decay},
        {"params": others, "weight_decay": 0.0},
      ],
      lr=o.lr, betas=(o.b1, o.b2), eps=o.eps, fused=True,
    )  # fmt: skip
    self.parameters = decayed + others
    self.averaged = [p.detach().clone() for p in self.parameters]
    self.loss = torch.compile(loss_of) if compiled else loss_of

  def __call__(self, batch: Batch) -> torch.Tensor:
    """One update; returns the loss."""
    half = self.config.model.dtype == "bfloat16"
    with torch.autocast(batch["image"].device.type, torch.bfloat16, enabled=half):
      loss = self.loss(self.twin, batch)
    self.optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(self.parameters, self.config.optimizer.clip)
    self.optimizer.step()
    if self.config.ema_decay:
      with torch.no_grad():
        lerp: Any = torch._foreach_lerp_  # pyright: ignore[reportPrivateImportUsage]
        lerp(self.averaged, self.parameters, 1 - self.config.ema_decay)
    return loss.detach()


class OneDNNLinear(nn.Linear):
  """A linear layer as a 1x1 convolution, which PyTorch gives to oneDNN.

  On some CPUs its MKL is slower.
  """

  def forward(self, input: torch.Tensor) -> torch.Tensor:
    rows = input.reshape(1, -1, input.shape[-1], 1).transpose(1, 2)
    y = torch.conv2d(rows, self.weight[:, :, None, None], self.bias)
    return y.transpose(1, 2).reshape(*input.shape[:-1], -1)


def use_onednn(twin: Twin) -> None:
  """Runs the linear layers by oneDNN."""
  for module in twin.modules():
    if isinstance(module, nn.Linear):
      module.__class__ = OneDNNLinear


def to_torch(batch: dict[str, np.ndarray], max_instances: int, device: str = "cpu") -> Batch:
  """Converts our batch: masks are unpacked to one byte per pixel."""
  masks = np.stack([bit_planes.unpackbits(planes, max_instances) for planes in batch["instances"]])
  arrays = {
    name: batch[name] for name in ("image", "tokens", "num_tokens", "target") if name in batch
  }
  arrays |= {"masks": masks, "valid": np.arange(max_instances) < batch["num_instances"][:, None]}
  return {name: torch.from_numpy(np.array(x)).to(device) for name, x in arrays.items()}
