"""What the page says of an answer, as HTML in which all text of others is escaped."""

import html

import numpy as np

from mail_jax.predict.segmenter import Segmentation


def summary(result: Segmentation, masks_from: str) -> str:
  """Says how much was found, how sure the model is, and what to know about it.

  Args:
    result: of one expression.
    masks_from: where the instance masks came from, in a few words; empty where there were none.
  """
  notes = [f"<li>{html.escape(note)}</li>" for note in _notes(result, masks_from)]
  return (
    f'<section class="answer" aria-live="polite"><p class="asked">“{html.escape(result.expression)}”</p>'
    f'<p class="found">{html.escape(headline(result))}</p><ul>{"".join(notes)}</ul></section>'
  )


def headline(result: Segmentation) -> str:
  """What was found, in one line."""
  nothing = result.no_target_probability
  if nothing is not None and nothing > 0.5:
    return f"Nothing in the photo is meant, {nothing:.0%} sure"
  if not result.mask.any():
    return "Nothing was found"
  share = result.mask.mean()
  return (
    f"Found: {share:.1%} of the photo" if share >= 0.001 else "Found: less than 0.1% of the photo"
  )


def _notes(result: Segmentation, masks_from: str) -> list[str]:
  notes = []
  if result.mask.any():
    sure = result.probability[result.mask].mean(dtype=np.float64)
    notes.append(f"{sure:.0%} sure of the pixels inside the mask, on average")
  count = len(result.instances)
  if count:
    notes.append(f"{_choice(result)}; the masks are {masks_from}")
  else:
    notes.append(
      "No instance masks: answered from the photo and the text alone, which is less exact"
    )
  if result.was_cut:
    notes.append("The text is longer than the model reads: its end was cut off")
  return notes


def _choice(result: Segmentation) -> str:
  count, chances = len(result.instances), result.instance_probability
  if result.chosen is None:
    return f"None of the {count} instances was chosen"
  return f"Instance {result.chosen + 1} of {count} chosen, {chances[result.chosen]:.0%} sure"


def caption(result: Segmentation, k: int) -> str:
  """The line below the picture of instance k."""
  mark = " ✓" if k == result.chosen else ""
  return f"{k + 1}: {result.instance_probability[k]:.0%}{mark}"


def title(name: str, selected: str, step: int, dataset: str) -> str:
  """The head of the page: which model this is."""
  about = " · ".join(
    html.escape(part)
    for part in (name, selected, f"step {step:,}", f"learned from {dataset}")
    if part
  )
  return (
    '<header><h1>Say it, see it</h1><p class="lead">Describe something in a photo; the model marks it.</p>'
    f'<p class="model"><span>mail_jax</span> {about}</p></header>'
  )
