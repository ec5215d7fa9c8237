"""The report as an HTML page: its sections, its style sheet and its provenance."""

import dataclasses
import importlib.metadata
import json
import platform
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax

from input_pipeline import storage
from input_pipeline.common import html
from input_pipeline.common.html import escape
from input_pipeline.proposers import leakage
from mail_jax.config import to_json
from mail_jax.export.load import LoadedModel
from mail_jax.report import curves, predictions, quality
from mail_jax.report.charts import section
from mail_jax.report.predictions import DrawnPrediction
from mail_jax.report.quality import SplitResults

_PACKAGES = ("mail_jax", "jax", "jaxlib", "flax", "numpy", "pillow")
STYLE = """
:root { --c0: #1f5fd0; --c1: #c4560b; --c2: #0b7a5c; --c3: #8b3fb0; --c4: #7d6408;
  --c5: #c22f55; --c6: #5f6670;
  --found: #0b7a5c; --poor: #6fae9a; --wrong: #b85f12; --none: #69717a }
@media (prefers-color-scheme: dark) {
  :root { --c0: #7fb0ff; --c1: #f7a35c; --c2: #4fd0a6; --c3: #cf9bea; --c4: #e0c44a;
    --c5: #ff8fab; --c6: #aeb6bf;
    --found: #2f9e7c; --poor: #7dc2ac; --wrong: #e58f45; --none: #7b848d }
}
.c0 { --own: var(--c0) } .c1 { --own: var(--c1) } .c2 { --own: var(--c2) }
.c3 { --own: var(--c3) } .c4 { --own: var(--c4) } .c5 { --own: var(--c5) }
.c6 { --own: var(--c6) }
.found { --own: var(--found) } .poor { --own: var(--poor) }
.wrong { --own: var(--wrong) } .none { --own: var(--none) }
header { border-bottom: 1px solid var(--line); padding-bottom: 1rem }
.about { color: var(--quiet); margin: 0 }
nav ul { display: flex; flex-wrap: wrap; gap: .25rem 1.25rem }
nav ul { list-style: none; margin: .8rem 0 0; padding: 0 }
nav a { display: inline-block; padding: .2rem 0 }
.tiles { display: grid; gap: .9rem; list-style: none; margin: 1.25rem 0; padding: 0 }
.tiles { grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)) }
.tiles li, .chart { background: var(--card); border: 1px solid var(--line) }
.tiles li, .chart { border-radius: .5rem; padding: .8rem 1rem }
.tiles b { display: block; font-size: clamp(1.35rem, 5vw, 1.9rem); white-space: nowrap }
.tiles b { font-variant-numeric: tabular-nums; font-weight: 650; line-height: 1.25 }
.tiles span { color: var(--quiet); display: block; font-size: .85rem }
.note { background: var(--card); border-left: 4px solid var(--wrong); margin: .8rem 0 }
.note { max-width: none; padding: .6rem .9rem }
.charts { align-items: stretch; display: grid; gap: 1.1rem; margin: 1rem 0 }
.charts { grid-template-columns: repeat(auto-fill, minmax(min(100%, 22rem), 1fr)) }
.chart h3 { margin: 0 0 .3rem }
.chart svg { display: block; height: auto; margin: .4rem 0; overflow: visible; width: 100% }
.chart p { font-size: .85rem; margin: .3rem 0 }
details { margin-top: .4rem }
summary { color: var(--accent); cursor: pointer; font-size: .85rem; padding: .2rem 0 }
details .scroll { max-height: 22rem; overflow: auto }
details table { font-size: .85rem }
pre { background: var(--card); border: 1px solid var(--line) }
pre { font-size: .8rem; overflow-x: auto; padding: .8rem }
svg text { fill: var(--ink); font-family: inherit; font-size: 12px }
svg .tick, svg .title { fill: var(--quiet); font-size: 11.5px }
svg .label { font-size: 13px; font-weight: 600 }
svg .middle { text-anchor: middle } svg .end { text-anchor: end }
svg .inside { fill: var(--paper); font-weight: 600; pointer-events: none }
svg .poor + .inside { fill: #000 }
svg .grid { stroke: var(--line); fill: none } svg .axis { stroke: var(--quiet); fill: none }
svg .mark-line { stroke: var(--quiet); stroke-dasharray: 4 3; fill: none }
svg .line { fill: none; stroke: var(--own); stroke-linejoin: round; stroke-width: 2 }
svg .line.c1 { stroke-dasharray: 7 3 } svg .line.c2 { stroke-dasharray: 2 3 }
svg .line.c3 { stroke-dasharray: 9 3 2 3 }
svg .line.c4 { stroke-dasharray: 12 4 } svg .line.c5 { stroke-dasharray: 1 4 }
svg .hit { fill: transparent } svg .hit:hover, svg .alone { fill: var(--own) }
svg .fill, svg .part { fill: var(--own) }
svg .fill:hover, svg .part:hover { opacity: .8 }
svg .track { fill: var(--line); opacity: .55 }
.key { display: flex; flex-wrap: wrap; font-size: .85rem; gap: .1rem 1rem }
.key { list-style: none; margin: .3rem 0; padding: 0 }
.swatch { background: var(--own); border-radius: .2rem; display: inline-block }
.swatch { height: .7em; width: 1.1em }
.prediction { background: #1e6eff }
.expression { font-size: 1.02rem; font-weight: 600 }
.adds1 { --share: 12% } .adds2 { --share: 24% } .adds3 { --share: 36% } .adds4 { --share: 48% }
.word { background: color-mix(in srgb, var(--c1) var(--share, 0%), transparent) }
.word { border-radius: .25rem; padding: .1rem .25rem; white-space: nowrap }
.score { font-variant-numeric: tabular-nums }
.facts { display: grid; gap: 1.1rem }
.facts { grid-template-columns: repeat(auto-fill, minmax(min(100%, 22rem), 1fr)) }
.facts td { overflow-wrap: anywhere; text-align: left; white-space: normal }
.facts th { vertical-align: top }
@media print { nav, summary { display: none } }
"""
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
  warnings += leakage.warnings({split.name: split.training_images for split in report.splits})
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


def facts(
  model: LoadedModel, data_dir: str, described: Mapping[str, Mapping[str, Any]], written: str
) -> dict[str, dict[str, str]]:
  """Returns headings, each with names and values.

  Args:
    model: that was evaluated.
    data_dir: the folder that `prepare` wrote to.
    described: as `runner.describe` returns it, for at least one split.
    written: date and time.
  """
  prints = {name: about["fingerprints"] for name, about in described.items()}
  headings = {"Model": _model(model, next(iter(prints.values())))}
  splits: dict[str, dict[str, str]] = {}
  for name, own in prints.items():
    dataset, _, split = name.rpartition("/")
    splits.setdefault(dataset, {})[split] = own["data"]
  for dataset, own in splits.items():
    headings[f"Data: {dataset}"] = _data(storage.read_metadata(data_dir, dataset) or {}, own)
  return headings | {"Written by": _programs(written)}


def config_text(model: LoadedModel) -> str:
  """Returns the config as JSON."""
  return json.dumps(to_json(model.config), indent=2)


def _model(model: LoadedModel, prints: Mapping[str, str]) -> dict[str, str]:
  config = model.config
  parts = config.model
  # An exported program contains its parameters.
  parameters = sum(x.size for x in jax.tree.leaves(model.variables.get("params", {})))
  return {
    **({"parameters": f"{parameters:,}"} if parameters else {}),
    "step": f"{model.step:,}",
    "encoder": f"{parts.depth} blocks of width {parts.width}, {parts.heads} heads, {parts.experts}",
    "image": f"{config.image_size} x {config.image_size} pixels, patches of {parts.patch_size}",
    "instances": f"up to {config.max_instances}; tokens: {parts.mask_tokens}; selection: "
    + parts.selection,
    "text": f"up to {config.max_tokens} of {model.tokenizer.vocab_size:,} word pieces",
    "started from": config.init or "random weights",
    "trained on": f"{config.dataset}, batches of {config.batch_size}, seed {config.seed}",
    "fingerprint": prints["model"],
    "config fingerprint": prints["config"],
  }


def _data(metadata: Mapping[str, Any], prints: Mapping[str, str]) -> dict[str, str]:
  """Returns the facts of a data set, and of its splits that have these fingerprints."""
  source = metadata.get("instances", {})
  origin, trained_on = source.get("from", "unknown"), source.get("trained_on", "unknown")
  facts = {
    "version": storage.VERSION,
    "instance masks": f"{origin}, trained on {trained_on}",
  }
  for split, fingerprint in prints.items():
    counts = metadata.get("counts", {}).get(split, {})
    sizes = [f"{value:,} {name}" for name, value in counts.items() if type(value) is int]
    facts[split] = ", ".join([*sizes, f"fingerprint {fingerprint}"])
  for key, value in metadata.get("arguments", {}).items():
    facts[f"prepared with {key}"] = str(value)
  return facts


def _programs(written: str) -> dict[str, str]:
  facts = {"date": written, "Python": platform.python_version()}
  for package in _PACKAGES:
    try:
      facts[package] = importlib.metadata.version(package)
    # A checkout that is not installed.
    except importlib.metadata.PackageNotFoundError:
      continue
  device = jax.devices()[0]
  return facts | {"device": f"{jax.device_count()} x {device.device_kind} ({device.platform})"}
