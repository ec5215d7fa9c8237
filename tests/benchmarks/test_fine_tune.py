"""The benchmark of starting from a trained model: its data, and that it runs."""

import numpy as np
import pytest
import tiny_run

from benchmarks import fine_tune
from input_pipeline import records
from input_pipeline.shapes import scenes
from input_pipeline.shapes.detector import DetectorNoise


def test_the_other_data_are_scenes_of_pairs_that_training_leaves_out():
  source = fine_tune.ShiftedSource(train_scenes=2, eval_scenes=1)
  assert source.splits == {"train": 2, "val": 1}
  noise = DetectorNoise.parse("x2")
  for split, numbers in (("train", (0, 1)), ("val", (1_000_000,))):
    (task,) = source.tasks(split)
    for made, n in zip(source.make(task).records, numbers, strict=True):
      expected = records.encode_record(scenes.make_record("testC", 1, n, noise=noise))
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
