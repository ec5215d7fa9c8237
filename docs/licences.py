"""Writes docs/reports/licences.md: the licences that the packages in requirements*.txt declare.

    python docs/licences.py

pip (26 reads `License-Expression`) reports what an installation would bring, without installing it
or listing what only other systems need. Python 3.12 or later.
"""

import json
import pathlib
import re
import subprocess
import sys
import tempfile

CHECKOUT = pathlib.Path(__file__).resolve().parents[1]
PAGE = CHECKOUT / "docs" / "reports" / "licences.md"
# What each file is for, in the order of the page.
FILES = {
  "requirements.txt": "run",
  "requirements-dev.txt": "dev",
  "requirements-docs.txt": "docs",
  "requirements-app.txt": "app",
  "requirements-extras.txt": "extras",
  "requirements-beam.txt": "beam",
  "requirements-fuzz.txt": "fuzz",
  "requirements-mutants.txt": "mutants",
  "requirements-plan.txt": "plan",
  "requirements-plan-gpu.txt": "plan",
  "requirements-tpu.txt": "tpu",
  "requirements-cuda.txt": "cuda",
}
# Not installed on Linux, declared in prose only, or too large to download.
BY_HAND = {
  "atheris": "Apache-2.0",
  "cffi": "MIT-0",
  "colorama": "BSD-3-Clause",
  "nest-asyncio": "BSD-2-Clause",
  "pycparser": "BSD-3-Clause",
  "libtpu": "Google Cloud Platform Terms of Service",
  "audioop-lts": "PSF-2.0",
}
_TOO_LARGE = ("nvidia-", "jax-cuda13-", "torch")
_CLASSIFIERS = {
  "Apache Software License": "Apache-2.0",
  "BSD License": "BSD",
  "ISC License (ISCL)": "ISC",
  "MIT License": "MIT",
  "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
  "Python Software Foundation License": "PSF-2.0",
}
_HEAD = """# Licences

mail_jax is licensed under Apache-2.0. [Datasets](../guides/datasets.md#licences) and pretrained
weights have licences of their own; whether a model trained on other people's photos may be used for
a purpose is for you to decide. The demo's model, `mail_jax/demo/`, is under Apache-2.0: it was
trained on scenes that mail_jax draws itself.

The table is what the packages in `requirements*.txt` declare, as collected by
`python docs/licences.py`. None of them is part of this repository, and nothing of them is copied
into it. *Needed for*: `run` is what `pip install` brings; the others are the files of that name
([installation](../start/install.md)).

| package | version | licence | needed for |
| --- | --- | --- | --- |
"""


def pins(name: str) -> dict[str, list[str]]:
  """Returns the versions of each package in a requirements file, several where Python decides."""
  pinned: dict[str, list[str]] = {}
  for line in (CHECKOUT / name).read_text().splitlines():
    if match := re.match(r"([A-Za-z0-9._-]+)==([^ ;\\]+)", line):
      pinned.setdefault(re.sub(r"[._]", "-", match[1]).lower(), []).append(match[2])
  return pinned


def licence(metadata: dict) -> str:
  """Returns the licence that a package declares, as short as possible."""
  if metadata.get("license_expression"):
    return metadata["license_expression"]
  names = [
    row.rpartition(" :: ")[2]
    for row in metadata.get("classifier", [])
    if row.startswith("License :: ") and row != "License :: OSI Approved"
  ]
  declared = (metadata.get("license") or "").strip().splitlines()
  if len(declared) == 1 and len(declared[0]) < 40 and (not names or names == ["BSD License"]):
    return declared[0]
  return " AND ".join(_CLASSIFIERS.get(name, name) for name in names) or "not stated"


def _report(name: str) -> list[dict]:
  """Returns the metadata of the packages that a requirements file installs."""
  lines = [
    f"{package}=={versions[-1]}"
    for package, versions in pins(name).items()
    if not package.startswith(_TOO_LARGE) and package not in BY_HAND
  ]
  with tempfile.TemporaryDirectory() as folder:
    wanted, out = pathlib.Path(folder, "wanted.txt"), pathlib.Path(folder, "report.json")
    wanted.write_text("\n".join(lines))
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--no-deps"]
    command += ["--ignore-installed", "--report", str(out), "-r", str(wanted)]
    subprocess.run(command, check=True)
    return [row["metadata"] for row in json.loads(out.read_text())["install"]]


def main() -> None:
  """Writes the page."""
  versions: dict[str, list[str]] = {}
  needed: dict[str, list[str]] = {}
  licences = dict(BY_HAND)
  for name, use in FILES.items():
    for package, pinned in pins(name).items():
      versions[package] = sorted({*versions.get(package, []), *pinned})
      needed.setdefault(package, []).append(use)
    for metadata in _report(name):
      licences[re.sub(r"[._]", "-", metadata["name"]).lower()] = licence(metadata)
  for package in versions:
    if package.startswith("nvidia-"):
      licences[package] = "NVIDIA's software licence agreement"
    elif package.startswith("jax-cuda"):
      licences[package] = "Apache-2.0"
    elif package == "torch":
      licences[package] = "BSD-3-Clause"
  rows = [
    f"| {package} | {', '.join(versions[package])} | {licences[package]} "
    f"| {', '.join(needed[package])} |\n"
    for package in sorted(versions)
  ]
  PAGE.write_text(_HEAD + "".join(rows))


if __name__ == "__main__":
  main()
