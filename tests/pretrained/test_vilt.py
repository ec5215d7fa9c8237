"""ViLT checkpoints: names, shapes, positions, files, and runs that start from them."""

import json
import pathlib
import re

import jax
import ml_dtypes
import numpy as np
import own_process
import pytest
import safetensors.numpy
import tiny_model
import tiny_run
import vilt_weights
from hypothesis import given
from hypothesis import strategies as st

from input_pipeline.common.errors import InputError
from input_pipeline.preprocess.tokenizer import SentencePieceTokenizer
from mail_jax.config import load_config
from mail_jax.export import load
from mail_jax.models.build import path_name
from mail_jax.pretrained import initialise, vilt
from mail_jax.train.data import open_data
from mail_jax.train.loop import Trainer

TINY = {"width": 32, "depth": 1, "patch": 8, "vocab": len(vilt_weights.VOCABULARY), "grid": 3}


@pytest.fixture(scope="module")
def weights() -> dict[str, np.ndarray]:
  return vilt_weights.random_weights()


@pytest.fixture
def folder(tmp_path, weights):
  return vilt_weights.write_folder(tmp_path / "vilt", weights)


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp("pretrained") / "tiny"
  return vilt_weights.write_folder(folder, vilt_weights.random_weights(**TINY), heads=2)


def test_the_command_reads_bfloat16_though_numpy_alone_does_not_know_it(tmp_path, weights):
  halved = {name: value.astype(ml_dtypes.bfloat16) for name, value in weights.items()}
  folder = vilt_weights.write_folder(tmp_path / "half", halved)
  out = str(tmp_path / "vilt.safetensors")
  code = "import sys; from mail_jax.pretrained import vilt; vilt.main(sys.argv[1:])"
  own_process.run(code, "--checkpoint", str(folder), "--out", out)
  np.testing.assert_array_equal(
    vilt.load(out).parameters["encoder/norm/bias"], halved["layernorm.bias"].astype(np.float32)
  )


def test_both_kinds_of_names_give_the_same_parameters(tmp_path, folder, weights):
  file = tmp_path / "original.safetensors"
  original = vilt_weights.as_original(weights)
  assert original.keys().isdisjoint(weights.keys() - {"pooler.dense.weight", "pooler.dense.bias"})
  safetensors.numpy.save_file(original, file)
  ours, theirs = vilt.load(folder), vilt.load(file)
  assert ours.parameters.keys() == theirs.parameters.keys()
  for name, value in ours.parameters.items():
    np.testing.assert_array_equal(value, theirs.parameters[name], name)


@pytest.mark.parametrize("prefix", ["vilt.", "module.", "model.vilt.", "module.vilt."])
def test_any_prefix_is_handled(tmp_path, folder, weights, prefix):
  prefixed = {prefix + name: value for name, value in weights.items()}
  loaded = vilt.load(vilt_weights.write_folder(tmp_path / "prefixed", prefixed))
  for name, value in vilt.load(folder).parameters.items():
    np.testing.assert_array_equal(value, loaded.parameters[name])
  assert loaded.made_from["image/cls"] == (f"{prefix}embeddings.cls_token",)


def test_every_tensor_is_accounted_for(tmp_path, weights):
  heads = {"mlm_score.bias": np.ones(3, np.float32), "classifier.0.weight": np.ones(3, np.float32)}
  counter = {"embeddings.text_embeddings.position_ids": np.arange(40)[None]}
  more = weights | heads | counter
  loaded = vilt.load(vilt_weights.write_folder(tmp_path, more))
  used = [name for names in loaded.made_from.values() for name in names]
  assert len(used) == len(set(used))
  assert set(used) | set(loaded.unused) == more.keys()
  assert set(loaded.unused) == {*heads, *counter, "pooler.dense.weight", "pooler.dense.bias"}
  report = loaded.report()
  for name in more:
    assert name in report


def test_a_missing_tensor_is_named(tmp_path, weights):
  for name in weights:
    if name.startswith("pooler"):
      continue
    if name == "embeddings.cls_token":
      continue  # Without it, it is not a ViLT checkpoint: see below.
    rest = {key: value for key, value in weights.items() if key != name}
    with pytest.raises(InputError, match=f"the tensor {name} is missing"):
      vilt.load(vilt_weights.write_folder(tmp_path, rest))


@pytest.mark.parametrize("change", ["longer", "flat"])
def test_an_unexpected_shape_is_named(tmp_path, weights, change):
  for name, value in weights.items():
    if name.startswith("pooler"):
      continue
    if change == "flat":
      if value.ndim < 2:
        continue
      bad = value.reshape(-1)
    else:
      bad = np.concatenate([value, value[..., :1]], -1)
    if change == "longer" and name == "embeddings.patch_embeddings.projection.weight":
      bad = value[:, :2]
    with pytest.raises(InputError, match="unexpected shape") as error:
      vilt.load(vilt_weights.write_folder(tmp_path, weights | {name: bad}))
    assert name in str(error.value)


def test_a_tensor_of_the_encoder_that_nobody_knows_is_refused(tmp_path, weights):
  more = weights | {"encoder.layer.0.adapter.weight": np.ones(3, np.float32)}
  with pytest.raises(
    InputError, match=r"encoder\.layer\.0\.adapter\.weight belongs to the encoder"
  ):
    vilt.load(vilt_weights.write_folder(tmp_path, more))


def test_what_is_no_checkpoint_of_vilt_is_said_to_be_none(tmp_path):
  with pytest.raises(InputError, match=r"has none of model\.safetensors, .*pytorch_model\.bin"):
    vilt.load(tmp_path)
  with pytest.raises(InputError, match="there is no such folder or file"):
    vilt.load(tmp_path / "missing.safetensors")
  (tmp_path / "short.safetensors").write_bytes(b"\x20\0\0\0\0\0\0\0{")
  with pytest.raises(InputError, match=r"short\.safetensors: not an intact"):
    vilt.load(tmp_path / "short.safetensors")
  (tmp_path / "weights.npz").write_bytes(b"")
  with pytest.raises(InputError, match=r"expected \.safetensors, or a PyTorch file \(\.bin"):
    vilt.load(tmp_path / "weights.npz")
  safetensors.numpy.save_file({"a": np.ones(3)}, tmp_path / "other.safetensors")
  with pytest.raises(InputError, match="not a ViLT checkpoint"):
    vilt.load(tmp_path / "other.safetensors")


def write_shards(
  folder: pathlib.Path, weights: dict[str, np.ndarray], count: int = 3
) -> dict[str, str]:
  """Splits model.safetensors into several files with an index; returns the index."""
  (folder / "model.safetensors").unlink()
  names = sorted(weights)
  places = {}
  for number in range(count):
    file = f"model-{number + 1:05}-of-{count:05}.safetensors"
    part = {name: weights[name] for name in names[number::count]}
    safetensors.numpy.save_file(part, folder / file)
    places |= dict.fromkeys(part, file)
  index = {"metadata": {"total_size": 1}, "weight_map": places}
  (folder / "model.safetensors.index.json").write_text(json.dumps(index))
  return places


def test_weights_in_several_files_are_those_in_one(tmp_path, folder, weights):
  place = vilt_weights.write_folder(tmp_path / "parts", weights)
  write_shards(place, weights)
  ours, theirs = vilt.load(place), vilt.load(folder)
  assert ours.parameters.keys() == theirs.parameters.keys() and ours.unused == theirs.unused
  for name, value in ours.parameters.items():
    np.testing.assert_array_equal(value, theirs.parameters[name], name)


def test_an_index_whose_files_are_not_all_there_names_what_is_missing(tmp_path, weights):
  place = vilt_weights.write_folder(tmp_path, weights)
  places = write_shards(place, weights)
  index = place / "model.safetensors.index.json"
  part = place / "model-00002-of-00003.safetensors"
  part.rename(place / "elsewhere")
  with pytest.raises(InputError, match=r"lists model-00002-of-00003\.safetensors, which is not"):
    vilt.load(place)
  (place / "elsewhere").rename(part)
  name, other = sorted(places)[:2]
  index.write_text(json.dumps({"weight_map": places | {name: places[other]}}))
  with pytest.raises(
    InputError, match=f"{places[other]} has no tensor {re.escape(name)}; download"
  ):
    vilt.load(place)
  index.write_text(json.dumps({"weight_map": {name: "../../etc/passwd"}}))
  with pytest.raises(InputError, match="leaves the folder"):
    vilt.load(place)
  index.write_text("[]")
  with pytest.raises(InputError, match="has no weight_map"):
    vilt.load(place)


def test_a_pointer_of_git_lfs_is_said_to_be_one(tmp_path, weights):
  place = vilt_weights.write_folder(tmp_path, weights)
  pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 4\n"
  for name in ("vocab.txt", "model.safetensors"):
    (place / name).write_text(pointer)
    with pytest.raises(InputError, match=f"{name}: a pointer of Git LFS, .*git lfs pull"):
      vilt.load(place)
  (place / "model.safetensors").rename(place / "pytorch_model.bin")
  with pytest.raises(InputError, match=r"pytorch_model\.bin: a pointer of Git LFS"):
    vilt.load(place)


def test_the_vocabulary_may_be_in_the_tokenizer_alone(tmp_path, weights):
  place = vilt_weights.write_folder(tmp_path, weights)
  expected = (place / "vocab.txt").read_bytes()
  (place / "vocab.txt").unlink()
  words = list(enumerate(vilt_weights.VOCABULARY))
  vocab = {word: number for number, word in reversed(words)}
  tokenizer = place / "tokenizer.json"
  tokenizer.write_text(json.dumps({"model": {"type": "WordPiece", "vocab": vocab}}))
  assert vilt.read_vocab(place) == vilt.load(place).vocab == expected
  for model in ({"type": "Unigram", "vocab": [["a", 0.0]]}, {"vocab": {"a": 0, "b": 2}}, None):
    tokenizer.write_text(json.dumps({"model": model}))
    with pytest.raises(InputError, match=r"tokenizer\.json: its model is not WordPiece"):
      vilt.read_vocab(place)


def test_a_folder_that_is_not_there_comes_with_the_command_that_gets_it(tmp_path):
  command = r"`hf download dandelin/vilt-b32-finetuned-coco --local-dir .*vilt-b32-finetuned-coco`"
  for read in (vilt.load, vilt.read_vocab):
    with pytest.raises(InputError, match=command):
      read(tmp_path / "vilt-b32-finetuned-coco")


def test_half_precision_becomes_float32(tmp_path, weights):
  halved = {name: value.astype(np.float16) for name, value in weights.items()}
  loaded = vilt.load(vilt_weights.write_folder(tmp_path, halved))
  assert {value.dtype for value in loaded.parameters.values()} == {np.dtype(np.float32)}
  np.testing.assert_array_equal(
    loaded.parameters["encoder/norm/bias"], halved["layernorm.bias"].astype(np.float32)
  )


def test_the_command_writes_a_file_that_loads_the_same(tmp_path, folder, capsys):
  out = tmp_path / "new" / "vilt.safetensors"
  vilt.main(["--checkpoint", str(folder), "--out", str(out)])
  printed = capsys.readouterr().out
  assert "unused     pooler.dense.weight" in printed and "model.width = 48" in printed
  before, after = vilt.load(folder), vilt.load(out)
  assert after.parameters.keys() == before.parameters.keys()
  for name, value in before.parameters.items():
    np.testing.assert_array_equal(value, after.parameters[name])
  assert (after.heads, after.unused, after.made_from) == (
    before.heads,
    before.unused,
    before.made_from,
  )
  assert vilt.read_vocab(out) == before.vocab == (folder / "vocab.txt").read_bytes()
  assert sorted(path.name for path in out.parent.iterdir()) == ["vilt.safetensors"]


def test_the_command_refuses_what_it_cannot_write(tmp_path, folder):
  (tmp_path / "file").write_text("")
  with pytest.raises(InputError, match=r"must end in \.safetensors"):
    vilt.main(["--checkpoint", str(folder), "--out", str(tmp_path / "vilt.bin")])
  (tmp_path / "vocab.txt").write_bytes(b"[PAD]\ncaf\xe9")
  vocab = ["--vocab", str(tmp_path / "vocab.txt")]
  with pytest.raises(InputError, match=r"vocab\.txt is not UTF-8"):
    vilt.main(["--checkpoint", str(folder), "--out", str(tmp_path / "a.safetensors"), *vocab])
  assert not (tmp_path / "a.safetensors").exists()
  with pytest.raises(InputError, match="cannot be written"):
    vilt.main(["--checkpoint", str(folder), "--out", str(tmp_path / "file" / "a.safetensors")])


@given(
  side=st.integers(2, 6),
  rows=st.integers(1, 9),
  cols=st.integers(1, 9),
  slope=st.tuples(st.floats(-3, 3), st.floats(-3, 3)),
)
def test_a_plane_of_positions_stays_a_plane(side, rows, cols, slope):
  """Checks bilinear resizing with aligned corners: corners are fixed, and planes are exact."""

  def plane(height, width):
    y, x = np.meshgrid(np.linspace(0, 1, height), np.linspace(0, 1, width), indexing="ij")
    return (1 + slope[0] * y + slope[1] * x).reshape(-1, 1).astype(np.float32)

  position = np.concatenate([np.full((1, 1), 7, np.float32), plane(side, side)])
  resized = vilt.resize_positions(position, rows, cols)
  assert resized[0] == 7 and resized.dtype == np.float32
  np.testing.assert_allclose(resized[1:], plane(rows, cols), atol=1e-5)


def test_positions_that_are_no_square_grid_are_refused():
  with pytest.raises(InputError, match="not a square grid"):
    vilt.resize_positions(np.zeros((12, 4), np.float32), 3, 3)


def start(folder, data_dir, workdir, *more: str) -> Trainer:
  """Returns a trainer of the tiny recipe that has not started."""
  config = load_config(tiny_run.__file__, [f"--config.init=vilt:{folder}", *more])
  return Trainer(config, str(workdir), open_data(config, data_dir))


@pytest.fixture
def kept_out(monkeypatch):
  """Makes training a tokenizer fail."""
  monkeypatch.setattr(SentencePieceTokenizer, "train", None)


def test_a_run_starts_from_the_checkpoint_and_its_vocabulary(
  tiny_folder, shapes_data, tmp_path, kept_out
):
  trainer = start(tiny_folder, shapes_data, tmp_path)
  assert trainer.data.tokenizer.vocab_size == len(vilt_weights.VOCABULARY)
  pretrained = vilt.load(tiny_folder)
  for tree in (trainer.state.variables, trainer.state.averaged):
    params = jax.device_get(tree["params"])
    np.testing.assert_array_equal(
      params["encoder"]["block00"]["qkv"]["kernel"].reshape(32, 3, 32),
      pretrained.parameters["encoder/block00/qkv/kernel"],
    )
    np.testing.assert_array_equal(
      params["text"]["position"], pretrained.parameters["text/position"][:16]
    )
    np.testing.assert_array_equal(params["type"][0], params["type"][1])
    assert params["image"]["position"].shape == (1 + 16, 32)  # 3 x 3 became 4 x 4.
  trainer.checkpoints.close()


@pytest.mark.slow
def test_a_run_whose_blocks_are_stacked_starts_from_the_same_weights(
  tiny_folder, shapes_data, tmp_path
):
  options = ("--config.model.scan=True", "--config.steps=1", "--config.eval_split=")
  trainer = start(tiny_folder, shapes_data, tmp_path, *options)
  params = jax.device_get(trainer.state.variables["params"])
  pretrained = vilt.load(tiny_folder)
  for name in ("qkv/kernel", "mlp_in/bias"):
    layer, _, kind = name.partition("/")
    actual = params["encoder"]["blocks"][layer][kind]
    np.testing.assert_array_equal(
      actual[0].reshape(-1), pretrained.parameters[f"encoder/block00/{name}"].reshape(-1)
    )
  trainer.run()
  assert load.load(str(tmp_path), "last").step == 1


@pytest.mark.parametrize("scan", [False, True])
def test_every_block_starts_from_the_block_of_the_checkpoint(tmp_path, scan):
  deep = vilt_weights.random_weights(**(TINY | {"depth": 3}))
  pretrained = vilt.load(vilt_weights.write_folder(tmp_path / "deep", deep, heads=2))
  config = load_config(tiny_run.__file__, ["model.depth=3", f"model.scan={scan}"])
  shapes = tiny_model.shapes(config, TINY["vocab"])["params"]
  actual = initialise.fit(pretrained, config, shapes)
  blocks = {name: value for name, value in pretrained.parameters.items() if "/block" in name}
  assert len(blocks) == 3 * 12
  for name, value in blocks.items():
    _, block, rest = name.split("/", 2)
    started = actual[f"encoder/{'blocks' if scan else block}/{rest}"]
    started = started[int(block.removeprefix("block"))] if scan else started
    np.testing.assert_array_equal(started.reshape(-1), value.reshape(-1), err_msg=name)
  # All parameters of the blocks are loaded, with their shapes.
  for path, leaf in jax.tree_util.tree_leaves_with_path(shapes):
    name = path_name(path)
    if "/block" in name:
      assert actual.pop(name).shape == leaf.shape
  assert not [name for name in actual if "block" in name]


def test_instance_tokens_start_as_large_as_the_positions_of_the_image(tmp_path):
  pretrained = vilt.load(
    vilt_weights.write_folder(tmp_path / "tiny", vilt_weights.random_weights(**TINY), heads=2)
  )
  config = load_config(tiny_run.__file__)
  actual = initialise.fit(pretrained, config, tiny_model.shapes(config, TINY["vocab"])["params"])
  position = actual["image/position"][1:]
  np.testing.assert_allclose(actual["mask/norm/scale"], np.sqrt((position**2).mean()), rtol=1e-6)


@pytest.mark.slow
def test_training_from_a_checkpoint_resumes_without_it(tiny_folder, shapes_data, tmp_path):
  moved = tmp_path / "moved"
  vilt_weights.write_folder(moved, vilt_weights.random_weights(**TINY), heads=2)
  options = ("--config.steps=2", "--config.save_every=2", "--config.eval_split=")
  start(moved, shapes_data, tmp_path / "run", *options).run()
  (moved / "model.safetensors").unlink()
  resumed = start(moved, shapes_data, tmp_path / "run", *options)
  assert resumed.start_step == 2
  resumed.checkpoints.close()


def test_masks_as_patches_start_at_the_positions_of_the_image(tiny_folder, shapes_data, tmp_path):
  trainer = start(tiny_folder, shapes_data, tmp_path, "--config.model.mask_tokens=stacked")
  params = jax.device_get(trainer.state.variables["params"])
  np.testing.assert_array_equal(params["mask"]["position"], params["image"]["position"][1:])
  trainer.checkpoints.close()


@pytest.mark.parametrize(
  ("option", "message"),
  [
    ("model.width=64", r"config\.model\.width = 32"),
    ("model.depth=2", r"config\.model\.depth = 1"),
    ("model.heads=4", r"config\.model\.heads = 2"),
    ("max_tokens=41", "config.max_tokens 41.*40 tokens"),
    ("init=clip:x", "is not run:WORKDIR, export:FOLDER, vilt:PATH, beit3:PATH"),
    ("tokenizer=wordpiece:missing.txt", "missing.txt: No such file"),
  ],
)
def test_a_config_that_does_not_fit_is_refused_before_anything_is_written(
  tiny_folder, shapes_data, tmp_path, option, message
):
  with pytest.raises(InputError, match=message):
    start(tiny_folder, shapes_data, tmp_path / "run", f"--config.{option}")
  assert not (tmp_path / "run").exists()


def test_another_vocabulary_than_the_weights_is_refused(tiny_folder, shapes_data, tmp_path):
  other = tmp_path / "vocab.txt"
  other.write_text("\n".join([*vilt_weights.VOCABULARY, "one", "more"]))
  with pytest.raises(InputError, match=r"has 17 ids, but .* has embeddings for 15"):
    start(tiny_folder, shapes_data, tmp_path / "run", f"--config.tokenizer=wordpiece:{other}")


def test_weights_without_a_vocabulary_ask_for_one(shapes_data, tmp_path):
  bare = vilt_weights.write_folder(
    tmp_path / "bare", vilt_weights.random_weights(**TINY), heads=2, vocab=None
  )
  with pytest.raises(InputError, match=r"no vocab\.txt beside.*--config\.tokenizer=wordpiece"):
    start(bare, shapes_data, tmp_path / "run")


def test_a_trained_checkpoint_carries_the_vocabulary(tiny_folder, shapes_data, tmp_path):
  from mail_jax.export import load

  start(tiny_folder, shapes_data, tmp_path, "--config.steps=1", "--config.eval_split=").run()
  model = load.load(str(tmp_path))
  assert model.tokenizer.kind == "wordpiece"
  ids = model.tokenizer(["the leftmost star"], 8)[0][0]
  assert [vilt_weights.VOCABULARY[i] for i in ids[:6]] == [
    "[CLS]", "the", "left", "##most", "star", "[SEP]",
  ]  # fmt: skip


def test_epochs_become_steps(shapes_data, tmp_path, tiny_folder):
  trainer = start(tiny_folder, shapes_data, tmp_path, "--config.steps=0", "--config.epochs=1.5")
  samples = trainer.data.samples
  assert samples > 24 and trainer.length.steps == -(-1.5 * samples // 8)
  trainer.checkpoints.close()
