"""Expressions for generated scenes: a small grammar whose every sentence has one referent.

A set of objects is an integer, bit i for object i. The meaning of a sentence is such a set, worked
out by `describe`, `ranks` and `related` from measured positions; only sentences that mean exactly
one object are kept. A relation between two objects holds only where it is clear:
positions within a margin of each other make a sentence about them mean nothing.
"""

import bisect
import dataclasses
import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool

from input_pipeline.shapes.drawing import ShapeObject

KINDS = ("attribute", "superlative", "ordinal", "relation")
SIDES = ("left", "right", "top", "bottom")

_OPPOSITE = {"left": "right", "top": "bottom", "large": "small"}
_OPPOSITE |= {opposite: side for side, opposite in _OPPOSITE.items()}
_SUPERLATIVES = {
  "left": "leftmost",
  "right": "rightmost",
  "top": "topmost",
  "bottom": "lowest",
  "large": "largest",
  "small": "smallest",
}
_FURTHEST = {
  "left": "furthest to the left",
  "right": "furthest to the right",
  "top": "nearest the top",
  "bottom": "nearest the bottom",
}
_RELATIONS = {
  "left": ("left of", "to the left of"),
  "right": ("right of", "to the right of"),
  "top": ("above",),
  "bottom": ("below",),
}
_RANKS = {2: "second", 3: "third"}

# Margins, in fractions of the image side, that make a position clear to a person.
ORDER_MARGIN = 0.06
RELATION_MARGIN = 0.09
RELATION_SLOPE = 0.8  # clearly above: at most this far sideways for each step up
# What a person might still accept as the relation; such objects rule a sentence out.
LOOSE_MARGIN = 0.02
LOOSE_SLOPE = 2.2
# "The largest square" and the next: visible areas, and radii, so that hiding decides nothing.
AREA_RATIO = 1.4
RADIUS_RATIO = 1.15

# Not the shares that come out, as fewer objects allow some kinds than others.
_KIND_WEIGHTS = {"attribute": 0.345, "superlative": 0.225, "ordinal": 0.3, "relation": 0.185}


@dataclasses.dataclass(frozen=True)
class Expression:
  """A sentence that means exactly one object.

  Attributes:
    text: the sentence.
    kind: what decides it: "attribute", "superlative", "ordinal" or "relation".
  """

  text: str
  kind: str


class Description(NamedTuple):
  """Attributes that are named; None where one is left out."""

  size: str | None
  texture: str | None
  colour: str | None
  shape: str | None

  def text(self) -> str:
    """The words, e.g. "large striped red star"; "object" stands in for the shape."""
    words = [word for word in self[:3] if word is not None]
    return " ".join([*words, self.shape or "object"])


class Form(NamedTuple):
  """The meaning of a sentence that is decided by position or size, among `members`."""

  kind: str
  members: int
  direction: str
  rank: int = 1
  anchor: int = -1


@dataclasses.dataclass(frozen=True)
class Facts:
  """What is true of a scene, as sets of objects.

  Attributes:
    count: number of objects.
    descriptions: each set that attributes can name, and the descriptions that name it.
    beyond: beyond[d][i] are the objects that i is clearly further to the d than (also d = "large",
      "small": clearly larger or smaller than).
    clear: clear[d][i] are the objects that are clearly to the d of i.
    loose: loose[d][i] are the objects that might pass as being to the d of i.
  """

  count: int
  descriptions: dict[int, list[Description]]
  beyond: dict[str, list[int]]
  clear: dict[str, list[int]]
  loose: dict[str, list[int]]


def _is_one(objects: int) -> bool:
  return objects != 0 and objects & (objects - 1) == 0


def describe(objects: Sequence[ShapeObject]) -> dict[int, list[Description]]:
  """Finds every description that fits at least one object, by the set of objects it fits."""
  named: dict[int, list[Description]] = {}
  traits = [(o.size, o.texture, o.colour, o.shape) for o in objects]
  bearers: dict[str, int] = {}
  for index, words in enumerate(traits):
    for word in words:
      bearers[word] = bearers.get(word, 0) | 1 << index
  everything = (1 << len(objects)) - 1
  seen = set()
  for words in dict.fromkeys(traits):
    options = [((word, bearers[word]), (None, everything)) for word in words]
    for (size, a), (texture, b), (colour, c), (shape, d) in itertools.product(*options):
      description = (size, texture, colour, shape)
      if description not in seen:
        seen.add(description)
        named.setdefault(a & b & c & d, []).append(Description(*description))
  return named


def _as_sets(holds: Bool[np.ndarray, "r n n"]) -> list[list[int]]:
  """Turns each row of each matrix into a set."""
  return (holds @ (1 << np.arange(holds.shape[2]))).tolist()


def observe(objects: Sequence[ShapeObject], visible: Bool[np.ndarray, "n s s"]) -> Facts:
  """Measures a scene from what is visible of it.

  Args:
    objects: the objects' attributes; their stated positions are not used.
    visible: what is seen of each, at least one pixel.

  Returns:
    The facts that sentences are made of and judged by.
  """
  length = visible.shape[1]
  covered = visible.astype(np.float32)
  seen = np.stack([covered.sum(1), covered.sum(2)])  # [axis, object, position], x first
  area = seen[0].sum(1)
  centre = (seen @ (np.arange(length) + 0.5)) / (area * length)
  first = (seen > 0).argmax(2)
  last = -(seen[:, :, ::-1] > 0).argmax(2)

  gap = centre[:, None, :] - centre[:, :, None]  # gap[axis, i, j] > 0: i comes before j
  # Both edges must agree with the centre: a person may go by any of them.
  in_order = (gap > ORDER_MARGIN) & (first[:, :, None] < first[:, None, :])
  in_order &= last[:, :, None] < last[:, None, :]
  radius = np.array([thing.radius for thing in objects])
  larger = (area[:, None] > AREA_RATIO * area) & (radius[:, None] > RADIUS_RATIO * radius)
  beyond = np.stack([in_order[0], in_order[0].T, in_order[1], in_order[1].T, larger, larger.T])

  along = np.stack([-gap[0], gap[0], -gap[1], gap[1]])  # along[d, i, j] > 0: j lies to the d of i
  across = np.abs(gap)[[1, 1, 0, 0]]
  clear = (along > RELATION_MARGIN) & (across < RELATION_SLOPE * along)
  loose = (along > LOOSE_MARGIN) & (across < LOOSE_SLOPE * along)
  return Facts(
    len(objects),
    describe(objects),
    dict(zip((*SIDES, "large", "small"), _as_sets(beyond), strict=True)),
    dict(zip(SIDES, _as_sets(clear), strict=True)),
    dict(zip(SIDES, _as_sets(loose), strict=True)),
  )


def ranks(members: int, direction: str, facts: Facts) -> dict[int, int]:
  """Which member clearly has which rank, counted from 1 at the end the direction names.

  A member has a rank where every other member is clearly before or clearly after it; the order
  among those on one side of it does not matter.
  """
  before, after = facts.beyond[_OPPOSITE[direction]], facts.beyond[direction]
  found = {}
  for index in range(facts.count):
    ahead, behind = members & before[index], members & after[index]
    if ahead | behind | 1 << index == members:
      found[ahead.bit_count() + 1] = index
  return found


def related(members: int, direction: str, facts: Facts) -> list[int]:
  """For each object, the members to one side of it; empty where one is a borderline case."""
  meant = []
  for loose, clear in zip(facts.loose[direction], facts.clear[direction], strict=True):
    possible = members & loose
    meant.append(possible if possible == possible & clear else 0)
  return meant


def find_forms(facts: Facts) -> list[dict[str, list[Form]]]:
  """Finds every meaning that has one referent.

  Returns:
    For each object, for each kind but "attribute", the forms whose referent it is.
  """
  found: list[dict[str, list[Form]]] = [
    {"superlative": [], "ordinal": [], "relation": []} for _ in range(facts.count)
  ]
  for members, descriptions in facts.descriptions.items():
    if _is_one(members):
      continue  # attributes alone decide
    sizes_compare = any(d.shape and not d.size for d in descriptions)
    for side in (*SIDES, "large", "small") if sizes_compare else SIDES:
      for rank, index in ranks(members, side, facts).items():
        if rank == 1:
          found[index]["superlative"].append(Form("superlative", members, side))
        # "The second of two" and "the third of three" are true, but nobody says so.
        elif side in SIDES and rank in _RANKS and members.bit_count() > rank:
          found[index]["ordinal"].append(Form("ordinal", members, side, rank))
    for side in SIDES:
      for anchor, meant in enumerate(related(members, side, facts)):
        if meant and not meant & (meant - 1):
          form = Form("relation", members, side, anchor=anchor)
          found[meant.bit_length() - 1]["relation"].append(form)
  return found


class Writer:
  """Chooses forms and words for the objects of one scene."""

  def __init__(self, facts: Facts, rng: np.random.Generator):
    self._facts = facts
    self._forms = find_forms(facts)
    # Sets that can be named with a shape.
    self._nouns = {s for s, named in facts.descriptions.items() if any(d.shape for d in named)}
    # One call for all choices: numpy's scalar draws would dominate the time a scene takes.
    self._draws = iter(rng.random(1024).tolist())

  def _pick(self, options):
    return options[int(next(self._draws) * len(options))]

  def _chance(self, probability: float) -> bool:
    return next(self._draws) < probability

  def _describe(self, members: int, compares_size: bool = False) -> str:
    """Words for a set: mostly with the shape's name, as often as not the fewest possible."""
    options = self._facts.descriptions[members]
    with_shape = [d for d in options if d.shape and not (compares_size and d.size)]
    if compares_size or (with_shape and self._chance(0.85)):
      options = with_shape
    if self._chance(0.5):
      fewest = max(d.count(None) for d in options)
      options = [d for d in options if d.count(None) == fewest]
    return self._pick(options).text()

  def _superlative(self, form: Form) -> str:
    by_size = form.direction not in SIDES
    words = self._describe(form.members, by_size)
    if by_size or self._chance(0.7):
      return f"{_SUPERLATIVES[form.direction]} {words}"
    return f"{words} {_FURTHEST[form.direction]}"

  def _anchor(self, anchor: int) -> str | None:
    """A phrase for the object that a relation refers to."""
    superlatives = [f for f in self._forms[anchor]["superlative"] if f.direction in SIDES]
    named = 1 << anchor in self._facts.descriptions
    if superlatives and self._chance(0.15 if named else 0.5):
      form = self._pick(superlatives)
      return f"{_SUPERLATIVES[form.direction]} {self._describe(form.members)}"
    return self._describe(1 << anchor) if named else None

  def _relation(self, form: Form) -> str | None:
    anchor = self._anchor(form.anchor)
    if anchor is None:
      return None
    words = self._describe(form.members)
    return f"{words} {self._pick(_RELATIONS[form.direction])} the {anchor}"

  def write(self, index: int, kind: str) -> str | None:
    """A sentence of a kind that means one object.

    Args:
      index: the object.
      kind: one of KINDS.

    Returns:
      The sentence; None where this draw gave none.
    """
    if kind == "attribute":
      return self._describe(1 << index) if 1 << index in self._facts.descriptions else None
    forms = self._forms[index][kind]
    if not forms:
      return None
    # Most people name a kind of object rather than "the second object".
    if self._chance(0.8):
      forms = [form for form in forms if form.members in self._nouns] or forms
    form = self._pick(forms)
    if kind == "superlative":
      return self._superlative(form)
    if kind == "ordinal":
      return f"{_RANKS[form.rank]} {self._describe(form.members)} from the {form.direction}"
    return self._relation(form)

  def sentences(self, index: int, kinds: Sequence[str]) -> tuple[Expression, ...]:
    """Two to four different sentences for an object, fewer where the scene allows no more.

    Args:
      index: the object.
      kinds: the kinds to draw from.

    Returns:
      The expressions; empty where no sentence of these kinds means this object alone.
    """
    found: dict[str, Expression] = {}
    wanted = 2 + int(next(self._draws) * 3)
    shares = list(itertools.accumulate(_KIND_WEIGHTS[kind] for kind in kinds))
    for _ in range(wanted + 2):
      if len(found) == wanted:
        break
      kind = kinds[bisect.bisect(shares, next(self._draws) * shares[-1], hi=len(kinds) - 1)]
      text = self.write(index, kind)
      if text is not None:
        text = text if self._chance(0.2) else f"the {text}"
        found.setdefault(text, Expression(text, kind))
    return tuple(found.values())
