"""The table as HTML, Markdown and JSON: our numbers beside the published ones."""

import dataclasses
import datetime
import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from input_pipeline import left_out
from input_pipeline.common import atomic_files, html
from input_pipeline.common.html import escape
from input_pipeline.proposers import leakage
from mail_jax.evaluate.protocols import ORIGINAL
from mail_jax.report import charts, page
from mail_jax.reproduce import numbers, state
from mail_jax.reproduce.budget import Length, describe
from mail_jax.reproduce.published import ALONE, PUBLISHED, SETS, SPLITS, TOGETHER, Published
from mail_jax.reproduce.runs import Run
from mail_jax.reproduce.stages import GROUND_TRUTH, PROPOSED, Table

Number = dict[str, Any]
# Below so many images the intervals are too narrow.
_FEW_IMAGES = 30
_SECTIONS = {
  "results": "Overall IoU",
  "metrics": "Other metrics",
  "leakage": "Leakage",
  "cost": "Cost",
  "sources": "Sources",
}
_HOW_TO_READ = (
  "Overall IoU in percent, with a 95 % interval from a bootstrap over images (not over seeds). "
  "Rows compare where masks and protocol are the same; a paper's protocol reproduces its "
  f"evaluation. With {GROUND_TRUTH} masks, which are COCO's annotations, the target is among the "
  "masks: an upper bound, which does not compare with published numbers."
)
_LEAKY = (
  f"models trained on {TOGETHER} have seen most evaluation photos of the other two sets with their "
  "masks, unless they say otherwise; a mixture of ours leaves them out"
)


@dataclasses.dataclass(frozen=True)
class Grid:
  """A table of texts.

  Attributes:
    title: of the table.
    header: a text per column; the first is empty.
    rows: the first cell names the row.
    words: how many columns behind the first have words; the others have numbers.
  """

  title: str
  header: Sequence[str]
  rows: Sequence[Sequence[str]]
  words: int = 0

  def markdown(self) -> str:
    """Returns the table in Markdown, with its title."""
    rows = [list(self.header), ["---"] * len(self.header), *map(list, self.rows)]
    lines = ["| " + " | ".join(cell.strip().replace("|", "\\|") for cell in row) + " |"
             for row in rows]  # fmt: skip
    return "\n".join([f"## {self.title}", "", *lines, ""])


def write(
  place: Table,
  lengths: Sequence[Length],
  kept: state.State,
  made: Sequence[Run],
) -> list[pathlib.Path]:
  """Writes the files of the table.

  Args:
    place: where its parts are.
    lengths: of all runs, evaluated.
    kept: the settings.
    made: the runs that were asked for.

  Returns:
    Their paths.
  """
  found = {
    "written": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
    "command": f"python -m mail_jax.reproduce {kept.command}",
    "settings": dict(kept.settings),
    "remarks": state.remarks(kept, lengths, made),
    "rows": numbers.collect(place, lengths),
    "published": [
      dataclasses.asdict(row) | {"unchecked": sorted(map("/".join, row.unchecked))}
      for row in PUBLISHED
    ],
    "cost": numbers.cost(lengths, state.seconds_by_step(place.out)),
  }
  texts = {
    "table.json": json.dumps(found, indent=2) + "\n",
    "table.md": to_markdown(found),
    "table.html": to_html(found),
  }
  paths = [place.out / name for name in texts]
  for path, text in zip(paths, texts.values(), strict=True):
    atomic_files.write_whole(path, text)
  return paths


def to_markdown(found: Mapping[str, Any]) -> str:
  """Returns the table in Markdown."""
  notes = "\n".join(f"- {note[0].upper()}{note[1:]}" for note in notes_of(found))
  grids = [*result_grids(found), *detail_grids(found), leakage_grid(found), cost_grid(found)]
  parts = [f"# {title_of(found)}", "", f"Written {found['written']}. {_HOW_TO_READ}", "", notes, ""]
  return "\n".join([*parts, *(grid.markdown() for grid in grids), _sources_text()]) + "\n"


def title_of(found: Mapping[str, Any]) -> str:
  """Returns the heading of the table."""
  recipe = found["settings"]["recipe"].rpartition("/")[2]
  return f"{recipe} on the RefCOCO family"


def notes_of(found: Mapping[str, Any]) -> list[str]:
  """Returns what has to be said beside the numbers, the most important first."""
  rows = found["rows"]
  notes = list(found["remarks"])
  parts = {
    f"{row['set']}/{row['split']} {row['expressions']:,} of {row['published_expressions']:,}": None
    for row in rows
    if row["expressions"] != row["published_expressions"]
  }
  there = {(row["set"], row["split"]) for row in rows}
  for name in dict.fromkeys(row["set"] for row in rows):
    parts |= {f"{name}/{split} none": None for split in SPLITS[name] if (name, split) not in there}
  if parts:
    notes.append(
      f"not the published splits (expressions: {', '.join(parts)}): these numbers do not compare "
      "with published ones"
    )
  few = {f"{row['set']}/{row['split']}": None for row in rows if row["images"] < _FEW_IMAGES}
  if few:
    notes.append(
      f"fewer than {_FEW_IMAGES} images, so the intervals are too narrow: {', '.join(few)}"
    )
  by_masks: dict[str, dict[str, Any]] = {}
  for row in rows:
    same = {
      other["instances"]["warning"] for other in rows if other["masks"] == row["masks"]
    } == {row["instances"]["warning"]}  # fmt: skip
    where = "" if same else f" on {row['set']}/{row['split']}"
    by_masks[f"{row['masks']} masks{where}"] = row["instances"]
  seen = {
    f"model {row['model']} on {row['set']}/{row['split']}": row["training_images"] for row in rows
  }
  warnings = [*leakage.warnings(by_masks), *leakage.warnings(seen)]
  notes += [warning.removeprefix("warning: ") for warning in warnings]
  of_models = {row["model"]: row["left_out"] for row in rows}
  notes += [f"model {model}: {line}" for model, noted in of_models.items()
            for line in left_out.describe(noted)]  # fmt: skip
  return [*notes, _LEAKY]


def result_grids(found: Mapping[str, Any]) -> Iterator[Grid]:
  """Yields a table of overall IoU for each data set: published results, then ours."""
  for dataset, title in SETS.items():
    own = [row for row in found["rows"] if row["set"] == dataset]
    if not own:
      continue
    header = ["", "trained on", "start", "masks", "protocol", "seeds"]
    rows = [
      _published_row(row, dataset) for row in PUBLISHED if dataset in row.oiou
    ]  # fmt: skip
    rows += _our_rows(own, dataset)
    yield Grid(title, [*header, *SPLITS[dataset]], rows, words=4)


def _published_row(row: Published, dataset: str) -> list[str]:
  cells = [
    f"{row.oiou[dataset][split]:.2f}" + "*" * ((dataset, split) in row.unchecked)
    for split in SPLITS[dataset]
  ]
  return [row.model, row.trained_on, row.start, "its own", row.protocol or "not known", "-", *cells]


def _our_rows(own: Sequence[Number], dataset: str) -> Iterator[list[str]]:
  groups: dict[tuple[str, str, str], dict[str, Number]] = {}
  for row in own:
    key = row["model"], row["masks"], row["protocol"]
    groups.setdefault(key, {})[row["split"]] = row
  for (_, masks, protocol), by_split in groups.items():
    row = next(iter(by_split.values()))
    yield [
      name_of(row),
      _sets_of(row),
      row["start"],
      masks,
      protocol,
      str(len(row["seeds"])),
      *(
        write_interval(by_split[split], "oIoU") if split in by_split else "-"
        for split in SPLITS[dataset]
      ),
    ]


def _sets_of(row: Number) -> str:
  return " + ".join(SETS[name] for name in row["trained_on"])


def name_of(row: Number) -> str:
  """Returns what a row of ours is called, with its length if that is not the recipe's."""
  share = row["share_of_recipe"]
  return f"ours, {row['model']}" + (f", {share:.1%} of the recipe" if share < 1 else "")


def write_interval(row: Number, metric: str) -> str:
  """Formats a metric in percent with its interval, such as `71.20 [70.31, 72.05]`."""
  value = row["metrics"].get(metric)
  if value is None:
    return "-"
  text = page.write_metric(value["mean"])
  if value["low"] is None:
    return text
  return f"{text} [{page.write_metric(value['low'])}, {page.write_metric(value['high'])}]"


def detail_grids(found: Mapping[str, Any]) -> Iterator[Grid]:
  """Yields a table of other metrics for each kind of masks, by the original protocol."""
  rows = [row for row in found["rows"] if row["protocol"] == ORIGINAL.name]
  for masks in dict.fromkeys(row["masks"] for row in rows):
    header = ["", "model", "expressions", "images", "oIoU of the seeds", *numbers.SHOWN]
    yield Grid(
      f"Protocol original, {masks} masks",
      header,
      [_detail(row) for row in rows if row["masks"] == masks],
      words=1,
    )


def _detail(row: Number) -> list[str]:
  seeds = [page.write_metric(value) for value in row["metrics"]["oIoU"]["seeds"]]
  return [
    f"{SETS[row['set']]} {row['split']}",
    name_of(row),
    f"{row['expressions']:,}",
    f"{row['images']:,}",
    ", ".join(seeds),
    *(
      page.write_metric(row["metrics"][metric]["mean"]) if metric in row["metrics"] else "-"
      for metric in numbers.SHOWN
    ),
  ]


def leakage_grid(found: Mapping[str, Any]) -> Grid:
  """Returns what masks and models have seen of each evaluation split."""
  header = ["", "model", "masks", "masks from", "trained on", "images seen by the proposer"]
  header += ["images", "seen by the model", "similar"]
  rows: dict[tuple[str, ...], None] = {}
  for row in found["rows"]:
    instances, own = row["instances"], row["training_images"]
    rows[
      (
        f"{SETS[row['set']]} {row['split']}",
        name_of(row),
        row["masks"],
        found["settings"].get("instances", "") if row["masks"] == PROPOSED else instances["from"],
        instances["trained_on"],
        _count(instances["seen"]),
        f"{row['images']:,}",
        _count(own["seen"]),
        _count(own["similar"]),
      )
    ] = None
  return Grid("Leakage", header, list(rows), words=4)


def _count(value: int | None) -> str:
  return "unknown" if value is None else f"{value:,}"


def cost_grid(found: Mapping[str, Any]) -> Grid:
  """Returns the wall time of each kind of step."""
  rows = [
    [
      row["step"],
      describe(row["seconds"]),
      f"{row['training_flops'] / 1e15:,.4g}" if row["training_flops"] else "-",
    ]
    for row in found["cost"]
  ]
  rows.append(["all", describe(sum(row["seconds"] for row in found["cost"])), "-"])
  return Grid("Cost", ["", "wall time", "PFLOP of products"], rows)


def _sources_text() -> str:
  return "\n".join(["## Sources", "", *(f"- {name}: {text}" for name, text in _sources())])


def _sources() -> list[tuple[str, str]]:
  return [(row.model, row.source) for row in PUBLISHED]


def to_html(found: Mapping[str, Any]) -> str:
  """Returns the table as a page."""
  bodies = {
    "results": _results(found),
    "metrics": _grids(detail_grids(found)),
    "leakage": _grids([leakage_grid(found)], titles=False),
    "cost": _cost(found),
    "sources": _provenance(found),
  }
  parts = [*_header(found), "<main>"]
  for name, title in _SECTIONS.items():
    parts += charts.section(name, title, bodies[name])
  return html.document(title_of(found), page.STYLE + _STYLE, [*parts, "</main>"])


_STYLE = """
.words1 td:nth-child(-n+2), .words4 td:nth-child(-n+5) { text-align: left }
.words1 th, .words1 td:nth-child(-n+2) { white-space: normal }
.words4 th, .words4 td:nth-child(-n+5) { white-space: normal }
.words1 th:nth-child(-n+2), .words4 th:nth-child(-n+5) { text-align: left }
"""


def _header(found: Mapping[str, Any]) -> Iterator[str]:
  yield f"<header><h1>{escape(title_of(found))}</h1>"
  yield f'<p class="about">Written {escape(found["written"])}</p>'
  links = "".join(
    f'<li><a href="#{name}">{escape(title)}</a></li>' for name, title in _SECTIONS.items()
  )
  yield f'<nav aria-label="Sections"><ul>{links}</ul></nav></header>'


def _results(found: Mapping[str, Any]) -> Iterator[str]:
  for note in notes_of(found):
    yield f'<p class="note" role="note">{escape(note[0].upper() + note[1:])}</p>'
  main = _main_rows(found)
  yield '<ul class="tiles">'
  for (dataset, split), row in main.items():
    paper = PUBLISHED[0].oiou[dataset][split]
    value = 100 * row["metrics"]["oIoU"]["mean"]
    name = f"{SETS[dataset]} {split}: {name_of(row)}"
    yield (
      f"<li><b>{value:.2f} %</b><span>{escape(name)}</span>"
      f"<span>{PUBLISHED[0].model} {paper:.2f} ({value - paper:+.2f})</span></li>"
    )
  yield "</ul>"
  yield f"<p>{escape(_HOW_TO_READ)}</p>"
  yield from charts.grid(_charts(main))
  yield from _grids(result_grids(found))


def _main_rows(found: Mapping[str, Any]) -> dict[tuple[str, str], Number]:
  """Returns our main row of each split: the proposer's masks, of a model for this set if any."""
  best: dict[tuple[str, str], Number] = {}
  for row in found["rows"]:
    if (row["masks"], row["protocol"]) != (PROPOSED, ORIGINAL.name):
      continue
    key = row["set"], row["split"]
    if key not in best or (row["trained_on"] == [row["set"]]):
      best[key] = row
  return best


def _charts(main: Mapping[tuple[str, str], Number]) -> Iterator[str]:
  """Yields a chart for each data set: the paper, the best model trained on it alone, and ours."""
  alone = [row for row in PUBLISHED if row.trained_on == ALONE]
  for dataset, title in SETS.items():
    own = {split: row for (name, split), row in main.items() if name == dataset}
    if not own:
      continue
    rivals = [row for row in alone if dataset in row.oiou]
    colours = {row.model: number for number, row in enumerate(alone)}
    colours |= {name_of(row): len(alone) for row in own.values()}
    groups = []
    for split, row in own.items():
      values = {rival.model: rival.oiou[dataset][split] / 100 for rival in rivals}
      values[name_of(row)] = row["metrics"]["oIoU"]["mean"]
      bars = [
        charts.Bar(value, f"{title} {split}, {model}: {100 * value:.2f} %", colours[model])
        for model, value in values.items()
      ]
      groups.append((split, bars))
    alt_text = "; ".join(bar.tooltip for _, bars in groups for bar in bars)
    ours = next(iter(own.values()))
    key = [
      (model, f"swatch {charts.colour(colours[model])}")
      for model in (*(rival.model for rival in rivals), name_of(ours))
    ]
    yield charts.panel(
      title,
      charts.bars(groups, alt_text),
      charts.key_of(key),
      f"Overall IoU in percent. Published: trained on this set alone. Ours: trained on "
      f"{_sets_of(ours)}, with the proposer's masks.",
    )


def _grids(grids: Iterator[Grid] | Sequence[Grid], titles: bool = True) -> Iterator[str]:
  for grid in grids:
    if titles:
      yield f"<h3>{escape(grid.title)}</h3>"
    yield f'<div class="words{grid.words}">'
    yield from html.table(grid.title, grid.header, grid.rows)
    yield "</div>"


def _cost(found: Mapping[str, Any]) -> Iterator[str]:
  grid = cost_grid(found)
  yield from html.table(grid.title, grid.header, grid.rows)
  yield (
    '<p class="small">Wall time of the commands, over all starts that ended by themselves. '
    "Products of the model are counted by hand.</p>"
  )


def _provenance(found: Mapping[str, Any]) -> Iterator[str]:
  yield "<ul>"
  for name, text in _sources():
    yield f"<li><strong>{escape(name)}</strong>: {escape(text)}</li>"
  yield "</ul>"
  yield f'<h3>Ours</h3><pre tabindex="0">{escape(found["command"])}</pre>'
  settings = [[key, json.dumps(value)] for key, value in found["settings"].items()]
  yield '<div class="facts">'
  yield from html.table("settings", ["setting", "value"], settings)
  yield "</div>"
