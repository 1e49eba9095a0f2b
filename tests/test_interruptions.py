"A full disk, a folder nobody may write to, Ctrl-C, a kernel that dies, two runs at once: a clear message, and nothing is lost."
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import nbformat
import psutil
import pytest
from filelock import FileLock

from docvlm import steps
from docvlm.files import StudyError
from docvlm.core import open_study
from docvlm.steps import run_study
from docvlm.provenance import copy_sources, study_command

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def clone(tmp_path_factory): return copy_sources(open_study("smoke"), tmp_path_factory.mktemp("clone"))


def command(clone, *arguments, **options):
    "Start `docvlm-study --preset smoke` in a clone; it minds Ctrl-C, which what a shell runs in the background does not."
    whole = study_command(open_study("smoke"), clone) | {"args": [Path(sys.executable).parent/"docvlm-study", "--preset", "smoke", *arguments]}
    return subprocess.Popen(**whole, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL), **options)


@contextmanager
def mounted(folder, *options):
    "A file system of its own on a folder; skips the test where that is not allowed."
    folder.mkdir(parents=True, exist_ok=True)
    if subprocess.run(["mount", "-t", "tmpfs", *options, "none", folder], capture_output=True).returncode: pytest.skip("mounting is not allowed here")
    try: yield
    finally: subprocess.run(["umount", "-l", folder], check=True)


def test_a_full_disk_leaves_the_old_file_and_a_clear_message(tmp_path):
    code = f"""
import resource, sys
from pathlib import Path
from docvlm.files import StudyError, read_json, write_json
path = write_json(Path({str(tmp_path)!r})/"a.json", {{"old": 1}})
resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
try: write_json(path, {{"new": "a"*100_000}})
except StudyError as error: print(error)
assert read_json(path) == {{"old": 1}} and [f.name for f in path.parent.iterdir()] == ["a.json"]
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Cannot write a.json" in done.stdout and "free space" in done.stdout


def test_a_folder_nobody_may_write_to_is_one_clear_line(clone):
    with mounted(clone/"data"/"runs", "-o", "ro"):
        said = command(clone).communicate(timeout=120)[1]
    assert "Read-only file system" in said and said.startswith("docvlm: ") and "Traceback" not in said


def test_a_disk_that_fills_up_in_a_step_stops_the_study_and_the_next_run_goes_on(clone):
    with mounted(clone/"data"/"cache", "-o", "size=100k"):
        process = command(clone, "--only", "data")
        said = process.communicate(timeout=300)[1]
        assert process.returncode == 1 and "No space left" in said and "run the same command to go on" in said and "Traceback" not in said
        left = [path for path in (clone/"data"/"cache").rglob("*") if path.is_file() and not path.name.startswith(".")]
        assert not (clone/"data"/"results"/"smoke"/"data.json").exists() and not left, "something half-written stayed"
    assert command(clone, "--only", "data").wait(timeout=300) == 0 and (clone/"data"/"results"/"smoke"/"data.json").exists()


def test_a_second_run_is_refused_and_ctrl_c_ends_the_first_with_its_kernel(clone):
    first = command(clone, start_new_session=True)
    assert "[1/7] data" in first.stdout.readline()
    while not (children := psutil.Process(first.pid).children(recursive=True)): time.sleep(.1)
    second = command(clone)
    said = second.communicate(timeout=120)[1]
    assert second.returncode == 1 and "Another run of the study 'smoke' is in progress" in said and "Traceback" not in said
    first.send_signal(signal.SIGINT)
    said = first.communicate(timeout=60)[1]
    assert first.returncode == 130 and "what is done is kept" in said and "Traceback" not in said
    _, alive = psutil.wait_procs(children, timeout=30)
    assert not alive, "the kernel goes on without its study"


def test_a_terminated_run_says_where_it_stopped_and_ends_its_kernel(clone):
    process = command(clone, start_new_session=True)
    assert "[1/7] data" in process.stdout.readline()
    while not (children := psutil.Process(process.pid).children(recursive=True)): time.sleep(.1)
    time.sleep(5)  # the kernel is at work
    process.send_signal(signal.SIGTERM)
    shown, said = process.communicate(timeout=60)
    assert process.returncode == 143 and re.search(r"\[\d/7\] \w+: stopped after", shown) and "terminated; what is done is kept" in said, (shown, said)
    assert "Traceback" not in said
    _, alive = psutil.wait_procs(children, timeout=30)
    assert not alive, "the kernel goes on without its study"


def test_a_killed_run_leaves_no_lock_and_no_kernel(clone):
    process = command(clone, start_new_session=True)
    process.stdout.readline()
    while not (children := psutil.Process(process.pid).children(recursive=True)): time.sleep(.1)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    with FileLock(clone/"data"/"runs"/"smoke"/".run.lock", timeout=0): pass
    _, alive = psutil.wait_procs(children, timeout=60)
    assert not alive, "the kernel goes on without its study"


def test_a_kernel_that_dies_is_named(monkeypatch):
    notebook = nbformat.read(ROOT/"nbs"/"08_latency.ipynb", 4)
    notebook.cells = [c for c in notebook.cells if "parameters" in c.metadata.get("tags", [])] + [nbformat.v4.new_code_cell("import os; os._exit(9)")]
    nbformat.write(notebook, path := ROOT/"nbs"/"_dying.ipynb")
    try:
        monkeypatch.setitem(steps.STEPS, "dying", ("_dying", (), ()))
        with pytest.raises(StudyError, match="_dying.ipynb: its kernel died.*run the same command to go on"): run_study(open_study("smoke"), "dying")
    finally: path.unlink()


def test_workers_end_when_their_parent_is_killed():
    code = """
import time
from docvlm.files import process_pool
pool = process_pool(2)
list(pool.map(time.sleep, [0.1, 0.1]))
print(*pool._processes, flush=True)
time.sleep(600)
"""
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    workers = [psutil.Process(int(pid)) for pid in parent.stdout.readline().split()]
    assert workers and all(worker.is_running() for worker in workers)
    parent.kill()
    parent.wait()
    assert not psutil.wait_procs(workers, timeout=20)[1]


def test_a_dying_drawing_process_is_one_clear_line(tmp_path, monkeypatch):
    from docvlm import data
    monkeypatch.setattr(data, "partial", lambda function, *given: _die)
    with pytest.raises(StudyError, match="memory"): list(data.draw_documents(tmp_path, "test", data.page_plan({"forms": 2}, "test", 7), 1))


def _die(planned): os.kill(os.getpid(), signal.SIGKILL)
