"""Expressions for generated scenes: a small grammar in which every expression has one referent.

A set of objects is an integer with bit i for object i. The meaning of an expression is such a set,
computed by `describe`, `ranks` and `related` from measured positions; only expressions that mean
exactly one object are kept. A relation between two objects only holds if it is clear: for positions
within a margin of each other, neither the relation nor its opposite holds.
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
# Clearly above: at most this far sideways per unit upwards.
RELATION_SLOPE = 0.8
# What a person might still accept as the relation; such objects exclude an expression.
LOOSE_MARGIN = 0.02
LOOSE_SLOPE = 2.2
# "The largest square" and the next: visible areas and radii, so that occlusion does not decide.
AREA_RATIO = 1.4
RADIUS_RATIO = 1.15

# Not the resulting shares, since fewer objects allow some kinds than others.
_KIND_WEIGHTS = {"attribute": 0.345, "superlative": 0.225, "ordinal": 0.3, "relation": 0.185}


@dataclasses.dataclass(frozen=True)
class Expression:
  """An expression that means exactly one object.

  Attributes:
    text: the expression.
    kind: what identifies the object: "attribute", "superlative", "ordinal" or "relation".
  """

  text: str
  kind: str


class Description(NamedTuple):
  """The attributes that are named; None for those that are not."""

  size: str | None
  texture: str | None
  colour: str | None
  shape: str | None

  def text(self) -> str:
    """Returns the words, e.g. "large striped red star"; "object" replaces a missing shape."""
    words = [word for word in self[:3] if word is not None]
    return " ".join([*words, self.shape or "object"])


class Meaning(NamedTuple):
  """The meaning of an expression that compares position or size among `members`."""

  kind: str
  members: int
  direction: str
  rank: int = 1
  anchor: int = -1


@dataclasses.dataclass(frozen=True)
class SceneFacts:
  """What holds in a scene, as sets of objects.

  Attributes:
    count: number of objects.
    descriptions: each set that attributes can name, with the descriptions that name it.
    beyond: beyond[d][i] are the objects that i is clearly further to the d than (also d = "large",
      "small": clearly larger or smaller than).
    clear: clear[d][i] are the objects that are clearly to the d of i.
    loose: loose[d][i] are the objects that may be considered to the d of i.
  """

  count: int
  descriptions: dict[int, list[Description]]
  beyond: dict[str, list[int]]
  clear: dict[str, list[int]]
  loose: dict[str, list[int]]


def _is_one(objects: int) -> bool:
  return objects != 0 and objects & (objects - 1) == 0


def describe(objects: Sequence[ShapeObject]) -> dict[int, list[Description]]:
  """Returns every description that fits at least one object, by the set of objects it fits."""
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
  """Returns each row of each matrix as a set."""
  return (holds @ (1 << np.arange(holds.shape[2]))).tolist()


def observe(objects: Sequence[ShapeObject], visible: Bool[np.ndarray, "n s s"]) -> SceneFacts:
  """Measures a scene from what is visible of it.

  Args:
    objects: the objects' attributes; their stated positions are not used.
    visible: the visible part of each, at least one pixel.

  Returns:
    The facts that expressions are made of and checked against.
  """
  length = visible.shape[1]
  covered = visible.astype(np.float32)
  # [axis, object, position], x first.
  seen = np.stack([covered.sum(1), covered.sum(2)])
  area = seen[0].sum(1)
  centre = (seen @ (np.arange(length) + 0.5)) / (area * length)
  first = (seen > 0).argmax(2)
  last = -(seen[:, :, ::-1] > 0).argmax(2)

  # gap[axis, i, j] > 0: i comes before j.
  gap = centre[:, None, :] - centre[:, :, None]
  # Both edges must agree with the centre: a person may judge by any of them.
  in_order = (gap > ORDER_MARGIN) & (first[:, :, None] < first[:, None, :])
  in_order &= last[:, :, None] < last[:, None, :]
  radius = np.array([obj.radius for obj in objects])
  larger = (area[:, None] > AREA_RATIO * area) & (radius[:, None] > RADIUS_RATIO * radius)
  beyond = np.stack([in_order[0], in_order[0].T, in_order[1], in_order[1].T, larger, larger.T])

  # along[d, i, j] > 0: j lies to the d of i.
  along = np.stack([-gap[0], gap[0], -gap[1], gap[1]])
  across = np.abs(gap)[[1, 1, 0, 0]]
  clear = (along > RELATION_MARGIN) & (across < RELATION_SLOPE * along)
  loose = (along > LOOSE_MARGIN) & (across < LOOSE_SLOPE * along)
  return SceneFacts(
    len(objects),
    describe(objects),
    dict(zip((*SIDES, "large", "small"), _as_sets(beyond), strict=True)),
    dict(zip(SIDES, _as_sets(clear), strict=True)),
    dict(zip(SIDES, _as_sets(loose), strict=True)),
  )


def ranks(members: int, direction: str, facts: SceneFacts) -> dict[int, int]:
  """Returns the member of each clear rank, counted from 1 at the end that the direction names.

  A member has a rank if every other member is clearly before or clearly after it; the order within
  either side does not matter.
  """
  before, after = facts.beyond[_OPPOSITE[direction]], facts.beyond[direction]
  ranked = {}
  for index in range(facts.count):
    ahead, behind = members & before[index], members & after[index]
    if ahead | behind | 1 << index == members:
      ranked[ahead.bit_count() + 1] = index
  return ranked


def related(members: int, direction: str, facts: SceneFacts) -> list[int]:
  """Returns, for each object, the members on one side of it; empty if one is a borderline case."""
  sets = []
  for loose, clear in zip(facts.loose[direction], facts.clear[direction], strict=True):
    possible = members & loose
    sets.append(possible if possible == possible & clear else 0)
  return sets


def find_meanings(facts: SceneFacts) -> list[dict[str, list[Meaning]]]:
  """Finds every meaning that has one referent.

  Returns:
    For each object, for each kind except "attribute", the meanings whose referent it is.
  """
  meanings: list[dict[str, list[Meaning]]] = [
    {"superlative": [], "ordinal": [], "relation": []} for _ in range(facts.count)
  ]
  for members, descriptions in facts.descriptions.items():
    if _is_one(members):
      # Attributes suffice.
      continue
    sizes_compare = any(d.shape and not d.size for d in descriptions)
    for side in (*SIDES, "large", "small") if sizes_compare else SIDES:
      for rank, index in ranks(members, side, facts).items():
        if rank == 1:
          meanings[index]["superlative"].append(Meaning("superlative", members, side))
        # "The second of two" and "the third of three" are true, but unnatural.
        elif side in SIDES and rank in _RANKS and members.bit_count() > rank:
          meanings[index]["ordinal"].append(Meaning("ordinal", members, side, rank))
    for side in SIDES:
      for anchor, referents in enumerate(related(members, side, facts)):
        if _is_one(referents):
          meaning = Meaning("relation", members, side, anchor=anchor)
          meanings[referents.bit_length() - 1]["relation"].append(meaning)
  return meanings


class Writer:
  """Chooses meanings and words for the objects of one scene."""

  def __init__(self, facts: SceneFacts, rng: np.random.Generator):
    self._facts = facts
    self._meanings = find_meanings(facts)
    # Sets that can be named with a shape.
    self._nouns = {s for s, named in facts.descriptions.items() if any(d.shape for d in named)}
    # One call for all choices: NumPy's scalar draws would dominate the time per scene.
    self._draws = iter(rng.random(1024).tolist())

  def _pick(self, options):
    return options[int(next(self._draws) * len(options))]

  def _chance(self, probability: float) -> bool:
    return next(self._draws) < probability

  def _describe(self, members: int, compares_size: bool = False) -> str:
    """Returns words for a set: mostly with a shape, half of the time as few as possible."""
    options = self._facts.descriptions[members]
    with_shape = [d for d in options if d.shape and not (compares_size and d.size)]
    if compares_size or (with_shape and self._chance(0.85)):
      options = with_shape
    if self._chance(0.5):
      fewest = max(d.count(None) for d in options)
      options = [d for d in options if d.count(None) == fewest]
    return self._pick(options).text()

  def _superlative(self, meaning: Meaning) -> str:
    by_size = meaning.direction not in SIDES
    words = self._describe(meaning.members, by_size)
    if by_size or self._chance(0.7):
      return f"{_SUPERLATIVES[meaning.direction]} {words}"
    return f"{words} {_FURTHEST[meaning.direction]}"

  def _anchor(self, anchor: int) -> str | None:
    """Returns a phrase for the object that a relation refers to."""
    superlatives = [m for m in self._meanings[anchor]["superlative"] if m.direction in SIDES]
    nameable = 1 << anchor in self._facts.descriptions
    if superlatives and self._chance(0.15 if nameable else 0.5):
      meaning = self._pick(superlatives)
      return f"{_SUPERLATIVES[meaning.direction]} {self._describe(meaning.members)}"
    return self._describe(1 << anchor) if nameable else None

  def _relation(self, meaning: Meaning) -> str | None:
    anchor = self._anchor(meaning.anchor)
    if anchor is None:
      return None
    words = self._describe(meaning.members)
    return f"{words} {self._pick(_RELATIONS[meaning.direction])} the {anchor}"

  def write(self, index: int, kind: str) -> str | None:
    """Returns an expression that means an object, or None if this draw gave none.

    Args:
      index: of the object.
      kind: one of KINDS.
    """
    if kind == "attribute":
      return self._describe(1 << index) if 1 << index in self._facts.descriptions else None
    meanings = self._meanings[index][kind]
    if not meanings:
      return None
    # Most people name a kind of object rather than "the second object".
    if self._chance(0.8):
      meanings = [meaning for meaning in meanings if meaning.members in self._nouns] or meanings
    meaning = self._pick(meanings)
    if kind == "superlative":
      return self._superlative(meaning)
    if kind == "ordinal":
      return (
        f"{_RANKS[meaning.rank]} {self._describe(meaning.members)} from the {meaning.direction}"
      )
    return self._relation(meaning)

  def expressions(self, index: int, kinds: Sequence[str]) -> tuple[Expression, ...]:
    """Returns two to four different expressions for an object, fewer if the scene allows no more.

    Args:
      index: of the object.
      kinds: the kinds to draw from.

    Returns:
      The expressions; empty if none of these kinds means this object alone.
    """
    expressions: dict[str, Expression] = {}
    wanted = 2 + int(next(self._draws) * 3)
    shares = list(itertools.accumulate(_KIND_WEIGHTS[kind] for kind in kinds))
    for _ in range(wanted + 2):
      if len(expressions) == wanted:
        break
      kind = kinds[bisect.bisect(shares, next(self._draws) * shares[-1], hi=len(kinds) - 1)]
      text = self.write(index, kind)
      if text is not None:
        text = text if self._chance(0.2) else f"the {text}"
        expressions.setdefault(text, Expression(text, kind))
    return tuple(expressions.values())
