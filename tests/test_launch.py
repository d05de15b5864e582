"""Launchers: parsed, linted, and their dry runs are what a shell would run."""

import copy
import functools
import itertools
import math
import operator
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
import tarfile

import pydantic
import pytest
import yaml
from kubeflow_trainer_api import models

ROOT = pathlib.Path(__file__).parent.parent
SCRIPTS = ("env.sh", "gpu_node.sh", "slurm.sbatch", "tpu_pod.sh")
JOBSET = yaml.safe_load((ROOT / "launch/jobset.yaml").read_text())
JOB = ("spec", "replicatedJobs", 0)
POD = (*JOB, "template", "spec", "template", "spec")


def bash(*command, **environment):
  return subprocess.run(
    ["bash", *command],
    cwd=ROOT,
    env=os.environ | {"DRY_RUN": "1"} | environment,
    capture_output=True,
    text=True,
    check=False,
  )


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_are_sound(name):
  assert bash("-n", f"launch/{name}").returncode == 0
  places = f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}"
  found = subprocess.run(
    [shutil.which("shellcheck", path=places), "-x", f"launch/{name}"],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=False,
  )
  assert found.stdout == ""
  assert found.returncode == 0


@pytest.mark.parametrize("name", SCRIPTS[1:])
def test_arguments_arrive_as_they_were_given(name):
  given = ["my config.py", "/runs/it's one", "--config.name=a b;c"]
  found = bash(f"launch/{name}", *given, TPU="t", ZONE="z")
  assert found.returncode == 0
  words = shlex.split(found.stdout.splitlines()[-1])
  if name == "tpu_pod.sh":  # one more shell on the other side
    (inner,) = (w for w in words if w.startswith("--command="))
    words = shlex.split(inner)
  assert f"--config={given[0]}" in words
  assert f"--workdir={given[1]}" in words
  assert given[2] in words
  assert bash(f"launch/{name}", "only_a_config").returncode == 2


def test_a_slice_is_asked_for_only_with_a_type():
  command = ["launch/tpu_pod.sh", "c.py", "/runs/x"]
  here = bash(*command, TPU="t", ZONE="z").stdout
  asked = bash(
    *command, TPU="t", ZONE="z", TYPE="v5litepod-16", SPOT="1"
  ).stdout
  assert "create" not in here
  assert "queued-resources create t" in asked
  assert "--accelerator-type=v5litepod-16" in asked
  assert "--spot" in asked
  assert here.count("--worker=all") == asked.count("--worker=all") == 2


@pytest.mark.parametrize(
  ("kind", "image"),
  [
    ("v4-32", "tpu-ubuntu2204-base"),
    ("v5litepod-16", "v2-alpha-tpuv5-lite"),
    ("v5p-128", "v2-alpha-tpuv5"),
    ("v6e-64", "v2-alpha-tpuv6e"),
  ],
)
def test_every_generation_has_its_image(kind, image):
  command = ["launch/tpu_pod.sh", "c.py", "gs://b/x"]
  found = bash(*command, TPU="t", ZONE="z", TYPE=kind)
  assert f"--runtime-version={image} " in found.stdout.replace("\n", " ")
  mine = bash(*command, TPU="t", ZONE="z", TYPE=kind, RUNTIME="my-image").stdout
  assert "--runtime-version=my-image" in mine
  unknown = bash(*command, TPU="t", ZONE="z", TYPE="v9-8")
  assert unknown.returncode == 2 and "set RUNTIME" in unknown.stderr


def test_hosts_get_the_files_as_they_are_and_python_3_12(tmp_path):
  def git(*arguments):
    names = ("-c", "user.name=a", "-c", "user.email=a@b")
    subprocess.run(["git", *names, *arguments], cwd=tmp_path, check=True)

  shutil.copytree(ROOT / "launch", tmp_path / "launch")
  for name in ("edited.py", "deleted.py"):
    (tmp_path / name).write_text("old")
  (tmp_path / ".gitignore").write_text("runs\n")
  git("init", "-q")
  git("add", ".")
  git("commit", "-qm", "all")
  (tmp_path / "edited.py").write_text("new")
  (tmp_path / "added [1].py").write_text("mine")
  (tmp_path / "deleted.py").unlink()
  (tmp_path / "runs").mkdir()
  (tmp_path / "runs/big.bin").write_text("ignored")
  # In place of gcloud: takes the archive, and keeps what is to be run.
  (tmp_path / "bin").mkdir()
  (tmp_path / "bin/gcloud").write_text(
    '#!/bin/bash\ncase "$*" in *" scp "*) cp "$5" "$HERE/sent.tar.gz" ;;'
    ' *" ssh "*) echo "${@: -1}" > "$HERE/remote" ;; esac\n'
  )
  (tmp_path / "bin/gcloud").chmod(0o755)
  given = {"TPU": "t", "ZONE": "z", "HERE": str(tmp_path), "DRY_RUN": ""}
  given["PATH"] = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
  script = str(tmp_path / "launch/tpu_pod.sh")
  assert bash(script, "c.py", "gs://b/x", **given).returncode == 0
  with tarfile.open(tmp_path / "sent.tar.gz") as archive:
    names = set(archive.getnames())
    assert archive.extractfile("dsl_jax/edited.py").read() == b"new"
  assert "dsl_jax/added [1].py" in names
  assert not names & {"dsl_jax/deleted.py", "dsl_jax/runs/big.bin"}
  remote = (tmp_path / "remote").read_text()
  assert "uv venv --python 3.12" in remote and "[tpu,gcs,data," in remote


def test_a_slice_that_is_being_suspended_is_requested_again(tmp_path):
  """In place of gcloud: a state a call; the run fails on the first slice."""
  states = [
    "ACTIVE",
    "SUSPENDING",
    "SUSPENDING",
    "SUSPENDED",
    "NONE",
    "WAITING",
    "ACTIVE",
  ]
  (tmp_path / "states").write_text("\n".join(states) + "\n")
  lines = [
    'cd "$HERE"; case "$*" in',
    "*describe*) head -n 1 states;",
    "  [ $(wc -l < states) = 1 ] || sed -i 1d states ;;",
    '*) echo "$4 $5" >> done; [ "$4 $5" != "ssh t" ] || [ -e again ] ||',
    "  { touch again; exit 1; } ;;",
    "esac",
  ]
  for name, code in (("gcloud", "\n".join(lines)), ("sleep", "")):
    (tmp_path / name).write_text(f"#!/bin/bash\n{code}\n")
    (tmp_path / name).chmod(0o755)
  given = {"TPU": "t", "ZONE": "z", "TYPE": "v6e-16", "DRY_RUN": ""}
  given |= {"HERE": str(tmp_path), "PATH": f"{tmp_path}:{os.environ['PATH']}"}
  found = bash("launch/tpu_pod.sh", "c.py", "gs://b/x", **given)
  assert found.returncode == 0, found.stderr
  words = (tmp_path / "done").read_text().split()[::2]
  assert words == ["scp", "ssh", "delete", "create", "scp", "ssh"]


def test_the_image_has_what_the_jobset_runs():
  lines = (ROOT / "launch/Dockerfile").read_text().splitlines()
  (base,) = (line for line in lines if line.startswith("FROM"))
  assert base == "FROM python:3.12-slim" and "WORKDIR /app" in lines
  sources = [x.split()[1:-1] for x in lines if x.startswith("COPY")]
  for source in itertools.chain(*sources):
    assert (ROOT / source).exists()
  assert {"dsl_jax", "configs", "launch"} <= {*itertools.chain(*sources)}


def test_flags_of_the_caller_win():
  script = 'source launch/env.sh gpu; echo "$XLA_FLAGS"'
  found = bash("-c", script, XLA_FLAGS="--mine").stdout.split()
  assert found[-1] == "--mine"
  assert len(found) > 1
  assert bash("-c", "source launch/env.sh cpu").returncode == 2


@pytest.mark.parametrize("driver, code", [("", 1), ("535.1", 1), ("580.9", 0)])
def test_a_gpu_host_needs_a_driver_and_is_installed_once(
  tmp_path, driver, code
):
  """Both programs that the script calls are stand-ins."""
  venv = tmp_path / "venv"
  (venv / "bin").mkdir(parents=True)
  (venv / ".installed").touch()
  stubs = {"nvidia-smi": f"echo {driver}", "venv/bin/python": 'echo "$@"'}
  for name, line in stubs.items():
    (tmp_path / name).write_text(f"#!/bin/sh\n{line}\n")
    (tmp_path / name).chmod(0o755)
  path = f"{tmp_path}:{os.environ['PATH']}"
  options = {"DRY_RUN": "", "VENV": str(venv), "PATH": path}
  assert bash("launch/gpu_node.sh", "--install", **options).stdout == ""
  found = bash("launch/gpu_node.sh", "c.py", "/runs/x", **options)
  assert found.returncode == code
  assert ("580 or newer" in found.stderr) == bool(code)
  assert ("--workdir=/runs/x --mode=train" in found.stdout) == (not code)


def boxed(tree, above=None):
  """Puts the amounts of resources where their definition wants them."""
  if isinstance(tree, list):
    return [boxed(entry) for entry in tree]
  if isinstance(tree, dict):
    amounts = above in ("limits", "requests")
    return {
      key: {"actual_instance": value} if amounts else boxed(value, key)
      for key, value in tree.items()
    }
  return tree


def faults(jobset):
  """Finds the paths at which a manifest is not what the API defines.

  The package is generated from the OpenAPI definitions which Kubernetes and
  JobSet publish: all fields and their types; inside a job, also the words that
  a field may hold.
  """
  try:
    models.JobsetV1alpha2JobSet.model_validate(
      boxed(jobset), extra="forbid", by_name=False
    )
  except pydantic.ValidationError as error:
    return [fault["loc"] for fault in error.errors()]
  return []


def places(tree, above=()):
  """Yields the path of every key and list entry of a manifest."""
  inside = dict(enumerate(tree)) if isinstance(tree, list) else tree
  for key, value in inside.items():
    yield (*above, key)
    if isinstance(value, dict | list):
      yield from places(value, (*above, key))


def edited(path):
  """Copies the manifest; also what holds a place in the copy, and its key."""
  copied = copy.deepcopy(JOBSET)
  return copied, functools.reduce(operator.getitem, path[:-1], copied), path[-1]


def test_every_field_of_the_jobset_is_defined():
  assert faults(JOBSET) == []


def test_a_misspelt_field_is_found_wherever_it_is():
  missed = set()
  for path in places(JOBSET):
    jobset, holder, key = edited(path)
    if isinstance(key, str):
      holder[f"{key}x"] = holder.pop(key)
      if (*path[:-1], f"{key}x") not in faults(jobset):
        missed.add((path[-2], key))
  # Maps with keys of any name: these are as JobSet and GKE document them.
  assert missed == {
    ("annotations", "alpha.jobset.sigs.k8s.io/exclusive-topology"),
    ("nodeSelector", "cloud.google.com/gke-tpu-accelerator"),
    ("nodeSelector", "cloud.google.com/gke-tpu-topology"),
    ("requests", "google.com/tpu"),
    ("limits", "google.com/tpu"),
  }


def test_a_wrong_type_is_found_wherever_it_is():
  for path in places(JOBSET):
    jobset, holder, key = edited(path)
    holder[key] = {"x": [1]}
    assert any(at[: len(path)] == path for at in faults(jobset)), path


@pytest.mark.parametrize(
  ("path", "value"),
  [
    (("spec", "failurePolicy", "maxRestart"), 3),
    (("spec", "failurePolicy", "max_restarts"), 3),
    (("spec", "failurePolicy", "maxRestarts"), "100"),
    ((*JOB, "replica"), 1),
    ((*JOB, "name"), None),
    ((*JOB, "template", "spec", "backofLimit"), 0),
    ((*JOB, "template", "spec", "parallelism"), 64.5),
    ((*POD, "backoffLimit"), 0),  # a field of the job
    ((*POD, "restartPolicy"), "Nevr"),
    ((*POD, "containers", 0, "comand"), ["bash"]),
    ((*POD, "containers", 0, "command"), "bash"),
    ((*POD, "containers", 0, "env", 0, "value"), 1),  # 1 without quotes
  ],
)
def test_a_fault_is_found_where_it_is(path, value):
  jobset, holder, key = edited(path)
  holder[key] = value
  assert faults(jobset) == [path]


def test_the_names_of_the_jobset_are_labels():
  # The definitions know the type of a name, not its letters (RFC 1123).
  for path in places(JOBSET):
    _, holder, key = edited(path)
    if key in ("name", "claimName") and "env" not in path:
      assert re.fullmatch("[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", holder[key])


def test_the_jobset_uses_every_chip_of_its_slice():
  assert JOBSET["apiVersion"] == "jobset.x-k8s.io/v1alpha2"
  assert JOBSET["kind"] == "JobSet"
  (job,) = JOBSET["spec"]["replicatedJobs"]
  spec = job["template"]["spec"]
  assert spec["parallelism"] == spec["completions"]
  pod = spec["template"]["spec"]
  shape = pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"]
  (container,) = pod["containers"]
  chips = container["resources"]["limits"]["google.com/tpu"]
  assert chips == container["resources"]["requests"]["google.com/tpu"]
  total = math.prod(int(n) for n in shape.split("x"))
  assert spec["parallelism"] * chips == total
  command = container["command"]
  assert bash("-n", "-c", command[2]).returncode == 0
  words = shlex.split(command[2])
  for flag in ("--workdir", "--config.data.dir", "--config.init_from"):
    assert f"{flag}=gs://" in command[2]  # a host has no other shared storage
  assert (
    ROOT / next(w for w in words if "--config=" in w).split("=")[1]
  ).is_file()
