r"""Serves a model over HTTP, for other programs:

python -m mail_jax.serve --demo
python -m mail_jax.serve --checkpoint runs/refcoco_unc --host 0.0.0.0 --port 8000 --max_rate 5

It needs FastAPI: pip install "mail_jax[serve]". /docs describes the requests, /openapi.json the
same for programs, and /health is 200 when the model is ready. docs/guides/serve.md has examples.
"""

import argparse
import os
import signal
import socket
import sys

from input_pipeline.common.command_line import bind, command_parser
from input_pipeline.common.errors import InputError, memory_errors
from input_pipeline.proposers import registry
from mail_jax.export import load
from mail_jax.predict.auto_masks import AUTO
from mail_jax.predict.batches import BatchSegmenter
from mail_jax.predict.image_instances import InstancesLike
from mail_jax.serve.limits import Limits

_LEVELS = ("critical", "error", "warning", "info", "debug", "trace")


def main(argv: list[str] | None = None) -> None:
  """Runs the command."""
  args = _parser().parse_args(argv)
  limits = _limits(args)
  _check_fastapi()
  # The signal's own exit code would be an error to those that send it, such as Kubernetes.
  signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
  with (
    memory_errors(lambda: ["a smaller --max_batch", "a smaller --max_megapixels"]),
    bind(args.host, args.port) as listener,
  ):
    _serve(args, limits, load.load(args.checkpoint, args.step, backend=args.backend), listener)


def _parser() -> argparse.ArgumentParser:
  parser = command_parser("mail_jax.serve", __doc__)
  load.add_arguments(parser, demo="the model that comes with mail_jax, on generated scenes")
  load.add_backend_argument(parser)
  parser.add_argument(
    "--host",
    default="127.0.0.1",
    help="the address to listen on; 0.0.0.0 for all networks (default: 127.0.0.1, only local)",
  )
  parser.add_argument(
    "--port", type=int, default=8000, help="the port to listen on; 0 for a free one (default: 8000)"
  )
  parser.add_argument(
    "--root_path", default="", metavar="PATH", help="where a proxy serves it, such as /mail"
  )
  parser.add_argument(
    "--instances",
    default=AUTO,
    metavar="NAME:ARGUMENT",
    help="makes the instance masks of requests without any, see docs/guides/proposals.md, or none "
    "(default: auto, made as for training)",
  )
  parser.add_argument(
    "--log_level",
    choices=_LEVELS,
    default="info",
    help="of uvicorn; info, the default, has a line per request",
  )
  parser.add_argument(
    "--max_batch",
    type=int,
    default=8,
    help="expressions that run through the model together (default: %(default)s)",
  )
  defaults = Limits()
  for name, kind, default, text in (
    ("max_body_mb", float, defaults.body_megabytes, "largest request, in millions of bytes: 413"),
    ("max_megapixels", float, defaults.megapixels, "largest image; 413 before decoding"),
    ("max_images", int, defaults.images, "images per request: 422"),
    ("max_expressions", int, defaults.expressions, "expressions per image: 422"),
    ("max_queue", int, defaults.queue, "requests that wait or run: 429"),
    ("max_rate", float, defaults.rate, "requests per second of a client, 0 for no limit: 429"),
    ("timeout", float, defaults.seconds, "seconds until a request is answered: 504"),
  ):
    parser.add_argument(
      f"--{name}", type=kind, default=default, help=f"{text} (default: {default:g})"
    )
  return parser


def _limits(args: argparse.Namespace) -> Limits:
  for name in ("body_mb", "megapixels", "images", "expressions", "queue", "batch"):
    if not getattr(args, f"max_{name}") > 0:
      raise InputError(f"--max_{name} {getattr(args, f'max_{name}')}: it must be above 0")
  if not args.timeout > 0:
    raise InputError(f"--timeout {args.timeout:g}: it must be above 0")
  if not args.max_rate >= 0:
    raise InputError(f"--max_rate {args.max_rate:g}: it must be at least 0")
  if not 0 <= args.port < 65536:
    raise InputError(f"--port {args.port}: a port is a number from 0 to 65535")
  return Limits(
    body_megabytes=args.max_body_mb,
    megapixels=args.max_megapixels,
    images=args.max_images,
    expressions=args.max_expressions,
    queue=args.max_queue,
    rate=args.max_rate,
    seconds=args.timeout,
  )


def _open_instances(spec: str, segmenter: BatchSegmenter) -> InstancesLike:
  """Opens what makes the masks of requests without any."""
  if spec == AUTO:
    segmenter.instances.open_auto()  # fails here rather than at a request
    return AUTO
  proposer = registry.open_proposer(spec)
  if hasattr(proposer.proposer, "find_image"):
    raise InputError(
      f"--instances {spec}: a file has the masks of named images, and those of requests have no "
      "name; set another proposer, or none"
    )
  return proposer


def _check_fastapi() -> None:
  try:
    import fastapi  # noqa: F401  # pyright: ignore[reportMissingImports]
    import python_multipart  # noqa: F401  # pyright: ignore[reportMissingImports]
    import uvicorn  # noqa: F401  # pyright: ignore[reportMissingImports]
  except ImportError as error:
    raise InputError(
      f'serve needs FastAPI ({error}); install it with: pip install "mail_jax[serve]"'
    ) from error


def _serve(
  args: argparse.Namespace, limits: Limits, model: load.LoadedModel, listener: socket.socket
) -> None:
  """Runs until Ctrl-C or SIGTERM, and finishes what was accepted by then."""
  import uvicorn  # pyright: ignore[reportMissingImports]

  from mail_jax.serve import api

  config = model.config
  name = os.path.basename(os.path.normpath(args.checkpoint))
  about = api.About(name, model.step, str(config.dataset), config.max_instances)
  segmenter = BatchSegmenter(model, args.max_batch)
  instances = _open_instances(args.instances, segmenter)
  app = api.make_app(segmenter, about, limits, instances, lambda: stop())
  server = uvicorn.Server(
    uvicorn.Config(
      app,
      root_path=args.root_path.rstrip("/"),
      log_level=args.log_level,
      server_header=False,
      timeout_graceful_shutdown=max(1, round(limits.seconds)),
    )
  )

  def stop() -> None:
    server.should_exit = True

  host, port = listener.getsockname()[:2]
  print(
    f"Serving {name} at http://{f'[{host}]' if ':' in host else host}:{port}{args.root_path}; "
    "stop it with Ctrl-C",
    flush=True,
  )
  server.run(sockets=[listener])
  if app.state.worker.error:
    raise app.state.worker.error
