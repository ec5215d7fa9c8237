"""Instances that visitors mark, links and colours of the app, without Gradio."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from input_pipeline.common.errors import InputError
from input_pipeline.shapes import scenes
from mail_jax.app import limits, links, marks, pictures

ALLOWED = limits.Limits()
_FRACTIONS = st.integers(0, 1000).map(lambda n: n / 1000)
_POINTS = st.tuples(_FRACTIONS, _FRACTIONS)
_MARKS = st.one_of(
  st.builds(marks.Mark, st.just("point"), st.tuples(_POINTS), st.integers(0, 9)),
  st.builds(marks.Mark, st.just("box"), st.tuples(_POINTS, _POINTS)),
  st.builds(marks.Mark, st.just("stroke"), st.lists(_POINTS, min_size=1, max_size=64).map(tuple)),
)


def iou(a, b):
  return (a & b).sum() / (a | b).sum()


def centre(mask):
  """Returns a point inside a mask, as far from its border as any, as fractions."""
  from scipy import ndimage

  depth = ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
  row, column = np.unravel_index(depth.argmax(), depth.shape)
  return (float((column + 0.5) / mask.shape[1]), float((row + 0.5) / mask.shape[0]))


def box(mask):
  rows, columns = np.nonzero(mask.any(1))[0], np.nonzero(mask.any(0))[0]
  return (
    (float(columns[0] / (mask.shape[1] - 1)), float(rows[0] / (mask.shape[0] - 1))),
    (float(columns[-1] / (mask.shape[1] - 1)), float(rows[-1] / (mask.shape[0] - 1))),
  )


@pytest.fixture
def skimage():
  pytest.importorskip("skimage", reason="needs scikit-image (make extras)")


@pytest.mark.extras
@pytest.mark.usefixtures("skimage")
@pytest.mark.parametrize(
  ("kind", "least"), [("point", 0.65), ("box", 0.8), ("stroke", 0.65), ("loop", 0.75)]
)
def test_a_mark_on_an_object_takes_most_of_the_object(kind, least):
  """The scenes' own targets are the reference; stripes and dots are segments of their own."""
  overlaps = []
  for index in range(8):
    scene = scenes.make_scene("testA", 3, index, 128)
    segments = marks.Segments(scene.image)
    for target in scene.targets:
      if target.sum() < 150:
        continue
      if kind == "point":
        mark = marks.Mark("point", (centre(target),))
      elif kind == "box":
        mark = marks.Mark("box", box(target))
      elif kind == "stroke":
        x, y = centre(target)
        mark = marks.Mark("stroke", ((x - 0.02, y), (x, y), (x + 0.02, y)))
      else:
        (left, top), (right, bottom) = box(target)
        corners = ((left, top), (right, top), (right, bottom), (left, bottom), (left, top))
        mark = marks.Mark("stroke", corners)
      (mask,) = segments.masks([mark])
      assert mask.shape == target.shape
      overlaps.append(iou(mask, target))
  assert len(overlaps) > 15 and np.median(overlaps) > least, np.round(overlaps, 2)


@pytest.mark.extras
@pytest.mark.usefixtures("skimage")
def test_clicking_again_takes_another_area_and_comes_round():
  rng = np.random.default_rng(0)
  photo = np.kron(rng.integers(0, 255, (6, 8, 3)), np.ones((16, 16, 1))).astype(np.uint8)
  segments = marks.Segments(photo)
  masks = [segments.masks([marks.Mark("point", ((0.3, 0.4),), n)])[0] for n in range(10)]
  distinct = {mask.tobytes() for mask in masks[:4]}
  for mask in masks:
    assert mask[int(0.4 * 96), int(0.3 * 128)] and mask.tobytes() in distinct


@given(st.lists(_MARKS, max_size=8))
def test_marks_survive_being_written_and_read(drawn):
  assert marks.read("\n".join(map(str, drawn)), ALLOWED) == drawn


@pytest.mark.extras
@pytest.mark.usefixtures("skimage")
@given(_MARKS, st.integers(1, 40), st.integers(1, 40))
def test_no_mark_is_empty_on_any_photo(mark, height, width):
  photo = np.random.default_rng(height).integers(0, 255, (height, width, 3)).astype(np.uint8)
  (mask,) = marks.Segments(photo).masks([mark])
  assert mask.shape == (height, width) and mask.any()


@pytest.mark.extras
@pytest.mark.usefixtures("skimage")
def test_a_photo_with_many_pixels_is_segmented_small():
  photo = np.zeros((3000, 4000, 3), np.uint8)
  photo[1000:2000, 1500:3000] = 200
  (mask,) = marks.Segments(photo).masks([marks.Mark("point", ((0.5, 0.5),))])
  assert iou(mask, photo[..., 0] > 0) > 0.9


@given(
  st.text("0123456789abcdef", min_size=12, max_size=12),
  st.lists(st.text(min_size=1).map(lambda t: " ".join(t.split())).filter(bool), max_size=8),
  st.lists(_MARKS, max_size=3),
)
def test_a_link_restores_what_was_asked(photo, expressions, drawn):
  shared = links.Shared(photo, tuple(expressions), tuple(drawn))
  query = links.write(shared)
  assert len(query) <= links.MOST_CHARACTERS
  if query:
    assert links.read("?" + query, ALLOWED) == shared


def test_a_link_holds_no_photo_of_a_visitor_and_no_marks_on_it():
  shared = links.Shared("", ("a star",), (marks.Mark("point", ((0.5, 0.5),)),))
  assert links.write(shared) == "text=a+star"
  assert links.read("text=a+star&mark=point+0.5,0.5", ALLOWED) == links.Shared("", ("a star",))


@pytest.mark.parametrize("query", ["", "?", "?__theme=dark", "view=api", "mark=point+0.5,0.5"])
def test_the_address_of_the_page_alone_restores_nothing(query):
  assert links.read(query, ALLOWED) is None


@pytest.mark.parametrize(
  ("query", "message"),
  [
    ("text=a&" * 9, "9 expressions; the limit is 8"),
    ("text=" + "a" * 7000, "too long"),
    ("text=%ff", "damaged"),
    ("a=1&" * 200, "damaged"),
    ("photo=ab&mark=point+2,2", "cannot be read"),
    ("photo=ab&" + "mark=point+0,0&" * 9, "More than 8"),
  ],
)
def test_a_link_that_is_none_of_ours_gets_a_message(query, message):
  with pytest.raises(InputError, match=message):
    links.read(query, ALLOWED)


# Machado, Oliveira and Fernandes, "A physiologically-based model for simulation of color vision
# deficiency", 2009: full protanopia, deuteranopia and tritanopia, on linear RGB.
_DEFICIENCIES = {
  "none": np.eye(3),
  "protanopia": [
    [0.152286, 1.052583, -0.204868],
    [0.114503, 0.786281, 0.099216],
    [-0.003882, -0.048116, 1.051998],
  ],
  "deuteranopia": [
    [0.367322, 0.860646, -0.227968],
    [0.280085, 0.672501, 0.047413],
    [-0.011820, 0.042940, 0.968881],
  ],
  "tritanopia": [
    [1.255528, -0.076749, -0.178779],
    [-0.078411, 0.930809, 0.147602],
    [0.004733, 0.691367, 0.303900],
  ],
}


@pytest.mark.parametrize("deficiency", _DEFICIENCIES)
def test_the_colours_differ_for_colour_blind_people_too(deficiency):
  colours = np.array(pictures.COLOURS) / 255
  linear = np.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4)
  lab = _lab(np.clip(linear @ np.array(_DEFICIENCIES[deficiency]).T, 0, 1))
  distances = np.linalg.norm(lab[:, None] - lab, axis=-1)[np.triu_indices(len(lab), 1)]
  # 2.3 is a just noticeable difference.
  assert distances.min() > 10, np.round(np.sort(distances)[:5], 1)


def _lab(linear):
  """Converts linear sRGB to CIE Lab (D65)."""
  to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
  ratio = linear @ to_xyz.T / (0.9505, 1.0, 1.089)
  root = np.where(ratio > (6 / 29) ** 3, np.cbrt(ratio), ratio * (29 / 6) ** 2 / 3 + 4 / 29)
  x, y, z = root.T
  return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


def test_numbers_are_legible_on_every_colour():
  for colour in pictures.COLOURS:
    channels = np.array(colour) / 255
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    luminance = linear @ (0.2126, 0.7152, 0.0722)
    text = 1.0 if pictures.ink(colour) == "white" else 0.0
    light, dark = max(text, luminance), min(text, luminance)
    assert (light + 0.05) / (dark + 0.05) >= 4.5  # WCAG 2.2, success criterion 1.4.3
