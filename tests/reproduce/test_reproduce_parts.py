"""The parts of `reproduce`: its runs, its budget, its steps and its table."""

import argparse
import json
import pathlib
import re
import shlex
import subprocess
import sys
import threading
from typing import Any

import pytest
import refer_layout
import tiny_run
from hypothesis import given
from hypothesis import strategies as st

from input_pipeline.common.errors import InputError
from mail_jax.evaluate import per_expression
from mail_jax.evaluate.protocols import PROTOCOLS
from mail_jax.hardware import flops
from mail_jax.reproduce import (
  budget,
  command,
  forecast,
  published,
  raw_files,
  runs,
  stages,
  state,
  table,
  timing,
)
from mail_jax.reproduce.budget import Length
from mail_jax.reproduce.stages import Stage, Table

TINY = tiny_run.__file__


def _runs(*models: str, seeds: int = 1, more: tuple[str, ...] = ()) -> list[runs.Run]:
  return runs.make(TINY, models, seeds, more, across=False)


def _lengths(models: int, seeds: int, steps: int = 1000, seconds: float = 100.0) -> list[Length]:
  made = _runs(*runs.ALONE[:models], seeds=seeds)
  return [Length(run, steps, steps, 0.0, 0.0, seconds) for run in made]


def _table(folder: pathlib.Path, **changes: Any) -> Table:
  settings: dict[str, Any] = {
    "refer_root": str(folder / "refer"),
    "images": str(folder / "train2014"),
    "out": folder / "out",
    "data_dir": str(folder / "out" / "data"),
    "workdir": str(folder / "out" / "runs"),
    "instances": "felzenszwalb",
    "trained_on": "nothing",
    "rank": "score",
    "max_instances": 8,
    "masks": stages.MASKS,
    "protocols": ("original", "oneref"),
  }
  return Table(**settings | changes)


def test_known_recipes_get_their_argument_and_others_the_data_set():
  assert runs.spec_of("refcoco", "umd") == "refcoco:umd"
  assert runs.spec_of("refcoco_beit3", "refcoco+") == "refcoco_beit3:base,refcoco+"
  assert runs.spec_of("refcoco_beit3:large,{set},480", "unc") == "refcoco_beit3:large,unc,480"
  for name, data in runs.MODELS.items():
    for recipe in ("refcoco", "refcoco_beit3", TINY):
      (run,) = runs.make(recipe, [name], 1, [], across=False)
      assert run.config.dataset == data
      assert run.datasets == run.evaluated == tuple(data.split(","))


def test_every_seed_is_a_run_and_across_evaluates_it_on_all_sets():
  made = runs.make(TINY, ["unc", "umd"], 2, ["--config.steps=5"], across=True)
  assert [run.name for run in made] == ["unc,seed=0", "umd,seed=0", "unc,seed=1", "umd,seed=1"]
  assert [run.config.seed for run in made] == [0, 0, 1, 1]
  assert {run.config.steps for run in made} == {5}
  assert all(run.evaluated == tuple(published.SETS) for run in made)


@pytest.mark.parametrize(
  ("recipe", "models", "seeds", "words", "message"),
  [
    (TINY, ["grefcoco"], 1, [], r"--train grefcoco: the models are unc, refcoco\+"),
    (TINY, ["unc", "unc"], 1, [], "names a model twice"),
    (TINY, ["unc"], 0, [], "--seeds 0: at least 1"),
    (TINY, ["unc"], 1, ["--config.seed=3"], "--config.seed: is set for each run"),
    (TINY, ["unc"], 1, ["--config.sede=3"], "unknown key 'sede'"),
    ("refcoco:large,{set}", ["unc"], 1, [], "the arguments are unc"),
    ("nothing", ["unc"], 1, [], "not a file and not a recipe"),
  ],
)
def test_a_wrong_run_is_refused(recipe, models, seeds, words, message):
  with pytest.raises(InputError, match=message):
    runs.make(recipe, models, seeds, words, across=False)


@pytest.mark.parametrize(
  ("text", "seconds"), [("90m", 5400), ("4h", 14400), ("1.5d", 129600), ("30s", 30)]
)
def test_a_budget_is_a_time(text, seconds):
  assert budget.parse(text) == seconds


@pytest.mark.parametrize("text", ["", "4", "h", "-1h", "0m", "nanh", "infd", "4 hours"])
def test_what_is_not_a_time_is_refused(text):
  with pytest.raises(InputError, match="write a time such as 90m, 4h or 2d"):
    budget.parse(text)


def test_what_fits_is_left_as_it_is():
  lengths = _lengths(2, 2)
  assert budget.fit(lengths, 400.0) == lengths
  assert not any(length.overrides for length in lengths)


def test_seeds_go_first_then_steps_of_all_runs_by_the_same_share():
  kept = budget.fit(_lengths(2, 3), 500.0)
  assert [length.run.name for length in kept] == [
    "unc,seed=0", "refcoco+,seed=0", "unc,seed=1", "refcoco+,seed=1"
  ]  # fmt: skip
  assert all(length.share == 1 for length in kept)
  kept = budget.fit(_lengths(2, 3), 50.0)
  assert [length.run.seed for length in kept] == [0, 0]
  assert [length.steps for length in kept] == [250, 250]
  assert kept[0].overrides == ("--config.epochs=0.0", "--config.steps=250")
  (run, *_), changed = _runs("unc"), stages.config_of(kept[0])
  assert changed.steps == 250 and changed.epochs == 0 and run.config.steps == tiny_run.STEPS


@given(st.integers(1, 4), st.integers(1, 3), st.floats(1.0, 1e6), st.floats(0.01, 2.0))
def test_no_budget_is_exceeded(models, seeds, seconds, share):
  lengths = _lengths(models, seeds, seconds=seconds)
  wanted = share * seconds * models * seeds
  try:
    kept = budget.fit(lengths, wanted)
  except InputError:
    # The warm-up of 5 of the 1,000 steps, twice, does not fit for one seed of each model.
    assert wanted / (seconds * models) < 10 / 1000 * (1 + 1e-9)
    return
  assert sum(length.seconds for length in kept) <= wanted * (1 + 1e-9)
  assert len({length.run.model for length in kept}) == models
  assert len({length.share for length in kept}) == 1


def test_a_budget_shorter_than_the_warm_up_names_one_that_is_enough():
  lengths = _lengths(2, 1, seconds=3600.0)
  with pytest.raises(InputError, match=r"--budget: 10 s .* give at least (\d+) s, or train fewer"):
    budget.fit(lengths, 10.0)
  assert budget.fit(lengths, 72.001)


def test_minutes_are_shortened_as_minutes():
  (run,) = _runs("unc", more=("--config.steps=0", "--config.minutes=15.0"))
  (kept,) = budget.fit([Length(run, 0, 0, 15.0, 15.0, 900.0)], 300.0)
  assert kept.minutes == pytest.approx(5) and kept.share == pytest.approx(1 / 3)
  assert stages.config_of(kept).minutes == kept.minutes


def test_lengths_once_decided_stay(tmp_path):
  lengths = _lengths(2, 2)
  kept = budget.fit(lengths, 77.0)
  first = state.read(tmp_path, {"budget": "77s"})
  first.decide(kept)
  first.speeds["key"] = timing.Speed(0.1, 0.01, "timed")
  state.write(tmp_path, first)
  again = state.read(tmp_path, {"budget": "77s"})
  assert again == first
  assert [(x.run.name, x.steps, x.overrides) for x in again.as_decided(lengths)] == [
    (x.run.name, x.steps, x.overrides) for x in kept
  ]
  said = " ".join(state.remarks(again, kept, [length.run for length in lengths]))
  assert "1 of 2 seeds" in said and "38.5%" in said
  with pytest.raises(InputError, match="holds a table with another budget: '77s', not '4h'"):
    state.read(tmp_path, {"budget": "4h"})
  (tmp_path / "reproduce.json").write_text("{")
  with pytest.raises(InputError, match=r"reproduce\.json cannot be read"):
    state.read(tmp_path, {})


def test_steps_come_in_the_order_in_which_they_need_each_other(tmp_path):
  place, lengths = _table(tmp_path), _lengths(2, 1)
  made = stages.make(place, lengths)
  assert [stage.name for stage in made] == [
    "propose",
    "prepare proposed/refcoco_unc", "prepare proposed/refcoco+_unc",
    "prepare ground-truth/refcoco_unc", "prepare ground-truth/refcoco+_unc",
    *(
      name
      for run in ("unc,seed=0", "refcoco+,seed=0")
      for name in (
        f"train {run}",
        f"evaluate {run} proposed original", f"evaluate {run} proposed oneref",
        f"evaluate {run} ground-truth original", f"evaluate {run} ground-truth oneref",
      )
    ),
  ]  # fmt: skip
  assert not any(stage.is_done() for stage in made)
  direct = stages.make(_table(tmp_path, instances="results:a.json", masks=("proposed",)), lengths)
  assert [stage.name for stage in direct][:2] == [
    "prepare proposed/refcoco_unc", "prepare proposed/refcoco+_unc"
  ]  # fmt: skip
  assert "results:a.json" in direct[0].words


def test_commands_are_those_of_the_parsers(tmp_path):
  import help_pages

  for stage in stages.make(_table(tmp_path), _lengths(1, 1)):
    assert stage.text.startswith("python -m ")
    help_pages.parse(*help_pages.split(stage.text))


def test_launch_comes_first_or_around_the_command(tmp_path):
  place = _table(tmp_path, launch="srun -n 4")
  assert place.everywhere("mail_jax.train", "--x", "a b")[:5] == (
    "srun", "-n", "4", sys.executable, "-m"
  )  # fmt: skip
  place = _table(tmp_path, launch="ssh host --command='cd here && {command}'")
  *first, last = place.everywhere("mail_jax.train", "--x", "a b")
  assert first == ["ssh", "host"]
  inner = last.removeprefix("--command=cd here && ")
  assert shlex.split(inner) == [sys.executable, "-m", "mail_jax.train", "--x", "a b"]


def _metrics(place: Table, length: Length, masks: str, protocol: str, shift: int = 0) -> None:
  """Writes what `evaluate` would: two expressions of each of two images."""
  path = place.metrics(length, masks, protocol)
  path.parent.mkdir(parents=True, exist_ok=True)
  counts = [(30 + shift, 60), (50, 50), (0, 40), (20 + shift, 100)]
  metrics, rows = {}, []
  for name in length.run.evaluated:
    for split in published.SPLITS[name]:
      data = f"{name}/{split}"
      for index, (intersection, union) in enumerate(counts):
        row = {
          "data": data, "protocol": protocol, "index": index, "image_id": index // 2,
          "file_name": "a.jpg", "ref_id": index, "expression_index": 0, "expression": "x",
          "words": 1, "height": 20, "width": 20, "area": 30, "intersection": intersection,
          "union": union, "iou": intersection / union, "selected": None, "selected_iou": 0.0,
          "oracle_iou": 0.75, "cut": False,
        }  # fmt: skip
        rows.append(row)
      metrics[data] = {
        "expressions": 4,
        "oIoU": sum(i for i, _ in counts) / sum(u for _, u in counts),
        "mIoU": sum(i / u for i, u in counts) / 4,
        "oracle_mIoU": 0.75,
        "step": 7,
        "instances": {"from": "x", "trained_on": "coco", "seen": 2, "warning": "COCO was seen"},
        "training_images": {"images": 2, "seen": 0, "similar": 0, "from": [], "warning": None},
        "left_out": None,
        "fingerprints": {},
      }
  per_expression.write(str(path.with_suffix(".jsonl")), rows)
  path.write_text(json.dumps(metrics))


@pytest.fixture
def filled(tmp_path: pathlib.Path) -> tuple[Table, list[Length]]:
  """A table of two seeds of two models, with metrics written by hand."""
  place, lengths = _table(tmp_path), _lengths(2, 2)
  for length in lengths:
    for masks in place.masks:
      for protocol in place.protocols:
        _metrics(place, length, masks, protocol, shift=10 * length.run.seed)
  state.note(place.out, "propose", 3600.0, 0)
  state.note(place.out, "train unc,seed=0", 100.0, -15)
  state.note(place.out, "train unc,seed=0", 20.0, 0)
  return place, lengths


def test_the_table_is_what_the_files_say(filled):
  place, lengths = filled
  made = [length.run for length in lengths]
  paths = table.write(place, lengths, state.State({"recipe": "tiny"}), made)
  assert [path.name for path in paths] == ["table.json", "table.md", "table.html"]
  found = json.loads(paths[0].read_text())
  assert len(found["rows"]) == 2 * 3 * 2 * 2  # models, splits, masks, protocols
  for row in found["rows"]:
    metrics = row["metrics"]
    # By hand: 100 and 120 of 250 pixels.
    assert metrics["oIoU"]["seeds"] == [0.4, 0.48]
    assert metrics["oIoU"]["mean"] == pytest.approx(0.44)
    # The images have 80 of 110 and 20 of 140 pixels, and 90 and 30 with the other seed: of every
    # resample of two images, the metric lies between those of one image twice.
    assert metrics["oIoU"]["low"] == pytest.approx((20 / 140 + 30 / 140) / 2)
    assert metrics["oIoU"]["high"] == pytest.approx((80 / 110 + 90 / 110) / 2)
    assert metrics["oracle_mIoU"] == {"mean": 0.75, "low": None, "high": None, "seeds": [0.75] * 2}
    assert (row["seeds"], row["steps"], row["images"]) == ([0, 1], [7, 7], 2)
    assert row["published_expressions"] > row["expressions"] == 4
  assert {
    key: row[key] for row in found["cost"] if row["training_flops"] for key in ("step", "seconds")
  } == {"step": "train unc,seed=0", "seconds": 120.0}
  text = paths[1].read_text()
  assert "44.00 [17.86, 77.27]" in text and "70.13" in text and "66.92*" in text
  assert "Fewer than 30 images" in text and "Not the published splits" in text
  assert "COCO was seen" in text.replace("\n", " ")
  page = paths[2].read_text()
  assert page.count("44.00 [17.86, 77.27]") == text.count("44.00 [17.86, 77.27]") == 24
  assert "RefCOCO+" in page and "<script" not in page
  assert "MaIL 70.13 (-26.13)" in page


def test_a_shortened_run_is_marked_in_every_row(filled):
  place, lengths = filled
  shorter = [length.shortened(0.25) for length in lengths if not length.run.seed]
  kept = state.State({"recipe": "tiny", "budget": "1m"})
  paths = table.write(place, shorter, kept, [length.run for length in lengths])
  for path in paths[1:]:
    text = path.read_text()
    assert text.count("ours, unc, 25.0% of the recipe") == text.count("ours, unc") > 10
    assert "Because of --budget 1m, 1 of 2 seeds are trained" in text
    assert "every run is trained for 25.0% of its recipe" in " ".join(text.split())


def test_damaged_or_foreign_metrics_are_named(filled):
  place, lengths = filled
  path = place.metrics(lengths[2], "proposed", "original")
  rows = path.with_suffix(".jsonl").read_text().splitlines(keepends=True)
  path.with_suffix(".jsonl").write_text("".join(rows[1:]))
  with pytest.raises(InputError, match=r"has other expressions than its metrics or another seed"):
    table.write(place, lengths, state.State({"recipe": "tiny"}), [])
  path.write_text('{"refcoco_unc/val": {}}')
  with pytest.raises(InputError, match=r"original\.json cannot be read .*remove it"):
    table.write(place, lengths, state.State({"recipe": "tiny"}), [])


def test_evaluations_of_an_earlier_checkpoint_are_made_again(filled, monkeypatch):
  place, lengths = filled
  stage = stages.evaluate(place, lengths[0], "proposed", "original")
  monkeypatch.setattr(stages, "best_step", lambda workdir: 7)
  assert stage.is_done()
  monkeypatch.setattr(stages, "best_step", lambda workdir: 9)
  assert not stage.is_done()
  monkeypatch.setattr(stages, "best_step", lambda workdir: 7)
  place.metrics(lengths[0], "proposed", "original").with_suffix(".jsonl").unlink()
  assert not stage.is_done()


def test_published_numbers_are_those_of_the_documentation():
  page = (tiny_run.CHECKOUT / "docs/explanation/paper.md").read_text()
  listed = re.findall(r"^\| (?:RefCOCO|G-Ref).*$", page, re.M)
  listed = [cell for row in listed for cell in re.findall(r"\d\d\.\d\d\*?", row)]
  paper = published.PUBLISHED[0]
  ours = [
    f"{value:.2f}" + "*" * ((name, split) in paper.unchecked)
    for name, of_set in paper.oiou.items()
    for split, value in of_set.items()
  ]
  assert ours == listed
  recipe = (tiny_run.CHECKOUT / "configs/refcoco_beit3.py").read_text()
  for row in published.PUBLISHED[1:]:
    assert {row.protocol} <= {*PROTOCOLS}
    for of_set in row.oiou.values():
      assert all(f"{value:.2f}" in recipe for value in of_set.values())


def test_missing_raw_files_are_named_with_the_way_to_get_them(tmp_path):
  place = _table(tmp_path)
  layout = refer_layout.make_layout(tmp_path)
  with pytest.raises(InputError) as error:
    raw_files.read(place, ["refcoco_unc", "refcoco+_unc", "refcocog_umd"])
  message = str(error.value)
  assert "raw files of 2 data sets" in message and "refcoco_unc:" not in message
  assert "no folder refcoco+" in message and "no folder refcocog" in message
  assert "add --download, or run `python -m input_pipeline.prepare --download" in message
  layout.image_path(0).unlink()
  with pytest.raises(InputError, match=r"refcoco_unc: .*\(1 of 4 images\)"):
    raw_files.read(place, ["refcoco_unc"])


def test_a_set_without_a_train_split_is_named(tmp_path):
  layout = refer_layout.make_layout(tmp_path)
  layout.refs = [ref for ref in layout.refs if ref["split"] != "train"]
  layout.write()
  contents = raw_files.read(_table(tmp_path), ["refcoco_unc"])
  assert contents["refcoco_unc"].expressions() == 9
  with pytest.raises(InputError, match="--train unc: refcoco_unc has no refs in its train split"):
    raw_files.check_trained(_runs("unc")[0], contents, _table(tmp_path))


def test_missing_weights_are_named_before_anything_is_made(tmp_path):
  refer_layout.make_layout(tmp_path)
  words = ["--root", str(tmp_path), "--out", str(tmp_path / "out"), "--recipe", TINY]
  words += ["--train", "unc", "--instances", "none", "--config.init=vilt:nowhere"]
  with pytest.raises(InputError, match=r"nowhere.*; or set another start with --config\.init"):
    command.main(words)
  assert not [*(tmp_path / "out").iterdir()]


@pytest.mark.parametrize(
  ("words", "message"),
  [
    (["--protocols", "original,lisa"], "--protocols lisa: write some of original, lavt"),
    (["--masks", "theirs"], "--masks theirs: write some of proposed, ground-truth"),
    (["--instances", "sam"], "--instances sam: unknown proposer"),
    (["--mfu", "0.4"], "--mfu: needs --topology"),
    (["--out", "gs://bucket/out"], "--out gs://bucket/out: must be a folder on this machine"),
  ],
)
def test_a_wrong_option_is_refused(tmp_path, words, message):
  given_words = ["--root", str(tmp_path), "--out", str(tmp_path / "out"), "--recipe", TINY]
  with pytest.raises(InputError, match=message):
    command.main([*given_words, *words])
  assert not (tmp_path / "out").exists()


def test_the_speed_at_a_utilisation_is_work_over_peak():
  (run,) = runs.make("refcoco", ["unc"], 1, [], across=False)
  speed = timing.at_utilisation(run.config, "h100:8", 0.4)
  assert speed.step == pytest.approx(flops.train_step_flops(run.config) / (8 * 989.4e12 * 0.4))
  forward = flops.forward_flops(run.config) / (8 * 989.4e12 * 0.4)
  assert speed.expression == pytest.approx(forward)
  assert "40%" in speed.source and "h100:8" in speed.source
  with pytest.raises(InputError, match="--mfu 40: must be above 0 and at most 1"):
    timing.at_utilisation(run.config, "h100:8", 40.0)


def test_a_length_counts_epochs_of_the_refs_and_evaluations(tmp_path):
  refer_layout.make_layout(tmp_path)
  contents = raw_files.read(_table(tmp_path), ["refcoco_unc"])
  words = ("--config.steps=0", "--config.epochs=40.0", "--config.batch_size=4")
  (run,) = _runs("unc", more=words)
  length = forecast.make_length(run, contents, timing.Speed(2.0, 0.5, "x"))
  assert length.steps == 20  # 2 refs, 40 times, 4 at a time
  # After 8 and 16 steps and at the end, of 3 expressions.
  assert length.seconds == pytest.approx(20 * 2.0 + 3 * 3 * 0.5)


def _fake(folder: pathlib.Path, name: str, code: str) -> Stage:
  out = folder / f"{name.replace('/', ' ')}.done"
  return Stage(name, (sys.executable, "-c", code, str(out)), out.exists)


WRITE = "import sys, pathlib; pathlib.Path(sys.argv[1]).touch()"


def test_a_step_that_fails_ends_the_rest_and_done_ones_are_skipped(tmp_path):
  place = _table(tmp_path)
  place.out.mkdir()
  fail = "import sys; sys.exit('error: no space')"
  made = [_fake(tmp_path, "a", WRITE), _fake(tmp_path, "b/c", fail), _fake(tmp_path, "d", WRITE)]
  with pytest.raises(InputError, match=r"b/c failed: no space \(.*b c\.log\)"):
    command._Runner(place.out).run_all(made, lambda: None)
  assert made[0].is_done() and not made[2].is_done()
  times = [json.loads(line) for line in (place.out / "times.jsonl").read_text().splitlines()]
  assert [(row["name"], row["code"]) for row in times] == [("a", 0), ("b/c", 1)]
  made[1] = _fake(tmp_path, "b/c", WRITE)
  command._Runner(place.out).run_all([s for s in made if not s.is_done()], lambda: None)
  command._Runner(place.out).run_all([], lambda: None)
  times = (place.out / "times.jsonl").read_text().splitlines()
  assert [json.loads(line)["name"] for line in times] == ["a", "b/c", "b/c", "d"]


def test_a_step_that_ends_well_without_its_output_is_an_error(tmp_path):
  place = _table(tmp_path)
  place.out.mkdir()
  with pytest.raises(InputError, match="a failed: stopped by SIGTERM"):
    command._Runner(place.out).run(_fake(tmp_path, "a", "print('stopped by SIGTERM')"))


def test_after_the_last_evaluation_of_a_run_the_table_is_written(tmp_path):
  place, seen = _table(tmp_path), []
  place.out.mkdir()
  names = ["train a", "evaluate a x", "evaluate a y", "train b", "evaluate b x"]
  made = [_fake(tmp_path, name, WRITE) for name in names]
  command._Runner(place.out).run_all(
    made, lambda: seen.append([stage.name for stage in made if stage.is_done()])
  )
  assert seen == [names[:3]]


def test_two_tables_in_one_folder_are_refused(tmp_path):
  refused = pytest.raises(InputError, match="another process makes")
  with state.alone(tmp_path / "out"), refused, state.alone(tmp_path / "out"):
    pass


def test_what_is_left_is_said_with_its_time(tmp_path):
  refer_layout.make_layout(tmp_path)
  place, contents = _table(tmp_path), raw_files.read(_table(tmp_path), ["refcoco_unc"])
  (run,) = _runs("unc")
  speeds = {timing.key_of(run.config): timing.Speed(150.0, 0.5, "5 steps timed on 1 x cpu")}
  lengths = [Length(run, 24, 24, 0.0, 0.0, 3600.0)]
  todo = stages.make(place, lengths)
  text = forecast.text(forecast.left(place, lengths, speeds, contents, todo))
  assert "instance masks: 4 images (timed on the first images)" in text
  assert "records: 2 data sets" in text
  assert "training: 1 runs of 24 steps in all, about 60 min (5 steps timed on 1 x cpu)" in text
  assert "evaluation: 4 evaluations of 36 expressions in all, about 2 min" in text
  assert "without what is not known yet" in text
  assert forecast.text([]) == "nothing is left to do but the table itself"


def test_overrides_pass_and_other_words_do_not(tmp_path):
  args, overrides = command._parse(["--root", "a", "--out", "b", "--config.steps=3"])
  assert isinstance(args, argparse.Namespace) and overrides == ["--config.steps=3"]
  with pytest.raises(SystemExit):
    command._parse(["--root", "a", "--out", "b", "--steps", "3"])


def test_a_step_whose_parent_was_killed_is_ended_before_the_next_start(tmp_path):
  code = "import signal, time; signal.signal(signal.SIGTERM, lambda *_: exit()); "
  code += "print(1, flush=True); time.sleep(60)"
  process = subprocess.Popen(
    [sys.executable, "-c", code], start_new_session=True, stdout=subprocess.PIPE
  )
  assert process.stdout and process.stdout.readline()
  state.note_running(tmp_path, process)
  # It would be reaped by its new parent.
  threading.Thread(target=process.wait).start()
  state.end_orphan(tmp_path)
  assert process.wait(10) is not None and not [*tmp_path.iterdir()]
  state.end_orphan(tmp_path)
  # Another process with the same number is left alone.
  other = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
  (tmp_path / "running.json").write_text(json.dumps({"pid": other.pid, "words": ["a"]}))
  state.end_orphan(tmp_path)
  assert other.poll() is None
  other.communicate(b"x")


def test_the_speed_by_plan_is_its_largest_estimate(tmp_path):
  (run,) = _runs("unc")
  path = tmp_path / "plan.json"
  estimate = {"whole": {"seconds": 0.25}, "seconds": {"compute": 0.1, "hbm": 0.2, "network": 0.5}}
  plan: dict[str, Any] = {"topology": "v5e:4x4", "refused": "", "estimate": estimate}
  path.write_text(json.dumps({"plans": [plan]}))
  assert forecast.read_speed(run, path, planned=True).step == 0.5
  estimate["whole"]["seconds"] = None
  path.write_text(json.dumps({"plans": [plan]}))
  found = forecast.read_speed(run, path, planned=True)
  assert found.step == 0.5 and "at best, by the bound for v5e:4x4" in found.source
  path.write_text(json.dumps({"plans": [plan | {"estimate": None, "refused": "Used 20G of 16G"}]}))
  with pytest.raises(InputError, match="--topology v5e:4x4: the step does not fit: Used 20G"):
    forecast.read_speed(run, path, planned=True)
  path.write_text("{")
  with pytest.raises(InputError, match=r"plan\.json: the time of a step cannot be read"):
    forecast.read_speed(run, path, planned=True)


def test_configs_with_the_same_step_are_timed_once():
  made = runs.make("refcoco", ["unc", "refcoco+", "umd"], 2, [], across=False)
  keys = [timing.key_of(run.config) for run in made]
  # RefCOCOg has longer texts.
  assert keys[0] == keys[1] == keys[3] != keys[2] and len({*keys}) == 2
