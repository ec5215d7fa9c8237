"""Compares our encoder, without instance masks, with BEiT-3 in `torchscale`, layer by layer.

`make extras` installs torch, torchscale and timm, and runs these tests.
"""

import importlib.abc
import importlib.machinery
import importlib.metadata
import pathlib
import sys
import types

import beit3_model
import beit3_weights
import numpy as np
import pytest

from mail_jax.pretrained import beit3

torch = pytest.importorskip("torch", reason="needs torch and torchscale: make extras")

pytestmark = pytest.mark.extras
W = beit3_weights
FULL = {"width": 768, "depth": 12, "vocab": 64010}
NEAR = 1e-5


def import_torchscale():
  """Imports torchscale, which needs little of two libraries."""
  try:
    importlib.metadata.version("torchscale")
  except importlib.metadata.PackageNotFoundError:
    pytest.skip("needs torchscale: make extras")
  fairscale, layers = types.ModuleType("fairscale.nn"), types.ModuleType("timm.models.layers")
  fairscale.checkpoint_wrapper = fairscale.wrap = lambda module: module
  layers.drop_path = lambda x, *_: x
  stubs = {"fairscale": types.ModuleType("fairscale"), "fairscale.nn": fairscale}
  stubs |= {"timm": types.ModuleType("timm"), "timm.models": types.ModuleType("timm.models")}
  stubs |= {"timm.models.layers": layers}
  with pytest.MonkeyPatch.context() as patch:
    for name, module in stubs.items():
      patch.setitem(sys.modules, name, module)
    from torchscale.architecture.config import EncoderConfig
    from torchscale.model.BEiT3 import BEiT3
  return EncoderConfig, BEiT3


class _Any(type):
  """A class that has every attribute, each a class of its own."""

  def __getattr__(cls, name: str):
    if name.startswith("__"):
      raise AttributeError(name)
    return _Any(name, (), {})


class _Torchvision(importlib.abc.MetaPathFinder, importlib.abc.Loader):
  """Imports modules of torchvision that have every name, for the transforms that timm derives."""

  def find_spec(self, name, path=None, target=None):
    found = name.split(".")[0] == "torchvision"
    return importlib.machinery.ModuleSpec(name, self, is_package=True) if found else None

  def exec_module(self, module):
    vars(module)["__getattr__"] = _Any("names", (), {}).__getattr__


def import_timm():
  """Imports timm, which the other tests do not see; its models need nothing of torchvision."""
  folder = pathlib.Path(sys.prefix) / "timm"
  if not folder.is_dir():
    pytest.skip("needs timm: make extras")
  with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(folder)
    patch.setattr(sys, "meta_path", [_Torchvision(), *sys.meta_path])
    import timm
    from timm.models.vision_transformer import checkpoint_filter_fn
  for name in [name for name in sys.modules if name.split(".")[0] in ("timm", "torchvision")]:
    del sys.modules[name]
  return timm, checkpoint_filter_fn


def make_reference(weights: dict[str, np.ndarray], size: int, heads: int):
  """Loads these weights; positions of another grid are resized by torch."""
  config, model_class = import_torchscale()
  vocab, width = weights["text_embed.weight"].shape
  model = model_class(
    config(
      img_size=size, patch_size=16, vocab_size=vocab, multiway=True, layernorm_embedding=False,
      normalize_output=True, no_output_layer=True, encoder_embed_dim=width,
      encoder_attention_heads=heads, encoder_ffn_embed_dim=4 * width,
      encoder_layers=sum(name.endswith("self_attn.q_proj.A.bias") for name in weights),
      drop_path_rate=0, checkpoint_activations=False,
    )
  ).eval()  # fmt: skip
  state = {name: torch.from_numpy(value) for name, value in weights.items()}
  positions = state["encoder.embed_positions.A.weight"]
  state["encoder.embed_positions.A.weight"] = resize_as_unilm(positions, size // 16)
  model.load_state_dict(state, strict=True)
  return model


def resize_as_unilm(positions, side: int):
  """Resizes the grid, after three other rows, as unilm's `interpolate_pos_embed` does."""
  grid = round((len(positions) - 3) ** 0.5)
  square = positions[3:].reshape(1, grid, grid, -1).permute(0, 3, 1, 2)
  resized = torch.nn.functional.interpolate(
    square, (side, side), mode="bicubic", align_corners=False
  )
  return torch.cat([positions[:3], resized.permute(0, 2, 3, 1).reshape(side * side, -1)])


@torch.no_grad()
def run_reference(model, inputs) -> list[np.ndarray]:
  """Returns hidden states of [image | text]: embeddings, after each layer, after the last norms."""
  image = torch.from_numpy(inputs["image"]).permute(0, 3, 1, 2).float() / 255
  tokens = torch.from_numpy(inputs["tokens"]).long()
  padding = torch.arange(tokens.shape[1]) >= torch.from_numpy(inputs["num_tokens"])[:, None]
  states = []
  hooks = [
    layer.register_forward_pre_hook(lambda _, args: states.append(args[0].numpy().copy()))
    for layer in model.encoder.layers
  ]
  hooks.append(
    model.encoder.layer_norm.register_forward_pre_hook(
      lambda _, args: states.append(args[0].numpy().copy())
    )
  )
  out = model(tokens, (image - 0.5) / 0.5, text_padding_position=padding)
  for hook in hooks:
    hook.remove()
  return [*states, out["encoder_out"].numpy()]


def difference(tmp_path, weights, model, inputs, heads: int = W.HEADS) -> float:
  """Returns how far the reference and our model with these weights are apart."""
  pretrained = beit3.load(W.save(tmp_path / "beit3.pth", weights))
  ours = beit3_model.run(pretrained, heads, inputs)
  return beit3_model.largest_difference(ours, run_reference(model, inputs), inputs)


@pytest.fixture(scope="module")
def weights():
  return W.random_weights()


@pytest.mark.parametrize("full", [False, True], ids=["padded", "full"])
@pytest.mark.parametrize(("size", "batch"), [(224, 4), (384, 1), (384, 4), (224, 1)])
def test_every_layer_equals_the_reference(tmp_path, weights, size, batch, full):
  inputs = beit3_model.make_inputs(size, batch, full=full)
  assert difference(tmp_path, weights, make_reference(weights, size, W.HEADS), inputs) < NEAR


@pytest.mark.slow
@pytest.mark.parametrize("full", [False, True], ids=["padded", "full"])
@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("size", [224, 384])
def test_every_layer_of_base_equals_the_reference(tmp_path, size, batch, full):
  weights = W.random_weights(**FULL)
  inputs = beit3_model.make_inputs(size, batch, FULL["vocab"], full)
  found = difference(tmp_path, weights, make_reference(weights, size, 12), inputs, heads=12)
  print(f"{size} x {batch}: {found:.2e}")
  assert found < NEAR


@pytest.mark.parametrize(
  "part", ["self_attn.q_proj", "self_attn.inner_attn_ln", "final_layer_norm", "ffn"]
)
def test_a_swapped_expert_is_seen(tmp_path, weights, part):
  wrong, inputs = dict(weights), beit3_model.make_inputs(224, 1)
  for name in weights:
    if name.startswith(f"encoder.layers.1.{part}.A"):
      other = name.replace(".A", ".B")
      wrong[name], wrong[other] = weights[other], weights[name]
  assert difference(tmp_path, wrong, make_reference(weights, 224, W.HEADS), inputs) > 1e-3


@pytest.mark.parametrize("expert", "AB")
def test_a_shifted_position_is_seen(tmp_path, weights, expert):
  name, inputs = f"encoder.embed_positions.{expert}.weight", beit3_model.make_inputs(224, 1)
  wrong = weights | {name: np.roll(weights[name], 1, axis=0)}
  assert difference(tmp_path, wrong, make_reference(weights, 224, W.HEADS), inputs) > 1e-3


def test_another_kernel_of_the_bicubic_interpolation_is_seen(tmp_path, weights, monkeypatch):
  inputs, reference = beit3_model.make_inputs(384, 1), make_reference(weights, 384, W.HEADS)
  assert difference(tmp_path, weights, reference, inputs) < NEAR
  monkeypatch.setattr(beit3, "_CUBIC", -0.5)
  assert difference(tmp_path, weights, reference, inputs) > 1e-3


@pytest.mark.parametrize("side", [24, 30, 7, 15])
def test_positions_are_resized_as_torch_does(weights, side):
  rows = weights["encoder.embed_positions.A.weight"]
  theirs = resize_as_unilm(torch.from_numpy(rows), side)[2:].numpy()
  np.testing.assert_allclose(beit3.resize_positions(rows[2:], side, side), theirs, atol=1e-5)


@torch.no_grad()
def test_the_image_expert_is_that_of_timm(tmp_path, weights):
  """Timm's model has no text, so ours may not let any of it through."""
  timm, checkpoint_filter_fn = import_timm()
  reference = timm.create_model(
    "beit3_base_patch16_224", embed_dim=W.WIDTH, depth=W.DEPTH, num_heads=W.HEADS, num_classes=0,
    global_pool="",
  ).eval()  # fmt: skip
  state = {f"beit3.{name}": torch.from_numpy(value) for name, value in weights.items()}
  state = checkpoint_filter_fn(state, reference)
  # It only keeps this name for classifiers, which have another norm in its place.
  state = {name.replace("layer_norm.", "norm."): value for name, value in state.items()}
  reference.load_state_dict(state)
  inputs = beit3_model.make_inputs(224, 2) | {"num_tokens": np.zeros(2, np.int32)}
  image = torch.from_numpy(inputs["image"]).permute(0, 3, 1, 2).float() / 127.5 - 1
  theirs = reference.forward_features(image).numpy()
  pretrained = beit3.load(W.save(tmp_path / "beit3.pth", weights))
  ours = beit3_model.run(pretrained, W.HEADS, inputs)[-1][:, : theirs.shape[1]]
  assert np.abs(ours - theirs).max() < NEAR * np.abs(theirs).max()
