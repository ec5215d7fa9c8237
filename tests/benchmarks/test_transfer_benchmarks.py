"""The benchmarks of fine-tuning and of mixtures: their data, and that they run."""

import numpy as np
import pytest
import tiny_run

from benchmarks import fine_tune, mixed, scene_sets
from input_pipeline import records
from input_pipeline.common.errors import InputError
from input_pipeline.shapes import scenes
from input_pipeline.shapes.detector import DetectorNoise


@pytest.mark.parametrize(("like", "noise"), [("testC", "x2"), ("testA", "default")])
def test_data_are_scenes_of_a_split_that_no_other_data_set_has(like, noise):
  source = scene_sets.Source(like, train_scenes=2, eval_scenes=1, noise=noise, seed=1)
  assert source.splits == {"train": 2, "val": 1}
  errors = DetectorNoise.parse(noise)
  for split, numbers in (("train", (1_000_000, 1_000_001)), ("val", (2_000_000,))):
    (task,) = source.tasks(split)
    for made, n in zip(source.make(task).records, numbers, strict=True):
      expected = records.encode_record(scenes.make_record(like, 1, n, noise=errors))
      assert made.keys() == expected.keys()
      assert all(np.array_equal(made[key], expected[key]) for key in ("image", "instance_score"))


@pytest.mark.slow
def test_every_row_is_measured(shapes_data, tmp_path, capsys):
  options = ["--workdir", str(tmp_path / "runs"), "--data_dir", shapes_data, "--seeds", "0,1"]
  lengths = ["--steps", "2", "--pretrain_steps", "2", "--train_scenes", "16", "--eval_scenes", "4"]
  fine_tune.main(["--config", tiny_run.__file__, *options, *lengths, "--config.eval_split="])
  table = capsys.readouterr().out.splitlines()[-4:]
  assert [row.split("  ")[0].strip() for row in table][1:] == [
    "before", "from scratch", "fine-tuned"
  ]  # fmt: skip
  assert "mIoU" in table[0] and table[2].count("(") == 3


@pytest.mark.slow
def test_each_data_set_and_their_mixture_are_measured(tmp_path, capsys):
  options = ["--config", tiny_run.__file__, "--workdir", str(tmp_path / "runs"), "--seeds", "0,1"]
  lengths = ["--steps", "2", "--train_scenes", "16", "--eval_scenes", "4", "--config.eval_split="]
  mixed.main([*options, *lengths])
  header, *table = capsys.readouterr().out.splitlines()[-4:]
  assert "attributes mIoU" in header and "places selection_accuracy" in header
  assert [row.split()[0] for row in table] == ["attributes", "places", "attributes,places"]


def test_the_grammars_share_no_kind_of_expression():
  kinds = {}
  for name, like in mixed.GRAMMARS.items():
    made = [scenes.make_scene(like, 2, n) for n in range(20)]
    kinds[name] = {e.kind for scene in made for texts in scene.expressions for e in texts}
  assert kinds == {"attributes": {"attribute"}, "places": {"superlative", "ordinal", "relation"}}


def test_two_data_sets_are_asked_for(tmp_path):
  with pytest.raises(InputError, match="--datasets a: name two data sets"):
    mixed.main(["--config", tiny_run.__file__, "--workdir", str(tmp_path), "--datasets", "a"])
