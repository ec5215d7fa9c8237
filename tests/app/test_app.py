"""`mail_jax.app` over HTTP, on a real server."""

import concurrent.futures
import contextlib
import hashlib
import io
import json
import pathlib
import subprocess
import sys
import zipfile
from urllib.parse import parse_qs

import numpy as np
import page_server
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from input_pipeline.common import drawing
from input_pipeline.common.errors import InputError
from input_pipeline.shapes import scenes
from mail_jax.app import limits, marks

pytestmark = pytest.mark.app
gradio_client = pytest.importorskip("gradio_client", reason="`make app` installs Gradio")
pytest.importorskip("gradio", reason="`make app` installs Gradio")

TEXT = "the leftmost star"


@pytest.fixture(scope="module")
def server(finished_run, tmp_path_factory):
  # glibc keeps what each thread has freed in up to 16 arenas; with few, a leak is seen sooner.
  environment = {"MALLOC_ARENA_MAX": "2"}
  with page_server.running(finished_run, tmp_path_factory.mktemp("page"), **environment) as found:
    yield found


@pytest.fixture(scope="module")
def client(server):
  return gradio_client.Client(server.url, verbose=False)


@pytest.fixture(scope="module")
def segmenter(finished_run):
  from mail_jax.predict.segmenter import Segmenter

  return Segmenter.load(str(finished_run))


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> list[pathlib.Path]:
  """Files of four generated scenes that are not examples of the page, of three sizes."""
  folder = tmp_path_factory.mktemp("photos")
  paths = []
  for index, size in enumerate((96, 96, 140, 64)):
    paths.append(folder / f"photo {index}.png")
    Image.fromarray(scenes.make_scene("testA", 3, index, size).image).save(paths[-1])
  return paths


def segment(client, photo, text=TEXT, masks=None, drawn=""):
  """Returns the app's response: pictures as arrays, and the summary."""
  handle = gradio_client.handle_file
  which, _, overlay, summary, mask, instances, link = client.predict(
    photo and handle(str(photo)), text, masks and handle(str(masks)), drawn, api_name="/segment"
  )
  return {
    "which": which,
    "overlay": np.asarray(Image.open(_path(overlay))),
    "mask": np.asarray(Image.open(_path(mask))),
    "summary": summary,
    "instances": _value(instances),
    "link": link,
  }


def _value(update):
  return update.get("value") if isinstance(update, dict) and "__type__" in update else update


def _path(given) -> str:
  given = _value(given)
  return given["path"] if isinstance(given, dict) else given


def coco_file(path: pathlib.Path, masks: np.ndarray, name: str) -> pathlib.Path:
  height, width = masks.shape[1:]
  rows = []
  for k, mask in enumerate(masks):
    runs = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    runs = {"size": runs["size"], "counts": runs["counts"].decode()}
    rows.append({"id": k + 1, "image_id": 5, "category_id": 1, "segmentation": runs})
  image = {"id": 5, "file_name": name, "height": height, "width": width}
  data = {"images": [image], "annotations": rows, "categories": [{"id": 1, "name": "thing"}]}
  path.write_text(json.dumps(data))
  return path


def test_the_app_gives_the_result_of_segmenter_bit_for_bit(client, segmenter, photos):
  for photo in photos:
    expected = segmenter(str(photo), TEXT)
    actual = segment(client, photo)
    np.testing.assert_array_equal(actual["mask"] > 0, expected.mask)
    np.testing.assert_array_equal(actual["overlay"], expected.overlay())
    assert f"{expected.mask.mean():.1%}" in actual["summary"] or not expected.mask.any()


def test_the_model_selects_from_the_masks_in_a_coco_file(client, segmenter, photos, tmp_path):
  masks = scenes.make_scene("testA", 3, 0, 96).targets
  # It is the only photo of the file, under any name.
  actual = segment(client, photos[0], TEXT, coco_file(tmp_path / "own.json", masks, "any.png"))
  # Masks are passed on as the proposers sort them: all are equally sure, the larger first.
  ordered = masks[np.argsort(-masks.sum((1, 2)), kind="stable")]
  expected = segmenter(str(photos[0]), TEXT, ordered)
  np.testing.assert_array_equal(actual["overlay"], expected.overlay())
  assert len(actual["instances"]) == len(masks) and "your file" in actual["summary"]


def test_an_example_comes_with_its_instance_masks(client, segmenter, tmp_path):
  scene = scenes.make_scene("val", 7, 0, 96)
  Image.fromarray(scene.image).save(tmp_path / "scene.png")
  actual = segment(client, tmp_path / "scene.png")
  expected = segmenter(scene.image, TEXT, scene.instances.masks)
  assert len(actual["instances"]) == len(expected.instances) > 0
  np.testing.assert_array_equal(actual["overlay"], expected.overlay())
  assert "from the example" in actual["summary"]


def test_several_expressions_share_a_picture_and_a_zip_of_their_masks(client, segmenter, photos):
  expressions = [TEXT, "the large ring", "the red thing <b>/.."]
  *_, overlay, summary, masks, _, _ = client.predict(
    gradio_client.handle_file(str(photos[0])), "\n".join(expressions), None, api_name="/segment"
  )
  results = segmenter(str(photos[0]), expressions)
  with zipfile.ZipFile(_path(masks)) as file:
    names = file.namelist()
    assert names == ["1 the leftmost star.png", "2 the large ring.png", "3 the red thing b.png"]
    for name, expected in zip(names, results, strict=True):
      mask = np.asarray(Image.open(io.BytesIO(file.read(name)))) > 0
      np.testing.assert_array_equal(mask, expected.mask)
  picture = np.asarray(Image.open(_path(overlay))).astype(int)
  photo = drawing.stretch(results[0].image, picture.shape[1::-1]).astype(int)
  nowhere = ~np.any([drawing.stretch(r.mask, picture.shape[1::-1]) for r in results], axis=0)
  # Lines and numbers, which reach beyond a mask, aside.
  assert (np.abs(picture - photo).max(-1)[nowhere] > 0).mean() < 0.1
  assert summary.count("<li>") == 3 and "&lt;b&gt;" in summary


def test_marked_instances_come_first_and_those_of_the_example_follow(client, segmenter, tmp_path):
  scene = scenes.make_scene("val", 7, 0, 96)
  Image.fromarray(scene.image).save(tmp_path / "scene.png")
  lines = ["box 0.1,0.2 0.5,0.6", "point 0.5,0.5"]
  actual = segment(client, tmp_path / "scene.png", drawn="\n".join(lines))
  marked = marks.Segments(scene.image).masks(marks.read("\n".join(lines), limits.Limits()))
  expected = segmenter(scene.image, TEXT, page_server.put_first(marked, scene.instances.masks))
  np.testing.assert_array_equal(actual["overlay"], expected.overlay())
  captions = [caption for _, caption in map(_captioned, actual["instances"])]
  assert len(captions) == len(expected.instances)
  assert sum(caption.startswith("yours") for caption in captions) == 2
  assert "from your 2 marks, the others from the example" in actual["summary"]
  query = parse_qs(actual["link"]["query"])
  assert query["mark"] == lines and query["text"] == [TEXT]
  path = tmp_path / "scene.png"
  digest = hashlib.sha256(path.read_bytes()).hexdigest()
  assert digest.startswith(query["photo"][0])


def test_a_mark_replaces_the_proposed_instance_that_it_repeats(client, photos, tmp_path):
  masks = np.zeros((2, 96, 96), bool)
  masks[0, 10:40, 20:50] = masks[1, 50:90, 10:90] = True
  path = coco_file(tmp_path / "own.json", masks, "any.png")
  ends = ((20, 10), (49, 39)), ((60, 5), (90, 30))
  for ((left, top), (right, bottom)), expected in zip(ends, (2, 3), strict=True):
    box = f"box {left / 95:.3f},{top / 95:.3f} {right / 95:.3f},{bottom / 95:.3f}"
    # On a photo of one colour the box itself is the instance.
    plain = tmp_path / "plain.png"
    Image.new("RGB", (96, 96), "gray").save(plain)
    assert len(segment(client, plain, TEXT, path, box)["instances"]) == expected


def _captioned(item):
  return (item["image"], item["caption"]) if isinstance(item, dict) else item


@pytest.mark.parametrize(
  ("given", "message"),
  [
    ("point 0.5,0.5\n" * 9, "More than 8 instances are marked"),
    ("stroke" + " 0.5,0.5" * 65, "65 points"),
    ("stroke" + " 0.5,0.5" * 5000, "more than 64 points"),
    ("point 0.5,1.5", "Mark 1 on the photo cannot be read"),
    ("box 0.1,0.1", "a box two"),
    ("circle 0.1,0.1", "cannot be read"),
    ("point nan,0.1", "cannot be read"),
    ('{"point": [0.5, 0.5]}', "cannot be read"),
  ],
)
def test_marks_beyond_the_limits_get_a_message(client, photos, given, message):
  with pytest.raises(Exception, match=message):
    segment(client, photos[0], drawn=given)


def test_two_models_answer_side_by_side(finished_run, exported, segmenter, photos, tmp_path):
  from mail_jax.predict.segmenter import Segmenter

  options = ("--compare", str(exported))
  with page_server.running(finished_run, tmp_path, *options) as server:
    client = gradio_client.Client(server.url, verbose=False)
    given = gradio_client.handle_file(str(photos[0]))
    _, _, *parts, _ = client.predict(given, TEXT, None, api_name="/segment")
    page = server.ask("/")[1]
  assert b"finished" in page and b"tiny" in page
  for model, (overlay, summary, mask, _) in zip(
    (segmenter, Segmenter.load(str(exported))), (parts[:4], parts[4:]), strict=True
  ):
    expected = model(str(photos[0]), TEXT)
    np.testing.assert_array_equal(np.asarray(Image.open(_path(overlay))), expected.overlay())
    np.testing.assert_array_equal(np.asarray(Image.open(_path(mask))) > 0, expected.mask)
    # The exported model is that of the run.
    assert "(IoU): 100%" in summary


def test_every_bad_input_gets_its_message_and_the_next_request_a_result(
  client, segmenter, photos, tmp_path
):
  expected = segmenter(str(photos[0]), TEXT).overlay()
  for photo, text, message in page_server.bad_inputs(tmp_path, photos[0]):
    with pytest.raises(Exception) as refused:
      segment(client, photo, text)
    error = str(refused.value)
    assert message in error and "\n" not in error.strip() and "/tmp" not in error, error
    np.testing.assert_array_equal(segment(client, photos[0])["overlay"], expected)


@pytest.mark.parametrize("what", ["size", "name", "form", "json"])
def test_wrong_masks_get_a_message(client, photos, tmp_path, what):
  masks = np.zeros((1, 96, 96) if what != "size" else (1, 50, 40), bool)
  masks[0, 5:20, 5:30] = True
  path = coco_file(tmp_path / "own.json", masks, "other.png" if what == "name" else "photo 0.png")
  if what == "name":
    data = json.loads(path.read_text())
    data["images"].append({"id": 6, "file_name": "third.png", "height": 96, "width": 96})
    path.write_text(json.dumps(data))
  if what == "form":
    path.write_text("[1, 2, 3]")
  if what == "json":
    path.write_text("no JSON at all")
  with pytest.raises(Exception, match=r"The instance masks in own\.json cannot be used") as refused:
    segment(client, photos[0], TEXT, path)
  assert "/tmp" not in str(refused.value)


def test_twenty_simultaneous_requests_are_handled_without_growing_memory(server, segmenter, photos):
  expected = [segmenter(str(photo), TEXT).overlay() for photo in photos]
  clients = [gradio_client.Client(server.url, verbose=False) for _ in range(20)]

  def ask(number: int) -> None:
    actual = segment(clients[number], photos[number % len(photos)])
    np.testing.assert_array_equal(actual["overlay"], expected[number % len(photos)])

  with concurrent.futures.ThreadPoolExecutor(20) as pool:
    list(pool.map(ask, range(20)))  # what is allocated once is allocated now
    before = server.memory()
    for _ in range(3):
      list(pool.map(ask, range(20)))
  after = server.memory()
  print(f"resident memory: {before:.0f} MB before, {after:.0f} MB after 60 requests")
  assert after - before < 60


def test_requests_beyond_the_queue_are_rejected(finished_run, photos, tmp_path):
  with page_server.running(finished_run, tmp_path, "--max_queue", "1") as server:
    clients = [gradio_client.Client(server.url, verbose=False) for _ in range(8)]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
      asked = [pool.submit(segment, client, photos[0]) for client in clients]
      refused = [str(done.exception()) for done in asked if done.exception()]
    assert 0 < len(refused) < 8
    assert all("Queue is full" in message for message in refused), refused
    assert segment(clients[0], photos[0])["mask"].shape == (96, 96)


@pytest.mark.parametrize(
  "path",
  [
    "file=/etc/passwd",
    "file=../../../../etc/passwd",
    "file=%2e%2e%2f%2e%2e%2fetc%2fpasswd",
    "file=/proc/self/environ",
    f"file={page_server.CHECKOUT}/pyproject.toml",
    "file=pyproject.toml",
    "file=http://127.0.0.1:9/",
    "file=https://example.invalid/a.png",
    "file/etc/passwd",
    "proxy=http://127.0.0.1:9/",
    "stream/../../etc/passwd",
    "run/segment",
    "call/segment",
    "custom_component/../../etc/passwd",
    "openapi.json",
    "deep_link",
    "vibe-code/",
  ],
)
def test_no_file_of_the_server_can_be_read_and_no_other_address_exists(server, path):
  status, body = server.ask(f"/gradio_api/{path}")
  assert status in (403, 404) and b"root:" not in body and b"mail_jax" not in body


def test_only_uploaded_files_can_be_used(server, client, photos):
  number = next(
    n for n, d in enumerate(client.config["dependencies"]) if d["api_name"] == "segment"
  )
  uploaded = _named(json.loads(server.upload(photos[0]))[0])
  assert _done(server, number, [uploaded, TEXT, None, ""])["success"]
  elsewhere = ("/etc/passwd", str(photos[0]), str(page_server.CHECKOUT / "pyproject.toml"))
  for path in (*elsewhere, "https://127.0.0.1:9/a.png", "/gradio_api/file=/etc/passwd"):
    for data in ([_named(path), TEXT, None, ""], [uploaded, TEXT, _named(path), ""]):
      response = _done(server, number, data)
      assert not response["success"] and "root:" not in json.dumps(response), path


def _named(path: str) -> dict:
  return {"path": path, "meta": {"_type": "gradio.FileData"}}


def _done(server, number: int, data: list) -> dict:
  """Returns the last message of the server about a handmade request."""
  asked = {"data": data, "fn_index": number, "session_hash": "byhand"}
  head = {"Content-Type": "application/json"}
  status, body = server.ask("/gradio_api/queue/join", json.dumps(asked).encode(), **head)
  assert status == 200, body
  _, stream = server.ask("/gradio_api/queue/data?session_hash=byhand")
  messages = [json.loads(line[5:]) for line in stream.split(b"\n") if line.startswith(b"data:")]
  return next(message for message in messages if message["msg"] == "process_completed")


def test_large_uploads_and_large_requests_are_rejected(server):
  edge = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
  head = {"Content-Type": "multipart/form-data; boundary=x"}
  body = edge + b"0" * 26_000_000 + b"\r\n--x--\r\n"
  with contextlib.suppress(ConnectionError, OSError):  # it may hang up before all was sent
    assert server.ask("/gradio_api/upload", body, **head)[0] == 413
  assert server.ask("/gradio_api/upload", edge + b"0" * 1000 + b"\r\n--x--\r\n", **head)[0] == 200
  asked = json.dumps({"data": ["x" * 300_000], "fn_index": 0, "session_hash": "a"}).encode()
  head = {"Content-Type": "application/json"}
  with contextlib.suppress(ConnectionError, OSError):
    assert server.ask("/gradio_api/queue/join", asked, **head)[0] == 413


def test_expressions_are_escaped_everywhere(client, photos):
  text = "<img src=x onerror=alert(1)><script>alert(2)</script> **bold** the star"
  actual = segment(client, photos[0], text)
  assert "<img" not in actual["summary"] and "<script" not in actual["summary"]
  assert "&lt;img src=x onerror=alert(1)&gt;" in actual["summary"]
  with pytest.raises(Exception) as refused:
    segment(client, photos[0], "<b>" * 400)
  assert "<b>" not in str(refused.value)


def test_the_page_loads_no_font_or_script_of_another_host(server):
  status, body = server.ask("/")
  assert status == 200
  for host in (b"fonts.googleapis", b"fonts.gstatic", b"cdnjs", b"jsdelivr", b"unpkg"):
    assert host not in body


def test_nothing_is_left_when_the_page_ends(finished_run, photos, tmp_path):
  with page_server.running(finished_run, tmp_path) as server:
    segment(gradio_client.Client(server.url, verbose=False), photos[0])
    assert list(tmp_path.glob("mail_jax_app_*/predictions/*/model-1/1-mask.png"))
  assert not list(tmp_path.glob("mail_jax_app_*"))


def test_a_port_in_use_is_reported_in_one_line(server, finished_run):
  from mail_jax.app import command as app

  port = server.url.rpartition(":")[2]
  command = [
    sys.executable,
    "-m",
    "mail_jax.app",
    "--checkpoint",
    str(finished_run),
    "--port",
    port,
  ]
  done = subprocess.run(command, cwd=page_server.CHECKOUT, capture_output=True, text=True)
  assert done.returncode == 2 and done.stderr.strip().count("\n") == 0
  assert f"--port {port}" in done.stderr
  with pytest.raises(InputError, match="--max_queue 0"):
    app.main(["--checkpoint", str(finished_run), "--max_queue", "0"])


def test_the_page_starts_despite_a_proxy_and_says_the_address_that_works(finished_run, tmp_path):
  proxy = dict.fromkeys(("http_proxy", "HTTP_PROXY", "https_proxy"), "http://127.0.0.1:9")
  options = ("--root_path", "/mail/", "--host", "0.0.0.0")
  with page_server.running(finished_run, tmp_path, *options, **proxy) as server:
    address = f"{server.url}/mail"
    assert f"The app is at {address}; stop" in server.printed
    assert server.ask("/mail/")[0] == 200
    status, page = server.ask("/", **{"X-Forwarded-Host": "example.org", "Host": "example.org"})
    assert status == 200 and b"http://example.org/mail" in page


def test_the_page_behind_a_proxy_on_another_host(finished_run, tmp_path):
  whole = "https://example.org/mail"
  with page_server.running(finished_run, tmp_path, "--root_path", whole) as server:
    assert f"The app is at {whole}; stop" in server.printed
    status, page = server.ask("/")
    assert status == 200 and f'"root":"{whole}"'.encode() in page.replace(b": ", b":")


@pytest.mark.parametrize("root_path", ["mail", "ftp://host/mail", "https://", "/a b", "/mail?x"])
def test_a_wrong_root_path_is_one_line(finished_run, root_path):
  from mail_jax.app import command

  with pytest.raises(InputError, match=r"--root_path .*: write a path that begins with /"):
    command.main(["--checkpoint", str(finished_run), "--root_path", root_path])


@pytest.mark.parametrize(
  ("host", "root_path", "address"),
  [
    ("127.0.0.1", "", "http://127.0.0.1:80"),
    ("::1", "/mail", "http://[::1]:80/mail"),
    ("::", "", "http://127.0.0.1:80"),
    ("example.org", "https://example.net/a", "https://example.net/a"),
  ],
)
def test_the_address_is_one_for_a_browser(host, root_path, address):
  from mail_jax.app import command

  assert command._address(host, 80, root_path) == address
