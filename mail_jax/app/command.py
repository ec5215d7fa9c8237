r"""Serves a web app to try a model on photos:

python -m mail_jax.app --demo
python -m mail_jax.app --checkpoint runs/demo
python -m mail_jax.app --checkpoint runs/refcoco_unc --host 0.0.0.0 --examples photos \
    --instances felzenszwalb
python -m mail_jax.app --checkpoint runs/a --compare runs/b

It needs Gradio: pip install "mail_jax[app]". The page loads nothing from other servers.
docs/guides/app.md describes how to run it behind a proxy, and what visitors can do.
"""

import argparse
import contextlib
import os
import pathlib
import re
import signal
import tempfile
from collections.abc import Iterator

from input_pipeline.common.command_line import bind, command_parser
from input_pipeline.common.errors import InputError
from input_pipeline.proposers import registry
from mail_jax.app import examples, limits, texts
from mail_jax.app.limits import Limits
from mail_jax.app.service import RequestHandler
from mail_jax.export import load
from mail_jax.predict.auto_masks import AUTO
from mail_jax.predict.segmenter import Segmenter


def main(argv: list[str] | None = None) -> None:
  """Runs the command."""
  args = _parser().parse_args(argv)
  allowed = _limits(args)
  _check_gradio()
  bind(args.host, args.port).close()  # Gradio takes it after the models are loaded
  proposer = None if args.instances == AUTO else registry.open_proposer(args.instances)
  with _temporary_folder() as folder:
    models = _load(args)
    dataset = str(next(iter(models.values())).config.dataset)
    offered = examples.load(args.examples, dataset, allowed, folder / "examples")
    segmenters = {name: Segmenter(model) for name, model in models.items()}
    if args.instances == AUTO:
      # Fails here rather than at a visitor's photo.
      next(iter(segmenters.values())).instances.open_auto()
    handler = RequestHandler(
      segmenters,
      allowed,
      folder / "predictions",
      examples.ExampleMasks(offered),
      proposer,
      args.instances.partition(":")[0],
    )
    step_name = args.step if isinstance(args.step, str) else ""
    heading = texts.title(
      [
        texts.describe_model(name, step_name, model.step, str(model.config.dataset))
        for name, model in models.items()
      ]
    )
    _serve(args, allowed, handler, heading, offered)


def _load(args: argparse.Namespace) -> dict[str, load.LoadedModel]:
  """Returns the models by the names that the page shows."""
  places = [args.checkpoint, *([args.compare] if args.compare else [])]
  models: dict[str, load.LoadedModel] = {}
  for place in places:
    name = os.path.basename(os.path.normpath(place))
    models[f"{name} (2)" if name in models else name] = load.load(place, args.step)
  return models


def _parser() -> argparse.ArgumentParser:
  parser = command_parser("mail_jax.app", __doc__)
  load.add_arguments(parser, demo="the model that comes with mail_jax, on generated scenes")
  parser.add_argument(
    "--compare",
    metavar="CHECKPOINT",
    help="a second model, as --checkpoint takes it, whose results are shown beside the first one's",
  )
  parser.add_argument(
    "--host",
    default="127.0.0.1",
    help="the address to listen on; 0.0.0.0 for all networks (default: 127.0.0.1, only local)",
  )
  parser.add_argument(
    "--port", type=int, default=7860, help="the port to listen on (default: 7860)"
  )
  parser.add_argument(
    "--root_path",
    default="",
    metavar="PATH",
    help="where a proxy serves the app, if not at /: a path, such as /mail, or a whole address",
  )
  parser.add_argument(
    "--examples",
    metavar="FOLDER or JSONL",
    help="photos to pick from (default: generated scenes if trained on shapes, else none)",
  )
  parser.add_argument(
    "--instances",
    default=AUTO,
    metavar="NAME:ARGUMENT",
    help="instance masks of uploaded photos, see docs/guides/proposals.md, or none (default: auto, "
    "made as for training)",
  )
  defaults = Limits()
  parser.add_argument(
    "--max_megapixels",
    type=float,
    default=defaults.megapixels,
    help="the largest photo; larger ones are rejected before decoding (default: %(default)g)",
  )
  parser.add_argument(
    "--max_upload_mb",
    type=float,
    default=defaults.upload_megabytes,
    help="the largest upload, in millions of bytes (default: %(default)g)",
  )
  parser.add_argument(
    "--max_queue",
    type=int,
    default=defaults.queue,
    help="requests that may wait; further ones are rejected (default: %(default)s)",
  )
  parser.add_argument(
    "--concurrency",
    type=int,
    default=defaults.concurrency,
    help="requests that run at the same time; each takes memory (default: %(default)s)",
  )
  return parser


def _limits(args: argparse.Namespace) -> Limits:
  for name in ("max_megapixels", "max_upload_mb", "max_queue", "concurrency"):
    if not getattr(args, name) > 0:
      raise InputError(f"--{name} {getattr(args, name)}: it must be above 0")
  if args.root_path and not re.fullmatch(r"(https?://[^/\s]+)?(/[^\s?#]*)?", args.root_path):
    raise InputError(
      f"--root_path {args.root_path}: write a path that begins with /, such as /mail, or the whole "
      "address, such as https://example.org/mail"
    )
  if not 0 < args.port < 65536:
    raise InputError(f"--port {args.port}: a port is a number from 1 to 65535")
  return Limits(
    megapixels=args.max_megapixels,
    upload_megabytes=args.max_upload_mb,
    queue=args.max_queue,
    concurrency=args.concurrency,
  )


def _check_gradio() -> None:
  # Gradio reads these when it is imported.
  os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
  os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
  try:
    import gradio  # noqa: F401  # pyright: ignore[reportMissingImports]
    import skimage  # noqa: F401  # pyright: ignore[reportMissingImports]
  except ImportError as error:
    raise InputError(
      f"the app needs Gradio and scikit-image ({error}); install them with: "
      'pip install "mail_jax[app]"'
    ) from error


@contextlib.contextmanager
def _temporary_folder() -> Iterator[pathlib.Path]:
  """Creates a folder for uploads and predictions; removed at the end, also after SIGTERM."""

  def stop(*_) -> None:
    raise KeyboardInterrupt

  signal.signal(signal.SIGTERM, stop)
  with tempfile.TemporaryDirectory(prefix="mail_jax_app_", ignore_cleanup_errors=True) as root:
    for name in ("examples", "predictions", "uploads"):
      os.mkdir(os.path.join(root, name))
    os.environ["GRADIO_TEMP_DIR"] = os.path.join(root, "uploads")
    yield pathlib.Path(root)


def _serve(
  args: argparse.Namespace,
  allowed: Limits,
  handler: RequestHandler,
  heading: str,
  offered: list[examples.Example],
) -> None:
  """Runs until Ctrl-C or SIGTERM."""
  from starlette.middleware import Middleware  # pyright: ignore[reportMissingImports]

  from mail_jax.app import layout

  note = "Optional: without masks of your photo, the model works, less accurately."
  if args.instances == AUTO:
    note = "Optional: without masks of your photo, they are made as for training, where possible."
  elif args.instances != "none":
    note = f"Optional: without masks of your photo, {args.instances.partition(':')[0]} makes them."
  page = layout.build(handler, heading, offered, allowed, note)
  upload_bytes = int(allowed.upload_megabytes * 1e6)
  root_path = args.root_path.rstrip("/")
  _reach_without_proxy(args.host)
  try:
    page.launch(
      server_name=args.host,
      server_port=args.port,
      root_path=root_path or None,
      share=False,
      quiet=True,
      prevent_thread_lock=True,
      theme=layout.theme(),
      css=layout.css(),
      footer_links=[],
      run_history=False,
      ssr_mode=False,
      enable_monitoring=False,
      mcp_server=False,
      pwa=False,
      max_file_size=upload_bytes,
      state_session_capacity=256,
      app_kwargs={"middleware": [Middleware(limits.Guard, upload_bytes=upload_bytes + 100_000)]},
    )
  except OSError as error:
    raise InputError(f"--host {args.host} --port {args.port}: {error}") from error
  print(
    f"The app is at {_address(args.host, args.port, root_path)}; stop it with Ctrl-C", flush=True
  )
  try:
    page.block_thread()
  except KeyboardInterrupt:
    pass
  finally:
    page.close(verbose=False)


def _reach_without_proxy(host: str) -> None:
  """Keeps the server's check of itself from the proxy that `http_proxy` names."""
  for name in ("no_proxy", "NO_PROXY"):
    own = ["localhost", "127.0.0.1", "::1", host]
    os.environ[name] = ",".join([*filter(None, [os.environ.get(name)]), *own])


def _address(host: str, port: int, root_path: str) -> str:
  """Returns where a browser finds the page."""
  if "://" in root_path:
    return root_path
  if host in ("0.0.0.0", "::"):
    host = "127.0.0.1"
  return f"http://{f'[{host}]' if ':' in host else host}:{port}{root_path}"
