"""The page of `mail_jax.app` in a headless Chromium."""

import pathlib
import re

import numpy as np
import page_server
import pytest
from PIL import Image

from input_pipeline.common import drawing
from input_pipeline.shapes import scenes

pytestmark = pytest.mark.app
pytest.importorskip("gradio", reason="`make app` installs Gradio")
pytest.importorskip("selenium", reason="`make app` installs Selenium")
import page_browser  # noqa: E402

if not (page_browser.CHROMIUM and page_browser.DRIVER):
  pytest.skip("needs chromium and chromedriver on the PATH", allow_module_level=True)

TEXT = "the leftmost star"


@pytest.fixture(scope="module")
def server(finished_run, tmp_path_factory):
  with page_server.running(finished_run, tmp_path_factory.mktemp("page")) as found:
    yield found


@pytest.fixture(scope="module")
def downloads(tmp_path_factory) -> pathlib.Path:
  return tmp_path_factory.mktemp("downloads")


@pytest.fixture(scope="module")
def browser(server, downloads):
  with page_browser.opened(server.url, downloads) as found:
    yield found


@pytest.fixture(scope="module")
def segmenter(finished_run):
  from mail_jax.predict.segmenter import Segmenter

  return Segmenter.load(str(finished_run))


@pytest.fixture
def photo(tmp_path) -> pathlib.Path:
  path = tmp_path / "scene.png"
  Image.fromarray(scenes.make_scene("testA", 5, 0, 96).image).save(path)
  return path


def test_a_request_shows_the_result_of_segmenter(browser, segmenter, photo, downloads):
  browser.open()
  browser.upload(photo)
  browser.type(TEXT)
  browser.press()
  expected = segmenter(str(photo), TEXT)
  np.testing.assert_array_equal(browser.picture("#overlay img"), expected.overlay())
  assert f"“{TEXT}”" in browser.find("#summary").text

  browser.press("#mask")
  mask = browser.until(lambda: next(downloads.glob("*.png"), None))
  with Image.open(mask) as downloaded:
    np.testing.assert_array_equal(np.asarray(downloaded) > 0, expected.mask)


def test_an_example_shows_its_result_and_its_instances(browser, segmenter):
  scene = scenes.make_scene("val", 7, 2, 96)
  browser.open()
  browser.press("#examples .grid-container > :nth-child(3) button")
  lines = browser.until(lambda: browser.find("#text textarea").get_property("value")).splitlines()
  browser.find("#photo img")
  browser.press()
  expected = segmenter(scene.image, lines[0], scene.instances.masks)
  np.testing.assert_array_equal(browser.picture("#overlay img"), expected.overlay())

  likeliest = int(np.argmax(expected.instance_probability))
  browser.press("#instances .thumbnail-lg")
  alone = browser.picture("#instances .preview img").astype(int)
  photo = drawing.stretch(scene.image, alone.shape[1::-1]).astype(int)
  inside = drawing.stretch(expected.instances[likeliest], alone.shape[1::-1])
  edge = drawing.outline(np.zeros(alone.shape, np.uint8), inside, (1, 1, 1), 9).any(-1)
  difference = np.abs(alone - photo).mean(-1)
  assert difference[inside & ~edge].mean() < 6  # the instance as it is, but for what JPEG does
  assert alone[~inside].mean() < 0.55 * photo[~inside].mean()  # all else in the dark

  browser.press("#which label:nth-child(2) input")
  browser.until(lambda: f"“{lines[1]}”" in browser.find("#summary").text)
  second = segmenter(scene.image, lines[1], scene.instances.masks).overlay()
  browser.until(lambda: np.array_equal(browser.picture("#overlay img"), second))


def test_every_bad_input_shows_its_message_and_the_page_keeps_working(
  browser, segmenter, photo, tmp_path
):
  browser.open()
  for path, text, message in page_server.bad_inputs(tmp_path, photo):
    browser.clear("#photo") if path is None else browser.upload(path)
    browser.type(text)
    browser.press()
    assert message in browser.message()
  browser.upload(photo)
  browser.type("the star <img src=x onerror=document.title=1> <script>document.title=2</script>")
  browser.press()
  browser.until(lambda: "<img src=x" in browser.find("#summary").text)  # shown as it was typed
  assert browser.driver.title == "mail_jax"
  browser.type("<img src=x onerror=document.title=3>" * 40)
  browser.press()
  assert "characters" in browser.message() and browser.driver.title == "mail_jax"


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_loads_from_this_server_alone_and_fits(browser, photo, width, theme):
  browser.hosts_asked(), browser.complaints()
  browser.open(width, theme)
  browser.upload(photo)
  browser.type(TEXT)
  browser.press()
  browser.find("#overlay img")
  assert browser.overflow() == 0
  assert browser.hosts_asked() == {"127.0.0.1"}
  assert browser.complaints() == []
  ink = browser.driver.execute_script("return getComputedStyle(document.querySelector('h1')).color")
  assert (sum(map(int, re.findall(r"\d+", ink)[:3])) > 400) == (theme == "dark")
