"""`python -m mail_jax.report`: the content of the page, its resources, and errors."""

import contextlib
import dataclasses
import io
import pathlib
import re
import shutil
from collections.abc import Sequence
from typing import Any

import html_pages
import numpy as np
import pytest
import tiny_run
from PIL import Image

from input_pipeline.common import drawing
from input_pipeline.common.errors import InputError
from mail_jax.evaluate import per_expression, runner
from mail_jax.export import load
from mail_jax.predict.segmenter import Segmentation
from mail_jax.report import command as report
from mail_jax.report import page as report_page
from mail_jax.report import predictions
from mail_jax.report.predictions import DrawnPrediction
from mail_jax.report.quality import SplitResults

SPLITS = ("shapes/val", "shapes/testC")
COUNT = 6
_DATE = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d UTC")


@dataclasses.dataclass(frozen=True)
class Written:
  """A page, the output of the command, and an evaluation of the same model."""

  text: str
  printed: str
  results: dict[str, dict[str, Any]]
  rows: list[dict[str, Any]]


def _command(run: pathlib.Path, data_dir: str, out: pathlib.Path, *more: str) -> list[str]:
  data = [part for name in SPLITS for part in ("--data", name)]
  given = [str(run), "--data_dir", data_dir, "--out", str(out), "--count", str(COUNT)]
  return [*given, *(() if "--data" in more else data), *more]


@pytest.fixture(scope="module")
def written(finished_run, shapes_data, tmp_path_factory) -> Written:
  out, printed = tmp_path_factory.mktemp("report") / "page.html", io.StringIO()
  with contextlib.redirect_stdout(printed):
    report.main(_command(finished_run, shapes_data, out))
  model = load.load(str(finished_run))
  return Written(out.read_text(), printed.getvalue(), *runner.evaluate(model, shapes_data, SPLITS))


@pytest.fixture(scope="module")
def samples(written, tmp_path_factory) -> pathlib.Path:
  path = tmp_path_factory.mktemp("samples") / "rows.jsonl"
  per_expression.write(path, written.rows)
  return path


def _rows_of(written: Written, name: str) -> list[dict[str, Any]]:
  return [row for row in written.rows if row["data"] == name]


def test_the_page_is_whole_and_needs_nothing_but_itself(written):
  sizes = html_pages.check_needs_nothing(written.text)
  assert len(sizes) == 3 * COUNT
  assert {max(size) for size in sizes} == {560}


def test_its_metrics_equal_those_of_an_evaluation_in_percent(written):
  header, *rows = html_pages.table(written.text, "metrics of every split")
  assert [row[0] for row in rows] == list(SPLITS)
  for name, *cells in rows:
    metrics = written.results[name]
    shown = dict(zip(header[1:], cells, strict=True))
    assert shown.keys() == {key for key in metrics if not key.startswith("by_")}
    for key, text in shown.items():
      number = float(text.replace(",", ""))
      whole = key in ("expressions", "refs")
      assert number == (metrics[key] if whole else pytest.approx(100 * metrics[key], abs=0.0051))


def test_its_metrics_of_groups_equal_those_of_an_evaluation(written):
  for breakdown, title in (
    ("by_size", "size of the target"),
    ("by_words", "length of the expression"),
  ):
    header, *rows = html_pages.table(written.text, f"Mean IoU by the {title}: numbers")
    shown = {row[0]: dict(zip(header[1:], row[1:], strict=True)) for row in rows}
    for name in SPLITS:
      for kind, metrics in written.results[name][breakdown].items():
        cells = shown[f"{kind}, {name}"]
        assert cells["expressions"] == str(metrics["expressions"])
        for key in ("mIoU", "boundary_mIoU", "oIoU", "P@0.5", "oracle_mIoU"):
          assert float(cells[key]) == pytest.approx(100 * metrics[key], abs=0.051)


def test_the_precision_curve_equals_a_plain_count(written):
  header, *rows = html_pages.table(written.text, "Precision at X: numbers")
  assert header == ["X", *SPLITS]
  assert [row[0] for row in rows] == [f"{x / 20:.2f}" for x in range(21)]
  for column, name in enumerate(SPLITS, 1):
    ious = [row["iou"] for row in _rows_of(written, name)]
    for row in rows:
      count = sum(iou >= float(row[0]) for iou in ious)
      assert row[column] == f"{100 * count / len(ious):.1f}"
    points = re.findall(rf"<title>{name}: P@([\d.]+) = ([\d.]+) %</title>", written.text)
    assert [x for x, _ in points] == [f"{x / 100:.2f}" for x in range(101)]
    for x, percent in points:
      assert percent == f"{100 * sum(iou >= float(x) for iou in ious) / len(ious):.1f}"


def test_the_line_of_the_precision_curve_goes_through_its_points(written):
  path = re.search(r'class="line c0" d="M([^"]+)"', written.text)
  assert path
  places = [tuple(map(float, place.split())) for place in path[1].split("L")]
  ious = [row["iou"] for row in _rows_of(written, SPLITS[0])]
  xs, ys = (np.array(column) for column in zip(*places, strict=True))
  shares = [sum(iou >= x / 100 for iou in ious) / len(ious) for x in range(101)]
  # Both axes go from 0 to 1: the first and last x are known, the first share is 1, the baseline 0.
  np.testing.assert_allclose((xs - xs[0]) / (xs[-1] - xs[0]), np.arange(101) / 100, atol=2e-3)
  baseline = ys[0] + (250 - 12 - 42)
  np.testing.assert_allclose((baseline - ys) / (baseline - ys[0]), shares, atol=2e-3)


def test_the_histogram_equals_a_plain_count(written):
  for name in SPLITS:
    _, *rows = html_pages.table(written.text, f"Expressions by IoU, {name}: numbers")
    expected = [0] * 20
    for row in _rows_of(written, name):
      expected[min(19, int(np.floor(row["iou"] * 20 + 1e-9)))] += 1
    assert [int(row[1].replace(",", "")) for row in rows] == expected


def test_the_curves_end_where_the_log_does(written, finished_run):
  rows = tiny_run.rows(finished_run)
  header, *shown = html_pages.table(written.text, "Loss: numbers")
  assert header == ["step", "loss", "bce", "dice", "selection"]
  losses = {str(row["step"]): row for row in rows if "loss" in row}
  assert [row[0] for row in shown] == list(losses)
  for step, *cells in shown:
    for name, cell in zip(header[1:], cells, strict=True):
      assert float(cell) == pytest.approx(losses[step][name], rel=1e-3)
  header, *shown = html_pages.table(written.text, "Metrics on val: numbers")
  judged = [row for row in rows if "val/mIoU" in row]
  assert [row[0] for row in shown] == [str(row["step"]) for row in judged]
  column = header.index("mIoU")
  assert [row[column] for row in shown] == [f"{100 * row['val/mIoU']:.1f}" for row in judged]
  for title in ("Learning rate", "Samples per second", "Time spent"):
    assert html_pages.Parsed(written.text).tables(title)


def _shown(text: str, kind: str) -> list[tuple[float, str]]:
  """Returns IoU and file name of the pictures under a heading."""
  _, _, rest = text.partition(f'<h3 id="{kind}">')
  return [
    (float(iou), name)
    for iou, name in re.findall(
      r"<strong>IoU ([\d.]+)</strong>.*?<p class=\"small\">[^<]*?, ([^<,]+), ref",
      rest.partition("<h3 ")[0],
    )
  ]


def test_the_best_and_the_worst_have_no_duplicate_images(written):
  for kind, sign in (("best", -1), ("worst", 1)):
    shown = _shown(written.text, kind)
    assert len(shown) == COUNT
    for number, name in enumerate(SPLITS):
      own = shown[number * COUNT // 2 : (number + 1) * COUNT // 2]
      extreme: dict[str, float] = {}
      for row in _rows_of(written, name):
        key = row["file_name"]
        extreme[key] = min(extreme.get(key, np.inf), sign * row["iou"])
      expected = sorted(extreme.values())[: COUNT // 2]
      assert [iou for iou, _ in own] == [round(sign * value, 2) for value in expected]
      assert len({file_name for _, file_name in own}) == COUNT // 2


def test_rows_from_a_file_give_the_same_page(
  written, samples, finished_run, shapes_data, tmp_path, monkeypatch
):
  """Also shows that equal input gives equal bytes, except for the date."""
  monkeypatch.setattr(runner, "evaluate", None)
  out = tmp_path / "again.html"
  report.main(_command(finished_run, shapes_data, out, "--per_expression", str(samples)))
  assert _DATE.sub("", out.read_text()) == _DATE.sub("", written.text)
  assert _DATE.search(written.text)


def test_the_command_says_where_the_page_is_and_how_large(written):
  last = written.printed.splitlines()[-1]
  assert re.fullmatch(r"wrote \S+page\.html \(\d\.\d MB\)", last)


def test_rows_of_another_model_are_noticed(written, finished_run, shapes_data, tmp_path, capsys):
  rows = [row | {"iou": 1 - row["iou"]} for row in written.rows]
  per_expression.write(tmp_path / "other.jsonl", rows)
  out = tmp_path / "page.html"
  report.main(
    _command(finished_run, shapes_data, out, "--per_expression", str(tmp_path / "other.jsonl"))
  )
  assert "drawn predictions differs from their rows" in capsys.readouterr().out
  assert "drawn predictions differs from their rows" in out.read_text()
  assert "differs from their rows" not in written.text


def test_a_run_without_a_log_is_reported_without_curves(
  samples, finished_run, shapes_data, tmp_path
):
  run = tmp_path / "run"
  shutil.copytree(finished_run, run)
  (run / "metrics.jsonl").unlink()
  command = [str(run), "--data_dir", shapes_data, "--per_expression", str(samples), "--count", "0"]
  report.main(command)
  text = (run / "report.html").read_text()
  assert "this folder has no metrics.jsonl" in text
  assert html_pages.check_needs_nothing(text) == []
  parsed = html_pages.Parsed(text)
  assert not parsed.tables("Loss")
  assert parsed.tables("Precision at X")
  # The incomplete line of a killed run is ignored.
  log = (finished_run / "metrics.jsonl").read_text()
  (run / "metrics.jsonl").write_text(log + '{"step": 25, "lo')
  report.main(command)
  assert html_pages.Parsed((run / "report.html").read_text()).tables("Loss")


@pytest.mark.parametrize(
  ("options", "message"),
  [
    (["--out", "nowhere/r.html"], r"nowhere/r\.html: the folder nowhere does not exist"),
    (["--out", "folder"], r"folder is a folder; name a file in it"),
    (["--count", "101"], r"--count 101: it must be between 0 and 100"),
    (["--count", "-1"], r"--count -1: it must be between 0 and 100"),
    (["--data_dir", "nowhere"], r"nowhere: shapes is not prepared there; run .*prepare"),
    (["--data", "shapes/testZ"], r"has no split 'testZ'; it has .*testC"),
    (["--data", "refcoco/val"], r"'refcoco': unknown; known: shapes, refcoco_unc"),
    (
      ["--per_expression", "nowhere.jsonl"],
      r"nowhere\.jsonl: No such file .*evaluate --per_expression",
    ),
    (
      ["--per_expression", "lavt.jsonl"],
      r"lavt\.jsonl: shapes/val has rows of protocol lavt; .*without --protocol",
    ),
    (
      ["--per_expression", "val.jsonl", "--data", "shapes/testC"],
      r"testC: val\.jsonl only has rows of shapes/val",
    ),
    (
      ["--per_expression", "strange.jsonl"],
      r"the data has no expression 'a cup' of ref \d+, image \d+; were",
    ),
  ],
)
def test_errors_are_reported_before_the_evaluation(
  written, finished_run, shapes_data, tmp_path, monkeypatch, options, message
):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(runner, "evaluate", None)
  pathlib.Path("folder").mkdir()
  rows = _rows_of(written, "shapes/val")
  per_expression.write("val.jsonl", rows)
  per_expression.write("lavt.jsonl", [row | {"protocol": "lavt"} for row in rows])
  per_expression.write("strange.jsonl", [row | {"expression": "a cup"} for row in rows])
  before = sorted(tmp_path.rglob("*"))
  command = [str(finished_run), "--data_dir", shapes_data, "--out", "r.html", *options]
  with pytest.raises(InputError, match=message) as caught:
    report.main(command)
  assert "\n" not in str(caught.value)
  assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
  ("line", "message"),
  [
    ('{"step": 3, "los', r"metrics\.jsonl, line 2: Unterminated string.*; remove the line"),
    ("[3]", r"metrics\.jsonl, line 2: not a row of a training log"),
    ('{"loss": 1.0}', r"metrics\.jsonl, line 2: not a row of a training log"),
    ('{"step": true}', r"metrics\.jsonl, line 2: not a row of a training log"),
  ],
)
def test_a_broken_line_of_the_log_is_named_before_anything_else(
  tmp_path, shapes_data, monkeypatch, line, message
):
  monkeypatch.setattr(load, "load", None)
  (tmp_path / "metrics.jsonl").write_text(f'{{"step": 1, "loss": 2.0}}\n{line}\n{{"step": 4}}\n')
  with pytest.raises(InputError, match=message) as caught:
    report.main([str(tmp_path), "--data_dir", shapes_data])
  assert "\n" not in str(caught.value)


# The page by itself, from made-up rows.


def _row(i: int, **fields: Any) -> dict[str, Any]:
  union = 1000
  intersection = i * 37 % (union + 1)
  row = {
    "data": "refcoco_unc/val", "protocol": "original", "index": i, "image_id": i // 3,
    "file_name": f"{i // 3}.jpg", "ref_id": i,
    "expression_index": 0, "expression": "the left one", "words": 3,
    "height": 480, "width": 640, "area": 900,
    "intersection": intersection, "union": union, "iou": intersection / union,
    "selected": i % 4 or None, "selected_iou": i * 7 % 10 / 10, "oracle_iou": 0.9, "cut": False,
  }  # fmt: skip
  return row | fields


def _report(
  rows: Sequence[dict[str, Any]], pictures: Sequence[DrawnPrediction], name: str = "a/b"
) -> report_page.Report:
  metrics = {"expressions": len(rows), "mIoU": 0.5, "oIoU": 0.5, "P@0.5": 0.5}
  instances = {"warning": None}
  groups = {"by_size": {"small": metrics}}
  split = SplitResults(name, metrics, rows, groups, instances, instances)
  drawn = dict.fromkeys(predictions.HEADINGS, pictures)
  log = [{"step": step, "loss": 1 / step, "lr": 1e-3} for step in range(1, 20_000)]
  facts = {"Model": {"parameters": "1"}}
  return report_page.Report("run", "about", 7, [split], log, drawn, facts, "{}")


def _noise(seed: int = 0) -> Segmentation:
  """Returns an image that hardly compresses, with random masks."""
  rng = np.random.default_rng(seed)
  photo = rng.integers(0, 256, (480, 640, 3), np.uint8)
  masks = rng.random((2, 480, 640)) < 0.5
  return Segmentation(
    photo,
    "noise",
    masks[0],
    masks[0].astype(np.float32),
    masks,
    np.full(2, 0.4, np.float32),
    1,
    False,
  )


def test_a_page_about_a_full_split_stays_below_10_megabytes_for_any_images():
  most = 3 * 100
  jpeg, width, height = predictions.encode(_noise(), np.zeros((480, 640), bool), 6_000_000 // most)
  rows = [_row(i) for i in range(10_834)]
  drawn = [DrawnPrediction(rows[i], jpeg, width, height, 3, rows[i]["iou"]) for i in range(100)]
  text = report_page.write(_report(rows, drawn))
  assert text.count("<figure>") == most
  assert len(text.encode()) < 10_000_000


def test_a_picture_is_as_good_as_the_limit_allows():
  result, target = _noise(), np.zeros((480, 640), bool)
  before = None
  for limit in (1_000_000, 150_000, 50_000, 20_000):
    jpeg, width, height = predictions.encode(result, target, limit)
    assert len(jpeg) <= limit
    with Image.open(io.BytesIO(jpeg)) as picture:
      assert picture.size == (width, height)
    assert before is None or (width, len(jpeg)) < before
    before = (width, len(jpeg))
  assert predictions.encode(result, target, 1_000_000)[1:] == (560, 420)


def test_untrusted_text_is_escaped():
  evil = "</p><script>alert('x')</script> & \"<img src=x onerror=y>\""
  row = _row(0, expression=evil, file_name='"><script src=x>', data="<b>a</b>/c")
  drawn = DrawnPrediction(row, drawing.encode_jpeg(np.zeros((4, 6, 3), np.uint8)), 6, 4, 1, 0.0)
  made = dataclasses.replace(
    _report([row], [drawn], "<i>a</i>/b"),
    run="<b>r</b>",
    about="<u>x</u>",
    facts={"<s>h</s>": {"<s>k</s>": "<s>v</s>"}},
    config='{"a": "<script>"}',
    notes=["<em>n</em>"],
    log=[{"step": 1, "<u>q</u>/mIoU": 0.5, "loss": 1.0, "seconds": {"<u>p</u>": 1.0}}],
  )
  text = report_page.write(made)
  html_pages.check_needs_nothing(text)
  parsed = html_pages.Parsed(text)
  tags = [tag for tag, _ in parsed.tags]
  assert not {"script", "i", "u", "s", "em"} & set(tags)
  assert tags.count("img") == 3
  assert tags.count("b") == 3  # of the tiles, which are ours
  assert evil in parsed.texts["p"]


def test_the_drawing_shows_mask_target_and_selected_instance():
  height, width = 80, 112
  photo = np.full((height, width, 3), 90, np.uint8)
  mask, target, chosen = (np.zeros((height, width), bool) for _ in range(3))
  mask[10:40, 10:40] = target[10:40, 60:100] = chosen[50:70, 10:90] = True
  share = np.full(1, 0.9, np.float32)
  result = Segmentation(photo, "it", mask, mask.astype(np.float32), chosen[None], share, 0, False)
  drawn = predictions.overlay(result, target, 560)
  assert drawn.shape == (400, 560, 3)
  zoom = 5

  def at(y: float, x: float) -> tuple[int, ...]:
    return tuple(drawn[int(y * zoom), int(x * zoom)])

  assert at(25, 25) == (60, 100, 172)  # half of the photo, half of the blue
  assert at(10.2, 80) == drawing.TARGET
  assert at(25, 80) == at(75, 100) == (90, 90, 90)
  assert at(50.2, 50) == drawing.SELECTED
  none = dataclasses.replace(result, selected=None)
  assert not (predictions.overlay(none, target, 560) == drawing.SELECTED).all(-1).any()
  portrait = dataclasses.replace(
    result,
    image=photo.transpose(1, 0, 2),
    mask=mask.T,
    probability=result.probability.T,
    instances=chosen.T[None],
  )
  assert predictions.overlay(portrait, target.T, 560).shape == (560, 400, 3)
