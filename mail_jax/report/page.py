"""The report as an HTML page, built from its sections."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from input_pipeline.common import html
from input_pipeline.common.html import escape
from input_pipeline.proposers import leakage
from mail_jax.report import curves, predictions, quality
from mail_jax.report.charts import section
from mail_jax.report.predictions import DrawnPrediction
from mail_jax.report.quality import SplitResults
from mail_jax.report.style import STYLE

_SECTIONS = {
  "results": "Results",
  "quality": "Quality of the masks",
  "training": "Training",
  "predictions": "Predictions",
  "provenance": "Provenance",
}
_HEADLINES = {
  "mIoU": "mean IoU",
  "oIoU": "overall IoU",
  "P@0.5": "of the masks have an IoU of at least 0.5",
  "P@0.9": "have an IoU of at least 0.9",
  "selection_accuracy": "right instance selected, where one fits",
}
_MEANINGS = {
  "expressions": "number of expressions; every one counts once",
  "refs": "number of refs",
  "oIoU": "overall IoU: sum of intersections / sum of unions, in pixels of the images",
  "mIoU": "mean over the expressions of intersection / union",
  "boundary_mIoU": "mean IoU of the masks near their outlines, within 2 % of the image's diagonal",
  "P@X": "share of expressions with an IoU of at least X (PhraseCut: above X)",
  "gIoU": "mean IoU; 1 for a missing target predicted as such, 0 for an error about that",
  "cIoU": "sum of intersections / sum of unions, as in the data set's own code",
  "N-acc": "share of the expressions without a target that are predicted as such",
  "T-acc": "share of the expressions with a target that are predicted as such",
  "no_targets": "number of expressions without a target",
  "selection_accuracy": "share of expressions with the right instance selected, where one fits",
  "selected_mIoU": "mean IoU of the selected instance mask with the target",
  "oracle_mIoU": "mean IoU of the best instance mask: the upper limit of selecting one",
  "text_cut": "share of expressions that are longer than the model's limit",
}


@dataclasses.dataclass(frozen=True)
class Report:
  """The content of the page.

  Attributes:
    run: name of the run.
    about: one line on the checkpoint, the splits and the date.
    step: of the checkpoint.
    splits: the results; at least one.
    log: rows of the training log; None without one.
    predictions: those that are drawn, by the headings of `predictions.HEADINGS`.
    facts: the provenance: headings, each with names and values.
    config: of the run, as text.
    notes: remarks on all numbers, in addition to the warnings of `splits`.
  """

  run: str
  about: str
  step: int
  splits: Sequence[SplitResults]
  log: Sequence[Mapping[str, Any]] | None
  predictions: Mapping[str, Sequence[DrawnPrediction]]
  facts: Mapping[str, Mapping[str, str]]
  config: str
  notes: Sequence[str] = ()


def write(report: Report) -> str:
  """Returns the page; equal reports give equal text."""
  bodies = {
    "results": _results(report),
    "quality": quality.draw(report.splits),
    "training": curves.draw(report.log, report.step),
    "predictions": predictions.gallery(report.predictions, with_split=len(report.splits) > 1),
    "provenance": _provenance(report),
  }
  parts = [*_header(report), "<main>"]
  for name, title in _SECTIONS.items():
    parts += section(name, title, bodies[name])
  return html.document(f"{report.run}: report", STYLE, [*parts, "</main>"])


def _header(report: Report) -> Iterator[str]:
  yield f'<header><h1>{escape(report.run)}</h1><p class="about">{escape(report.about)}</p>'
  links = "".join(
    f'<li><a href="#{name}">{escape(title)}</a></li>' for name, title in _SECTIONS.items()
  )
  yield f'<nav aria-label="Sections"><ul>{links}</ul></nav></header>'


def _results(report: Report) -> Iterator[str]:
  warnings = leakage.warnings({split.name: split.instances for split in report.splits})
  for note in [*warnings, *report.notes]:
    yield f'<p class="note" role="note">{escape(note[0].upper() + note[1:])}</p>'
  yield '<ul class="tiles">'
  yield from _tiles(report.splits)
  yield "</ul>"
  names = list(dict.fromkeys(name for split in report.splits for name in split.metrics))
  rows = [
    [split.name, *(write_metric(split.metrics.get(name)) for name in names)]
    for split in report.splits
  ]
  yield from html.table("metrics of every split", ["", *names], rows)
  yield '<p class="small">Percent, except for counts.</p>'
  yield '<details class="facts"><summary>Meaning of the columns</summary>'
  known = {name: text for name, text in _MEANINGS.items() if name in names or name == "P@X"}
  yield from html.table("meanings", ["metric", "meaning"], [*known.items()])
  yield "</details>"


def _tiles(splits: Sequence[SplitResults]) -> Iterator[str]:
  if len(splits) > 1:
    for split in splits:
      more = ", ".join(f"{name} {write_metric(split.metrics[name])}" for name in ("oIoU", "P@0.5"))
      yield _tile(split.metrics["mIoU"], f"{split.name}: mean IoU", more)
    return
  for name, meaning in _HEADLINES.items():
    if name in splits[0].metrics:
      yield _tile(splits[0].metrics[name], meaning)


def _tile(value: int | float, *texts: str) -> str:
  lines = "".join(f"<span>{escape(text)}</span>" for text in texts)
  return f"<li><b>{write_metric(value)} %</b>{lines}</li>"


def write_metric(value: int | float | None) -> str:
  """Formats a count as it is, a fraction in percent, and None as a dash."""
  if value is None:
    return "-"
  return f"{value:,}" if isinstance(value, int) else f"{100 * value:.2f}"


def _provenance(report: Report) -> Iterator[str]:
  yield '<div class="facts">'
  for heading, facts in report.facts.items():
    yield f"<div><h3>{escape(heading)}</h3>"
    yield from html.table(heading, ["name", "value"], [*facts.items()])
    yield "</div>"
  yield "</div>"
  yield "<details><summary>Full config</summary>"
  yield f'<pre tabindex="0">{escape(report.config)}</pre></details>'
