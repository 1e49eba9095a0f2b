"One notebook: in this Python whatever kernels there are, its chatter in a log, one line on the terminal."
import json
import os
import pty
import subprocess
import sys
import termios
from pathlib import Path

import nbformat
import pytest

from docvlm import execution, execution as parameters
from docvlm.files import StudyError, read_json
from docvlm.execution import execute

ROOT = Path(__file__).resolve().parent.parent


def notebook(folder, *code):
    "A repository that holds one notebook, `tiny`."
    tagged = nbformat.v4.new_code_cell("preset = 'nano'", metadata={"tags": ["parameters"]})
    cells = [tagged, *map(nbformat.v4.new_code_cell, code)]
    (folder/"nbs").mkdir(exist_ok=True)
    nbformat.write(nbformat.v4.new_notebook(cells=cells), folder/"nbs"/"tiny.ipynb")


@pytest.fixture
def run(tmp_path, monkeypatch):
    "Executes a notebook of the given cells; what its last cell printed, and the log."
    for module in (execution, parameters): monkeypatch.setattr(module, "root", lambda: tmp_path)

    def execute_cells(*code):
        notebook(tmp_path, *code)
        execute("tiny", {"preset": "smoke"}, tmp_path/"executed.ipynb", tmp_path/"log.txt", "[1/1] tiny")
        outputs = read_json(tmp_path/"executed.ipynb")["cells"][-1]["outputs"]
        said = "".join("".join(o.get("text", "")) for o in outputs if o.get("name") == "stdout")
        return said, (tmp_path/"log.txt").read_text()
    return execute_cells


def foreign(folder):
    "A kernel called python3 that is none."
    spec = folder/"kernels"/"python3"
    spec.mkdir(parents=True)
    kernel = {"argv": ["/bin/false", "{connection_file}"], "display_name": "x", "language": "python"}
    (spec/"kernel.json").write_text(json.dumps(kernel))


def test_another_python_s_kernel_is_not_taken(run, tmp_path, monkeypatch):
    foreign(tmp_path/"jupyter")
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path/"jupyter"))
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path/"jupyter"))
    said, _ = run("import sys; print(sys.executable, sys.prefix, preset)")
    assert said.split() == [sys.executable, sys.prefix, "smoke"]


def test_no_kernel_needs_to_be_installed(run, monkeypatch):
    from jupyter_client.kernelspec import KernelSpecManager
    monkeypatch.setattr(KernelSpecManager, "find_kernel_specs", lambda self: {})
    monkeypatch.setattr(KernelSpecManager, "_find_spec_directory", lambda self, name: None)
    assert run("print('here')")[0] == "here\n"


def test_what_libraries_say_is_in_the_log_once_and_nowhere_else(run, capfd):
    code = """
import logging, os, sys, warnings
from tqdm import tqdm
logging.getLogger("library").warning("from a logger")
warnings.warn("from a warning")
print("from a print", file=sys.stderr)
os.system("echo from a child >&2")
for _ in tqdm(range(2), desc="from a bar"): pass
print("result")"""
    said, log = run(code)
    terminal = capfd.readouterr()
    assert said == "result\n" and terminal.out == "[1/1] tiny\n" and terminal.err == ""
    for source in ("logger", "print", "child"): assert log.splitlines().count(f"from a {source}") == 1, log
    assert "UserWarning: from a warning" in log and "from a bar: 100%" in log
    assert "without encryption" not in log


def test_what_a_cell_has_to_say_is_shown_on_the_terminal_and_logged(run, tmp_path, capsys):
    run("import sys\nprint('loading', file=sys.stderr)\nprint('docvlm: about 2 minutes', file=sys.stderr)")
    out = capsys.readouterr().out
    assert "docvlm: about 2 minutes\n" in out and "loading" not in out
    assert "docvlm: about 2 minutes" in (tmp_path/"log.txt").read_text()


@pytest.mark.parametrize("code, message", [
    ("import sys\nprint('a hint', file=sys.stderr)\n1/0", "tiny.ipynb failed in cell 2: ZeroDivisionError: division by zero"),
    ("import os\nos.write(2, b'a hint\\n')\nos._exit(9)", "tiny.ipynb: its kernel died")])
def test_a_failure_shows_the_end_of_the_log(run, tmp_path, code, message):
    (tmp_path/"log.txt").write_text("of an earlier step\n")
    with pytest.raises(StudyError) as failure: run(code)
    said = str(failure.value)
    assert said.startswith(message) and "run the same command to go on" in said
    assert said.endswith("Last lines of log.txt:\n  a hint") and "earlier" not in said


def test_a_kernel_that_cannot_start_is_named(run, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(StudyError, match="tiny.ipynb: its kernel died"): run("1")


TERMINAL = """
import sys
from pathlib import Path
from docvlm import execution, execution as parameters
folder = Path(sys.argv[1])
execution.root = parameters.root = lambda: folder
execution.execute("tiny", {"preset": "smoke"}, folder/"executed.ipynb", folder/"log.txt", "[1/1] tiny: new", last_s=60)
print("[1/1] tiny: done")
"""


def test_a_terminal_gets_one_line_that_says_how_far_it_is(tmp_path):
    notebook(tmp_path, "import sys, time; print('chatter', file=sys.stderr); time.sleep(4)")
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 100))
    process = subprocess.Popen([sys.executable, "-c", TERMINAL, tmp_path], cwd=ROOT, stdout=theirs, stderr=theirs)
    os.close(theirs)
    said = b""
    try:
        while part := os.read(ours, 4096): said += part
    except OSError: pass  # the other end is closed
    assert process.wait() == 0
    text = said.decode()
    assert "[1/1] tiny: new, starting" in text and "[1/1] tiny: new, cell 2 of 3, 00:" in text and " left" in text
    assert "chatter" not in text
    assert text.count("\n") == 1 and text.rpartition("\r")[0].rpartition("\r")[2].strip() == "[1/1] tiny: done"


def test_commands_say_nothing_of_an_optional_package():
    code = "import docvlm.apps.ask\nfrom docvlm import cli, evaluation, latency\nimport bitsandbytes"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "gemm_4bit" not in done.stderr
