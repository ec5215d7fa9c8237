"""What requests and responses consist of, as pydantic models: the OpenAPI description."""

from typing import Annotated, Any, Literal, Optional

from pydantic import (  # pyright: ignore[reportMissingImports]
  BaseModel,
  ConfigDict,
  Field,
  StringConstraints,
  model_validator,
)
from pydantic_core import PydanticCustomError  # pyright: ignore[reportMissingImports]

from mail_jax.serve.limits import Limits

MaskFormat = Literal["rle", "png"]
PNG = "image/png"
# Of requests, at any depth.
_FIELDS = (
  *("image", "images", "expressions", "instances", "mask_format"),
  *("rle", "size", "counts", "score"),
)
# Characters of a name that a message repeats.
_SHOWN = 40
_BASE64 = {"contentEncoding": "base64", "contentMediaType": "image/*"}


class RunLengths(BaseModel):
  """A mask as COCO's run lengths."""

  size: Annotated[list[int], Field(min_length=2, max_length=2, description="[height, width]")]
  counts: Annotated[str, Field(description="COCO's compressed string")]


class Prediction(BaseModel):
  """The prediction for one expression; the fields are those of predictions.jsonl."""

  expression: str
  mask: Annotated[
    RunLengths | str, Field(description="run lengths; with mask_format png, a PNG in base64")
  ]
  area: Annotated[int, Field(description="pixels of the mask")]
  confidence: Annotated[float, Field(description="mean probability inside the mask")]
  instance_probability: Annotated[
    list[float], Field(description="of each instance to be the target, best score first")
  ]
  selected: Annotated[int | None, Field(description="index of the most probable instance")]
  no_target_probability: Annotated[
    float | None, Field(description="above 0.5 the mask is empty; null if it is not predicted")
  ]
  was_cut: Annotated[bool, Field(description="the expression was too long; its end was cut off")]


class ImageResult(BaseModel):
  """The predictions for an image."""

  height: int
  width: int
  predictions: list[Prediction]


class BatchResult(BaseModel):
  """The predictions for several images, in their order."""

  images: list[ImageResult]


class Health(BaseModel):
  """The state of the server and what it serves."""

  status: Literal["starting", "ready", "stopped"]
  model: str
  step: int
  dataset: Annotated[str, Field(description="that the model was trained on")]
  version: Annotated[str, Field(description="of mail_jax")]


class Problem(BaseModel):
  """Why a request has no result."""

  detail: Annotated[str, Field(description="one line, which names the field")]


class _Strict(BaseModel):
  model_config = ConfigDict(extra="forbid")

  @model_validator(mode="before")
  @classmethod
  def _check_fields(cls, data: Any) -> Any:
    """Raises one error: pydantic would collect one for every unknown field, of millions."""
    unknown = data.keys() - cls.model_fields.keys() if isinstance(data, dict) else ()
    if unknown:
      known = ", ".join(cls.model_fields)
      context = {"name": min(unknown)[:_SHOWN], "known": known}
      raise PydanticCustomError("unknown", "no such field; there are {known}", context)
    return data


class GivenRunLengths(_Strict):
  """A mask as COCO's run lengths, compressed or not."""

  size: Annotated[
    list[Annotated[int, Field(strict=True, ge=1)]],
    Field(min_length=2, max_length=2, description="[height, width] of the upright image"),
  ]
  counts: (
    Annotated[str, StringConstraints(strict=True)]
    | Annotated[list[Annotated[int, Field(strict=True, ge=0)]], Field(fail_fast=True)]
  )


class Instance(_Strict):
  """The mask of an instance, as in the lines of custom data."""

  rle: GivenRunLengths
  score: Annotated[float, Field(strict=True, ge=0, le=1)] = 1.0


class RequestModels:
  """The models of requests, whose limits are known when the server starts.

  Attributes:
    expression: the type of an expression.
    instances: the type of the instances of an image.
    image: the model of a request about one image.
    batch: the model of a request about several.
  """

  def __init__(self, limits: Limits):
    """Builds the models for these limits."""
    expression = Annotated[
      str, StringConstraints(strict=True, min_length=1, max_length=limits.characters, pattern=r"\S")
    ]
    some = Annotated[list[expression], Field(min_length=1, max_length=limits.expressions)]
    masks = Optional[Annotated[list[Instance], Field(max_length=limits.instances)]]  # noqa: UP045

    class ImageItem(_Strict):
      image: Annotated[
        str,
        StringConstraints(strict=True),
        Field(description="the file in base64, or a data URL", json_schema_extra=_BASE64),
      ]
      expressions: some  # pyright: ignore[reportInvalidTypeForm]
      instances: masks = None  # pyright: ignore[reportInvalidTypeForm]

    class ImageRequest(ImageItem):
      mask_format: MaskFormat = "rle"

    class BatchRequest(_Strict):
      images: Annotated[list[ImageItem], Field(min_length=1, max_length=limits.images)]
      mask_format: MaskFormat = "rle"

    self.expressions: Any = some
    self.instances: Any = masks
    self.image: Any = ImageRequest
    self.batch: Any = BatchRequest


def describe_invalid(errors: list[dict[str, Any]]) -> str:
  """Returns one line that names the first invalid field, such as `images[0].expressions[1]`."""
  first = errors[0]
  if first["type"] == "json_invalid":
    return f"body: not JSON, from character {first['loc'][-1]} on"
  # The first part is "body"; parts that are names of types belong to unions.
  place = ""
  for part in first["loc"][1:]:
    if isinstance(part, int):
      place += f"[{part}]"
    elif part in _FIELDS:
      place += f".{part}" if place else part
  if first["type"] == "unknown":
    place += ("." if place else "") + ascii(first["ctx"]["name"])[1:-1]
  more = f"; and {len(errors) - 1} more" if len(errors) > 1 else ""
  return f"{place or 'body'}: {first['msg']}{more}"
