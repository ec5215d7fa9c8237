"""Masks from colours alone."""

import numpy as np
import pytest

from input_pipeline.common.errors import InputError
from input_pipeline.proposers.registry import open_proposer


@pytest.mark.extras
def test_felzenszwalb_finds_what_differs_in_colour():
  pytest.importorskip("skimage")
  photo = np.full((90, 120, 3), (40, 160, 60), np.uint8)
  photo[20:60, 30:70] = (200, 30, 30)
  photo[30:80, 80:110] = (30, 30, 200)
  (proposals,) = open_proposer("felzenszwalb").propose([photo], [0])
  for color in ((200, 30, 30), (30, 30, 200)):
    thing = (photo == color).all(2)
    iou = (proposals.masks & thing).sum((1, 2)) / (proposals.masks | thing).sum((1, 2))
    assert iou[:3].max() > 0.85  # It is among the first; smoothing takes its corners.
  assert (np.diff(proposals.scores) < 0).all()
  assert (proposals.source, proposals.trained_on) == ("felzenszwalb", "nothing")


@pytest.mark.extras
def test_felzenszwalb_gives_an_image_the_same_masks_in_any_batch(five_photos):
  pytest.importorskip("skimage")
  proposer = open_proposer("felzenszwalb:200")
  together = proposer.propose(five_photos[:4], range(4))
  for photo, proposals in zip(five_photos, together, strict=False):
    (alone,) = proposer.propose([photo], [7])
    np.testing.assert_array_equal(proposals.masks, alone.masks)
    assert proposals.masks.shape == (16, *photo.shape[:2])
    assert proposals.masks.any((1, 2)).all()


@pytest.mark.extras
@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (3, 2), (400, 2)])
def test_felzenszwalb_accepts_the_smallest_images(shape):
  pytest.importorskip("skimage")
  photo = np.zeros((*shape, 3), np.uint8)
  (proposals,) = open_proposer("felzenszwalb").propose([photo], [0])
  assert proposals.masks.all()
  assert len(proposals.masks) == 1


@pytest.mark.extras
@pytest.mark.parametrize("argument", ["fine", "0", "100,", "-3", "inf", "nan"])
def test_felzenszwalb_refuses_invalid_scales(argument):
  pytest.importorskip("skimage")
  with pytest.raises(InputError, match=rf"felzenszwalb:{argument}: .*scale"):
    open_proposer(f"felzenszwalb:{argument}")
