"""Event files of a run, read with TensorBoard's own readers and compared with `metrics.jsonl`."""

import io
import itertools
import json
import pathlib
import subprocess
import sys
from typing import Any

import jax
import numpy as np
import pytest
import read_batches
import several_processes
import tiny_run
from PIL import Image

from mail_jax.export import load
from mail_jax.models.build import apply_model
from mail_jax.models.mail import find_mask
from mail_jax.train import command as train
from mail_jax.train.logging import samples

pytestmark = pytest.mark.extras
STEPS, EVERY, COUNT = 12, 6, 3
SETTINGS = (
  f"--config.steps={STEPS}",
  f"--config.eval_every={EVERY}",
  f"--config.log.images={COUNT}",
)
ON = "--config.log.tensorboard=True"


@pytest.fixture(scope="module", autouse=True)
def needs_tensorboard():
  pytest.importorskip("tensorboard")


def _train(data_dir: str, workdir: pathlib.Path, *more: str) -> None:
  train.main(tiny_run.arguments(data_dir, workdir, *SETTINGS, *more))


@pytest.fixture(scope="module")
def run(needs_tensorboard, shapes_data, tmp_path_factory) -> pathlib.Path:
  """Returns the folder of an uninterrupted run, which tests must not change."""
  workdir = tmp_path_factory.mktemp("events") / "run"
  _train(shapes_data, workdir, ON)
  return workdir


def _events(workdir: pathlib.Path) -> list[Any]:
  """Yields all events of all files, before TensorBoard purges any."""
  from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

  files = sorted((workdir / "tensorboard").iterdir())
  return [event for file in files for event in LegacyEventFileLoader(str(file)).Load()]


def _values(workdir: pathlib.Path) -> dict[tuple[str, int], Any]:
  """Returns every value by tag and step, which must be unique."""
  actual: dict[tuple[str, int], Any] = {}
  for event in _events(workdir):
    for value in event.summary.value:
      assert (value.tag, event.step) not in actual, "twice"
      actual[value.tag, event.step] = value
  return actual


def _scalars(workdir: pathlib.Path) -> dict[tuple[str, int], float]:
  return {
    key: value.simple_value
    for key, value in _values(workdir).items()
    if value.HasField("simple_value")
  }


def _logged(workdir: pathlib.Path) -> dict[tuple[str, int], float]:
  """Returns the numbers of `metrics.jsonl` by the tags of docs/guides/logging.md."""
  actual = {}
  for row in tiny_run.rows(workdir):
    step, seconds = row.pop("step"), row.pop("seconds")
    if "lr" in row:
      actual |= {(f"seconds/{name}", step): value for name, value in seconds.items()}
    actual |= {(n if n.startswith("val/") else f"train/{n}", step): v for n, v in row.items()}
  return actual


def _pictures(workdir: pathlib.Path) -> dict[tuple[str, int], np.ndarray]:
  return {
    key: np.asarray(Image.open(io.BytesIO(value.image.encoded_image_string)))
    for key, value in _values(workdir).items()
    if value.HasField("image")
  }


def _unclocked(scalars: dict[tuple[str, int], float]) -> dict[tuple[str, int], float]:
  clocked = ("seconds/", "train/samples_per_second", "train/data_wait", "train/mfu")
  return {key: value for key, value in scalars.items() if not key[0].startswith(clocked)}


def test_every_number_of_the_log_is_a_scalar_and_there_are_no_others(run):
  logged, scalars = _logged(run), _scalars(run)
  assert scalars.keys() == logged.keys()
  assert {"train/loss", "train/bce", "train/lr", "train/grad_norm", "train/samples_per_second"} <= {
    tag for tag, _ in scalars
  }
  np.testing.assert_allclose([scalars[key] for key in logged], [*logged.values()], rtol=1e-6)


def test_the_config_is_there_as_text_and_as_hyperparameters(run):
  from tensorboard.plugins.hparams import metadata

  values = _values(run)
  text = values["config", 0].tensor.string_val[0].decode()
  config = json.loads(text)  # a block of code in Markdown is indented by four, which JSON allows
  assert all(line.startswith("    ") for line in text.splitlines())
  assert config["optimizer"]["b2"] == 0.98 and config["steps"] == STEPS
  content = values[metadata.SESSION_START_INFO_TAG, 0].metadata.plugin_data.content
  hparams = metadata.parse_session_start_info_plugin_data(content).hparams
  assert hparams["optimizer.b2"].number_value == 0.98
  assert hparams["augment.flip"].bool_value is True


def test_the_pictures_show_what_the_saved_model_says_of_always_the_same_sentences(run, shapes_data):
  """Loads the checkpoint and the samples, and mixes the colours independently."""
  pictures = _pictures(run)
  assert set(pictures) == set(itertools.product([f"val/{i}" for i in range(COUNT)], [EVERY, STEPS]))
  model = load.load(str(run), "last")
  config = model.config
  rows = read_batches.evaluation(
    shapes_data, config.dataset, "val", model.tokenizer, batch_size=40, limit=40,
    image_size=config.image_size, max_instances=config.max_instances, max_tokens=config.max_tokens,
  )  # fmt: skip
  batch = next(iter(rows))
  numbers = samples.choose(40, COUNT, config.seed)
  arrays = {name: value for name, value in batch.items() if name != "meta"}
  output = jax.jit(lambda v, b: apply_model(model.model, v, b))(model.variables, arrays)
  masks = np.asarray(find_mask(output.logits, output.no_target))
  assert masks[numbers].any() and not masks[numbers].all()
  for i, number in enumerate(numbers):
    picture = pictures[f"val/{i}", STEPS].astype(float)
    side = 288  # 32 pixels, nine times
    drawn = picture[10 : 10 + side, 10 : 10 + side]
    photo = np.asarray(
      Image.fromarray(batch["image"][number]).resize((side, side), Image.Resampling.BICUBIC)
    )
    large = masks[number].repeat(9, 0).repeat(9, 1)
    expected = np.where(large[..., None], 0.5 * photo + 0.5 * np.array([30, 110, 255]), photo)
    error = np.abs(drawn - expected).mean(-1)
    # All but the outlines of target and selected instance, a pixel wide with a dark border.
    assert np.median(error) < 4
    assert (error < 30).mean() > 0.9
    wrong = np.where(large[..., None], photo, 0.5 * photo + 0.5 * np.array([30, 110, 255]))
    assert (np.abs(drawn - wrong).mean(-1) < 30).mean() < 0.5
    assert (picture[side + 10 :] < 100).any(), "the sentence is below"


def test_samples_are_spread_over_the_data_and_depend_on_the_seed_alone():
  chosen = samples.choose(6716, 8, 0)
  assert len(set(chosen.tolist())) == 8 and (np.diff(chosen) > 0).all()
  assert [int(n) * 8 // 6716 for n in chosen] == list(range(8))
  np.testing.assert_array_equal(samples.choose(6716, 8, 0), chosen)
  assert samples.choose(6716, 8, 1).tolist() != chosen.tolist()
  assert samples.choose(3, 8, 0).tolist() == [0, 1, 2]


@pytest.mark.slow
def test_a_killed_run_that_goes_on_has_no_step_twice_and_none_of_before_that_it_does_not_make(
  run, shapes_data, tmp_path, monkeypatch
):
  from tensorboard.compat.proto import event_pb2, summary_pb2
  from tensorboard.summary.writer.record_writer import RecordWriter

  with monkeypatch.context() as patch:
    calls = itertools.count(1)

    def reached(preemption) -> bool:
      preemption.asked |= next(calls) == 5
      return preemption.asked

    patch.setattr("mail_jax.train.guards.Preemption.reached", reached)
    _train(shapes_data, tmp_path, ON)
  assert max(tiny_run.steps_kept(tmp_path)) == 5
  # Events of a killed run after its checkpoint, and half a record.
  (file,) = (tmp_path / "tensorboard").iterdir()
  value = summary_pb2.Summary.Value(tag="train/loss", simple_value=7.0)
  beyond = [event_pb2.Event(step=s, summary=summary_pb2.Summary(value=[value])) for s in (6, 99)]
  with file.open("ab") as stream:
    for event in beyond:
      RecordWriter(stream).write(event.SerializeToString())
    stream.write(b"\x20\x00\x00\x00\x00\x00\x00\x00half")
  _train(shapes_data, tmp_path, ON)
  assert len([*(tmp_path / "tensorboard").iterdir()]) == 2
  scalars, undisturbed = _unclocked(_scalars(tmp_path)), _unclocked(_scalars(run))
  assert scalars == undisturbed
  pictures, expected = _pictures(tmp_path), _pictures(run)
  assert pictures.keys() == expected.keys()
  assert all(np.array_equal(pictures[key], expected[key]) for key in expected)
  # An open TensorBoard forgets what comes after step 5.
  starts = [e.step for e in _events(tmp_path) if e.HasField("session_log")]
  assert starts == [6]


@pytest.mark.slow
def test_asked_for_later_it_gets_the_rows_of_before(run, shapes_data, tmp_path):
  _train(shapes_data, tmp_path, "--config.log.tensorboard=False")
  first = tiny_run.rows(tmp_path)
  for step in tiny_run.steps_kept(tmp_path):
    if step > 8:  # as if stopped there
      (tmp_path / "checkpoints" / str(step)).rename(tmp_path / f"removed-{step}")
  _train(shapes_data, tmp_path, ON)
  assert len(first) == len(tiny_run.rows(tmp_path))
  assert _unclocked(_scalars(tmp_path)) == _unclocked(_scalars(run))


def test_a_finished_run_that_is_started_again_writes_nothing(run, shapes_data):
  before = {path.name: path.read_bytes() for path in (run / "tensorboard").iterdir()}
  _train(shapes_data, run, ON)
  assert {path.name: path.read_bytes() for path in (run / "tensorboard").iterdir()} == before


def test_writing_imports_neither_tensorflow_nor_torch(tmp_path):
  program = """
import sys
from mail_jax.train.logging.tensorboard import TensorBoard
board = TensorBoard(sys.argv[1], 0, {"a": {"b": [1, 2]}}, [])
board.row(1, {"loss": 0.5, "lr": 0.25, "seconds": {"step": 1.0}})
board.close()
print(sorted({"tensorflow", "torch"} & sys.modules.keys()))
"""
  done = subprocess.run(
    [sys.executable, "-c", program, str(tmp_path)],
    cwd=tiny_run.CHECKOUT,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.stdout == "[]\n", done.stderr
  assert _scalars(tmp_path) == {
    ("train/loss", 1): 0.5,
    ("train/lr", 1): 0.25,
    ("seconds/step", 1): 1.0,
  }


@pytest.mark.slow
def test_two_processes_draw_what_one_draws_and_only_the_first_writes(run, shapes_data, tmp_path):
  """The mesh differs, so numbers may differ in their last digits."""
  words = ["-m", "mail_jax.train", *tiny_run.arguments(shapes_data, tmp_path, *SETTINGS, ON)]
  ended = several_processes.start(2, *words, environment=several_processes.devices(1)).wait(300)
  assert [process.code for process in ended] == [0, 0], ended[0].printed
  assert len([*(tmp_path / "tensorboard").iterdir()]) == 1
  scalars, single = _unclocked(_scalars(tmp_path)), _unclocked(_scalars(run))
  assert scalars.keys() == single.keys()
  pictures, drawn = _pictures(tmp_path), _pictures(run)
  assert pictures.keys() == drawn.keys()
  side, blue = 288, np.array([30, 110, 255])
  for key in drawn:
    here, expected = (images[key].astype(float) for images in (pictures, drawn))
    line = slice(side + 12, side + 26)  # the first of the caption
    assert np.abs(here[line] - expected[line]).mean() < 2  # JPEGs of pictures that differ above
    # Image and target are the same; whether a pixel is tinted may differ.
    choices = (expected, 0.5 * (expected + blue), 2 * expected - blue)
    error = np.minimum.reduce([np.abs(here - choice).max(-1) for choice in choices])
    assert (error[:side] < 60).mean() > 0.97
    other = drawn[f"val/{(int(key[0][-1]) + 1) % COUNT}", key[1]].astype(float)
    assert (np.abs(here - other).max(-1)[:side] < 60).mean() < 0.9
