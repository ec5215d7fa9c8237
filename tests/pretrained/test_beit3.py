"""BEiT-3 checkpoints: names, shapes, positions, files, and runs that start from them."""

import io
import pickle
import zipfile

import beit3_model
import beit3_weights
import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import tiny_model
import tiny_run
import torch_archives

from input_pipeline.common.errors import InputError
from input_pipeline.preprocess.tokenizer import Beit3Tokenizer, SentencePieceTokenizer
from mail_jax.config import load_config
from mail_jax.export import load
from mail_jax.models.build import path_name
from mail_jax.plan.estimate import vocab_size
from mail_jax.pretrained import beit3, initialise
from mail_jax.pretrained.weights import open_weights
from mail_jax.train.data import open_data
from mail_jax.train.loop import Trainer

W = beit3_weights
SPM = W.train_tokenizer()
VOCAB = Beit3Tokenizer(SPM).vocab_size
TINY = {"width": 32, "depth": 1, "vocab": VOCAB, "grid": 3, "positions": 40}
OPTIONS = (
  "model.experts=multiway",
  "model.heads=1",
  "model.patch_size=16",
  "model.decoder_widths=(8,8,8,4)",
)


@pytest.fixture(scope="module")
def weights() -> dict[str, np.ndarray]:
  return W.random_weights(positions=20, grid=4)


@pytest.fixture
def file(tmp_path, weights):
  return W.save(tmp_path / "beit3_base_patch16_224.pth", weights)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
  folder = tmp_path_factory.mktemp("pretrained")
  (folder / "beit3.spm").write_bytes(SPM)
  return W.save(folder / "beit3_tiny_patch16_224.pth", W.random_weights(**TINY))


def equal(actual, expected) -> None:
  assert actual.keys() == expected.keys()
  for name, value in expected.items():
    np.testing.assert_array_equal(actual[name], value, name)


@pytest.mark.parametrize(("size", "batch"), [(64, 2), (96, 1)])
def test_every_layer_equals_the_description(file, weights, size, batch):
  """Positions of 96 pixels are resized by the code under test; torch checks that elsewhere."""
  inputs = beit3_model.make_inputs(size, batch)
  pretrained, expected = beit3.load(file), dict(weights)
  name, side = "encoder.embed_positions.A.weight", size // 16
  resized = beit3.resize_positions(weights[name][2:], side, side)
  expected[name] = np.concatenate([weights[name][:2], resized])
  ours = beit3_model.run(pretrained, W.HEADS, inputs)
  theirs = W.numpy_forward(expected, inputs)
  assert beit3_model.largest_difference(ours, theirs, inputs) < 1e-5


def test_a_swapped_expert_is_seen(file, weights):
  inputs = beit3_model.make_inputs(64, 1)
  ours = beit3_model.run(beit3.load(file), W.HEADS, inputs)
  swapped = dict(weights)
  for end in ("weight", "bias"):
    a, b = (f"encoder.layers.2.self_attn.k_proj.{e}.{end}" for e in "AB")
    swapped[a], swapped[b] = weights[b], weights[a]
  theirs = W.numpy_forward(swapped, inputs)
  assert beit3_model.largest_difference(ours, theirs, inputs) > 1e-3


@pytest.mark.parametrize(
  ("key", "prefix", "name"),
  [
    ("module", "beit3.", "a.pth"),
    ("model", "", "a.pth"),
    ("model", "module.beit3.", "a.zip"),
    ("state_dict", "beit3.", "a.ckpt"),
  ],
)
def test_any_prefix_and_place_is_handled(tmp_path, file, weights, key, prefix, name):
  loaded = beit3.load(W.save(tmp_path / name, weights, key, prefix))
  equal(loaded.parameters, beit3.load(file).parameters)
  assert loaded.made_from["image/cls"] == (f"{prefix}vision_embed.cls_token",)


def test_safetensors_with_the_same_names_are_read(tmp_path, file, weights):
  safetensors.numpy.save_file(weights, tmp_path / "a.safetensors")
  equal(beit3.load(tmp_path / "a.safetensors").parameters, beit3.load(file).parameters)


def test_every_tensor_is_accounted_for(file, weights):
  loaded = beit3.load(file)
  used = [name for names in loaded.made_from.values() for name in names]
  assert len(used) == len(set(used))
  all_names = {f"beit3.{name}" for name in weights} | {"mlm_head.weight", "mlm_head.bias"}
  assert set(used) | set(loaded.unused) == all_names
  assert set(loaded.unused) == {"beit3.vision_embed.mask_token", "mlm_head.weight", "mlm_head.bias"}
  for name in all_names:
    assert name in loaded.report()


@pytest.mark.parametrize("kind", [np.float16, np.float32])
def test_the_precision_of_the_file_is_kept_until_the_weights_are_used(tmp_path, weights, kind):
  given = {name: value.astype(kind) for name, value in weights.items()}
  loaded = beit3.load(W.save(tmp_path / "half.pth", given))
  assert {value.dtype for value in loaded.parameters.values()} == {np.dtype(kind)}
  np.testing.assert_array_equal(
    loaded.parameters["encoder/text_norm/bias"], given["encoder.layer_norm.B.bias"]
  )
  resized = beit3.resize_positions(loaded.parameters["image/position"], 6, 6)
  assert resized.dtype == np.float32


def test_a_missing_tensor_is_named(tmp_path, weights):
  for name in weights:
    if name in ("vision_embed.mask_token", "encoder.embed_positions.A.weight"):
      continue
    rest = {key: value for key, value in weights.items() if key != name}
    with pytest.raises(InputError, match=f"the tensor {name} is missing"):
      beit3.load(W.save(tmp_path / "a.pth", rest))


def test_an_unexpected_shape_is_named(tmp_path, weights):
  for name in ("encoder.layers.1.ffn.B.fc1.bias", "encoder.layer_norm.A.weight"):
    longer = np.concatenate([weights[name]] * 2)
    with pytest.raises(InputError, match=f"unexpected shape of .*{name}"):
      beit3.load(W.save(tmp_path / "a.pth", weights | {name: longer}))


def test_a_tensor_of_the_encoder_that_nobody_knows_is_refused(tmp_path, weights):
  more = weights | {"encoder.relative_position.relative_attention_bias.weight": np.ones((3, 3))}
  more = {name: np.asarray(value, np.float32) for name, value in more.items()}
  with pytest.raises(InputError, match=r"relative_attention_bias\.weight belongs to the encoder"):
    beit3.load(W.save(tmp_path / "a.pth", more))


def test_what_is_no_checkpoint_of_base_or_large_is_said_to_be_none(tmp_path, weights):
  with pytest.raises(InputError, match="no such file"):
    beit3.load(tmp_path / "missing.pth")
  torch_archives.save({"model": {"a": np.ones(3, np.float32)}}, tmp_path / "other.pth")
  with pytest.raises(InputError, match=r"not a BEiT-3 checkpoint.* beit3_base_patch16_224\.pth"):
    beit3.load(tmp_path / "other.pth")
  giant = W.random_weights(width=32, depth=1, patch=14, grid=2, positions=9)
  with pytest.raises(InputError, match="has patches of 14 pixels; of BEiT-3, base and large have"):
    beit3.load(W.save(tmp_path / "giant.pth", giant))


def test_the_command_writes_a_file_that_loads_the_same(tmp_path, file, capsys):
  (tmp_path / "beit3.spm").write_bytes(SPM)
  out = tmp_path / "new" / "beit3.safetensors"
  beit3.main(["--checkpoint", str(file), "--out", str(out)])
  printed = capsys.readouterr().out
  assert "unused     mlm_head.weight" in printed and "model.width = 48" in printed
  assert "model.experts = multiway" in printed and "leakage" not in printed
  before, after = beit3.load(file), beit3.load(out)
  equal(after.parameters, before.parameters)
  assert (after.heads, after.unused, after.made_from) == (
    before.heads,
    before.unused,
    before.made_from,
  )
  assert beit3.read_vocab(out) == before.vocab == SPM
  assert sorted(path.name for path in out.parent.iterdir()) == ["beit3.safetensors"]


def test_the_command_refuses_what_it_cannot_write(tmp_path, file):
  with pytest.raises(InputError, match=r"must end in \.safetensors"):
    beit3.main(["--checkpoint", str(file), "--out", str(tmp_path / "a.bin")])
  (tmp_path / "beit3.spm").write_bytes(b"not a model")
  with pytest.raises(InputError, match=r"beit3\.spm beside .* is not a SentencePiece model"):
    beit3.main(["--checkpoint", str(file), "--out", str(tmp_path / "a.safetensors")])
  assert not (tmp_path / "a.safetensors").exists()


def test_weights_that_have_seen_the_test_photos_say_so(tmp_path, weights, capsys):
  path = W.save(tmp_path / "beit3_base_indomain_patch16_224.pth", weights)
  out = tmp_path / "converted.safetensors"
  beit3.main(["--checkpoint", str(path), "--out", str(out)])
  assert "leakage: beit3_base_indomain_patch16_224.pth is of the variant" in capsys.readouterr().out
  for file in (path, out):
    assert "has seen the photos" in initialise.leakage(f"beit3:{file}")
  itc = W.save(tmp_path / "beit3_base_itc_patch16_224.pth", weights)
  assert initialise.leakage(f"beit3:{itc}") is None
  assert initialise.leakage("vilt:indomain.safetensors") is None


@pytest.mark.parametrize("side", [2, 4, 5, 9])
def test_weights_of_the_resize_sum_to_one(side):
  position = np.full((1 + 16, 3), 2.5, np.float32)
  resized = beit3.resize_positions(position, side, side)
  np.testing.assert_allclose(resized, 2.5, atol=1e-6)
  assert resized.shape == (1 + side**2, 3)


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("mask_tokens", ["instance", "stacked"])
def test_experts_for_masks_start_as_those_of_the_image(tiny, scan, mask_tokens):
  more = (f"model.scan={scan}", f"model.mask_tokens={mask_tokens}")
  config = load_config(tiny_run.__file__, [*OPTIONS, *more])
  shapes = tiny_model.shapes(config, VOCAB)["params"]
  values = initialise.fit(beit3.load(tiny), config, shapes)
  names = {path_name(p): x.shape for p, x in jax.tree_util.tree_leaves_with_path(shapes)}
  assert {name: value.shape for name, value in values.items()} == {
    name: names[name] for name in values
  }
  inside = {name for name in names if name.startswith(("encoder", "image", "text"))}
  assert inside <= values.keys()
  masks = [name for name in inside if "/mask_" in name]
  assert len(masks) == 18
  for name in masks:
    np.testing.assert_array_equal(values[name], values[name.replace("/mask_", "/image_")])


def start(path, data_dir, workdir, *more: str) -> Trainer:
  """Returns a trainer of the tiny recipe that has not started."""
  config = load_config(tiny_run.__file__, [*OPTIONS, f"init=beit3:{path}", *more])
  return Trainer(config, str(workdir), open_data(config, data_dir))


def test_a_run_starts_from_the_checkpoint_and_its_tokenizer(
  tiny, shapes_data, tmp_path, monkeypatch
):
  monkeypatch.setattr(SentencePieceTokenizer, "train", None)
  trainer = start(tiny, shapes_data, tmp_path)
  assert trainer.data.tokenizer.kind == "beit3"
  pretrained = beit3.load(tiny)
  for tree in (trainer.state.variables, trainer.state.averaged):
    params = jax.device_get(tree["params"])
    block = params["encoder"]["block00"]
    kernel = pretrained.parameters["encoder/block00/text_qkv/kernel"]
    np.testing.assert_array_equal(block["text_qkv"]["kernel"].reshape(32, 3, 32), kernel)
    assert params["image"]["position"].shape == (1 + 4, 32)  # 3 x 3 became 2 x 2.
    assert "type" not in params and "norm" not in params["text"]
  trainer.checkpoints.close()


@pytest.mark.parametrize(
  ("option", "message"),
  [
    ("model.width=64", r"config\.model\.width = 32; configs/refcoco_beit3"),
    ("model.experts=shared", r"config\.model\.experts = multiway"),
    ("model.experts=many", r"model\.experts 'many' is not one of shared, multiway"),
    ("model.drop_path=1.0", r"model\.drop_path is 1\.0; it must be at least 0 and below 1"),
    ("max_tokens=39", "config.max_tokens 39.*38 tokens"),
    ("tokenizer=beit3:missing.spm", "missing.spm: No such file"),
  ],
)
def test_a_config_that_does_not_fit_is_refused_before_anything_is_written(
  tiny, shapes_data, tmp_path, option, message
):
  with pytest.raises(InputError, match=message):
    start(tiny, shapes_data, tmp_path / "run", option)
  assert not (tmp_path / "run").exists()


def test_weights_without_a_tokenizer_ask_for_one(tiny, shapes_data, tmp_path):
  bare = tmp_path / tiny.name
  bare.write_bytes(tiny.read_bytes())
  with pytest.raises(InputError, match=r"no beit3\.spm beside .*--config\.tokenizer=beit3:"):
    start(bare, shapes_data, tmp_path / "run")


def test_a_trained_checkpoint_carries_the_tokenizer(tiny, shapes_data, tmp_path):
  start(tiny, shapes_data, tmp_path, "steps=1", "eval_split=", "model.drop_path=0.5").run()
  model = load.load(str(tmp_path))
  assert model.tokenizer.kind == "beit3"
  assert model.tokenizer.file_bytes() == SPM


def test_a_plan_knows_the_vocabulary():
  assert vocab_size(load_config(tiny_run.__file__, ["init=beit3:large.pth"])) == 64010


class Danger:
  """Unpickling it runs code."""

  ran = False

  def __reduce__(self):
    return _run, ()


def _run():
  Danger.ran = True


def test_nothing_that_a_file_of_torch_holds_is_run(tmp_path, weights):
  content = {"model": weights, "args": Danger(), "epoch": 3, "callbacks": {Danger: {"best": 1.0}}}
  path = torch_archives.save(content, tmp_path / "beit3.pth")
  loaded = beit3.load(path)
  assert not Danger.ran
  np.testing.assert_array_equal(
    loaded.parameters["encoder/text_norm/bias"], weights["encoder.layer_norm.B.bias"]
  )


def test_views_of_a_storage_are_read_by_their_strides(tmp_path):
  values = np.arange(24, dtype=np.int64).reshape(4, 6)
  content = {"a": values.T, "b": np.zeros((0, 3), np.float32), "c": np.float32(3) + np.zeros(())}
  content["c"] = np.asarray(content["c"], np.float32)
  with open_weights(torch_archives.save(content, tmp_path / "a.pt", folder="a")) as opened:
    np.testing.assert_array_equal(opened["a"], values.T)
    assert opened["b"].shape == (0, 3) and opened["c"] == 3


def rewrite(path, change) -> None:
  """Writes an archive again with the entries that `change` returns."""
  with zipfile.ZipFile(path) as archive:
    entries = change({name: archive.read(name) for name in archive.namelist()})
  with zipfile.ZipFile(path, "w") as archive:
    for name, data in entries.items():
      archive.writestr(name, data)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (lambda e: {k: v for k, v in e.items() if "data.pkl" not in k}, "without data.pkl"),
    (lambda e: e | {"archive/byteorder": b"big"}, "another byte order"),
    (lambda e: e | {"archive/data.pkl": b"\x80\x02]q"}, "not an intact file of PyTorch"),
    (lambda e: e | {"archive/data/1": b"1234"}, "does not fit into its storage 1"),
    (lambda e: {k: v for k, v in e.items() if k != "archive/data/1"}, "storage 1 is damaged or"),
    (lambda e: e | {"archive/data.pkl": pickle.dumps({"model": {}}, 2)}, "has no tensors"),
    (lambda e: e | {"archive/data.pkl": pickle.dumps([1], 2)}, "has no tensors"),
  ],
)
def test_a_damaged_file_of_torch_is_refused(tmp_path, file, change, message):
  rewrite(file, change)
  with pytest.raises(InputError, match=message):
    beit3.load(file)


def test_a_file_of_an_old_torch_is_refused(tmp_path):
  data = io.BytesIO()
  pickle.dump({"a": 1}, data, 2)
  (tmp_path / "old.pth").write_bytes(data.getvalue())
  with pytest.raises(InputError, match=r"not a file that PyTorch 1\.6 or later saved; load one"):
    beit3.load(tmp_path / "old.pth")


@pytest.mark.parametrize("kind", [np.float16, ml_dtypes.bfloat16])
def test_safetensors_keep_their_precision(tmp_path, kind):
  values = np.linspace(-3, 3, 12).reshape(3, 4).astype(kind)
  safetensors.numpy.save_file({"a": values}, tmp_path / "half.safetensors")
  with open_weights(tmp_path / "half.safetensors") as opened:
    assert opened["a"].dtype == kind
    assert opened["a"].tolist() == values.tolist()
