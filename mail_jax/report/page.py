"""The page about a run, put together from its sections."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from input_pipeline.common import html
from input_pipeline.common.html import escape
from input_pipeline.proposers import leakage
from mail_jax.report import curves, predictions, quality
from mail_jax.report.charts import section
from mail_jax.report.predictions import Drawn
from mail_jax.report.quality import SplitResults
from mail_jax.report.style import LOOK

_SECTIONS = {
  "results": "Results",
  "quality": "Where it is good, and where not",
  "training": "Training",
  "predictions": "Predictions",
  "provenance": "What this rests on",
}
_HEADLINES = {
  "mIoU": "mean IoU",
  "oIoU": "overall IoU",
  "P@0.5": "of the masks have an IoU of 0.5 or more",
  "P@0.9": "have 0.9 or more",
  "selection_accuracy": "right instance chosen, where one fits",
}
_MEANINGS = {
  "expressions": "every sentence of every ref counts once",
  "refs": "objects that are meant",
  "oIoU": "overall IoU: sum of intersections / sum of unions, in pixels of the photos",
  "mIoU": "mean over the sentences of intersection / union",
  "boundary_mIoU": "mean IoU of what lies along the outlines of both masks: within 2 % of the photo's diagonal of them",
  "P@X": "share of sentences with an IoU of at least X (PhraseCut: above X)",
  "gIoU": "mean IoU, 1 where nothing is meant and the model says so, 0 where it is wrong about that",
  "cIoU": "sum of intersections / sum of unions, as the data set's own code counts",
  "N-acc": "share of the sentences that mean nothing which the model says to mean nothing",
  "T-acc": "share of the others which it does not say to mean nothing",
  "no_targets": "sentences that mean nothing",
  "selection_accuracy": "share of sentences whose chosen instance is right, among those for which one is",
  "selected_mIoU": "mean IoU of the chosen instance mask with the target",
  "oracle_mIoU": "mean IoU of the best instance mask: the ceiling of any method that only picks one",
  "text_cut": "share of sentences that were longer than the model reads",
}


@dataclasses.dataclass(frozen=True)
class Report:
  """All that the page says.

  Attributes:
    run: what the run is called.
    about: what it is, in a line: which checkpoint, how large.
    step: of the checkpoint.
    splits: what was evaluated; at least one.
    log: rows of the training log; None where there is none.
    pictures: what is drawn, by its kind.
    facts: what the numbers rest on: headings, each with names and what they are.
    config: the run's, as text.
    notes: what has to be known beside every number, but for what `splits` warn of.
  """

  run: str
  about: str
  step: int
  splits: Sequence[SplitResults]
  log: Sequence[Mapping[str, Any]] | None
  pictures: Mapping[str, Sequence[Drawn]]
  facts: Mapping[str, Mapping[str, str]]
  config: str
  notes: Sequence[str] = ()


def write(report: Report) -> str:
  """Returns the page; the same report gives the same text."""
  bodies = {
    "results": _results(report),
    "quality": quality.draw(report.splits),
    "training": curves.draw(report.log, report.step),
    "predictions": predictions.gallery(report.pictures, name_data=len(report.splits) > 1),
    "provenance": _provenance(report),
  }
  parts = [*_header(report), "<main>"]
  for name, title in _SECTIONS.items():
    parts += section(name, title, bodies[name])
  return html.document(f"{report.run}: report", LOOK, [*parts, "</main>"])


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
  yield '<p class="small">In percent, but for counts.</p>'
  yield '<details class="facts"><summary>What the columns mean</summary>'
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
  """Writes a count as it is, a fraction in percent, and a dash for what is not there."""
  if value is None:
    return "-"
  return f"{value:,}" if isinstance(value, int) else f"{100 * value:.2f}"


def _provenance(report: Report) -> Iterator[str]:
  yield '<div class="facts">'
  for heading, facts in report.facts.items():
    yield f"<div><h3>{escape(heading)}</h3>"
    yield from html.table(heading, ["what", "is"], [*facts.items()])
    yield "</div>"
  yield "</div>"
  yield "<details><summary>The whole config</summary>"
  yield f'<pre tabindex="0">{escape(report.config)}</pre></details>'
