"""Models on the Hugging Face Hub: pushed, loaded, and what goes wrong on the way."""

import dataclasses
import json
import os
import pathlib
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator

import exported_models
import hub_server
import numpy as np
import pytest
import tiny_run
import yaml
from hub_server import HubServer, Repository
from PIL import Image

from input_pipeline.common import hub as downloads
from input_pipeline.common.errors import InputError
from mail_jax import Segmenter
from mail_jax.evaluate import command as evaluate
from mail_jax.export import command as export
from mail_jax.export import hub, load
from mail_jax.predict import command as predict
from mail_jax.report import command as report
from mail_jax.train import start

EXPORTED = tiny_run.CHECKOUT / "tests" / "data" / "exported_1"
ADDRESS = "hf://me/model"
SEEN = "2 of 3 images were in the training data of this model (shapes/train)"
METRICS = {"mIoU": 0.8571, "P@0.5": 0.91, "expressions": 12, "training_images": {"warning": SEEN}}


@pytest.fixture
def server(tmp_path, monkeypatch) -> Iterator[HubServer]:
  monkeypatch.setattr(downloads, "CHUNK", 1000)
  with hub_server.running(monkeypatch, tmp_path / "hf") as running:
    yield running


@pytest.fixture
def model(server) -> Repository:
  """The kept model, in a repository."""
  server.models["me/model"] = found = Repository()
  found.commit({path.name: path.read_bytes() for path in EXPORTED.iterdir()})
  return found


def _push(*options: str) -> None:
  export.main(["--checkpoint", str(EXPORTED), "--push", ADDRESS, *options])


def _process(program: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
  """Runs a program that can import the project."""
  paths = os.pathsep.join([str(tiny_run.CHECKOUT), os.environ.get("PYTHONPATH", "")])
  return subprocess.run(
    [sys.executable, "-c", program, *arguments],
    env=os.environ | {"PYTHONPATH": paths} | environment,
    capture_output=True,
    text=True,
    check=False,
  )


def test_what_is_pushed_gives_the_same_masks_when_it_is_loaded(server, tmp_path, capsys):
  _push()
  commit = server.models["me/model"].branches["main"]
  assert f"pushed {ADDRESS}: safetensors " in capsys.readouterr().out
  pixels = exported_models.save_photo(tmp_path / "photo.png")
  results = [
    Segmenter.load(place)(pixels, "the leftmost star") for place in (str(EXPORTED), ADDRESS)
  ]
  np.testing.assert_array_equal(results[0].probability, results[1].probability)
  assert (tmp_path / "hf/hub/models--me--model/snapshots" / commit / "config.json").is_file()


def test_the_card_has_licence_metrics_leakage_and_pictures(server, tmp_path):
  metrics, picture = tmp_path / "metrics.json", tmp_path / "overlays.png"
  metrics.write_text(json.dumps({"shapes/val": METRICS}))
  Image.new("RGB", (8, 8)).save(picture)
  _push("--metrics", str(metrics), "--pictures", str(picture), "--license", "cc-by-4.0")
  files = server.contents("me/model")
  assert files["pictures/1.png"] == picture.read_bytes()
  _, front, text = files["README.md"].decode().split("---\n", 2)
  about = yaml.safe_load(front)
  assert (about["license"], about["pipeline_tag"]) == ("cc-by-4.0", "image-segmentation")
  (result,) = about["model-index"][0]["results"]
  assert result["dataset"] == {"name": "shapes", "type": "shapes", "split": "val"}
  values = {metric["type"]: metric["value"] for metric in result["metrics"]}
  assert values == {"mIoU": 85.71, "P@0.5": 91.0}
  assert f'Segmenter.load("{ADDRESS}")' in text and "](pictures/1.png)" in text
  assert "| shapes/val | 85.71 | 91.00 | 12 |" in text
  assert f"warning: shapes/val: {SEEN}" in text and "under `cc-by-4.0`" in text


def test_a_branch_and_a_commit_are_revisions(server):
  _push()
  first = server.models["me/model"].branches["main"]
  export.main(
    ["--checkpoint", str(EXPORTED), "--push", f"{ADDRESS}@half%2Fone", "--precision", "float16"]
  )
  _push("--precision", "bfloat16")
  prints = {
    revision: load.load(ADDRESS + revision).fingerprint()
    for revision in ("", f"@{first}", "@half%2Fone")
  }
  assert len(set(prints.values())) == 3
  assert prints[f"@{first}"] == load.load(str(EXPORTED)).fingerprint()
  assert server.models["me/model"].branches.keys() == {"main", "half/one"}


def test_a_push_replaces_the_files_of_the_one_before_and_keeps_others(server, model):
  files = server.contents("me/model")
  more = {"model.onnx": b"old", "run_onnx.py": b"old", "mail_preprocess/text.py": b"old"}
  model.commit(files | more | {"LICENSE": b"mine", ".gitattributes": b""})
  _push()
  names = {"config.json", "model.safetensors", "tokenizer.model", "README.md"}
  assert server.contents("me/model").keys() == names | {"LICENSE", ".gitattributes"}


def test_predict_export_and_train_take_an_address(server, model, tmp_path, monkeypatch):
  del server, model
  monkeypatch.chdir(tmp_path)
  exported_models.save_photo(tmp_path / "photo.png")
  predict.main(
    ["--checkpoint", ADDRESS, "--image", "photo.png", "--text", "a star", "--out", "out.png"]
  )
  export.main(["--checkpoint", ADDRESS, "--out", "copy"])
  assert load.load("copy").fingerprint() == load.load(str(EXPORTED)).fingerprint()
  tokenizer = start.open_tokenizer(f"export:{ADDRESS}")
  assert tokenizer and tokenizer.to_bytes() == load.load(str(EXPORTED)).tokenizer.to_bytes()
  with pytest.raises(InputError, match=f"is an exported model; write export:{ADDRESS}$"):
    start.open_tokenizer(f"run:{ADDRESS}")


@pytest.mark.slow
def test_evaluate_and_report_take_an_address(server, model, shapes_data, tmp_path, capsys):
  del server, model
  data = ["--data_dir", shapes_data, "--data", "shapes/val"]
  evaluate.main(["--checkpoint", ADDRESS, *data])
  assert f"{ADDRESS}, step 4" in capsys.readouterr().out
  out = tmp_path / "report.html"
  with pytest.raises(InputError, match=f"{ADDRESS} is not on this machine; set --out"):
    report.main([ADDRESS, *data])
  report.main([ADDRESS, *data, "--count", "0", "--out", str(out)])
  assert "<title>model" in out.read_text()


def test_only_the_files_of_the_wanted_format_are_transferred(server, model):
  model.commit(server.contents("me/model") | {"model.onnx": b"large", "pictures/1.png": b"large"})
  place = pathlib.Path(hub.fetch(ADDRESS))
  assert {path.name for path in place.iterdir()} == {
    "config.json",
    "model.safetensors",
    "tokenizer.model",
  }


def test_a_broken_download_goes_on_where_it_ended(server, model):
  server.break_after = 20_000
  assert load.load(ADDRESS).fingerprint() == load.load(str(EXPORTED)).fingerprint()
  path = f"/me/model/resolve/{model.branches['main']}/model.safetensors"
  ranges = server.requests_for(path)
  assert ranges == ["", "bytes=20000-", "bytes=40000-"]


def test_a_download_that_gets_nowhere_fails_in_one_line_and_the_next_one_resumes(server, model):
  del model
  server.break_after, server.ranges = 20_000, False
  with pytest.raises(InputError, match=rf"^--checkpoint {ADDRESS}: .*; run the command again") as e:
    load.load(ADDRESS)
  assert "\n" not in str(e.value)
  server.break_after = None
  assert load.load(ADDRESS).fingerprint() == load.load(str(EXPORTED)).fingerprint()


def _damage(place: str, name: str) -> None:
  blob = pathlib.Path(place, name).resolve()
  data = bytearray(blob.read_bytes())
  data[len(data) // 2] ^= 1
  blob.write_bytes(bytes(data))


def test_a_damaged_file_in_the_cache_is_downloaded_again(server, model):
  _damage(hub.fetch(ADDRESS), "model.safetensors")
  assert load.load(ADDRESS).fingerprint() == load.load(str(EXPORTED)).fingerprint()
  data = server.contents("me/model")["model.safetensors"]
  model.commit(server.contents("me/model") | {"model.safetensors": data[:-1] + b"x"})
  with pytest.raises(InputError, match=r"me/model: model\.safetensors is not what was exported; "):
    load.load(ADDRESS)


FETCH = """
import sys
from mail_jax import InputError
from mail_jax.export import hub
for address in sys.argv[1:]:
  try:
    print(hub.fetch(address))
  except InputError as error:
    print(error)
"""


def test_offline_mode_takes_what_is_in_the_cache_and_asks_for_nothing(server, model, tmp_path):
  commit, place = model.branches["main"], hub.fetch(ADDRESS)
  # A commit of which only a part was downloaded.
  files = server.contents("me/model")
  server.models["me/part"] = Repository()
  server.models["me/part"].commit(files)
  (pathlib.Path(hub.fetch("hf://me/part")) / "model.safetensors").unlink()
  asked = len(server.asked)
  addresses = [ADDRESS, f"{ADDRESS}@{commit}", "hf://me/another", f"{ADDRESS}@v2", "hf://me/part"]
  done = _process(FETCH, *addresses, HF_HUB_OFFLINE="1")
  lines = done.stdout.splitlines()
  assert lines[:2] == [place, place], done.stderr
  for address, line in zip(addresses[2:4], lines[2:4], strict=True):
    cache = tmp_path / "hf" / "hub"
    assert line == f"{address}: HF_HUB_OFFLINE is set, and it is not in the cache ({cache})"
  assert lines[4].startswith("hf://me/part: HF_HUB_OFFLINE is set, and ")
  assert len(lines) == 5 and len(server.asked) == asked


def test_without_a_network_the_cache_is_enough(server, model, monkeypatch):
  del model
  place = hub.fetch(ADDRESS)
  monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
  assert hub.fetch(ADDRESS) == place
  with pytest.raises(
    InputError, match=r"^hf://me/another: not in the cache \(.*, and http.*:9 can"
  ):
    hub.fetch("hf://me/another")
  del server


def test_nothing_is_written_but_the_cache(server, model, tmp_path):
  del server, model
  folders = {name: tmp_path / name for name in ("home", "temporary", "here", "hf")}
  for folder in folders.values():
    folder.mkdir(exist_ok=True)
  program = (
    "import os, sys; os.chdir(sys.argv[1]); from mail_jax.export import load; "
    "print(load.load(sys.argv[2]).step)"
  )
  done = _process(
    program,
    str(folders["here"]),
    ADDRESS,
    HOME=str(folders["home"]),
    TMPDIR=str(folders["temporary"]),
    XDG_CACHE_HOME=str(folders["home"] / ".cache"),
    JAX_COMPILATION_CACHE_DIR="",
  )
  assert done.stdout.strip() == "4", done.stderr
  left = {path.name: sorted(path.rglob("*")) for path in tmp_path.iterdir()}
  assert left.pop("hf")
  assert not any(left.values()), left


def _gone(name: str) -> Callable[[HubServer, Repository], None]:
  def change(server: HubServer, model: Repository) -> None:
    model.commit({k: v for k, v in server.contents("me/model").items() if k != name})

  return change


def _set(**values: object) -> Callable[[HubServer, Repository], None]:
  def change(server: HubServer, model: Repository) -> None:
    for thing in (server, model):
      for key, value in values.items():
        if key in {field.name for field in dataclasses.fields(thing)}:
          setattr(thing, key, value)

  return change


def _foreign(server: HubServer, model: Repository) -> None:
  del server
  model.commit({"config.json": b'{"architectures": ["ViltModel"]}', "pytorch_model.bin": b"x"})


def _nothing(server: HubServer, model: Repository) -> None:
  del server, model


@pytest.mark.parametrize(
  ("change", "address", "message"),
  [
    (_nothing, "hf://me", r"hf://me: expected hf://USER/NAME or hf://USER/NAME@REVISION"),
    (_nothing, "hf://me/../you", r"expected hf://USER/NAME"),
    (_nothing, "hf://me/another", r"hf://me/another: no such repository at http\S+, or a private"),
    (_set(private=True), ADDRESS, r"or a private one; if it is private, log in .*HF_TOKEN"),
    (_set(gated=True), ADDRESS, r"gated: accept its terms at http\S+/me/model, and log in with"),
    (_nothing, f"{ADDRESS}@v2", r"@v2: has no branch, tag or commit v2"),
    (_set(broken=True), ADDRESS, r"not in the cache .* cannot be reached \(.*500 "),
    (_gone("config.json"), ADDRESS, r"not a model exported by mail_jax: it has no config\.json"),
    (_foreign, ADDRESS, r"me/model: config\.json: not a model exported by mail_jax"),
    (
      _gone("model.safetensors"),
      ADDRESS,
      r"has no model\.safetensors, which its config\.json lists; push",
    ),
    (_nothing, f"{ADDRESS}/model.onnx", r"has no model\.onnx, but model\.safetensors"),
    (_nothing, f"{ADDRESS}/weights.bin", r"has no weights\.bin, but model\.safetensors"),
  ],
)
def test_what_is_wrong_on_the_hub_is_told_in_one_line(
  server, model, monkeypatch, change, address, message
):
  change(server, model)
  if model.private:
    monkeypatch.delenv("HF_TOKEN")
  with pytest.raises(InputError, match=message) as caught:
    load.load(address)
  assert "\n" not in str(caught.value)
  assert str(caught.value).startswith("--checkpoint hf://")


def test_a_private_model_is_loaded_with_the_token_of_a_login(server, model, tmp_path, monkeypatch):
  model.private = True
  monkeypatch.delenv("HF_TOKEN")
  (tmp_path / "hf").mkdir(exist_ok=True)
  (tmp_path / "hf" / "token").write_text(hub_server.TOKEN)
  assert hub.fetch(ADDRESS)
  assert server.asked


def test_a_private_repository_is_created_if_asked_for(server):
  _push("--private")
  assert server.models["me/model"].private


def test_without_huggingface_hub_the_way_out_is_told(monkeypatch):
  monkeypatch.setitem(sys.modules, "huggingface_hub", None)
  with pytest.raises(InputError, match=rf"{ADDRESS} needs the package huggingface-hub; pip"):
    load.load(ADDRESS)


@pytest.mark.parametrize(
  ("option", "change", "token", "message"),
  [
    ("hf://me", _nothing, "", r"hf://me: expected hf://USER/NAME"),
    ("hf://me/new/model.onnx", _nothing, "", r"expected hf://USER/NAME or hf://USER/NAME@BRANCH"),
    ("me/new", _nothing, "", r"me/new: expected hf://USER/NAME"),
    ("hf://me/new", _nothing, None, r"--push hf://me/new: no token; log in with `hf auth login`"),
    ("hf://me/new", _nothing, "hf_other", r"--push hf://me/new: refused \(401.*; log in with"),
    ("hf://others/new", _nothing, "", r"refused \(403: .*no rights.*\); log in with `hf auth"),
    (ADDRESS, _foreign, "", r"has other files than a model of mail_jax; name a new one"),
    (ADDRESS, _set(broken=True), "", r"--push hf://me/model: out of order; run the command again"),
  ],
)
def test_what_is_wrong_with_a_push_is_told_in_one_line_and_changes_nothing(
  server, model, monkeypatch, tmp_path, option, change, token, message
):
  change(server, model)
  before = dict(model.branches)
  if token is None:
    monkeypatch.delenv("HF_TOKEN")
  elif token:
    monkeypatch.setenv("HF_TOKEN", token)
  monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
  with pytest.raises(InputError, match=message) as caught:
    export.main(["--checkpoint", str(EXPORTED), "--push", option])
  assert "\n" not in str(caught.value)
  assert model.branches == before and server.models.keys() == {"me/model"}


def test_a_folder_that_is_named_is_kept_and_pushed(server, tmp_path):
  _push("--out", str(tmp_path / "out"))
  names = {path.name for path in (tmp_path / "out").iterdir()}
  assert server.contents("me/model").keys() == names | {".gitattributes"}
  shutil.rmtree(tmp_path / "out")
  assert load.load(ADDRESS).step == 4


@pytest.mark.parametrize("option", ["--pictures", "--metrics"])
def test_a_file_for_the_card_that_cannot_be_read_is_told_before_anything(server, tmp_path, option):
  (tmp_path / "file").write_text("nothing")
  with pytest.raises(InputError, match=rf"^{option} .*file: "):
    _push(option, str(tmp_path / "file"))
  assert not server.asked
