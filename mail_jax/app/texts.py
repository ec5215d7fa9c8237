"""The texts of results, as HTML and as the names of files."""

import html
import re
from collections.abc import Sequence

import numpy as np

from mail_jax.app.pictures import COLOURS, css, ink
from mail_jax.predict.segmenter import Segmentation


def summary(
  result: Segmentation, masks_source: str, number: int = 0, agreement: Sequence[float] = ()
) -> str:
  """Returns HTML that describes a result.

  Args:
    result: of one expression.
    masks_source: of the instance masks, in a few words; empty without masks.
    number: of the expression in the request, from 0, whose colour it has.
    agreement: IoU of the mask with that of each other model.
  """
  notes = [
    *_notes(result, masks_source),
    *(f"Overlap with the other model's mask (IoU): {iou:.0%}" for iou in agreement),
  ]
  listed = "".join(f"<li>{html.escape(note)}</li>" for note in notes)
  return (
    f'<section class="answer">{_key(number, result.selected is not None)}'
    f'<p class="asked">“{html.escape(result.expression)}”</p>'
    f'<p class="found">{html.escape(headline(result))}</p><ul>{listed}</ul></section>'
  )


def _key(number: int, has_instance: bool) -> str:
  """Returns what the colours of a picture mean."""
  colour = f'<span><i style="background:{css(COLOURS[number])}"></i>what you described</span>'
  instance = '<span><i class="selected"></i>the selected instance</span>' if has_instance else ""
  return f'<p class="key">{colour}{instance}</p>'


def legend(results: Sequence[Segmentation]) -> str:
  """Returns HTML that lists the results of several expressions with their colours."""
  rows = []
  for number, (result, colour) in enumerate(zip(results, COLOURS, strict=False), 1):
    score = f" · {_selection(result)}" if len(result.instances) else ""
    rows.append(
      f'<li><i style="background:{css(colour)};color:{ink(colour)}">{number}</i>'
      f'<div><p class="asked">“{html.escape(result.expression)}”</p>'
      f"<p>{html.escape(headline(result) + score)}</p></div></li>"
    )
  return f'<section class="answer"><ol class="legend">{"".join(rows)}</ol></section>'


def headline(result: Segmentation) -> str:
  """Returns the result in one line."""
  no_target = result.no_target_probability
  if no_target is not None and no_target > 0.5:
    return f"Not in the photo ({no_target:.0%} certain)"
  if not result.mask.any():
    return "Nothing found"
  share = result.mask.mean()
  return (
    f"Found: {share:.1%} of the photo" if share >= 0.001 else "Found: less than 0.1% of the photo"
  )


def _notes(result: Segmentation, masks_source: str) -> list[str]:
  notes = []
  if result.mask.any():
    probability = result.probability[result.mask].mean(dtype=np.float64)
    notes.append(f"Mean probability inside the mask: {probability:.0%}")
  if len(result.instances):
    notes.append(f"{_selection(result)}; masks {masks_source}")
  else:
    notes.append(
      "No instance masks: the model saw only the photo and the text, which is less accurate"
    )
  if result.was_cut:
    notes.append("The text is longer than the model's limit; its end was cut off")
  return notes


def _selection(result: Segmentation) -> str:
  count, probabilities = len(result.instances), result.instance_probability
  if result.selected is None:
    return f"None of {count} instances selected"
  probability = probabilities[result.selected]
  return f"Instance {result.selected + 1} of {count} selected (probability {probability:.0%})"


def join_sources(marked: int, source: str) -> str:
  """Returns where instance masks come from, in words, if the visitor marked some of them."""
  yours = "from your mark" if marked == 1 else f"from your {marked} marks"
  return f"{yours}, the others {source}" if source else yours


def caption(result: Segmentation, k: int, marked: int = 0) -> str:
  """Returns the caption of instance k, of which the first ones are the visitor's."""
  name = f"yours {k + 1}" if k < marked else str(k + 1)
  mark = " ✓" if k == result.selected else ""
  return f"{name}: {result.instance_probability[k]:.0%}{mark}"


def file_name(number: int, expression: str) -> str:
  """Returns a name for the file of an expression that every system accepts."""
  words = re.sub(r"[^\w-]+", " ", expression).strip()[:40].strip()
  return f"{number} {words}".strip()


def title(models: Sequence[str]) -> str:
  """Returns the header of the page, with the models that it runs.

  Args:
    models: each as `describe_model` returns it.
  """
  about = "".join(f'<p class="model"><span>mail_jax</span> {model}</p>' for model in models)
  return (
    "<header><h1>Say it, see it</h1>"
    f'<p class="lead">Describe something in a photo, and the model marks it.</p>{about}</header>'
  )


def describe_model(name: str, step_name: str, step: int, dataset: str) -> str:
  """Returns the name of a model, its step and what it was trained on, as HTML."""
  parts = (name, step_name, f"step {step:,}", f"trained on {dataset}")
  return " · ".join(html.escape(part) for part in parts if part)
