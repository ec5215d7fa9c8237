"""What a file of lines holds, as a table."""

from collections.abc import Iterator

import numpy as np

from input_pipeline.custom.scan import Scan, count_images, sentences_an_image

_QUANTILES = (0.0, 0.5, 1.0)


def describe(found: Scan) -> Iterator[str]:
  """Yields lines of text: counts of each split, sentences an image, sizes of what is meant."""
  heads = f"{'split':10}{'images':>10}{'lines':>10}{'sentences':>11}{'nothing meant':>15}"
  yield f"{heads}   sentences an image: least / median / most"
  for split, facts in found.splits().items():
    counts = np.quantile(list(sentences_an_image(facts).values()), _QUANTILES)
    empty = sum(row.area == 0 for row in facts)
    yield (
      f"{split:10}{count_images(facts):10,}{len(facts):10,}"
      f"{sum(row.sentences for row in facts):11,}{empty:15,}   "
      + " / ".join(f"{n:g}" for n in counts)
    )
  shares = [row.area / (row.size[0] * row.size[1]) for row in found.facts if row.area and row.size]
  if shares:
    low, middle, high = np.quantile(shares, _QUANTILES)
    yield f"targets cover {low:.2%} of their image at least, {middle:.2%} in the middle, {high:.2%} at most"
  with_instances = {row.image for row in found.facts if row.instances}
  yield f"{len(with_instances):,} of {count_images(found.facts):,} images come with instances"
