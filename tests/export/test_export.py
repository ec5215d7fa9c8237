"""Exported folders: their files, and that each format computes what the checkpoint does."""

import contextlib
import dataclasses
import functools
import hashlib
import io
import json
import pathlib
import shutil
from typing import Any

import exported_models
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import tiny_model
import tiny_run
from etils import epath

from input_pipeline.common.errors import InputError
from mail_jax.evaluate import command as evaluate
from mail_jax.export import command as export
from mail_jax.export import folder, formats, load, scripts
from mail_jax.models.build import apply_model, make_model, path_name
from mail_jax.predict import command as predict

FORMATS = ("stablehlo", "saved_model")


def test_an_exported_folder_is_the_checkpoint_it_came_of(exported, finished_run):
  ours, theirs = load.load(str(finished_run)), load.load(str(exported))
  assert (theirs.step, theirs.model, theirs.config) == (ours.step, ours.model, ours.config)
  assert theirs.tokenizer.to_bytes() == ours.tokenizer.to_bytes()
  assert dict(theirs.metrics) == dict(ours.metrics) and ours.metrics
  jax.tree.map(np.testing.assert_array_equal, ours.variables, theirs.variables)


def test_the_weights_are_plain_safetensors_by_their_paths(exported, finished_run):
  arrays = safetensors.numpy.load_file(exported / "model.safetensors")
  variables = load.load(str(finished_run)).variables
  assert len(arrays) == len(jax.tree.leaves(variables))
  kernel = variables["params"]["encoder"]["block00"]["qkv"]["kernel"]
  np.testing.assert_array_equal(arrays["params/encoder/block00/qkv/kernel"], kernel)
  assert arrays["params/mask_gain"].shape == ()


def test_every_file_is_listed_with_its_sum(exported):
  about = json.loads((exported / "config.json").read_text())
  files = {str(p.relative_to(exported)) for p in exported.rglob("*") if p.is_file()}
  assert set(about["files"]) == files - {"config.json", "README.md"}
  for name, (size, digest) in about["files"].items():
    data = (exported / name).read_bytes()
    assert (size, digest) == (len(data), hashlib.sha256(data).hexdigest())


def test_every_file_may_be_read_by_those_who_may_read_any_new_file(exported, tmp_path):
  (tmp_path / "new").touch()
  usual = (tmp_path / "new").stat().st_mode
  assert {path.stat().st_mode for path in exported.rglob("*") if path.is_file()} == {usual}


def test_the_artifact_is_for_every_platform_and_any_number_of_examples(exported):
  artifact = jax.export.deserialize(bytearray((exported / "model.stablehlo").read_bytes()))
  assert set(artifact.platforms) == {"cpu", "cuda", "tpu"}
  assert {str(spec.shape[0]) for spec in (*artifact.in_avals, *artifact.out_avals)} == {"b"}


def test_no_file_says_where_it_was_made(exported, finished_run):
  for path in exported.rglob("*"):
    data = path.read_bytes() if path.is_file() else b""
    for place in (tiny_run.CHECKOUT, finished_run, exported.parent):
      assert str(place).encode() not in data, path


@pytest.mark.parametrize("count", [1, 7])
@pytest.mark.parametrize("form", FORMATS)
def test_each_format_gives_the_logits_of_the_checkpoint(exported, form, count):
  model = load.load(str(exported))
  batch = exported_models.random_batch(model.config, count)
  exported_models.assert_alike(load.load(str(exported / folder.PLACES[form])), model, batch)


def _table(place: pathlib.Path, data_dir: str) -> list[str]:
  """Returns what `evaluate` prints about a model, without its name."""
  with contextlib.redirect_stdout(io.StringIO()) as printed:
    evaluate.main(["--checkpoint", str(place), "--data_dir", data_dir, "--data", "shapes/val"])
  return printed.getvalue().splitlines()[1:]


@pytest.fixture(scope="module")
def table_of_the_run(finished_run, shapes_data) -> list[str]:
  return _table(finished_run, shapes_data)


@pytest.mark.parametrize("form", ["safetensors", *FORMATS])
def test_evaluate_gives_the_same_table_on_each_format(
  exported, table_of_the_run, shapes_data, form
):
  place = exported if form == "safetensors" else exported / folder.PLACES[form]
  assert len(table_of_the_run) > 1
  assert _table(place, shapes_data) == table_of_the_run


def test_evaluate_ends_on_a_single_core(exported, table_of_the_run, shapes_data):
  printed = exported_models.evaluate_on_one_core(exported / "saved_model", shapes_data)
  assert printed.splitlines()[1:] == table_of_the_run


def test_predict_takes_the_folder_and_a_format_in_it(exported, finished_run, tmp_path):
  exported_models.save_photo(tmp_path / "photo.png")
  masks = []
  for place in (finished_run, exported, exported / "model.stablehlo"):
    command = ["--checkpoint", str(place), "--image", str(tmp_path / "photo.png")]
    out = ["--out", str(tmp_path / "overlay.png"), "--mask", str(tmp_path / "mask.png")]
    predict.main([*command, "--text", "the star", *out])
    masks.append((tmp_path / "mask.png").read_bytes())
  assert masks[0] == masks[1] == masks[2]


def test_what_was_exported_can_be_exported_again(exported, tmp_path):
  export.main(["--checkpoint", str(exported), "--out", str(tmp_path / "again")])
  again, before = tmp_path / "again" / "model.safetensors", exported / "model.safetensors"
  assert again.read_bytes() == before.read_bytes()
  with pytest.raises(InputError, match="has no parameters"):
    export.export(str(exported / "model.stablehlo"), str(tmp_path / "third"))
  assert not (tmp_path / "third").exists()


def test_a_bfloat16_model_is_exported_as_it_is(exported, tmp_path):
  wide, narrow = tmp_path / "wide", tmp_path / "narrow"
  shutil.copytree(exported, wide)
  exported_models.edit_config(wide, model={"dtype": "bfloat16"})
  export.export(str(wide), str(narrow), ("stablehlo",))
  batch = exported_models.random_batch(load.load(str(wide)).config, 3)
  loaded = load.load(str(wide))
  network = make_model(loaded.config, loaded.tokenizer.vocab_size)
  expected = jax.jit(functools.partial(apply_model, network))(loaded.variables, batch)
  actual = exported_models.run(load.load(str(narrow / "model.stablehlo")), batch)
  exact = exported_models.run(load.load(str(exported)), batch)
  error = np.abs(expected.logits - exact.logits).max()
  assert error > 1e-4  # It computes in bfloat16 indeed.
  # The program says where to round, but a compiler may round elsewhere too.
  assert np.abs(actual.logits - expected.logits).max() <= error


def test_the_card_says_how_good_it_is_and_where_it_comes_from(finished_run, shapes_data, tmp_path):
  metrics = tmp_path / "metrics.json"
  command = ["--checkpoint", str(finished_run), "--data_dir", shapes_data, "--data", "shapes/testA"]
  evaluate.main([*command, "--json", str(metrics)])
  export.main([
    "--checkpoint", str(finished_run), "--out", str(tmp_path / "out"), "--metrics", str(metrics)
  ])  # fmt: skip
  card = (tmp_path / "out" / "README.md").read_text()
  row = json.loads(metrics.read_text())["shapes/testA"]
  line = next(line for line in card.splitlines() if line.startswith("| shapes/testA"))
  assert f"| {100 * row['mIoU']:.2f} |" in line and f"| {row['expressions']} |" in line
  kept = load.load(str(finished_run)).metrics
  assert f"mIoU {100 * kept['mIoU']:.2f}" in card
  step = load.load(str(finished_run)).step
  assert "`shapes`" in card and f"step {step}" in card and "Licence" in card
  assert row["instances"]["from"] in card


def _spoil(exported: pathlib.Path, tmp_path: pathlib.Path, how: str) -> str:
  """Copies an exported folder and damages it; returns a value for --checkpoint."""
  place = tmp_path / "spoiled"
  shutil.copytree(exported, place)
  name, _, what = how.partition(" ")
  path = next(place.glob(name), place / name)
  if what == "gone":
    path.unlink()
  elif what == "flipped":
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
  elif what == "cut":
    path.write_bytes(path.read_bytes()[:-100])
  elif what == "foreign":
    path.write_text('{"architectures": ["ViltModel"]}')
  elif what == "no json":
    path.write_text("{")
  elif what == "newer":
    about = json.loads(path.read_text())
    path.write_text(json.dumps(about | {"format_version": 2}))
  elif what == "other config":
    exported_models.edit_config(place, model={"width": 64})
  return str(place)


@pytest.mark.parametrize(
  ("how", "form", "message"),
  [
    ("model.safetensors gone", "", r"model\.safetensors: No such file"),
    (
      "model.safetensors flipped",
      "",
      r"model\.safetensors: contents differ from what was exported",
    ),
    ("model.safetensors cut", "", r"model\.safetensors: contents differ"),
    ("model.stablehlo flipped", "model.stablehlo", r"model\.stablehlo: contents differ"),
    ("saved_model/*/saved_model.pb cut", "saved_model", r"saved_model\.pb: contents differ"),
    ("tokenizer.model gone", "", r"tokenizer\.model: No such file"),
    ("config.json foreign", "", r"config\.json: not a model exported by mail_jax"),
    ("config.json no json", "", r"config\.json: not a model exported by mail_jax"),
    ("config.json newer", "", r"format_version is 2, this mail_jax reads up to 1"),
    ("config.json gone", "model.stablehlo", r"config\.json is missing beside it"),
    ("config.json other config", "", r"params/\S+ has the shape .*config\.json describes"),
    ("README.md untouched", "model.onnx", r"model\.onnx: not exported; the folder has safetensors"),
    ("README.md untouched", "README.md", r"expected one of model\.safetensors, model\.stablehlo"),
  ],
)
def test_what_is_wrong_with_a_folder_is_told_in_one_line(exported, tmp_path, how, form, message):
  place = _spoil(exported, tmp_path, how)
  with pytest.raises(InputError, match=message):
    load.load(f"{place}/{form}" if form else place)


def test_an_exported_model_has_no_other_step(exported):
  step = load.load(str(exported)).step
  assert load.load(str(exported), step).step == step
  with pytest.raises(InputError, match=rf"--step {step + 1}: .* was exported from step {step}$"):
    load.load(str(exported), step + 1)


def test_a_card_may_be_edited(exported, tmp_path):
  shutil.copytree(exported, tmp_path / "copy")
  (tmp_path / "copy" / "README.md").write_text("ours")
  load.load(str(tmp_path / "copy"))


@pytest.mark.parametrize(
  ("options", "message"),
  [
    (["--format", "tflite"], r"--format 'tflite': expected some of safetensors, stablehlo"),
    (["--format", ""], r"--format '': expected some of"),
    (["--out", "gs://bucket/model"], r"must be a folder on this machine"),
    (["--metrics", "nowhere.json"], r"--metrics nowhere\.json: cannot be read"),
    (["--metrics", "{empty}"], r"has no metrics; mail_jax\.evaluate --json writes them"),
    (["--checkpoint", "nowhere"], r"--checkpoint nowhere: there is no"),
    (["--out", "{taken}"], r"taken already exists; add --overwrite"),
    (["--out", "{taken}", "--overwrite"], r"not a model exported by mail_jax"),
    (["--out", "{empty}"], r"empty\.json is a file; name a folder"),
  ],
)
def test_wrong_options_leave_nothing_behind(exported, tmp_path, options, message):
  taken, empty = tmp_path / "taken", tmp_path / "empty.json"
  taken.mkdir()
  (taken / "precious").write_text("1")
  empty.write_text("{}")
  options = [option.format(taken=taken, empty=empty) for option in options]
  defaults = ["--checkpoint", str(exported), "--out", str(tmp_path / "out")]
  with pytest.raises(InputError, match=message):
    export.main([*defaults, *options])
  assert sorted(path.name for path in tmp_path.iterdir()) == ["empty.json", "taken"]
  assert (taken / "precious").read_text() == "1"


def test_an_export_that_fails_leaves_the_one_before(exported, tmp_path, monkeypatch):
  out = tmp_path / "deep" / "out"
  export.export(str(exported), str(out))
  before = (out / "config.json").read_bytes()

  def fail(*_: Any) -> str:
    raise KeyboardInterrupt

  with monkeypatch.context() as patch:
    patch.setattr(export.model_card, "write", fail)
    with pytest.raises(KeyboardInterrupt):
      export.export(str(exported), str(out), ("safetensors",), overwrite=True)
  assert (out / "config.json").read_bytes() == before
  assert [path.name for path in out.parent.iterdir()] == ["out"]
  (out / "stale").write_text("1")
  export.export(str(exported), str(out), ("safetensors",), overwrite=True)
  assert not (out / "stale").exists()
  assert [path.name for path in out.parent.iterdir()] == ["out"]


def test_an_exported_model_is_known_by_its_fingerprint(exported, finished_run):
  """Safetensors have the run's fingerprint; other formats one that depends on every byte."""
  run = load.load(str(finished_run)).fingerprint()
  assert load.load(str(exported)).fingerprint() == run
  program = load.load(str(exported / "model.stablehlo"))
  other = dataclasses.replace(program, files=dict.fromkeys(program.files, "0" * 64))
  assert len({run, program.fingerprint(), other.fingerprint()}) == 3


@pytest.mark.parametrize("form", FORMATS)
def test_a_model_of_several_or_no_referents_says_the_same_when_exported(form, tmp_path):
  config = tiny_model.make_config(slots=5, selection="multi", no_target=True)
  network, variables = tiny_model.make(config), tiny_model.random_variables(config)
  place = tmp_path / folder.PLACES[form]
  formats.write(form, place, config, network, variables)
  forward, outside = formats.open_forward(form, epath.Path(place), network)
  batch = jax.tree.map(jnp.asarray, exported_models.random_batch(config, 3))
  actual, expected = (
    forward({}, jax.tree.map(jnp.asarray, batch | (outside(batch) if outside else {}))),
    jax.jit(functools.partial(apply_model, network))(variables, batch),
  )
  assert expected.no_target is not None and np.ptp(expected.no_target) > 0.01
  for name in ("logits", *expected._fields[1:]):
    np.testing.assert_allclose(
      getattr(actual, name), getattr(expected, name), atol=1e-4, err_msg=name
    )


@pytest.mark.parametrize("form", ["stablehlo", pytest.param("onnx", marks=pytest.mark.extras)])
def test_weights_beyond_the_limit_of_a_file_are_beside_it(exported, tmp_path, monkeypatch, form):
  if form == "onnx":
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
  monkeypatch.setattr(formats, "MAX_BYTES", 10_000)
  out, place = tmp_path / "out", folder.PLACES[form]
  export.export(str(exported), str(out), (form,))
  beside = out / f"{place}.data"
  model = load.load(str(exported))
  size = sum(leaf.nbytes for leaf in jax.tree.leaves(model.variables))
  assert beside.stat().st_size > 0.9 * size > 5 * (out / place).stat().st_size / 10
  batch = exported_models.random_batch(model.config, 3)
  exported_models.assert_alike(load.load(str(out / place)), model, batch)
  _check_script_runs(out, form, tmp_path)
  data = bytearray(beside.read_bytes())
  data[len(data) // 2] ^= 1
  beside.write_bytes(bytes(data))
  with pytest.raises(InputError, match=rf"{place}\.data: contents differ"):
    load.load(str(out / place))


def _check_script_runs(out: pathlib.Path, form: str, tmp_path: pathlib.Path) -> None:
  exported_models.save_photo(tmp_path / "photo.png")
  script = out / scripts.SCRIPTS[form][0]
  exported_models.run_script(script, "photo.png", "the star", "mask.png", cwd=tmp_path)
  assert (tmp_path / "mask.png").is_file()


_GIGABYTES = 3e9


@pytest.mark.slow
@pytest.mark.extras
@pytest.mark.parametrize("form", ["onnx", "stablehlo", "saved_model"])
def test_a_model_of_three_gigabytes_is_exported_and_runs(form, tmp_path):
  """Memory for about three copies of the weights, and as much disk as one."""
  pytest.importorskip("onnx")
  pytest.importorskip("onnxruntime")
  config = tiny_model.make_config(slots=2, width=2048, depth=15, heads=8)
  network = tiny_model.make(config)
  rng = np.random.default_rng(0)

  def draw(path: Any, leaf: Any) -> np.ndarray:
    noise = rng.standard_normal(leaf.shape, np.float32)
    if path_name(path).endswith("/var"):
      return 1 + np.abs(noise)
    return noise / np.float32(max(np.prod(leaf.shape[:-1]), 16) ** 0.5)

  variables = jax.tree_util.tree_map_with_path(draw, tiny_model.shapes(config))
  assert sum(leaf.nbytes for leaf in jax.tree.leaves(variables)) > _GIGABYTES
  batch = exported_models.random_batch(config, 2)
  expected = jax.device_get(jax.jit(functools.partial(apply_model, network))(variables, batch))
  jax.clear_caches()
  place = tmp_path / folder.PLACES[form]
  formats.write(form, place, config, network, variables)
  opened = formats.open_forward(form, epath.Path(place), network)
  complete = batch | (opened.outside(batch) if opened.outside else {})
  actual = jax.jit(opened.forward)(variables if form == "stablehlo" else {}, complete)
  assert np.std(expected.logits) > 1e-3
  np.testing.assert_allclose(actual.logits, expected.logits, atol=1e-3)
