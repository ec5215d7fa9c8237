"""A proposer that runs once for several data sets: its masks, and how it resumes."""

import json
import pathlib

import numpy as np
import pytest
import refer_layout

from input_pipeline import records
from input_pipeline.common.errors import InputError
from input_pipeline.prepare import command as prepare
from input_pipeline.proposals import command, propose
from input_pipeline.proposers import mask_recipe
from input_pipeline.tf import record_reader


class Stripes:
  """Proposes stripes of the image, some of them alike; tells which images it has seen."""

  trained_on = "nothing"
  seen: list[int] = []  # noqa: RUF012
  fails_at = -1

  def __init__(self, argument: str):
    assert not argument

  def propose(self, images, image_ids):
    found = []
    for image, image_id in zip(images, image_ids, strict=True):
      if image_id == Stripes.fails_at:
        raise KeyboardInterrupt
      Stripes.seen.append(image_id)
      rng = np.random.default_rng(image_id)
      masks = np.zeros((30, *image.shape[:2]), bool)
      for mask in masks:
        left, top = rng.integers(0, 30, 2)
        mask[top : top + rng.integers(1, 18), left : left + rng.integers(1, 30)] = True
      scores = rng.integers(1, 9, 30).astype(np.float32) / 7
      found.append(records.Instances(masks, scores, np.arange(30, dtype=np.int32), "stripes"))
    return found


SPEC = f"{__name__}.Stripes"


@pytest.fixture
def layouts(tmp_path: pathlib.Path) -> list[refer_layout.ReferLayout]:
  """Two data sets in one root, with the same images."""
  made = []
  for name in ("refcoco_unc", "refcoco+_unc"):
    layout = refer_layout.make_layout(tmp_path / name, name)
    layout.root = tmp_path / "refer"
    made.append(layout.write())
  Stripes.seen, Stripes.fails_at = [], -1
  return made


def _words(layouts: list[refer_layout.ReferLayout], *more: str) -> list[str]:
  names = [word for layout in layouts for word in ("--dataset", layout.dataset)]
  return [
    *("propose", *names, "--refer_root", str(layouts[0].root)),
    *("--images", str(layouts[0].images), "--instances", SPEC),
    *("--out", str(layouts[0].root.parent / "proposals.json"), *more),
  ]


def _records(data_dir: pathlib.Path, split: str) -> list[dict]:
  found = record_reader.read_records(record_reader.Split(str(data_dir), "refcoco_unc", split))
  keys = ("image_id", "instances", "instance_score")
  return [{key: np.asarray(fields[key]).tolist() for key in keys} for fields in found]


@pytest.mark.parametrize("rank", ["score", "distinct"])
def test_records_are_those_of_the_proposer_itself(layouts, tmp_path, rank):
  command.main(_words(layouts, "--rank", rank, "--max_instances", "5"))
  assert sorted(Stripes.seen) == [100, 101, 102, 103]
  layout, options = layouts[0], ["--max_instances", "5"]
  own = layout.arguments(tmp_path / "own", *options, "--rank", rank)
  own[own.index("--instances") + 1] = SPEC
  prepare.main(own)
  given = layout.arguments(tmp_path / "given", *options, "--rank", "given", "--allow_empty")
  given[given.index("--instances") + 1] = f"results:{tmp_path}/proposals.json"
  prepare.main([*given, "--trained_on", "other"])
  for split in ("train", "val", "testA", "testB"):
    assert _records(tmp_path / "given", split) == _records(tmp_path / "own", split)


def test_an_interrupted_run_resumes_without_proposing_again(layouts, tmp_path, monkeypatch):
  out = tmp_path / "proposals.json"
  command.main(_words(layouts))
  whole, rows = out.read_bytes(), tmp_path / "proposals.json.rows"
  out.unlink()
  rows.unlink()
  monkeypatch.setattr(propose.readers, "BATCH_SIZE", 1)
  Stripes.seen, Stripes.fails_at = [], 102
  with pytest.raises(KeyboardInterrupt):
    command.main(_words(layouts))
  assert not out.exists() and propose.images_done(str(out)) == 2
  rows.write_bytes(rows.read_bytes()[:-20])  # as a killed process may leave it
  Stripes.fails_at = -1
  command.main(_words(layouts, "--limit", "1"))
  assert propose.images_done(str(out)) == 2 and propose.seconds_per_image(str(out)) > 0
  command.main(_words(layouts))
  assert Stripes.seen == [100, 101, 101, 102, 103]
  assert out.read_bytes() == whole
  assert sorted(tmp_path.glob("proposals*")) == [out, rows]
  before = list(Stripes.seen)
  command.main(_words(layouts))
  assert before == Stripes.seen


def test_a_file_of_other_options_is_kept_and_named(layouts, tmp_path):
  command.main(_words(layouts))
  content = (tmp_path / "proposals.json").read_bytes()
  with pytest.raises(InputError, match=r"proposals\.json: exists, and is of another proposer"):
    command.main(_words(layouts, "--max_instances", "3"))
  assert (tmp_path / "proposals.json").read_bytes() == content
  assert len(json.loads(content)["images"]) == 4
  (tmp_path / "proposals.json").unlink()
  with pytest.raises(InputError, match=r"proposals\.json\.rows: exists, and is of another"):
    command.main(_words(layouts, "--max_instances", "3"))


def test_images_of_one_more_data_set_are_added(layouts, tmp_path):
  out = tmp_path / "proposals.json"
  layouts[0].refs = [ref for ref in layouts[0].refs if ref["split"] != "testB"]
  layouts[0].write()
  command.main(_words(layouts[:1]))
  assert mask_recipe.read_about(str(out))["datasets"] == ["refcoco_unc"]
  assert Stripes.seen == [100, 101, 102]
  command.main(_words(layouts))
  assert Stripes.seen == [100, 101, 102, 103]
  one_by_one = out.read_bytes()
  out.unlink()
  (tmp_path / "proposals.json.rows").unlink()
  command.main(_words(layouts))
  assert out.read_bytes() == one_by_one


def test_a_second_process_is_refused(layouts, tmp_path):
  rows = propose._Rows(str(tmp_path / "proposals.json"), {"rank": "score"})
  try:
    with pytest.raises(InputError, match="another process is writing it"):
      propose._Rows(str(tmp_path / "proposals.json"), {"rank": "score"})
  finally:
    rows.close()


def test_a_missing_image_is_named_before_anything_is_proposed(layouts, tmp_path):
  layouts[0].image_path(1).unlink()
  with pytest.raises(InputError, match=r"refcoco_unc: .*000000000101\.jpg"):
    command.main(_words(layouts))
  assert not Stripes.seen
