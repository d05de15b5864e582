"""Launchers: parsed, linted, and their dry runs are what a shell would run."""

import math
import os
import pathlib
import shlex
import shutil
import subprocess
import sys

import pytest
import yaml

ROOT = pathlib.Path(__file__).parent.parent
SCRIPTS = ("env.sh", "gpu_node.sh", "slurm.sbatch", "tpu_pod.sh")


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


def test_flags_of_the_caller_win():
  script = 'source launch/env.sh gpu; echo "$XLA_FLAGS"'
  found = bash("-c", script, XLA_FLAGS="--mine").stdout.split()
  assert found[-1] == "--mine"
  assert len(found) > 1
  assert bash("-c", "source launch/env.sh cpu").returncode == 2


def test_the_jobset_uses_every_chip_of_its_slice():
  text = (ROOT / "launch/jobset.yaml").read_text()
  jobset = yaml.safe_load(text)
  assert jobset["apiVersion"] == "jobset.x-k8s.io/v1alpha2"
  assert jobset["kind"] == "JobSet"
  (job,) = jobset["spec"]["replicatedJobs"]
  spec = job["template"]["spec"]
  assert spec["parallelism"] == spec["completions"]
  pod = spec["template"]["spec"]
  shape = pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"]
  (container,) = pod["containers"]
  chips = container["resources"]["limits"]["google.com/tpu"]
  assert chips == container["resources"]["requests"]["google.com/tpu"]
  total = math.prod(int(n) for n in shape.split("x"))
  assert spec["parallelism"] * chips == total
  volumes = {volume["name"] for volume in pod["volumes"]}
  assert {mount["name"] for mount in container["volumeMounts"]} <= volumes
  command = container["command"]
  assert bash("-n", "-c", command[2]).returncode == 0
  words = shlex.split(command[2])
  assert (
    ROOT / next(w for w in words if "--config=" in w).split("=")[1]
  ).is_file()
