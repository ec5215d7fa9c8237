"""Ablations: rows that share a run, runs that are left, lines and tables."""

import argparse
import dataclasses
import json
import pathlib
import re
import shlex
from xml.etree import ElementTree

import numpy as np
import pytest
import scipy.stats
import tiny_run

from benchmarks import ablate
from benchmarks.ablation import documents, figure, one_run, runs
from benchmarks.ablation.tables import NOISES, TABLES, Row, Table
from input_pipeline.common.errors import InputError
from mail_jax import config
from mail_jax.models import build

BUDGET = runs.Budget()
TINY = runs.Budget(tiny_run.__file__, samples=24 * 8, seeds=1)
METRICS = dict.fromkeys(one_run.METRICS, 0.5)


def _line(run: runs.Run, seed: int = 0, **more) -> dict:
  known = {
    "run": run.name, "seed": seed, "samples": 48_000, "parameters": 1_130_000, "gflop": 0.1,
    "results": dict.fromkeys(run.tests, METRICS), "curve": [], "machine": "a machine, 2026-11-25",
    "core_seconds": 360.0,
  }  # fmt: skip
  return known | more


def _with_miou(run: runs.Run, seed: int, value: float) -> dict:
  return _line(run, seed, results={test: METRICS | {"mIoU": value} for test in run.tests})


def test_the_default_is_one_run_in_all_tables():
  named = [
    runs.of_row(row, 0, BUDGET).name
    for table in TABLES.values()
    for row in table.rows
    if "default" in row.name or (not row.overrides and row.share == 1 and not row.trained)
  ]
  assert len(named) > 6 and len(set(named)) == 1


@pytest.mark.parametrize("table", TABLES)
def test_rows_of_a_table_are_different_runs_or_judged_on_different_masks(table):
  rows = [(runs.of_row(row, 0, BUDGET).name, row.noise) for row in TABLES[table].rows]
  assert len(set(rows)) == len(rows)
  assert len({row.name or row.share for row in TABLES[table].rows}) == len(rows)


def test_every_row_is_a_model():
  models = {
    build.make_model(config.load_config("demo", run.overrides), 512)
    for run in runs.planned(list(TABLES), dataclasses.replace(BUDGET, seeds=1))
  }
  assert len(models) > 20


def test_seeds_are_runs_of_their_own_and_the_first_of_all_rows_comes_first(monkeypatch):
  rows = tuple(Row(f"K = {k}", (f"max_instances={k}",)) for k in (4, 8, 10))
  monkeypatch.setitem(TABLES, "tiny", Table("Tiny", "What?", rows))
  queue = runs.planned(["tiny"], BUDGET)
  count = len(rows)
  assert len(queue) == len({run.name for run in queue}) == 3 * count
  assert all("seed=0" in run.overrides for run in queue[:count])
  assert not any("seed=0" in run.overrides for run in queue[count:])


def test_a_row_beside_the_question_may_have_fewer_seeds(monkeypatch):
  rows = (Row("asked"), Row("beside", ("max_instances=4",), seeds=1))
  monkeypatch.setitem(TABLES, "tiny", Table("Tiny", "What?", rows))
  queue = runs.planned(["tiny"], BUDGET)
  assert [dict(word.split("=") for word in run.overrides)["seed"] for run in queue] == list("0012")
  lines = {run.name: _line(run) for run in queue}
  assert [len(actual) for _, actual in runs.of_table("tiny", BUDGET, lines)] == [3, 1]
  assert [
    len(actual) for _, actual in runs.of_table("tiny", dataclasses.replace(BUDGET, seeds=1), lines)
  ] == [1, 1]


def test_a_training_that_is_judged_on_many_detectors_is_one_run():
  queue = runs.planned(["masks", "modality"], dataclasses.replace(BUDGET, seeds=1))
  (default,) = [run for run in queue if run.name == runs.of_row(Row(""), 0, BUDGET).name]
  assert set(default.tests) == {*runs.SPLITS, *(f"{noise}/val" for noise in NOISES if noise)}


def test_names_tell_overrides_and_recipes_apart_and_are_those_of_the_results():
  name = runs.of_row(Row("", ("max_tokens=24", "model.heads=2")), 0, BUDGET).name
  assert name == runs.of_row(Row("", ("model.heads=2", "max_tokens=24")), 0, BUDGET).name
  others = [
    runs.of_row(Row(""), 0, BUDGET), runs.of_row(Row("", ("max_tokens=24",)), 0, BUDGET),
    runs.of_row(Row("", ("max_tokens=24", "model.heads=2")), 1, BUDGET),
    runs.of_row(Row("", ("max_tokens=24", "model.heads=2"), until=0.8), 0, BUDGET),
    runs.of_row(Row("", ("max_tokens=24", "model.heads=2")), 0, TINY),
  ]  # fmt: skip
  assert len({name, *(run.name for run in others)}) == 6
  known = {run.name: run for run in runs.planned(list(TABLES), BUDGET)}
  for found, line in runs.read(ablate.RESULTS).items():
    words = shlex.split(line["command"])
    assert sorted(words[words.index("--") + 1 :]) == sorted(known[found].overrides)


def test_a_row_trained_on_other_masks_is_a_run_of_its_own_on_data_of_its_own(tmp_path):
  plain, exact = (runs.of_row(Row("", trained=name), 0, BUDGET) for name in ("", "oracle"))
  assert plain.name != exact.name and plain.tests == exact.tests
  bench = ablate.Bench(ablate._parser().parse_args(["--workdir", str(tmp_path)]))
  words = bench._words(exact, "data", "place", "tests")
  assert words[words.index("--train_dir") + 1] == "tests/train-oracle"
  assert "--train_dir" not in bench._words(plain, "data", "place", "tests")


def test_what_has_a_whole_line_is_not_run_again(tmp_path):
  queue = runs.planned(["masks"], dataclasses.replace(BUDGET, seeds=2))
  path = tmp_path / "results" / "lines.jsonl"
  assert runs.left(queue, runs.read(path)) == queue
  runs.add(path, _line(queue[0]))
  runs.add(path, _line(dataclasses.replace(queue[1], tests=queue[1].tests[:-1])))
  assert runs.left(queue, runs.read(path)) == queue[1:]  # one test is missing
  runs.add(path, _line(queue[1]))
  assert runs.left(queue, runs.read(path)) == queue[2:]
  path.write_text(path.read_text() + '{"run": "cut o')
  with pytest.raises(InputError, match=r"lines\.jsonl, line 4: .*remove it"):
    runs.read(path)


@pytest.mark.parametrize(
  ("change", "says"),
  [
    ({"results": 3}, "results is 3"), ({"core_seconds": None}, "core_seconds is None"),
    ({"seed": "0"}, "seed is '0'"), (None, "NoneType"), ([], "list"),
  ],
)  # fmt: skip
def test_a_line_that_is_none_of_a_run_is_named(change, says, tmp_path):
  row = _line(runs.planned(["slots"], BUDGET)[0])
  path = tmp_path / "lines.jsonl"
  broken = row | change if isinstance(change, dict) else change
  path.write_text(json.dumps(row) + "\n" + json.dumps(broken) + "\n")
  with pytest.raises(InputError, match=r"lines\.jsonl, line 2: .*remove it") as error:
    runs.read(path)
  assert says in str(error.value)


def test_a_picture_of_a_table_without_lines_is_refused(tmp_path):
  document, picture = tmp_path / "results.md", tmp_path / "picture.svg"
  document.write_text("<!-- ablate slots --><!-- end -->")
  words = ["--table", "slots", "--only_write", "--document", str(document)]
  with pytest.raises(InputError, match="has no line of slots"):
    ablate.main([*words, "--results", str(tmp_path / "none.jsonl"), "--picture", str(picture)])
  assert not picture.exists()


def test_spread_is_mean_and_deviation_in_percent():
  values = [0.731, 0.74, 0.751]
  mean, deviation = 100 * np.mean(values), 100 * np.std(values, ddof=1)
  assert documents.spread(values) == f"{mean:.1f} ± {deviation:.1f}"
  assert documents.spread([0.5]) == "50.0" and documents.spread([None, None]) is None


def test_the_judgement_is_that_of_a_t_test_with_a_common_deviation():
  values = {"a": [0.70, 0.72, 0.71], "b": [0.69, 0.71, 0.705], "c": [0.60, 0.61, 0.62]}
  rows = []
  for name, actual in values.items():
    run = runs.Run(name, (), runs.SPLITS)
    rows.append((Row(name), [_with_miou(run, seed, value) for seed, value in enumerate(actual)]))
  pooled = np.mean([np.var(actual, ddof=1) for actual in values.values()]) ** 0.5
  text = documents.judgement(rows)
  assert text.startswith("Best on val: a (71.0); no worse within twice the standard error: b.")
  assert text.endswith(f"Deviation of a seed: {100 * pooled:.1f}.")
  near = (np.mean(values["a"]) - np.mean(values["b"])) / (pooled * (2 / 3) ** 0.5)
  far = (np.mean(values["a"]) - np.mean(values["c"])) / (pooled * (2 / 3) ** 0.5)
  assert near < 2 < far
  assert documents.judgement([(row, actual[:1]) for row, actual in rows]).startswith("One seed")
  waiting = documents.judgement([*rows[:2], (rows[2][0], rows[2][1][:1])])
  assert waiting.startswith("Some rows have one seed so far")
  once = documents.judgement([*rows[:2], (Row("c", seeds=1), rows[2][1][:1])])
  assert once.startswith("Best on val, of the rows with several seeds: a (71.0)")


def test_a_curve_crosses_between_the_points_around_it():
  curve = [[1000, 0.5], [2000, 0.7], [3000, 0.9], [4000, 0.7], [5000, 0.95]]
  assert documents.crossing(curve, 0.8) == pytest.approx(2500)
  assert documents.crossing(curve, 0.25) == pytest.approx(500)
  assert documents.crossing(curve, 0.97) is None and documents.crossing([], 0.1) is None


def test_the_power_law_is_scipys_regression_of_logarithms():
  rng = np.random.default_rng(0)
  samples = np.repeat([6000, 12000, 24000, 48000, 96000], 3)
  points = [(n, 1 - 0.25 * (n / 48000) ** -0.4 * rng.uniform(0.9, 1.1)) for n in samples]
  exponent, error, at = documents.power_law(points)
  expected = scipy.stats.linregress(np.log(samples / 48000), np.log([1 - v for _, v in points]))
  assert exponent == pytest.approx(-expected.slope) and error == pytest.approx(expected.stderr)
  assert at == pytest.approx(np.exp(expected.intercept)) and abs(at - 0.25) < 0.02


def test_a_machine_is_named_once_with_its_first_day_and_its_last():
  known = (
    "b, 2 cores, 2026-11-29",
    "a, 2026-11-30",
    "b, 2 cores, 2026-11-25",
    "b, 2 cores, 2026-11-27",
  )
  assert documents.machines([{"machine": machine} for machine in known]) == (
    "a, 2026-11-30; b, 2 cores, 2026-11-25 to 2026-11-29"
  )


@pytest.mark.parametrize("table", TABLES)
def test_a_table_is_written_into_its_place_and_nothing_else_changes(table, tmp_path):
  document = tmp_path / "results.md"
  document.write_text(f"before\n<!-- ablate {table} -->\nold\n<!-- end -->\nafter\n<!-- end -->\n")
  queue = runs.planned([table], BUDGET)
  lines = {
    run.name: _line(run, samples=1000 * (1 + i), curve=[[1000, 0.5], [2000, 0.9]])
    for i, run in enumerate(queue)
  }
  documents.write(document, [table], BUDGET, lines)
  text = document.read_text()
  assert text.startswith(f"before\n<!-- ablate {table} -->\n### ") and "old" not in text
  assert text.endswith("<!-- end -->\nafter\n<!-- end -->\n")
  assert f"{len(queue)} runs" in text and "a machine" in text
  shown = [line for line in text.splitlines() if re.match(r"\| (?!---|:|\s*\|)", line)]
  assert all(line.count("|") == shown[0].count("|") for line in shown)
  documents.write(document, [table], BUDGET, lines)
  assert document.read_text() == text
  documents.write(document, [table], BUDGET, {})  # without lines the document stays the same
  assert document.read_text() == text


def test_the_total_counts_a_run_of_many_tables_once(tmp_path):
  document = tmp_path / "results.md"
  document.write_text("before\n<!-- ablate total -->\nold\n<!-- end -->\nafter\n")
  two = [run for table in ("selection", "slots") for run in runs.planned([table], BUDGET)]
  lines = {run.name: _line(run, core_seconds=1800.0) for run in two}
  assert len(lines) < len(two)
  documents.write(document, [], BUDGET, lines | {"of no table": _line(two[0])})
  hours = len(lines) / 2
  assert f"{len(lines)} runs, {hours:.1f} hours of one core" in document.read_text()
  assert "old" not in document.read_text() and "\nafter\n" in document.read_text()


def test_a_run_is_compared_with_its_line_on_what_both_are_judged_on():
  before, after = (_line(runs.Run("a", (), tests)) for tests in (("val", "x2/val"), ("val",)))
  shown = documents.beside(before, after).splitlines()
  assert len(shown) == 3 and shown[-1].split("|")[1:4] == [" val ", " 50.00 ", " 50.00 "]


def test_a_row_that_has_not_been_run_is_named_and_one_without_instances_picks_nothing():
  rows = [(Row(name), []) for name in ("blind", "seeing", "later")]
  lines = [_line(runs.Run(name, (), runs.SPLITS)) for name in ("blind", "seeing")]
  lines[0]["results"]["val"] = METRICS | {"oracle_mIoU": 0.0, "selection_accuracy": 0.0}
  text = documents.section("slots", [(rows[0][0], lines[:1]), (rows[1][0], lines[1:]), rows[2]])
  shown = {line.split("|")[1].strip(): line for line in text.splitlines() if line.startswith("| ")}
  assert "Not run yet: later." in text and "later" not in shown
  assert " - |" in shown["blind"] and " - |" not in shown["seeing"]


def test_the_figure_has_a_bar_a_row_as_long_as_its_mean_and_a_dot_a_seed():
  runs_of = {"one": [0.25, 0.35], "the default": [0.6], "not run": []}
  rows = [
    (Row(name), [_with_miou(runs.Run(name, (), runs.SPLITS), 0, value) for value in values])
    for name, values in runs_of.items()
  ]
  tree = ElementTree.fromstring(figure.draw(rows, "Title & more"))
  actual = {
    kind: [e for e in tree.iter() if e.get("class", "").split()[:1] == [kind]]
    for kind in ("bar", "dot")
  }
  single, default = (float(bar.get("width")) for bar in actual["bar"])
  assert default / single == pytest.approx(0.6 / 0.3, rel=0.01) and len(actual["dot"]) == 3
  assert "Title & more" in [e.text for e in tree.iter()]


def test_a_document_without_a_place_is_refused_before_anything_runs(tmp_path):
  document = tmp_path / "results.md"
  words = ["--table", "slots", "--document", str(document), "--workdir", str(tmp_path / "w")]
  with pytest.raises(InputError, match="no such file"):
    ablate.main(words)
  document.write_text("<!-- ablate modality --><!-- end -->")
  with pytest.raises(InputError, match="no place for the table slots; write <!-- ablate slots"):
    ablate.main(words)
  assert not (tmp_path / "w").exists()


def test_the_document_has_a_place_for_every_table():
  documents.check(tiny_run.CHECKOUT / ablate.DOCUMENT, list(TABLES))


def test_a_finished_run_is_judged_and_not_trained(shapes_data, finished_run, tmp_path, capfd):
  actual = one_run.measure(
    tiny_run.__file__, [], shapes_data, str(finished_run), ["testA", "again/val"], str(tmp_path)
  ) if (tmp_path / "again").symlink_to(shapes_data) is None else {}  # fmt: skip
  assert "already finished" in capfd.readouterr().out
  assert actual["results"].keys() == {"testA", "again/val"}
  assert actual["samples"] == tiny_run.STEPS * 8
  (last,) = [row for row in tiny_run.rows(finished_run)[::-1] if "val/mIoU" in row][:1]
  assert actual["curve"][-1] == [tiny_run.STEPS * 8, last["val/mIoU"]]
  assert len(actual["curve"]) == tiny_run.STEPS // tiny_run.EVAL_EVERY


@pytest.mark.slow
def test_a_run_ends_where_its_curve_is_good_enough_and_is_not_trained_further(
  shapes_data, tmp_path
):
  asked = [tiny_run.__file__, [], shapes_data, str(tmp_path), [], ""]
  for again in range(2):  # it stops one step later, because it saves after steps
    actual = one_run.measure(*asked, until=1e-6)
    assert actual["samples"] == 8 * (tiny_run.EVAL_EVERY + 1 + again) and actual["results"] == {}
    assert len(actual["curve"]) == 1
  assert one_run.measure(*asked, until=1.0)["samples"] == 8 * tiny_run.STEPS


@pytest.mark.slow
def test_runs_leave_lines_and_a_table_and_are_not_made_twice(
  shapes_data, tmp_path, monkeypatch, capsys
):
  rows = (
    Row("plain"),
    Row("stacked", ("model.mask_tokens=stacked",)),
    Row("blind", noise="nothing"),
  )
  monkeypatch.setitem(TABLES, "tiny", Table("Tiny", "What?", rows))
  document, results = tmp_path / "doc.md", tmp_path / "lines.jsonl"
  document.write_text("<!-- ablate tiny --><!-- end -->")
  words = [
    "--table", "tiny", "--seeds", "1", "--budget", "192", "--config", TINY.recipe,
    "--data_dir", shapes_data, "--workdir", str(tmp_path / "runs"),
    "--results", str(results), "--document", str(document),
  ]  # fmt: skip
  monkeypatch.setattr(ablate, "_parser", _parser_that_knows("tiny", ablate._parser))
  ablate.main(words)
  lines = runs.read(results)
  assert len(lines) == 2  # the last row is the run of the first, with other masks
  assert "2 runs to do" in capsys.readouterr().out
  text = document.read_text()
  assert all(f"| {row.name} |" in text for row in rows)
  for line in lines.values():
    assert line["samples"] == 192 and line["curve"]
    log = tmp_path / "runs" / line["run"] / "metrics.jsonl"
    assert json.loads(log.read_text().splitlines()[-1])["step"] == 24
    assert line["command"].startswith("python -m benchmarks.ablation.one_run --config")
  ablate.main(words)
  assert "0 runs to do, 2 are done" in capsys.readouterr().out
  again = next(iter(lines))
  ablate.main([*words, "--again", again])
  shown = capsys.readouterr().out.splitlines()[-1].split("|")
  assert shown[2] == shown[3]  # the same seed on the same machine: the same mIoU
  assert runs.read(results) == lines


def _parser_that_knows(table: str, make) -> object:
  def parser() -> argparse.ArgumentParser:
    built = make()
    (action,) = [action for action in built._actions if action.dest == "table"]
    action.choices = [*action.choices, table]
    return built

  return parser


@pytest.mark.slow
def test_a_run_that_fails_is_told_and_the_others_are_made(shapes_data, tmp_path, capsys):
  args = argparse.Namespace(
    jobs=1, config=TINY.recipe, data_dir=shapes_data, workdir=str(tmp_path),
    results=str(tmp_path / "lines.jsonl"),
  )  # fmt: skip
  bad = runs.Run("bad", ("model.width=31",), ("val",))
  good = runs.of_row(Row(""), 0, TINY)
  with pytest.raises(InputError, match=r"1 runs failed; the log of the first is .*bad/log\.txt"):
    ablate.Bench(args).run([bad, good])
  assert list(runs.read(pathlib.Path(args.results))) == [good.name]
  assert "multiple of" in (tmp_path / "bad" / "log.txt").read_text()
