"""The HTTP interface as a FastAPI application."""

import base64
import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from typing import Annotated, Any, NamedTuple

from fastapi import FastAPI, File, Form, Request  # pyright: ignore[reportMissingImports]
from fastapi.exceptions import RequestValidationError  # pyright: ignore[reportMissingImports]
from fastapi.responses import (  # pyright: ignore[reportMissingImports]
  JSONResponse,
  RedirectResponse,
  Response,
)
from pydantic import TypeAdapter, ValidationError  # pyright: ignore[reportMissingImports]
from starlette.exceptions import HTTPException  # pyright: ignore[reportMissingImports]

from mail_jax import __version__
from mail_jax.predict.auto_masks import AUTO
from mail_jax.predict.batches import BatchSegmenter
from mail_jax.predict.image_instances import InstancesLike
from mail_jax.serve import schemas
from mail_jax.serve.limits import Guard, Limits
from mail_jax.serve.schemas import PNG, BatchResult, Health, ImageResult, Prediction, Problem
from mail_jax.serve.service import Answer, Item, Rejected, Service
from mail_jax.serve.worker import Worker

_log = logging.getLogger("uvicorn.error")
_DESCRIPTION = """Segments what an expression refers to in an image.

Without `instances`, an image gets masks like those that the model was trained with; for none, which
is less accurate, send an empty list. A request that asks for `Accept: image/png` and has one
expression is answered by the mask alone.
"""
_ERRORS: dict[int | str, dict[str, Any]] = {
  status: {"model": Problem, "description": description}
  for status, description in {
    408: "The body did not arrive in time",
    413: "The body or an image is too large",
    422: "A field cannot be used",
    429: "Too many requests; see Retry-After",
    503: "Not ready, or out of memory; see Retry-After",
    504: "Not answered in time",
  }.items()
}
_MASK = {200: {"content": {PNG: {"schema": {"type": "string", "format": "binary"}}}}}


class About(NamedTuple):
  """What is served.

  Attributes:
    model: its name.
    step: number of updates.
    dataset: that it was trained on.
    max_instances: that it selects from.
  """

  model: str
  step: int
  dataset: str
  max_instances: int


def make_app(
  segmenter: BatchSegmenter,
  about: About,
  limits: Limits,
  instances: InstancesLike = AUTO,
  failed: Callable[[], object] = lambda: None,
) -> FastAPI:
  """Returns the application; the model is compiled when it starts.

  Args:
    segmenter: the model.
    about: describes it.
    limits: of requests.
    instances: of requests without any: a proposer, or `AUTO`.
    failed: called if it cannot be compiled; the error is in `app.state.worker`.
  """
  worker = Worker(segmenter)
  service = Service(segmenter, about.max_instances, limits, worker, instances)

  @contextlib.asynccontextmanager
  async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    worker.start(failed)
    yield
    worker.close()
    service.close()

  app = FastAPI(
    title="mail_jax",
    summary="Referring image segmentation",
    description=_DESCRIPTION,
    version=__version__,
    lifespan=lifespan,
    redoc_url=None,
  )
  app.state.worker = worker
  app.add_middleware(Guard, limits=limits, worker=worker)
  _add_errors(app)
  _add_state(app, about, worker)
  _add_segment(app, schemas.RequestModels(limits), service)
  return app


def _add_errors(app: FastAPI) -> None:
  """Answers every error with one line, as `Problem`."""

  @app.exception_handler(RequestValidationError)
  async def invalid(_: Request, error: Any) -> JSONResponse:
    return _problem(422, schemas.describe_invalid(error.errors()))

  @app.exception_handler(Rejected)
  async def rejected(_: Request, error: Any) -> JSONResponse:
    return _problem(error.status, error.detail, {"Retry-After": "1"} if error.status == 503 else {})

  @app.exception_handler(HTTPException)
  async def refused(_: Request, error: Any) -> JSONResponse:
    # FastAPI's answer to a body that it cannot parse.
    if error.status_code == 400:
      return _problem(422, "body: cannot be parsed")
    return _problem(error.status_code, error.detail, error.headers)

  @app.exception_handler(Exception)
  async def failed(*_: Any) -> JSONResponse:
    # The log has the traceback.
    return _problem(500, "internal error")


def _problem(status: int, detail: str, headers: Any = None) -> JSONResponse:
  return JSONResponse({"detail": " ".join(detail.split())}, status, headers)


def _add_state(app: FastAPI, about: About, worker: Worker) -> None:
  @app.get("/", include_in_schema=False)
  async def root() -> RedirectResponse:
    return RedirectResponse("docs")

  @app.get("/health", responses={503: {"model": Health, "description": "Not ready"}})
  async def health() -> Health:
    """Returns 200 when the model is ready, otherwise 503."""
    answer = Health(
      status=worker.state,
      model=about.model,
      step=about.step,
      dataset=about.dataset,
      version=__version__,
    )
    if worker.state == "ready":
      return answer
    return JSONResponse(answer.model_dump(), 503)  # pyright: ignore[reportReturnType]


def _add_segment(app: FastAPI, requests: schemas.RequestModels, service: Service) -> None:
  async def answer_one(request: Request, item: Item, mask_format: schemas.MaskFormat) -> Any:
    if _wants_png(request):
      if len(item.expressions) > 1:
        raise Rejected(422, f"expressions: {PNG} is a single mask; send one expression")
      (answer,) = await service.answer([item], True)
      return Response(answer.predictions[0][1], media_type=PNG)
    (answer,) = await service.answer([item], mask_format == "png")
    return _to_result(answer)

  # The limits are known only now, and FastAPI reads them from the annotations.
  ImageRequest, BatchRequest, Expressions = requests.image, requests.batch, requests.expressions
  one = {"response_model": ImageResult, "responses": _ERRORS | _MASK}

  @app.post("/segment", **one)
  async def segment(
    request: Request,
    body: ImageRequest,  # pyright: ignore[reportInvalidTypeForm]
  ) -> Any:
    """Segments an image by expressions."""
    item = Item(body.image, body.expressions, body.instances)
    return await answer_one(request, item, body.mask_format)

  @app.post("/segment/batch", responses=_ERRORS)
  async def segment_batch(
    body: BatchRequest,  # pyright: ignore[reportInvalidTypeForm]
  ) -> BatchResult:
    """Segments several images, each by its own expressions."""
    items = [
      Item(image.image, image.expressions, image.instances, f"images[{k}].")
      for k, image in enumerate(body.images)
    ]
    answers = await service.answer(items, body.mask_format == "png")
    return BatchResult(images=[_to_result(answer) for answer in answers])

  @app.post("/segment/upload", **one)
  async def segment_upload(
    request: Request,
    image: Annotated[bytes, File(description="JPEG, PNG, WebP, GIF, BMP or TIFF")],
    expressions: Annotated[
      Expressions,  # pyright: ignore[reportInvalidTypeForm]
      Form(description="repeatable"),
    ],
    instances: Annotated[str | None, Form(description="as in /segment, as JSON")] = None,
    mask_format: Annotated[schemas.MaskFormat, Form()] = "rle",
  ) -> Any:
    """Segments an uploaded file by expressions."""
    item = Item(image, expressions, _parse_instances(requests, instances))
    return await answer_one(request, item, mask_format)


def _wants_png(request: Request) -> bool:
  accepted = request.headers.get("accept", "")
  return PNG in accepted and "json" not in accepted


def _parse_instances(requests: schemas.RequestModels, text: str | None) -> Any:
  if not text:
    return None
  try:
    return TypeAdapter(requests.instances).validate_json(text)
  except ValidationError as error:
    # As if it were a field of a JSON body.
    errors = [{**e, "loc": ("body", "instances", *e["loc"])} for e in error.errors()]
    if errors[0]["type"] == "json_invalid":
      raise Rejected(422, f"instances: {errors[0]['msg']}") from error
    raise Rejected(422, schemas.describe_invalid(errors)) from error


def _to_result(answer: Answer) -> ImageResult:
  return ImageResult(
    height=answer.height,
    width=answer.width,
    predictions=[
      Prediction(
        expression=expression,
        mask=base64.b64encode(mask).decode() if isinstance(mask, bytes) else mask,
        area=int(prediction.mask.sum()),
        confidence=prediction.confidence,
        instance_probability=prediction.instance_probability,
        selected=prediction.selected,
        no_target_probability=prediction.no_target_probability,
        was_cut=prediction.was_cut,
      )
      for expression, (prediction, mask) in zip(answer.expressions, answer.predictions, strict=True)
    ],
  )
