"""docs/guides/scale.md.

What it tells people to type is what the commands, bash and Kubernetes understand.
"""

import argparse
import itertools
import math
import pathlib
import re
import shlex
import subprocess

import help_pages
import pytest
import tiny_run
import yaml

from mail_jax.config import load_config

GUIDES = tiny_run.CHECKOUT / "docs" / "guides"
PAGE = (GUIDES / "scale.md").read_text()
FILES = {path.name: path.read_text() for path in sorted((GUIDES / "clusters").iterdir())}
KINDS = {".sbatch": "bash", ".sh": "bash", ".yaml": "yaml", ".Dockerfile": "dockerfile"}
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL) + [
  (KINDS[pathlib.PurePath(name).suffix], text) for name, text in FILES.items()
]
SCRIPTS = [text for kind, text in BLOCKS if kind == "bash"]
MANIFESTS = [
  manifest for kind, text in BLOCKS if kind == "yaml" for manifest in yaml.safe_load_all(text)
]
ENDS = {"&", "&&", "|", ";", "||"}

# The fields of the APIs that the page uses, from their references: jobset.x-k8s.io/v1alpha2,
# batch/v1, core/v1.
FIELDS = {
  "JobSet": {"apiVersion", "kind", "metadata", "spec"},
  "JobSet.spec": {"failurePolicy", "replicatedJobs", "successPolicy", "network", "suspend"},
  "JobSet.spec.failurePolicy": {"maxRestarts", "restartStrategy", "rules"},
  "JobSet.spec.failurePolicy.rules": {
    "name",
    "action",
    "onJobFailureReasons",
    "targetReplicatedJobs",
  },
  "JobSet.spec.replicatedJobs": {"name", "groupName", "replicas", "template", "dependsOn"},
  "Job.spec": {
    "parallelism",
    "completions",
    "completionMode",
    "backoffLimit",
    "podFailurePolicy",
    "template",
  },
  "Pod.spec": {
    "serviceAccountName",
    "restartPolicy",
    "terminationGracePeriodSeconds",
    "nodeSelector",
    "containers",
    "tolerations",
  },
  "Container": {"name", "image", "command", "args", "env", "resources", "ports", "volumeMounts"},
}


def _commands() -> list[list[str]]:
  """The words of every `python -m` of ours on the page: the module and what follows."""
  found = []
  for kind, text in BLOCKS:
    if kind not in ("bash", "yaml"):
      continue
    for start in re.finditer(r"-m ((?:mail_jax|input_pipeline)\S*)", text):
      line = re.match(r"(?:[^\n\\]|\\\n)*", text[start.start(1) :])
      assert line
      command = line[0].replace("\\\n", " ")
      if command.count('"') % 2:  # it stands between quotes itself
        command = command.rstrip().removesuffix('"')
      words = shlex.split(command)
      found.append(list(itertools.takewhile(lambda word: word not in ENDS, words)))
  return found


class _ParsedError(Exception):
  """Stops a command when its arguments are known."""


def _parse(command: list[str], monkeypatch) -> tuple[argparse.Namespace, list[str]]:
  """Runs the command up to where it has understood its arguments."""
  module, *arguments = command
  original = argparse.ArgumentParser.parse_known_args
  parsed = []

  def parse(parser, args=None, namespace=None):
    parsed.append(original(parser, args, namespace))
    raise _ParsedError

  monkeypatch.setattr(argparse.ArgumentParser, "parse_known_args", parse)
  with pytest.raises(_ParsedError):
    help_pages.main_of(module)(arguments)
  return parsed[0]


def test_there_are_recipes_for_every_way_to_run():
  assert len(_commands()) >= 8
  assert {command[0] for command in _commands()} >= {"mail_jax.train", "mail_jax.evaluate"}
  titles = re.findall(r"^## (.*)$", PAGE, re.MULTILINE)
  assert {"GPUs in one machine", "Slurm", "Cloud TPU slice"} < set(titles)
  assert "**have not been run on such clusters**" in PAGE
  assert {name for name in FILES if f"(clusters/{name})" in PAGE} == FILES.keys()


@pytest.mark.parametrize("command", _commands(), ids=lambda command: command[0])
def test_every_command_line_is_understood(command, monkeypatch):
  args, rest = _parse(command, monkeypatch)
  if command[0] != "mail_jax.train":
    assert rest == []
    return
  config = load_config(str(tiny_run.CHECKOUT / args.config), rest)  # refuses keys that do not exist
  overridden = {word.removeprefix("--config.").partition("=")[0] for word in rest}
  assert overridden <= {"init", "mesh.fsdp"}, "nothing else changes from machine to machine"
  assert config.init.startswith("vilt:")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.splitlines()[0][:40])
def test_scripts_are_bash(script):
  done = subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True, check=False)
  assert done.returncode == 0 and not done.stderr, done.stderr


def _jobset() -> dict:
  [jobset] = [manifest for manifest in MANIFESTS if manifest["kind"] == "JobSet"]
  return jobset


def test_the_jobset_uses_fields_that_exist():
  jobset = _jobset()
  assert jobset["apiVersion"] == "jobset.x-k8s.io/v1alpha2"
  spec = jobset["spec"]
  [replicated] = spec["replicatedJobs"]
  job = replicated["template"]["spec"]
  pod = job["template"]["spec"]
  places = {
    "JobSet": [jobset],
    "JobSet.spec": [spec],
    "JobSet.spec.failurePolicy": [spec["failurePolicy"]],
    "JobSet.spec.failurePolicy.rules": spec["failurePolicy"]["rules"],
    "JobSet.spec.replicatedJobs": [replicated],
    "Job.spec": [job],
    "Pod.spec": [pod],
    "Container": pod["containers"],
  }
  assert places.keys() == FIELDS.keys()
  for place, parts in places.items():
    for part in parts:
      assert part.keys() <= FIELDS[place], place


def test_the_jobset_has_a_pod_for_every_host_of_the_slice():
  [replicated] = _jobset()["spec"]["replicatedJobs"]
  job = replicated["template"]["spec"]
  pod = job["template"]["spec"]
  [container] = pod["containers"]
  chips = math.prod(map(int, pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x")))
  a_pod = container["resources"]["limits"]["google.com/tpu"]
  assert container["resources"]["requests"]["google.com/tpu"] == a_pod
  assert job["parallelism"] == job["completions"] == chips // a_pod
  # One pod that fails ends the job, and the JobSet starts all of them again.
  assert (job["backoffLimit"], pod["restartPolicy"]) == (0, "Never")


def test_a_pod_that_is_asked_to_end_does_not_count_as_finished(tmp_path):
  """Runs the script of the container; the training saves and ends with 0 when it is asked to."""
  [replicated] = _jobset()["spec"]["replicatedJobs"]
  [container] = replicated["template"]["spec"]["template"]["spec"]["containers"]
  bash, option, script = container["command"]
  assert _ends(script, tmp_path, 0, asked=False) == 0
  assert _ends(script, tmp_path, 1, asked=False) == 1
  assert _ends(script, tmp_path, 0, asked=True) == 143
  assert (bash, option) == ("bash", "-c")


def test_a_slurm_job_that_is_asked_to_end_is_queued_again(tmp_path):
  script = FILES["train.sbatch"]
  for code, asked in ((0, False), (1, False), (0, True)):
    assert _ends(script, tmp_path, code, asked) == code
    requeued = tmp_path / "requeued"
    assert requeued.exists() == (asked or code != 0), (code, asked)
    requeued.unlink(missing_ok=True)


def _ends(script: str, folder, code: int, asked: bool) -> int:
  """Exit code of a script whose training ends with `code`, after SIGTERM where it is asked."""
  training = f"#!/bin/bash\ntrap 'exit {code}' TERM\necho started\n" + (
    "while true; do sleep 0.05; done\n" if asked else f"sleep 0.1; exit {code}\n"
  )
  for name, text in {
    "python": training,
    "srun": training,
    "scontrol": f"#!/bin/bash\ntouch {folder}/requeued\n",
  }.items():
    (folder / name).write_text(text)
    (folder / name).chmod(0o755)
  environment = {"PATH": f"{folder}:/usr/bin:/bin", "SLURM_JOB_ID": "1"}
  with subprocess.Popen(["bash", "-c", script], stdout=subprocess.PIPE, env=environment) as process:
    assert process.stdout
    assert process.stdout.readline() == b"started\n"
    if asked:
      process.terminate()
    try:
      return process.wait(20)
    finally:
      process.kill()


def test_who_may_look_for_the_pods_is_who_runs_them():
  kinds = {manifest["kind"]: manifest for manifest in MANIFESTS}
  name = kinds["ServiceAccount"]["metadata"]["name"]
  [replicated] = kinds["JobSet"]["spec"]["replicatedJobs"]
  assert replicated["template"]["spec"]["template"]["spec"]["serviceAccountName"] == name
  assert [subject["name"] for subject in kinds["RoleBinding"]["subjects"]] == [name]
  assert kinds["RoleBinding"]["roleRef"]["name"] == kinds["Role"]["metadata"]["name"]
  allowed = {
    (resource, verb)
    for rule in kinds["Role"]["rules"]
    for resource in rule["resources"]
    for verb in rule["verbs"]
  }
  assert allowed >= {("pods", "list"), ("jobs", "get")}  # what JAX asks for
