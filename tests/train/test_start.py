"""A run that starts from a run or an export of ours: what is taken over, and what is refused."""

import jax
import numpy as np
import pytest
import tiny_run

from input_pipeline.common.errors import InputError
from input_pipeline.preprocess.tokenizer import SentencePieceTokenizer
from mail_jax.config import load_config
from mail_jax.export import load
from mail_jax.train import command as train
from mail_jax.train import start
from mail_jax.train.data import open_data
from mail_jax.train.loop import Trainer


def _start(data_dir, workdir, *more: str) -> Trainer:
  """Returns a trainer of the tiny recipe that has not started."""
  config = load_config(tiny_run.__file__, more)
  return Trainer(config, str(workdir), open_data(config, data_dir))


def _equal(tree, other) -> bool:
  return jax.tree.all(jax.tree.map(np.array_equal, jax.device_get(tree), jax.device_get(other)))


@pytest.mark.parametrize("kind", ["run", "export"])
def test_parameters_averages_statistics_and_tokenizer_are_taken_over(
  kind, finished_run, exported, shapes_data, tmp_path, monkeypatch, capsys
):
  monkeypatch.setattr(SentencePieceTokenizer, "train", None)
  place = {"run": finished_run, "export": exported}[kind]
  trainer = _start(shapes_data, tmp_path / "run", f"init={kind}:{place}", "max_instances=12")
  old = load.load(str(finished_run))
  raw = load.load(str(finished_run), averaged=kind == "export")
  assert trainer.data.tokenizer.to_bytes() == old.tokenizer.to_bytes()
  assert _equal(trainer.state.variables, raw.variables)
  assert _equal(trainer.state.averaged, old.variables)
  assert kind == "export" or not _equal(raw.variables, old.variables)
  assert int(trainer.state.step) == 0
  printed = capsys.readouterr().out
  assert f"{kind}:{place}, step {old.step}: 0.11 M of 0.11 M parameters loaded" in printed
  assert "new: nothing" in printed and "changed to fit" not in printed
  trainer.checkpoints.close()


def test_the_last_checkpoint_or_one_of_a_step_is_chosen_with_at(
  finished_run, shapes_data, tmp_path, capsys
):
  first = tiny_run.steps_kept(finished_run)[0]
  for word, step in (("last", tiny_run.STEPS), (first, first)):
    trainer = _start(shapes_data, tmp_path / str(word), f"init=run:{finished_run}@{word}")
    expected = load.load(str(finished_run), step, averaged=False)
    assert _equal(trainer.state.variables, expected.variables)
    assert f"step {step}: 0.11 M" in capsys.readouterr().out
    trainer.checkpoints.close()


def test_another_size_and_another_tokenizer_are_said(finished_run, shapes_data, tmp_path, capsys):
  vocabulary = tmp_path / "vocab.txt"
  vocabulary.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "left", "xylem"]))
  more = ["image_size=48", f"tokenizer=wordpiece:{vocabulary}", "init_leave_out=^decoder"]
  trainer = _start(shapes_data, tmp_path / "run", f"init=run:{finished_run}", *more)
  printed = capsys.readouterr().out
  assert "image/position (4 x 4 to 6 x 6 patches)" in printed
  assert "text/words/embedding (6 of 7 word pieces by their text, the others are new)" in printed
  assert "new: decoder" in printed and "not taken: decoder" in printed
  old = load.load(str(finished_run), averaged=False)
  rows = jax.device_get(trainer.state.variables["params"]["text"]["words"]["embedding"])
  before = jax.device_get(old.variables["params"]["text"]["words"]["embedding"])
  np.testing.assert_array_equal(rows[4], before[old.tokenizer.pieces().index("\u2581the")])
  assert np.abs(rows[6]).max() < 0.06, "a new row is as small as new rows are"
  trainer.checkpoints.close()


@pytest.mark.parametrize(
  ("init", "message"),
  [
    ("run:nothing", r"config\.init 'run:nothing': there is no .*nothing/checkpoints; give"),
    ("export:{run}", r"is a run; write run:"),
    ("run:{exported}", r"is an exported model; write export:"),
    ("export:{exported}/model.stablehlo", "has no parameters; give the exported folder"),
    ("run:{run}@3", r"the checkpoint of this step does not exist"),
    ("runs/demo", r"config\.init 'runs/demo' is not run:WORKDIR, export:FOLDER, vilt:PATH"),
  ],
)
def test_what_cannot_be_started_from_is_one_line(init, message, finished_run, exported):
  with pytest.raises(InputError, match=message):
    start.open_tokenizer(init.format(run=finished_run, exported=exported))


def test_parts_to_leave_out_of_nothing_are_refused(shapes_data, tmp_path):
  with pytest.raises(InputError, match=r"init_leave_out is set, but config\.init is empty"):
    _start(shapes_data, tmp_path / "run", "init_leave_out=^decoder")
  assert not (tmp_path / "run").exists()


def test_training_in_an_exported_folder_is_refused(exported, shapes_data):
  before = sorted(path.name for path in exported.iterdir())
  with pytest.raises(
    InputError, match=r"is an exported model; .*--config\.init=export:.* another --workdir"
  ):
    train.main(tiny_run.arguments(shapes_data, exported))
  assert sorted(path.name for path in exported.iterdir()) == before


def test_a_run_knows_the_images_of_the_one_it_started_from(finished_run, shapes_data, tmp_path):
  source = f"--config.init=run:{finished_run}"
  command = tiny_run.arguments(shapes_data, tmp_path / "run", source, "--config.steps=1")
  train.main([*command, "--config.eval_split="])
  images = load.load(str(tmp_path / "run"), "last").images
  assert images is not None and list(images) == ["shapes/train"]
