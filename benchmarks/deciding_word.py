r"""Measures how often an explanation finds the word that decides, where it is known:

  python -m benchmarks.deciding_word --checkpoint demo --scenes 300

Draws scenes as those of testA, which name objects by their attributes, and takes expressions in
which a single word decides: without it the expression means several objects, and without any other
word still the same one. The word of `Segmentation.explain` is compared with it.
"""

import argparse
import json
from collections.abc import Iterator
from typing import Any

import numpy as np

from input_pipeline.common.errors import run_command
from input_pipeline.common.terminal import progress_bar
from input_pipeline.shapes import grammar, scenes
from mail_jax.predict.segmenter import Segmenter

# Not among the seeds of `prepare` and of `draw_scene`.
_SEED = 5


def deciding_words(objects: Any) -> Iterator[tuple[int, tuple[str, ...], int]]:
  """Yields objects with words that mean them alone, and which of the words decides.

  Args:
    objects: of a scene.
  """
  by_description = {
    description: members
    for members, descriptions in grammar.describe(objects).items()
    for description in descriptions
  }
  for description, members in by_description.items():
    named = [field for field, word in description._asdict().items() if word]
    if members.bit_count() != 1 or not description.shape or len(named) < 2:
      continue
    needed = [
      i
      for i, field in enumerate(named)
      if by_description[description._replace(**{field: None})] != members
    ]
    if len(needed) == 1:
      words = tuple(getattr(description, field) for field in named)
      yield members.bit_length() - 1, words, needed[0]


def measure(segmenter: Segmenter, count: int, side: int) -> dict[str, int | float]:
  """Explains an expression per object of these scenes, at most.

  Args:
    segmenter: the model.
    count: number of scenes.
    side: of a scene, in pixels.

  Returns:
    Expressions; the share in which the word that decides is found; and both where the model chose
    an instance that overlaps the object by more than one half.
  """
  found: list[tuple[bool, bool]] = []
  with progress_bar("scenes", count, "scenes") as bar:
    for number in range(count):
      scene = scenes.make_scene("testA", _SEED, number, side)
      rng, masks = np.random.default_rng(number), scene.instances.masks
      options: dict[int, list[tuple[tuple[str, ...], int]]] = {}
      for index, words, decides in deciding_words(scene.objects):
        options.setdefault(index, []).append((words, decides))
      for index, choices in options.items():
        words, decides = choices[rng.integers(len(choices))]
        result = segmenter(scene.image, "the " + " ".join(words), masks)
        target, right = scene.targets[index], False
        if result.selected is not None:
          mask = masks[result.selected]
          right = bool((mask & target).sum() > 0.5 * (mask | target).sum())
        found.append((result.explain().deciding_word == decides + 1, right))
      bar.update()
  hits, right = np.array(found).T
  return {
    "expressions": len(hits),
    "found": float(hits.mean()),
    "expressions_right": int(right.sum()),
    "found_right": float(hits[right].mean()),
  }


def main(argv: list[str] | None = None) -> None:
  """Runs the command."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--checkpoint", default="demo")
  parser.add_argument("--scenes", type=int, default=300)
  parser.add_argument("--side", type=int, default=96, help="of a scene, in pixels (default: 96)")
  args = parser.parse_args(argv)
  print(json.dumps(measure(Segmenter.load(args.checkpoint), args.scenes, args.side)))


if __name__ == "__main__":
  run_command(main)
