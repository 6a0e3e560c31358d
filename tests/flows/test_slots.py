"""Slots: which GPUs there are, one job each, and free again however the job's process ended."""

import os
import signal
import subprocess
import sys
import time

import pytest

from flows.slots import DEVICES, FOLDER, VISIBLE, GpuError, Slots, devices, parse_devices, slots_folder, try_lock

LISTING = """GPU 0: NVIDIA H200 (UUID: GPU-aaaa-1)
GPU 1: NVIDIA H200 (UUID: GPU-bbbb-2)
  MIG 3g.71gb     Device  0: (UUID: MIG-cccc-3)
  MIG 3g.71gb     Device  1: (UUID: MIG-dddd-4)
"""


def test_gpus_are_named_by_uuid_and_a_split_one_by_its_parts():
    assert parse_devices(LISTING) == ["GPU-aaaa-1", "MIG-cccc-3", "MIG-dddd-4"]
    assert parse_devices("No devices found.\n") == []


@pytest.mark.parametrize(
    ("own", "visible", "expected"),
    [
        ("a, b", "0", ["a", "b"]),
        ("", "0", []),
        (None, "2,3", ["2", "3"]),
        (None, "", []),
        (None, "0,-1,2", ["0"]),
    ],
)
def test_the_users_choice_goes_before_slurms(own, visible, expected, monkeypatch):
    for name, value in ((DEVICES, own), (VISIBLE, visible)):
        monkeypatch.delenv(name, raising=False) if value is None else monkeypatch.setenv(name, value)
    assert devices() == expected


@pytest.mark.parametrize("text", [LISTING, None])
def test_without_a_choice_nvidia_smi_is_asked(text, monkeypatch, tmp_path):
    monkeypatch.delenv(DEVICES, raising=False)
    monkeypatch.delenv(VISIBLE, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    if text is not None:
        (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\nprintf '%s' '{text}'\n")
        (tmp_path / "nvidia-smi").chmod(0o755)
    assert devices() == ([] if text is None else parse_devices(text))


def test_a_driver_that_cannot_tell_is_an_error_and_no_gpu_is_not(monkeypatch, tmp_path):
    monkeypatch.delenv(DEVICES, raising=False)
    monkeypatch.delenv(VISIBLE, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'Failed to initialize NVML: Driver/library version mismatch'\nexit 18\n")
    tool.chmod(0o755)
    with pytest.raises(GpuError, match=r"ended with 18 \(Failed to initialize NVML.*or set MEDIM_GPUS= \(empty"):
        devices()
    monkeypatch.setenv(DEVICES, "")
    assert devices() == []
    monkeypatch.delenv(DEVICES)
    tool.write_text("#!/bin/sh\necho 'No devices were found'\nexit 6\n")
    assert devices() == []


def test_each_job_gets_its_own_gpu_and_the_last_one_waits(tmp_path):
    slots, other_flow = Slots(["first", "second/half"], tmp_path), Slots(["first", "second/half"], tmp_path)
    one, two = slots.take(), other_flow.take()
    assert [one.device, two.device] == ["first", "second/half"]
    assert slots.take() is None and other_flow.take() is None
    two.lock.release()
    two.lock.release()  # a second time does nothing
    assert slots.take().device == "second/half"
    one.lock.release()


def test_a_machine_without_gpus_has_one_slot(tmp_path):
    slots = Slots([], tmp_path)
    slot = slots.take()
    assert slot.device is None and slots.take() is None
    slot.lock.release()


def test_slots_are_where_every_login_of_the_user_looks(monkeypatch, tmp_path):
    monkeypatch.delenv(FOLDER, raising=False)
    found = slots_folder()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))  # of a login; cron has none
    assert slots_folder() == found
    monkeypatch.setenv(FOLDER, str(tmp_path))
    assert slots_folder() == tmp_path


def test_a_slot_is_held_by_the_job_and_free_when_the_job_is_killed(tmp_path):
    slots = Slots(["gpu"], tmp_path)
    slot = slots.take()
    job = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], pass_fds=[slot.lock.fd])
    slot.lock.release()  # as a flow does that was killed
    assert slots.take() is None
    job.send_signal(signal.SIGKILL)
    job.wait()
    free = slots.take()
    assert free is not None
    free.lock.release()


def test_a_lock_left_by_a_dead_process_is_free(tmp_path):
    code = "import sys, os; from pathlib import Path; from flows.slots import try_lock; try_lock(Path(sys.argv[1]))"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}; os._exit(9)", str(tmp_path / "x")], env={**os.environ, "PYTHONPATH": "."}
    )
    assert done.returncode == 9
    begun = time.monotonic()
    lock = try_lock(tmp_path / "x")
    assert lock is not None and time.monotonic() - begun < 1
    lock.release()


def test_a_lock_that_is_not_to_be_made_is_none_where_there_is_no_file(tmp_path):
    assert try_lock(tmp_path / "run", create=False) is None and not (tmp_path / "run").exists()
    (tmp_path / "run").touch()
    lock = try_lock(tmp_path / "run", create=False)
    assert lock is not None and try_lock(tmp_path / "run", create=False) is None
    lock.release()
