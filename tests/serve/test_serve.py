"""`mail_jax.serve` in this process: answers, limits, and what it says of invalid requests."""

import base64
import contextlib
import dataclasses
import io
import json
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest

pytest.importorskip("fastapi", reason="needs FastAPI (make app)")

import served_models
from fastapi.testclient import TestClient
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from input_pipeline.proposers import mask_recipe
from input_pipeline.proposers.selection import Selection
from mail_jax.export import load
from mail_jax.predict.batches import BatchSegmenter
from mail_jax.predict.segmenter import Segmenter
from mail_jax.serve import api
from mail_jax.serve.limits import Limits, Rates

pytestmark = pytest.mark.app

SMALL = Limits(megapixels=1.0, body_megabytes=2.0, images=3, expressions=4, instances=20)


@pytest.fixture(scope="module")
def model() -> load.LoadedModel:
  return load.load("demo")


@pytest.fixture(scope="module")
def segmenter(model) -> Segmenter:
  return Segmenter(model)


@contextlib.contextmanager
def _serving(segmenter: BatchSegmenter, limits: Limits = SMALL) -> Iterator[TestClient]:
  app = api.make_app(segmenter, api.About("demo", 9, "shapes", 10), limits)
  with TestClient(app, raise_server_exceptions=False) as client:
    end = time.monotonic() + 120
    while client.get("/health").status_code != 200:
      assert time.monotonic() < end and not app.state.worker.error
      time.sleep(0.05)
    yield client


@pytest.fixture(scope="module")
def client(model) -> Iterator[TestClient]:
  with _serving(BatchSegmenter(model, 4)) as client:
    yield client


class Held(BatchSegmenter):
  """Waits with every batch until it is let go, and remembers their sizes."""

  def __init__(self, model: load.LoadedModel, largest: int = 4):
    super().__init__(model, largest)
    self.go, self.began, self.ran = threading.Event(), threading.Event(), []

  def warm_up(self) -> None:
    pass

  def run(self, images, expressions):
    self.began.set()
    assert self.go.wait(60)
    self.ran.append(list(expressions))
    return super().run(images, expressions)


def _in_background(client: TestClient, count: int, item: dict) -> tuple[list, list]:
  responses: list = []
  threads = [
    threading.Thread(target=lambda: responses.append(client.post("/segment", json=item)))
    for _ in range(count)
  ]
  for thread in threads:
    thread.start()
  return threads, responses


@pytest.mark.parametrize("masks", ["given", "none", "auto"])
@pytest.mark.parametrize("size", [None, (61, 200), (403, 97)], ids=str)
def test_answers_are_those_of_segmenter(client, segmenter, size, masks):
  item, pixels, instances = served_models.make_item(3, size, masks)
  response = client.post("/segment", json=item)
  assert response.status_code == 200, response.text
  result = response.json()
  assert (result["height"], result["width"]) == pixels.shape[:2]
  expected = segmenter(pixels, item["expressions"], instances)
  assert expected[0].mask.any()
  for prediction, one in zip(result["predictions"], expected, strict=True):
    assert served_models.find_difference(prediction, one) == ""


def test_where_training_had_masks_of_a_file_requests_must_send_them(model, tmp_path):
  file = tmp_path / "instances.json"
  file.write_text(json.dumps(served_models.COCO))
  recipe = mask_recipe.of_spec(f"coco:{file}", Selection())
  item, *_ = served_models.make_item(0, masks="auto")
  with _serving(BatchSegmenter(dataclasses.replace(model, mask_recipes=(recipe,)), 2)) as client:
    response = client.post("/segment/batch", json={"images": [item | {"instances": []}, item]})
    assert response.status_code == 422
    assert response.json()["detail"].startswith("images[1].instances: missing, and the model was")
    assert client.post("/segment", json=item | {"instances": []}).is_success


def test_a_batch_keeps_the_order_of_images_and_expressions(client, segmenter):
  made = [served_models.make_item(k, size) for k, size in ((1, None), (2, (90, 130)), (5, None))]
  body = {"images": [item for item, *_ in made], "mask_format": "png"}
  results = client.post("/segment/batch", json=body).json()["images"]
  for (item, pixels, instances), result in zip(made, results, strict=True):
    expected = segmenter(pixels, item["expressions"], instances)
    for prediction, one in zip(result["predictions"], expected, strict=True):
      assert isinstance(prediction["mask"], str)
      assert served_models.find_difference(prediction, one) == ""


def test_an_upload_and_a_png_are_the_same_as_json_and_run_lengths(client):
  item, pixels, _ = served_models.make_item(4)
  item["expressions"] = item["expressions"][:1]
  (prediction,) = client.post("/segment", json=item).json()["predictions"]
  png = client.post("/segment", json=item, headers={"Accept": "image/png"})
  assert png.headers["content-type"] == "image/png"
  upload = client.post(
    "/segment/upload",
    files={"image": ("photo.png", served_models.encode_image(pixels))},
    data={"expressions": item["expressions"], "instances": json.dumps(item["instances"])},
  )
  assert upload.json()["predictions"] == [prediction]
  mask = served_models.decode(prediction["mask"])
  assert mask.any() and np.array_equal(served_models.decode(png.content), mask)
  two = client.post(
    "/segment",
    json=item | {"expressions": ["one", "two"]},
    headers={"Accept": "image/png"},
  )
  assert two.status_code == 422 and two.json()["detail"].startswith("expressions: ")


def test_instances_are_ordered_by_score_and_the_best_are_used(client, segmenter):
  item, pixels, masks = served_models.make_item(6)
  item["instances"] = item["instances"][::-1]
  (first, _) = client.post("/segment", json=item).json()["predictions"]
  expected = segmenter(pixels, item["expressions"][0], masks)
  assert len(masks) > 1 and served_models.find_difference(first, expected) == ""
  item["instances"] = [{**one, "score": 0.5} for one in served_models.encode_masks(masks[:1])] * 20
  (first, _) = client.post("/segment", json=item).json()["predictions"]
  assert len(first["instance_probability"]) == 10


def test_a_rotated_photo_is_answered_upright(client):
  _, pixels, _ = served_models.make_item(0, (60, 100))
  exif = Image.Exif()
  exif[0x0112] = 6
  buffer = io.BytesIO()
  Image.fromarray(pixels).save(buffer, "JPEG", exif=exif)
  item = {"image": base64.b64encode(buffer.getvalue()).decode(), "expressions": ["the star"]}
  item["instances"] = served_models.encode_masks(np.ones((1, 100, 60), bool))
  result = client.post("/segment", json=item).json()
  assert (result["height"], result["width"]) == (100, 60)
  assert result["predictions"][0]["mask"]["size"] == [100, 60]


def test_nothing_is_compiled_for_images_of_new_sizes(client, compilations):
  client.post("/segment", json=served_models.make_item(0)[0])
  before = list(compilations)
  for number, size in enumerate([(77, 311), (512, 640), (33, 34)]):
    assert client.post("/segment", json=served_models.make_item(number, size)[0]).is_success
  assert compilations == before


def _changed(**fields) -> dict:
  item, *_ = served_models.make_item(0)
  return item | fields


def _noise(height: int, width: int) -> str:
  pixels = np.zeros((height, width, 3), np.uint8)
  return base64.b64encode(served_models.encode_image(pixels)).decode()


WHOLE = {"size": [384, 384], "counts": [0, 384 * 384]}
INVALID = {
  "not base64": (_changed(image="?"), 422, "image: not base64"),
  "empty": (_changed(image=""), 422, "image: not an intact image of JPEG"),
  "no image": (_changed(image="aGVsbG8="), 422, "image: not an intact image of JPEG"),
  "cut": (_changed(image=_changed()["image"][:2000]), 422, "image: cannot be decoded ("),
  "pixels": (_changed(image=_noise(1001, 1000)), 413, "image: it has 1 megapixels; the limit"),
  "no expression": (_changed(expressions=[]), 422, "expressions: "),
  "expressions": (_changed(expressions=["a"] * 5), 422, "expressions: "),
  "blank": (_changed(expressions=["a", " "]), 422, "expressions[1]: "),
  "control": (_changed(expressions=["\x01"]), 422, "expressions[0]: it has no readable text"),
  "long": (_changed(expressions=["a" * 1001]), 422, "expressions[0]: "),
  "number": (_changed(expressions=[1]), 422, "expressions[0]: "),
  "format": (_changed(mask_format="gif"), 422, "mask_format: "),
  "unknown": (_changed(mask="rle"), 422, "mask: "),
  "size": (
    _changed(instances=[{"rle": {"size": [1, 1], "counts": [0, 1]}}]),
    422,
    "instances[0].rle: run lengths have size [1, 1], but the image has [384, 384]",
  ),
  "lengths": (
    _changed(instances=[{"rle": WHOLE}, {"rle": WHOLE | {"counts": [5]}}]),
    422,
    "instances[1].rle: run lengths cover 5 of 147456 pixels",
  ),
  "counts": (_changed(instances=[{"rle": {"size": [9, 9]}}]), 422, "instances[0].rle.counts: "),
  "type": (
    _changed(instances=[{"rle": WHOLE | {"counts": 1}}]),
    422,
    "instances[0].rle.counts: ",
  ),
  "score": (_changed(instances=[{"rle": WHOLE, "score": 2}]), 422, "instances[0].score: "),
  "many": (_changed(instances=[{"rle": WHOLE}] * 21), 422, "instances: "),
  "list": ([1], 422, "body: "),
}


@pytest.mark.parametrize("name", INVALID)
def test_an_invalid_request_is_one_line_that_names_the_field(client, name):
  body, status, start = INVALID[name]
  response = client.post("/segment", json=body)
  detail = response.json()["detail"]
  assert (response.status_code, detail[: len(start)]) == (status, start)
  assert "\n" not in detail and len(detail) < 300
  if isinstance(body, dict) and name != "unknown" and name != "format":
    batch = {"images": [_changed(), body]}
    response = client.post("/segment/batch", json=batch)
    assert response.status_code == status
    assert response.json()["detail"].startswith(f"images[1].{start}")


def test_instances_of_an_upload_are_checked_as_in_json(client):
  files = {"image": base64.b64decode(_changed()["image"])}
  for text, start in (("{", "instances: "), ('[{"rle": {}}]', "instances[0].rle.size: ")):
    data = {"expressions": "the star", "instances": text}
    response = client.post("/segment/upload", files=files, data=data)
    assert response.status_code == 422
    assert response.json()["detail"].startswith(start)


@pytest.mark.parametrize("body", [b"{", b"\xff", b"[" * 100_000, b"", b'{"image": NaN}'])
def test_a_body_that_is_not_json_is_422(client, body):
  kind = {"content-type": "application/json"}
  response = client.post("/segment", content=body, headers=kind)
  assert response.status_code == 422 and isinstance(response.json()["detail"], str)


JSON = st.recursive(
  st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
  lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner),
  max_leaves=12,
)
FIELDS = {
  "image": JSON | st.just(_noise(20, 30)) | st.binary().map(lambda b: base64.b64encode(b).decode()),
  "expressions": JSON | st.lists(st.text(max_size=20), max_size=5),
  "instances": JSON
  | st.lists(
    st.fixed_dictionaries(
      {
        "rle": st.fixed_dictionaries(
          {
            "size": st.just([20, 30]) | JSON,
            "counts": st.text(max_size=9) | st.lists(st.integers(0, 600), max_size=4) | JSON,
          }
        )
      },
      optional={"score": st.floats() | JSON},
    ),
    max_size=3,
  ),
  "mask_format": st.sampled_from(["rle", "png"]) | JSON,
}


@settings(max_examples=150)
@given(st.fixed_dictionaries({}, optional=FIELDS))
def test_any_body_is_answered_or_explained(client, body):
  kind = {"content-type": "application/json"}
  response = client.post("/segment", content=json.dumps(body).encode(), headers=kind)
  assert response.status_code in (200, 422), response.text
  if response.status_code == 422:
    detail = response.json()["detail"]
    assert set(response.json()) == {"detail"} and detail.isprintable()
    assert "Traceback" not in detail and ".py" not in detail
  else:
    assert len(response.json()["predictions"]) == len(body["expressions"])


def test_a_large_body_is_413_before_it_is_read(client):
  sent = 0

  def chunks() -> Iterator[bytes]:
    nonlocal sent
    for _ in range(100):
      sent += 100_000
      yield b" " * 100_000

  response = client.post("/segment", content=chunks())
  assert response.status_code == 413
  assert response.json()["detail"].startswith("body: larger than 2 MB")
  declared = {"content-length": "2000001", "content-type": "application/json"}
  assert client.post("/segment", content=b"", headers=declared).status_code == 413


def test_requests_beyond_the_queue_are_429_and_the_others_are_answered(model):
  item, *_ = served_models.make_item(0)
  segmenter = Held(model)
  with _serving(segmenter, Limits(queue=3)) as client:
    threads, responses = _in_background(client, 3, item)
    assert segmenter.began.wait(60)
    time.sleep(1)  # The other two have arrived.
    rejected = client.post("/segment", json=item)
    assert rejected.status_code == 429
    assert int(rejected.headers["retry-after"]) >= 1
    assert client.get("/health").status_code == 200
    segmenter.go.set()
    for thread in threads:
      thread.join()
    assert [response.status_code for response in responses] == [200] * 3
    assert client.post("/segment", json=item).status_code == 200


def test_what_waits_runs_together(model):
  item, *_ = served_models.make_item(0)
  segmenter = Held(model)
  with _serving(segmenter) as client:
    threads, responses = _in_background(client, 5, item)
    assert segmenter.began.wait(60)
    time.sleep(1)
    segmenter.go.set()
    for thread in threads:
      thread.join()
  assert [response.status_code for response in responses] == [200] * 5
  assert sum(map(len, segmenter.ran)) == 10
  assert max(map(len, segmenter.ran)) == 4


def test_a_late_answer_is_504_and_its_work_is_dropped(model):
  item, *_ = served_models.make_item(0)
  segmenter = Held(model, 1)
  segmenter.go.set()
  BatchSegmenter.warm_up(segmenter)
  segmenter.go.clear()
  segmenter.ran.clear()
  with _serving(segmenter, Limits(seconds=3.0)) as client:
    response = client.post("/segment", json=item)
    assert response.status_code == 504
    assert "not answered within 3 s" in response.json()["detail"]
    segmenter.go.set()
    assert client.post("/segment", json=item).status_code == 200
  # The second expression of the late request was still waiting.
  assert segmenter.ran == [item["expressions"][:1], *([text] for text in item["expressions"])]


class Failing(Held):
  """Fails for one expression, and says where its files are."""

  def run(self, images, expressions):
    self.go.set()
    if "the large star" in expressions:
      raise RuntimeError("/home/somebody/secret.npz is damaged")
    return super().run(images, expressions)


def test_a_failure_is_500_without_details_and_fails_nobody_else(model):
  item, *_ = served_models.make_item(0)
  with _serving(Failing(model)) as client:
    good = item | {"expressions": ["the small star"]}
    threads, responses = _in_background(client, 6, good)
    bad = client.post("/segment", json=item)
    for thread in threads:
      thread.join()
  assert bad.status_code == 500 and bad.json() == {"detail": "internal error"}
  assert [response.status_code for response in responses] == [200] * 6


class Unready(Held):
  """Waits while it is compiled, too."""

  def warm_up(self) -> None:
    assert self.go.wait(60)


def test_a_server_that_starts_says_so(model):
  segmenter = Unready(model)
  app = api.make_app(segmenter, api.About("demo", 9, "shapes", 10), SMALL)
  with TestClient(app) as client:
    health = client.get("/health")
    assert (health.status_code, health.json()["status"]) == (503, "starting")
    response = client.post("/segment", json=_changed())
    assert response.status_code == 503 and response.headers["retry-after"]
    segmenter.go.set()


def test_a_client_that_asks_too_often_is_429():
  now = 0.0
  rates = Rates(2.0, lambda: now)
  assert [rates.take("a") for _ in range(5)] == [0, 0, 0, 0, 0.5]
  assert rates.take("b") == 0
  now = 0.6
  assert rates.take("a") == 0
  assert rates.take("a") > 0
  now = 100.0
  assert [rates.take("a") for _ in range(5)] == [0, 0, 0, 0, 0.5]
  assert Rates(0.0).take("a") == 0


def test_rates_are_applied_to_requests(model):
  with _serving(BatchSegmenter(model, 4), Limits(rate=0.5)) as client:
    answers = [client.post("/segment", json=_changed()) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [200, 429]
    assert 1 <= int(answers[1].headers["retry-after"]) <= 2
    assert client.get("/health").status_code == 200


def test_health_says_what_is_served(client):
  health = client.get("/health").json()
  assert health["status"] == "ready" and health["model"] == "demo" and health["step"] == 9
  assert client.get("/docs").status_code == 200
  assert client.get("/", follow_redirects=False).headers["location"] == "docs"


def test_openapi_states_the_limits(client):
  schemas = client.get("/openapi.json").json()["components"]["schemas"]
  item = schemas["ImageItem"]["properties"]
  assert schemas["BatchRequest"]["properties"]["images"]["maxItems"] == SMALL.images
  assert item["expressions"]["maxItems"] == SMALL.expressions
  assert item["expressions"]["items"]["maxLength"] == SMALL.characters
