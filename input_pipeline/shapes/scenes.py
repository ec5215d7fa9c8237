"""Generated scenes: the data set that needs no download.

A scene is a pure function of (split, seed, index): 3 to 7 objects on a cluttered background,
expressions that each mean exactly one of them, and the instance masks of a simulated detector.

- `train`, `val`: all kinds of expressions.
- `testA`: attributes only. `testB`: superlatives, ordinals and relations only.
- `testC`: referents whose pair of colour and shape occurs in no other split.
"""

import dataclasses
import io
import math

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image

from input_pipeline import records
from input_pipeline.common.errors import InputError
from input_pipeline.shapes import detector, drawing, grammar
from input_pipeline.shapes.detector import DetectorNoise
from input_pipeline.shapes.drawing import COLOURS, RADII, SHAPES, ShapeObject
from input_pipeline.shapes.grammar import Expression

SPLITS = ("train", "val", "testA", "testB", "testC")
MIN_SIZE = 32

# Every colour and every shape is held out once, so each still occurs with seven others.
HELD_OUT = (
  ("red", "heart"),
  ("orange", "square"),
  ("yellow", "star"),
  ("green", "circle"),
  ("cyan", "triangle"),
  ("blue", "ring"),
  ("purple", "diamond"),
  ("pink", "cross"),
)

# Minimum visible fraction of an object, and minimum visible area as a fraction of the image (55
# pixels at 96).
MIN_VISIBLE = 0.65
_MIN_VISIBLE_AREA = 0.006

_KINDS = {
  "train": grammar.KINDS,
  "val": grammar.KINDS,
  "testA": ("attribute",),
  "testB": ("superlative", "ordinal", "relation"),
  "testC": grammar.KINDS,
}
_MAX_OBJECTS = 7


@dataclasses.dataclass(frozen=True)
class Scene:
  """A generated scene.

  Attributes:
    image: the painted image.
    targets: the visible part of each object; these do not overlap.
    instances: masks of the simulated detector.
    expressions: for each object, the expressions that mean it alone; may be empty.
    objects: from back to front.
  """

  image: UInt8[np.ndarray, "h w 3"]
  targets: Bool[np.ndarray, "n h w"]
  instances: records.Instances
  expressions: tuple[tuple[Expression, ...], ...]
  objects: tuple[ShapeObject, ...]


def _between(low: float, high: float, draw: float) -> float:
  return low + (high - low) * draw


def _pairs(split: str, count: int, rng: np.random.Generator) -> list[tuple[str, str]]:
  """Draws colours and shapes from a small palette, so that objects have much in common."""
  colours, shapes = list(COLOURS), list(SHAPES)
  if split != "testC":
    colours = [colours[i] for i in rng.permutation(len(colours))[: rng.integers(2, 4)]]
    shapes = [shapes[i] for i in rng.permutation(len(shapes))[: rng.integers(2, 4)]]
    pairs = [(c, s) for c in colours for s in shapes if (c, s) not in HELD_OUT]
    return [pairs[i] for i in rng.integers(len(pairs), size=count).tolist()]
  held = [HELD_OUT[i] for i in rng.permutation(len(HELD_OUT))[: rng.integers(2, 4)]]
  others = [(c, s) for c, _ in held for _, s in held if (c, s) not in HELD_OUT]
  # At least two objects may be referents; the others share a colour or a shape with them.
  chosen = [held[0], held[1]]
  for unseen, pick in rng.random((count - 2, 2)).tolist():
    pool = held if unseen < 0.4 else others
    chosen.append(pool[int(pick * len(pool))])
  return [chosen[i] for i in rng.permutation(count)]


def _place(radii: list[float], rng: np.random.Generator) -> list[tuple[float, float]] | None:
  """Draws centres inside the image and mostly apart; returns None if the objects do not fit."""
  placed = np.zeros((0, 3))
  for radius in radii:
    margin = drawing.OUTLINE_REACH * radius + 0.01
    spots = rng.uniform(margin, 1 - margin, (40, 2))
    gap = np.hypot(spots[:, None, 0] - placed[:, 0], spots[:, None, 1] - placed[:, 1])
    closeness = (gap / (radius + placed[:, 2])).min(1, initial=np.inf)
    # A third of the objects may overlap others, which occludes one of them partly.
    fits = np.flatnonzero(closeness > (0.76 if rng.random() < 0.35 else 1.12))
    if not len(fits):
      fits = np.flatnonzero(closeness > 0.8)
    if not len(fits):
      return None
    placed = np.concatenate([placed, [[*spots[fits[0]], radius]]])
  return [(x, y) for x, y, _ in placed.tolist()]


def _draw_objects(split: str, rng: np.random.Generator) -> tuple[ShapeObject, ...] | None:
  """Draws the objects of a scene; returns None if they do not fit into the image."""
  count = int(rng.integers(3, _MAX_OBJECTS + 1))
  draws = rng.random((count, 6)).tolist()
  sizes = ["large" if draw[0] < 0.45 else "small" for draw in draws]
  radii = [_between(*RADII[size], draw[1]) for size, draw in zip(sizes, draws, strict=True)]
  centres = _place(radii, rng)
  if centres is None:
    return None
  pairs = _pairs(split, count, rng)
  return tuple(
    ShapeObject(
      shape=pairs[i][1],
      colour=pairs[i][0],
      size=sizes[i],
      texture="plain" if draws[i][2] < 0.4 else "striped" if draws[i][2] < 0.7 else "dotted",
      x=centres[i][0],
      y=centres[i][1],
      radius=radii[i],
      angle=_between(-0.14, 0.14, draws[i][3]),
      texture_angle=_between(-math.pi, math.pi, draws[i][4]),
      brightness=_between(0.88, 1.1, draws[i][5]),
    )
    for i in rng.permutation(count).tolist()
  )


def _is_visible(painting: drawing.Painting) -> bool:
  """Returns whether enough of every object is visible."""
  min_area = _MIN_VISIBLE_AREA * painting.image.shape[0] ** 2
  return all(
    np.count_nonzero(visible) >= max(min_area, MIN_VISIBLE * area)
    for area, visible in zip(painting.areas, painting.visible, strict=True)
  )


def _express(
  split: str,
  objects: tuple[ShapeObject, ...],
  visible: Bool[np.ndarray, "n h w"],
  rng: np.random.Generator,
) -> tuple[tuple[Expression, ...], ...]:
  """Returns expressions of the split's kinds for each object that may be a referent in it."""
  writer = grammar.Writer(grammar.observe(objects, visible), rng)
  return tuple(
    writer.expressions(index, _KINDS[split])
    if split != "testC" or (obj.colour, obj.shape) in HELD_OUT
    else ()
    for index, obj in enumerate(objects)
  )


def make_scene(
  split: str, seed: int, index: int, size: int = 96, noise: DetectorNoise | None = None
) -> Scene:
  """Makes one scene, a pure function of its arguments.

  The image and the expressions do not depend on `noise`.

  Args:
    split: one of SPLITS; splits do not share scenes.
    seed: non-negative; another seed gives another data set.
    index: non-negative number of the scene in its split.
    size: image side in pixels, at least MIN_SIZE.
    noise: errors of the simulated detector; the default ones for None.

  Returns:
    A scene with at least one expression.

  Raises:
    InputError: the split is unknown, the size too small, or seed or index negative.
  """
  if split not in SPLITS:
    raise InputError(f"shapes: unknown split {split!r}; use one of {', '.join(SPLITS)}")
  if size < MIN_SIZE:
    raise InputError(f"shapes: size {size} is too small; the minimum is {MIN_SIZE}")
  if seed < 0 or index < 0:
    raise InputError(f"shapes: seed {seed} and index {index} must not be negative")
  rng = np.random.Generator(np.random.Philox([SPLITS.index(split), seed, index]))
  # Few draws fail, and each is equally likely to succeed.
  while True:
    objects = _draw_objects(split, rng)
    if objects is None:
      continue
    painting = drawing.paint_scene(drawing.draw_background(rng, size), objects)
    if not _is_visible(painting):
      continue
    expressions = _express(split, objects, painting.visible, rng)
    if any(expressions):
      break
  categories = np.array([SHAPES.index(obj.shape) for obj in objects], np.int32)
  instances = detector.detect(
    painting.visible, categories, DetectorNoise() if noise is None else noise, rng
  )
  return Scene(painting.image, painting.visible, instances, expressions, objects)


def make_record(
  split: str, seed: int, index: int, size: int = 96, noise: DetectorNoise | None = None
) -> records.ImageRecord:
  """Makes one scene as a record; see `make_scene` for the arguments.

  Its refs are the objects with at least one expression.
  """
  scene = make_scene(split, seed, index, size, noise)
  png = io.BytesIO()
  # The grain does not compress, so a higher level would take time and gain little.
  Image.fromarray(scene.image).save(png, format="PNG", compress_level=1)
  refs = []
  for number, expressions in enumerate(scene.expressions):
    if expressions:
      ref_id = index * (_MAX_OBJECTS + 1) + number
      texts = tuple(expression.text for expression in expressions)
      refs.append(records.Ref(ref_id, (ref_id,), scene.targets[number], texts))
  return records.ImageRecord(
    image=png.getvalue(),
    image_id=index,
    file_name=f"shapes_{split}_{index:06d}.png",
    height=size,
    width=size,
    instances=scene.instances,
    refs=tuple(refs),
  )
