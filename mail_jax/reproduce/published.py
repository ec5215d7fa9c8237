"""Published results that the table shows beside ours: overall IoU in percent, with sources."""

import dataclasses
from collections.abc import Mapping

from input_pipeline.sources import refer

SETS = {
  "refcoco_unc": "RefCOCO",
  "refcoco+_unc": "RefCOCO+",
  "refcocog_umd": "RefCOCOg (umd)",
  "refcocog_google": "RefCOCOg (google)",
}
"""Data sets of the table and their names in papers."""
SPLITS = {
  name: tuple(split for split in refer.LAYOUTS[name].splits or () if split != "train")
  for name in SETS
}
"""Evaluation splits of each data set."""

ALONE, TOGETHER = "each set alone", "three sets together"


@dataclasses.dataclass(frozen=True)
class Published:
  """The results of a model.

  Attributes:
    model: its name in its paper.
    start: the weights that it started from.
    trained_on: `ALONE`, or `TOGETHER`: RefCOCO, RefCOCO+ and RefCOCOg (umd), whose training photos
      include most evaluation photos of the others (docs/explanation/leakage.md).
    protocol: of `protocols.PROTOCOLS`; empty if it is not known.
    source: of the numbers.
    oiou: by data set and split.
    unchecked: (data set, split) of numbers that are quoted from later papers.
  """

  model: str
  start: str
  trained_on: str
  protocol: str
  source: str
  oiou: Mapping[str, Mapping[str, float]]
  unchecked: frozenset[tuple[str, str]] = frozenset()


def _sets(
  refcoco: tuple[float, ...],
  plus: tuple[float, ...],
  umd: tuple[float, ...],
  google: tuple[float, ...] = (),
) -> dict[str, dict[str, float]]:
  """Names numbers in the order of SPLITS."""
  rows = zip(SETS, (refcoco, plus, umd, google), strict=True)
  return {name: dict(zip(SPLITS[name], row, strict=True)) for name, row in rows if row}


PUBLISHED = (
  Published(
    "MaIL",
    "ViLT-B/32",
    ALONE,
    "",
    "arXiv 2111.10747; the numbers of public result listings, * quoted from later papers",
    _sets((70.13, 71.71, 66.92), (62.23, 65.92, 56.06), (62.45, 62.87), (61.81,)),
    frozenset(
      (
        ("refcoco_unc", "testB"),
        ("refcoco+_unc", "val"),
        ("refcoco+_unc", "testA"),
      )
    ),
  ),
  Published(
    "OneRef-B",
    "BEiT-3-B",
    ALONE,
    "oneref",
    "arXiv 2410.08021, 384 pixels, as read in November 2026",
    _sets((77.55, 80.96, 73.53), (70.82, 74.53, 64.06), (70.68, 70.61)),
  ),
  Published(
    "C3VG",
    "BEiT-3-B",
    TOGETHER,
    "c3vg",
    "arXiv 2501.06710, 320 pixels, as read in November 2026",
    _sets((80.89, 83.18, 77.86), (74.68, 77.96, 68.95), (74.43, 76.39)),
  ),
  Published(
    "DeRIS-L",
    "BEiT-3-L and Mask2Former",
    TOGETHER,
    "deris",
    "arXiv 2507.01738, as read in November 2026",
    _sets((85.41, 86.49, 82.87), (79.01, 82.34, 74.41), (77.65, 80.12)),
  ),
)


def expressions(dataset: str, split: str) -> int:
  """Returns the published number of expressions of a split."""
  published = (refer.LAYOUTS[dataset].splits or {})[split]
  assert published is not None
  return published.expressions
