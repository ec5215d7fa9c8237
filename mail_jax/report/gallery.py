"""The pictures of a report, each with its sentence and what became of it."""

from collections.abc import Iterator, Mapping, Sequence

from input_pipeline.common import html
from input_pipeline.common.html import escape
from input_pipeline.proposals.oracle import size_of
from mail_jax.report import predictions
from mail_jax.report.predictions import Drawn

_KEY = (
  ("the predicted mask", "mark prediction"),
  ("outline of the target", "mark target"),
  ("outline of the chosen instance", "mark chosen"),
)


def draw(pictures: Mapping[str, Sequence[Drawn]], name_data: bool) -> Iterator[str]:
  """Yields the pictures of every kind of `predictions.KINDS`.

  Args:
    pictures: by their kind.
    name_data: whether each says which split it is of.
  """
  items = "".join(f'<li><span class="{look}"></span> {meaning}</li>' for meaning, look in _KEY)
  yield f'<ul class="key">{items}</ul>'
  for kind, drawn in pictures.items():
    why = predictions.KINDS[kind]
    yield f'<h3 id="{kind}">{kind.capitalize()}</h3><p class="small">{len(drawn)} predictions: {why}.</p>'
    yield '<div class="pictures">'
    for one in drawn:
      yield _figure(one, name_data)
    yield "</div>"


def _figure(one: Drawn, name_data: bool) -> str:
  row = one.row
  what = f"{row['file_name']} with the prediction for: {row['sentence']}"
  facts = [
    *([row["data"]] if name_data else []),
    row["file_name"],
    f"ref {row['ref_id']}",
    f"target of {row['area']:,} pixels ({size_of(row['area'])})" if row["area"] else "no target",
  ]
  if "no_target_probability" in row:
    facts.append(f"nothing meant: {row['no_target_probability']:.0%} sure")
  return (
    f"<figure>{html.embed(one.jpeg, one.width, one.height, what)}<figcaption>"
    f'<p class="said" dir="auto">{escape(row["sentence"])}</p>'
    f'<p class="score"><strong>IoU {row["iou"]:.2f}</strong>, {_which(one)}</p>'
    f'<p class="small">{escape(", ".join(facts))}</p></figcaption></figure>'
  )


def _which(one: Drawn) -> str:
  row, count = one.row, one.instances
  best = f"the best has {row['oracle_iou']:.2f}"
  if not count:
    return "the photo has no instance mask"
  if row["chosen"] is None:
    return f"none of {count} instances chosen; {best}"
  return f"instance {row['chosen'] + 1} of {count} chosen, with {row['chosen_iou']:.2f}; {best}"
