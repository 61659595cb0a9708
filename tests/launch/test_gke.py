"""The JobSet of launch/gke.sh, and its commands with a fake kubectl."""

import json
import os
import re
import subprocess

import pytest
import yaml

from tests.launch.room import ROOT, Room, commands

TRAIN = ("--", "--config", "configs/digits_dmpo.py", '--config.note=it\'s "$(x)" \\ 1')
RUN = ("--image=host/dmpo:1", "--claim=share", "--workdir=/mnt/dmpo/run")


@pytest.fixture
def room(tmp_path):
  return Room(tmp_path)


def _jobset(room, *options):
  result = room.run("gke.sh", "yaml", *RUN, *options, *TRAIN)
  assert result.returncode == 0, result.stderr
  return yaml.safe_load(result.stdout)


def _job(jobset):
  [replicated] = jobset["spec"]["replicatedJobs"]
  return replicated["template"]["spec"]


def _pod(jobset):
  return _job(jobset)["template"]["spec"]


@pytest.mark.parametrize(
  ("slice_", "accelerator", "hosts", "chips"),
  [
    # cloud.google.com/kubernetes-engine/docs/concepts/plan-tpus, the tables of topologies
    ("v4:2x2x1", "tpu-v4-podslice", 1, 4),
    ("v4:2x2x4", "tpu-v4-podslice", 4, 4),
    ("v5p:2x4x4", "tpu-v5p-slice", 8, 4),
    ("v5p:4x4x8", "tpu-v5p-slice", 32, 4),
    ("v5e:1x1", "tpu-v5-lite-podslice", 1, 1),
    ("v5e:2x4", "tpu-v5-lite-podslice", 1, 8),
    ("v5e:4x4", "tpu-v5-lite-podslice", 4, 4),
    ("v5e:16x16", "tpu-v5-lite-podslice", 64, 4),
    ("v6e:2x2", "tpu-v6e-slice", 1, 4),
    ("v6e:4x8", "tpu-v6e-slice", 8, 4),
  ],
)
def test_a_slice_is_one_pod_on_every_host_with_all_its_chips(
  slice_, accelerator, hosts, chips, room
):
  jobset = _jobset(room, f"--slice={slice_}")
  job, pod = _job(jobset), _pod(jobset)
  assert job["completions"] == job["parallelism"] == hosts
  assert job["completionMode"] == "Indexed"
  assert pod["nodeSelector"]["cloud.google.com/gke-tpu-accelerator"] == accelerator
  assert pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == slice_.partition(":")[2]
  [container] = pod["containers"]
  assert container["resources"]["requests"] == container["resources"]["limits"]
  assert container["resources"]["limits"] == {"google.com/tpu": chips}


def test_the_jobset_has_what_kubernetes_and_jobset_require(room):
  jobset = _jobset(room, "--name=night", "--namespace=ml")
  assert jobset["apiVersion"] == "jobset.x-k8s.io/v1alpha2"
  assert jobset["kind"] == "JobSet"
  assert jobset["metadata"]["name"] == "night"
  assert jobset["metadata"]["namespace"] == "ml"
  # The pods are night-slice-0-0.night, ...: JobSet's headless service has the subdomain's name.
  assert jobset["spec"]["network"] == {"enableDNSHostnames": True, "subdomain": "night"}
  assert _pod(jobset)["restartPolicy"] == "Never"  # a pod failure policy requires it
  assert {p["containerPort"] for p in _pod(jobset)["containers"][0]["ports"]} >= {8471}
  assert jobset["spec"]["replicatedJobs"][0]["replicas"] == 1
  [mount] = _pod(jobset)["containers"][0]["volumeMounts"]
  [volume] = _pod(jobset)["volumes"]
  assert mount == {"name": volume["name"], "mountPath": "/mnt/dmpo"}
  assert volume["persistentVolumeClaim"] == {"claimName": "share"}


def test_a_run_in_a_bucket_needs_no_claim(room):
  jobset = _jobset(room, "--claim=", "--workdir=gs://bucket/run")
  assert "volumes" not in _pod(jobset)
  [container] = _pod(jobset)["containers"]
  assert "volumeMounts" not in container
  assert container["args"][3:5] == ["--workdir", "gs://bucket/run"]


def test_several_slices_are_as_many_jobs_of_which_the_first_counts_the_starts(room):
  jobset = _jobset(room, "--slices=3")
  [replicated] = jobset["spec"]["replicatedJobs"]
  assert replicated["replicas"] == 3
  assert _job(jobset)["completions"] == 4  # hosts of each slice
  share = room.folder / "share"
  room.set(plan=[[75, ""]])
  for number in "12":
    assert _start_pod(room, jobset, 0, share, MEGASCALE_SLICE_ID=number).returncode == 75
  assert not share.exists()
  assert _start_pod(room, jobset, 0, share, MEGASCALE_SLICE_ID="0").returncode == 75
  assert (share / "run/starts.txt").read_text().endswith(" 0 1\n")


def _handled(job, status, disrupted=False):
  """Action of the Job's pod failure policy for an ended pod, by Kubernetes' rules."""
  for rule in job["podFailurePolicy"]["rules"]:
    if "onPodConditions" in rule:
      conditions = [(c["type"], c["status"]) for c in rule["onPodConditions"]]
      matches = disrupted and ("DisruptionTarget", "True") in conditions
    else:
      codes = rule["onExitCodes"]
      assert codes["containerName"] == "train"
      assert 0 not in codes["values"] or codes["operator"] == "NotIn"
      matches = (status in codes["values"]) == (codes["operator"] == "In")
    if matches:
      return rule["action"]
  return "Count"


@pytest.mark.parametrize(
  ("status", "disrupted", "restarts"),
  [
    (75, False, True),
    (76, False, True),
    (137, False, True),
    (143, True, True),
    (1, True, True),
    (2, False, False),
    (1, False, False),
    (130, False, False),
  ],
)
def test_preemptions_restart_all_pods_and_bad_input_ends_the_run(status, disrupted, restarts, room):
  jobset = _jobset(room, "--restarts=40")
  policy, job = jobset["spec"]["failurePolicy"], _job(jobset)
  assert job["backoffLimit"] == 0  # Count: the job fails, and not for its pod failure policy
  failed_by_policy = _handled(job, status, disrupted) == "FailJob"
  [rule] = policy["rules"]
  assert re.fullmatch("[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?", rule["name"])  # JobSet's rule
  assert rule["action"] == "FailJobSet"
  assert rule["onJobFailureReasons"] == ["PodFailurePolicy"]
  assert policy["maxRestarts"] == 40
  assert failed_by_policy != restarts


def test_spot_nodes_are_the_default(room):
  selector = _pod(_jobset(room))["nodeSelector"]
  assert selector["cloud.google.com/gke-spot"] == "true"
  assert (
    "cloud.google.com/gke-spot" not in _pod(_jobset(room, "--capacity=on-demand"))["nodeSelector"]
  )


def _start_pod(room, jobset, index, share, **environment):
  """Runs the container's command on this machine, as a pod does."""
  [container] = _pod(jobset)["containers"]
  words = [w.replace("$$(", "$(") for w in container["command"] + container["args"]]  # Kubernetes
  words = [w.replace("/mnt/dmpo", str(share)) for w in words]
  return subprocess.run(
    words,
    cwd=ROOT,
    env=room.environment(JOB_COMPLETION_INDEX=str(index), **environment),
    capture_output=True,
    text=True,
    timeout=60,
  )


def test_the_pods_command_passes_the_arguments_unchanged(room):
  room.set(plan=[[75, ""]])
  share = room.folder / "share"
  pod = _start_pod(room, _jobset(room), 1, share)
  assert pod.returncode == 75, pod.stderr
  [call] = room.called("dmpo-jax")
  assert call[1:4] == ["train", "--workdir", f"{share}/run"]
  assert call[4:] == ["--distributed", "--no-progress", *TRAIN[1:]]


def test_the_first_pod_stops_the_run_when_starts_leave_no_new_checkpoint(room):
  room.set(plan=[[76, ""]])
  jobset, share = _jobset(room, "--limit=2"), room.folder / "share"
  statuses = [_start_pod(room, jobset, 0, share).returncode for _ in range(3)]
  assert statuses == [76, 76, 2]
  (share / "run/checkpoints/7").mkdir(parents=True)
  assert _start_pod(room, jobset, 0, share).returncode == 76


def test_line_separators_of_unicode_reach_the_pod_unchanged(room):
  value = "--config.note=a\u2028b\u2029c"
  result = room.run("gke.sh", "yaml", *RUN, *TRAIN, value)
  if result.returncode == 2:  # where the locale counts them as control characters
    assert "has a control character" in result.stderr
    return
  assert _pod(yaml.safe_load(result.stdout))["containers"][0]["args"][-1] == value


def test_fetch_removes_its_pod_when_the_copy_fails(room):
  room.set(copy_fails=True)
  assert room.run("gke.sh", "fetch", "--claim=share", "--from=/mnt/dmpo/x").returncode == 1
  assert room.called("kubectl", "--namespace=default", "delete", "pod")


@pytest.mark.parametrize("name", ["no", "true", "null", "on"])
def test_a_name_that_yaml_reads_as_another_value_stays_a_name(name, room):
  jobset = _jobset(room, f"--name={name}", f"--namespace={name}", f"--claim={name}")
  assert jobset["metadata"] | {"annotations": {}} == {
    "name": name,
    "namespace": name,
    "annotations": {},
  }
  assert jobset["spec"]["network"]["subdomain"] == name
  assert _pod(jobset)["volumes"][0]["persistentVolumeClaim"]["claimName"] == name


def test_create_and_delete_can_be_repeated(room):
  for _ in range(2):
    result = room.run("gke.sh", "create", *RUN, *TRAIN)
    assert result.returncode == 0, result.stderr
  assert len(room.called("kubectl", "--namespace=default", "create")) == 1
  assert "exists already" in result.stderr
  assert yaml.safe_load(room.jobset)["kind"] == "JobSet"
  assert room.run("gke.sh", "delete").returncode == 0
  [delete] = room.called("kubectl", "--namespace=default", "delete")
  assert "--ignore-not-found" in delete


def test_wait_ends_with_the_jobset(room):
  room.set(plan=[[0, ""], [0, ""], [0, "Completed"]])
  assert room.run("gke.sh", "wait", "--poll=0").returncode == 0
  room.set(plan=[[0, ""], [0, "Failed"]])
  assert room.run("gke.sh", "wait", "--poll=0").returncode == 1


def test_the_printed_commands_of_a_dry_run_do_the_same_as_the_run(room):
  dry = room.run("gke.sh", "create", "--dry-run", *RUN, *TRAIN)
  assert room.calls == []
  assert room.run("gke.sh", "create", *RUN, *TRAIN).returncode == 0
  calls, jobset = room.calls, yaml.safe_load(room.jobset)
  room.set(calls=[], jobset=None)
  assert room.shell(dry.stdout).returncode == 0
  assert room.calls == calls
  pasted = yaml.safe_load(room.jobset)
  for each in (pasted, jobset):  # the run's number, the time
    assert _pod(each)["containers"][0]["args"].pop(2).isdigit()
  assert pasted == jobset


def test_fetch_copies_through_a_temporary_pod(room):
  dry = room.run("gke.sh", "fetch", "--dry-run", "--claim=share", "--from=/mnt/dmpo/run/pipeline")
  start, _, copy, remove = commands(dry.stdout)
  [override] = [json.loads(w.partition("=")[2]) for w in start if w.startswith("--overrides=")]
  [volume] = override["spec"]["volumes"]
  assert volume["persistentVolumeClaim"] == {"claimName": "share"}
  [container] = override["spec"]["containers"]
  assert container["name"] in start
  assert copy[-2:] == [f"{container['name']}:/mnt/dmpo/run/pipeline", "."]
  assert remove[-1] == container["name"]


def test_the_image_is_built_from_the_commit(room):
  dry = room.run("gke.sh", "image", "--dry-run", "--image=host/dmpo:1")
  archive, build = dry.stdout.splitlines()[0].split(" | ")
  assert commands(archive)[0] == ["git", "-C", str(ROOT), "archive", "HEAD"]
  [words] = commands(build)
  assert "--file=launch/Dockerfile" in words
  assert os.path.exists(ROOT / "launch/Dockerfile")
  assert words[-1] == "-"


@pytest.mark.parametrize(
  ("options", "message"),
  [
    (("--slice=v5e-16",), "--slice 'v5e-16' is unknown"),
    (("--slice=v5e:3x4",), "one of 1x1, 2x2"),
    (("--slice=v5e:2x2x2",), "is unknown"),
    (("--slice=v4:3x4x4",), "multiples of 4, ascending"),
    (("--slice=v5p:8x4x4",), "multiples of 4, ascending"),
    (("--slice=v5p:0x4x4",), "multiples of 4, ascending"),
    (("--workdir=gs://bucket",), "expected gs://BUCKET/FOLDER"),
    (("--slices=0",), "--slices 0: expected 1 to 256"),
    (("--slices=2", "--slice=v5e:2x2"), "v5e:2x2 has one host"),
    (("--workdir=/elsewhere",), "is not on the claim"),
    (("--image=",), "--image is missing"),
    (("--claim=",), "--claim is missing"),
    (("--restarts=-1",), "not a whole number"),
    (("--namespace=a\nspec: {hostPID: true}",), "--namespace has a control character"),
    (("--claim=a, hostPID: true",), "--claim 'a, hostPID: true': expected a name"),
    (("--namespace=",), "--namespace '': expected a name"),
    (('--mount=/mnt/dmpo", "hostPID": "true',), "--mount '/mnt/dmpo\""),
    (("--mount=mnt",), "--mount 'mnt' is not an absolute path"),
    (("--mount=/mnt/../etc",), "--mount '/mnt/../etc' is not"),
    (("--image=a\nYAML\ntouch x",), "--image has a control character"),
    (("--workdir=/mnt/dmpo/run\x1b]0;x\x07",), "--workdir has a control character"),
  ],
)
def test_bad_input_is_refused_before_anything_is_created(options, message, room):
  result = room.run("gke.sh", "create", *RUN, *options, *TRAIN)
  assert result.returncode == 2
  assert message in result.stderr
  assert room.calls == []
