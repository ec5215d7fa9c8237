"""The page of `mail_jax.app` in a headless Chromium."""

import pathlib
import re
from urllib.parse import urlsplit

import numpy as np
import page_server
import pytest
from PIL import Image

from input_pipeline.common import drawing
from input_pipeline.shapes import scenes
from mail_jax.app import limits, links, marks, pictures

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
  lines = browser.pick(3)
  browser.press()
  browser.press("#which label:nth-child(2) input")
  browser.until(lambda: f"“{lines[0]}”" in browser.find("#summary .asked").text)
  expected = segmenter(scene.image, lines[0], scene.instances.masks)
  browser.until(lambda: np.array_equal(browser.picture("#overlay img"), expected.overlay()))

  likeliest = int(np.argmax(expected.instance_probability))
  browser.press("#instances .thumbnail-lg")
  alone = browser.picture("#instances .preview img").astype(int)
  photo = drawing.stretch(scene.image, alone.shape[1::-1]).astype(int)
  inside = drawing.stretch(expected.instances[likeliest], alone.shape[1::-1])
  edge = drawing.outline(np.zeros(alone.shape, np.uint8), inside, (1, 1, 1), 9).any(-1)
  difference = np.abs(alone - photo).mean(-1)
  assert difference[inside & ~edge].mean() < 6  # the instance as it is, but for what JPEG does
  assert alone[~inside].mean() < 0.55 * photo[~inside].mean()  # all else in the dark

  browser.press("#which label:nth-child(3) input")
  browser.until(lambda: f"“{lines[1]}”" in browser.find("#summary").text)
  second = segmenter(scene.image, lines[1], scene.instances.masks)
  selected = None if second.selected is None else second.instances[second.selected]
  picture = drawing.overlay(second.image, second.mask, None, selected, pictures.COLOURS[1])
  browser.until(lambda: np.array_equal(browser.picture("#overlay img"), picture))


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


@pytest.fixture(scope="module")
def axe(tmp_path_factory) -> str:
  source = page_browser.axe_core(tmp_path_factory.mktemp("axe"))
  if source is None:
    pytest.skip("needs npm and its registry, for axe-core")
  return source


@pytest.fixture(scope="module")
def two_models(finished_run, exported, tmp_path_factory):
  folder = tmp_path_factory.mktemp("two")
  with (
    page_server.running(finished_run, folder, "--compare", str(exported)) as server,
    page_browser.opened(server.url, folder) as found,
  ):
    yield found


WIDTHS = pytest.mark.parametrize("width", [390, 1280])


@WIDTHS
def test_each_of_several_expressions_has_a_colour_of_its_own(browser, photo, width):
  browser.open(width)
  browser.upload(photo)
  browser.type(TEXT + "\nthe large ring\nthe red thing")
  browser.press()
  listed = browser.until(lambda: browser.all("#summary .legend li"))
  assert [row.find_element("css selector", ".asked").text for row in listed] == [
    f"“{TEXT}”",
    "“the large ring”",
    "“the red thing”",
  ]
  colours = [browser.style("#summary .legend i", "background-color", n) for n in range(3)]
  assert colours == [f"rgb{colour}" for colour in pictures.COLOURS[:3]]
  dots = [
    browser.style(f"#which label:nth-child({n})", "background-color", 0, "::before")
    for n in (2, 3, 4)
  ]
  assert dots == colours and browser.overflow() == 0


@WIDTHS
def test_clicks_boxes_and_strokes_add_instances_and_the_link_restores_them(
  browser, segmenter, width
):
  scene = scenes.make_scene("val", 7, 1, 96)
  browser.open(width)
  lines = browser.pick(2)
  browser.draw([(0.5, 0.5)])
  browser.until(lambda: len(browser.all("#marks .chips li")) == 1)
  browser.press("#marks label:has(input[value=box])")
  browser.draw([(0.1, 0.1), (0.3, 0.3), (0.6, 0.55)])
  browser.press("#marks label:has(input[value=stroke])")
  browser.draw([(0.2 + 0.01 * n, 0.7) for n in range(40)])
  browser.until(lambda: len(browser.all("#marks .chips li")) == 3)
  browser.until(lambda: browser.all("#photo .marking image"))
  browser.press("#marks .chips li:first-child button")
  browser.until(lambda: len(browser.all("#marks .chips li")) == 2)
  browser.type(lines[0])
  browser.press()
  browser.until(lambda: "from your 2 marks" in browser.find("#summary").text)
  captions = browser.find("#instances").text
  assert "yours 1:" in captions and "yours 2:" in captions and "yours 3:" not in captions

  link = browser.driver.current_url
  shared = links.read(urlsplit(link).query, limits.Limits())
  assert [mark.kind for mark in shared.marks] == ["box", "stroke"]
  assert np.abs(np.array(shared.marks[0].points) - [(0.1, 0.1), (0.6, 0.55)]).max() < 0.02
  assert np.abs(np.array(shared.marks[1].points[0]) - (0.2, 0.7)).max() < 0.02
  own = marks.Segments(scene.image).masks(shared.marks)
  expected = segmenter(scene.image, lines[0], page_server.put_first(own, scene.instances.masks))
  browser.until(lambda: np.array_equal(browser.picture("#overlay img"), expected.overlay()))
  assert browser.overflow() == 0

  browser.driver.get("about:blank")
  browser.driver.get(link)
  browser.until(lambda: "from your 2 marks" in browser.find("#summary").text)
  assert browser.find("#text textarea").get_property("value") == lines[0]
  assert len(browser.all("#marks .chips li")) == 2
  browser.until(lambda: np.array_equal(browser.picture("#overlay img"), expected.overlay()))


def test_a_second_click_changes_the_area_and_too_many_marks_are_refused(browser, photo):
  browser.open()
  browser.upload(photo)
  browser.draw([(0.5, 0.5)])
  browser.draw([(0.505, 0.5)])
  browser.until(lambda: "another size" in browser.find("#marks [role=status]").text)
  assert len(browser.all("#marks .chips li")) == 1
  browser.press("#marks label:has(input[value=box])")
  browser.draw([(0.5, 0.5), (0.502, 0.5)])
  assert "too small" in browser.find("#marks-hint").text
  for n in range(8):
    browser.draw([(0.1, 0.1), (0.3 + n / 20, 0.3 + n / 20)])
  browser.until(lambda: len(browser.all("#marks .chips li")) == 8)
  assert "At most 8 instances" in browser.find("#marks-hint").text
  browser.clear("#photo")
  browser.until(lambda: not browser.all("#marks .tools"))
  browser.upload(photo)
  assert not browser.all("#marks .chips li")


def test_a_link_of_an_uploaded_photo_restores_its_expressions_and_says_so(browser, photo):
  browser.open()
  browser.upload(photo)
  browser.draw([(0.5, 0.5)])
  browser.type(TEXT)
  browser.press()
  browser.until(lambda: "never in a link" in browser.find("#link .note").text)
  link = browser.driver.current_url
  assert urlsplit(link).query == "text=the+leftmost+star"
  browser.press("#link .copy")
  browser.until(lambda: "Copied" in browser.find("#link .note").text)
  browser.driver.get("about:blank")
  browser.driver.get(link)
  browser.until(lambda: browser.find("#text textarea").get_property("value") == TEXT)
  assert not browser.all("#photo .image-frame img")
  browser.driver.get(link + "&photo=0123456789ab")
  assert "choose it yourself" in browser.message()
  browser.driver.get(browser.url + "?text=a" + "&text=a" * 9)
  assert "10 expressions; the limit is 8" in browser.message()


@WIDTHS
def test_two_models_are_beside_each_other_or_below_on_a_phone(two_models, width):
  two_models.open(width)
  two_models.pick(1)
  two_models.press()
  first, second = two_models.find("#overlay img").rect, two_models.find("#overlay-2 img").rect
  if width > 1000:
    assert first["y"] == second["y"] and first["x"] + first["width"] <= second["x"]
  else:
    assert first["x"] == second["x"] and first["y"] + first["height"] <= second["y"]
  # The second is the first one, exported.
  np.testing.assert_array_equal(
    two_models.picture("#overlay img"), two_models.picture("#overlay-2 img")
  )
  two_models.press("#which label:nth-child(2) input")
  two_models.until(lambda: "(IoU): 100%" in two_models.find("#summary-2").text)
  assert two_models.overflow() == 0


def test_everything_is_reached_and_done_by_keys(browser, segmenter):
  browser.open()
  browser.pick(1)
  reached = browser.walk()
  for name in ("photo", "marks", "text", "another", "find", "masks", "examples"):
    assert any(name in where for where, _ in reached), (name, reached)
  assert any("marking" in where for where, _ in reached)
  assert all(visible for _, visible in reached), [where for where, seen in reached if not seen]

  browser.driver.execute_script("document.querySelector('.marking').focus({focusVisible: true})")
  browser.key("ARROW_RIGHT")
  browser.key("ARROW_DOWN", "SHIFT")
  browser.key("ENTER")
  browser.until(lambda: len(browser.all("#marks .chips li")) == 1)
  browser.type("")
  browser.find("#text textarea").click()
  browser.key("a star")
  browser.key("ENTER", "SHIFT")
  browser.key("a ring")
  assert browser.find("#text textarea").get_property("value") == "a star\na ring"
  browser.key("ENTER")
  browser.until(lambda: len(browser.all("#summary .legend li")) == 2)
  shared = links.read(urlsplit(browser.driver.current_url).query, limits.Limits())
  assert shared.marks == (marks.Mark("point", ((0.52, 0.6),)),)

  browser.press("#another")
  browser.until(lambda: browser.focused().tag_name == "textarea")
  browser.key("a square")
  browser.key("ENTER")
  browser.until(lambda: len(browser.all("#summary .legend li")) == 3)


@pytest.mark.parametrize("theme", ["light", "dark"])
@WIDTHS
def test_axe_finds_nothing_serious(browser, two_models, axe, width, theme):
  for page in (browser, two_models):
    page.open(width, theme)
    assert page.violations(axe) == []
    page.pick(1)
    page.draw([(0.5, 0.5)])
    page.press("#masks button")
    page.press()
    page.find("#overlay img")
    assert page.violations(axe) == []
    page.press("#which label:nth-child(2) input")
    page.find("#instances img")
    assert page.violations(axe) == []
