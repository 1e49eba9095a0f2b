"Options: a flag is a flag, a number is within its bounds, an unknown name is refused; one clear line each."
import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from conftest import refusal
from papermill.cli import papermill
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from docvlm import cli, steps, training
from docvlm.core import Study
from docvlm.files import StudyError, read_json
from docvlm.presets import get_preset

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
CODE = {path.relative_to(ROOT/"nbs").with_suffix("").as_posix(): [c for c in read_json(path)["cells"] if c["cell_type"] == "code"]
        for path in (ROOT/"nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in path.parts}
AT = {name: i for name, cells in CODE.items() for i, c in enumerate(cells) if "parameters" in c["metadata"].get("tags", [])}


def test_every_notebook_with_parameters_checks_them_first():
    assert set(AT) >= {notebook for notebook, *_ in (steps.STEPS | steps.SEPARATE_STEPS).values()} | {"inputs/05_hub", "10_nano_base"}
    for name, at in AT.items():
        assert f'validate_parameters("{name}", globals())' in "".join(CODE[name][at + 1]["source"]), name


def notebook_of(name, folder):
    "A notebook of only the cell with the parameters and the check below it, as a file."
    cells = [nbformat.v4.new_code_cell("".join(c["source"]), metadata=c["metadata"]) for c in CODE[name][AT[name]:AT[name] + 2]]
    kernel = {"name": "python3", "language": "python", "display_name": "Python 3"}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel}), folder/"in.ipynb")
    return folder/"in.ipynb"


def test_papermill_says_what_is_wrong_with_an_option(tmp_path):
    done = subprocess.run([BIN/"papermill", notebook_of("02_data", tmp_path), tmp_path/"out.ipynb", "-p", "preset", "2"], cwd=ROOT,
                          capture_output=True, text=True)
    assert done.returncode == 1 and "02_data.ipynb: preset must be text, not 2; leave it out" in done.stderr


@pytest.mark.parametrize("name, parameter, options, outcome", [
    ("inputs/05_hub", "look", ("-p", "look", "false"), "False"),
    ("inputs/05_hub", "look", ("-p", "look", "True"), "True"),
    ("10_nano_base", "train", ("-p", "train", "false"), "False"),
    ("10_nano_base", "train", ("-p", "train", "0"), "False"),
    ("10_nano_base", "train", ("-p", "train", "on"), "True"),
    ("10_nano_base", "train", ("-p", "train", "maybe"), "10_nano_base.ipynb: train is a flag: give true or false"),
    ("02_data", "preset", ("-p", "preset", "2"), "02_data.ipynb: preset must be text, not 2; leave it out"),
    ("02_data", "documents", ("-p", "documents", "None"), "documents must be text, not None"),
    ("02_data", "documents", ("-r", "documents", "2024"), "'2024'"),
    ("05_evaluation", "preset", ("-p", "prset", "smoke"), "has no parameter 'prset'; it knows: preset, documents"),
    ("04_training", "report_to", ("-p", "report_to", "mlfow"), "Unknown report_to 'mlfow'; choose one of: none, azure_ml"),
    ("06_ablation", "settings", ("-y", "settings: {lora_rank: 32, seeds: [1, 2]}"), "{'lora_rank': 32, 'seeds': [1, 2]}"),
    ("06_ablation", "settings", ("-p", "settings", "lora_rank=32"), "settings must be names with values, not 'lora_rank=32'"),
    ("06_ablation", "settings", ("-y", "settings: [lora_rank]"), "settings must be names with values"),
    ("04_training", "report_to", (), "'none'")])
def test_papermill_s_options_are_typed_and_known(tmp_path, name, parameter, options, outcome):
    papermill.main(["--prepare-only", str(notebook_of(name, tmp_path)), str(tmp_path/"out.ipynb"), *options], standalone_mode=False)
    cells = read_json(tmp_path/"out.ipynb")["cells"]
    namespace = {"In": [""], "check_reporting": training.check_reporting}  # 04_training has made the latter
    try:
        for source in ("".join(cell["source"]) for cell in cells):
            namespace["In"].append(source)
            exec(source, namespace)
        said = repr(namespace[parameter])
    except StudyError as error: said = str(error)
    assert said == outcome if said in ("True", "False") else outcome in said


@pytest.mark.parametrize("command, options, message", [
    (cli.train, {"lora_rank": 0}, "--lora_rank must be a whole number of at least 1 and at most 1,024, not 0"),
    (cli.train, {"lora_rank": -16}, "--lora_rank must be"), (cli.train, {"lora_rank": 10**9}, "--lora_rank must be"),
    (cli.train, {"seed": -1}, "--seed must be a whole number of at least 0 and at most 4,294,967,295, not -1"),
    (cli.train, {"seed": 2**32}, "--seed must be"),
    (cli.train, {"preset": "smoke", "report_to": "nothing"}, "Unknown report_to 'nothing'; choose one of: none"),
    (cli.train, {"preset": "smoke", "report_to": ""}, "Unknown report_to ''"),
    (cli.demo, {"preset": "smoke", "port": -1}, "--port must be a whole number of at least 0 and at most 65,535"),
    (cli.demo, {"preset": "smoke", "port": 65536}, "--port must be"),
    (cli.demo, {"preset": "smoke", "host": ""}, "--host is empty"),
    (cli.study, {"preset": "smoke", "only": ""}, "Unknown step ''; choose one of: data, training"),
    (cli.study, {"preset": "smoke", "trace": ""}, "is shown as ''; give a name such as"),
    (cli.study, {"preset": "smoke", "trace": "data", "only": "data"}, "--only, --trace and --check exclude each other"),
    (cli.study, {"preset": ""}, "Unknown preset ''; choose one of"), (cli.study, {"preset": "nano@"}, "Unknown protocol ''"),
    *[(cli.measure, {"system": "http://127.0.0.1:9/v1", "model": "m", "preset": "smoke", name: value}, f"{name} must be")
      for name, values in {"concurrency": (0, -1, 10**6), "requests_per_minute": (-1.0, math.nan, math.inf),
                           "timeout_s": (0.0, -1.0, math.nan, math.inf, 1e300)}.items() for value in values],
    (cli.evaluate, {"preset": "smoke", "submit": ""}, "docvqa"), (cli.evaluate, {"preset": "smoke", "adapter": ""}, "No adapter in .")])
def test_a_wrong_option_is_one_clear_line(capsys, command, options, message):
    assert message in refusal(capsys, command, **options)


@pytest.mark.parametrize("report_to", sorted(INTEGRATION_TO_CALLBACK))
def test_an_integration_that_is_not_there_says_what_to_do(capsys, report_to):
    try: training.check_reporting(report_to)
    except StudyError as error:
        assert str(error).startswith(f"Cannot report to {report_to}: ") and any(word in str(error) for word in ("install", "set"))
    assert "Traceback" not in capsys.readouterr().err


def test_a_finished_adapter_says_that_nothing_is_reported(monkeypatch, capsys):
    study = Study(get_preset("smoke"))
    monkeypatch.setattr(training, "_finished", lambda folder, key: {"steps": 1})
    monkeypatch.setattr(steps.Step, "key", lambda self: "key")
    assert training.train_adapter(study, 16, 42, "mlflow") == {"steps": 1}
    assert "lora-r16-seed42 is trained already: nothing is sent to mlflow" in capsys.readouterr().err
    assert training.train_adapter(study, 16, 42) == {"steps": 1} and capsys.readouterr().err == ""


def test_make_passes_the_documents_folder_as_it_is(tmp_path):
    shutil.copy(ROOT/"Makefile", tmp_path/"Makefile")
    (tmp_path/".venv"/"bin").mkdir(parents=True)
    for name in ("settings.ini", "setup.py", ".venv/installed"): (tmp_path/name).touch()
    command = tmp_path/".venv"/"bin"/"docvlm-study"
    command.write_text(f"#!{sys.executable}\nimport json, sys\nprint(json.dumps(sys.argv[1:]))\n")
    command.chmod(0o755)
    for folder in ("", "a b", "-x", "$HOME", "`id`", "a\"b'c", "$(shell id)", "a;b#c"):
        for how in (["make", "-s", "study"], ["make", "-s", "study", f"DOCUMENTS={folder}"]):
            environment = os.environ | ({"DOCUMENTS": folder} if len(how) == 3 else {})
            done = subprocess.run(how, cwd=tmp_path, env=environment, capture_output=True, text=True)
            assert json.loads(done.stdout) == ["--preset", "nano", f"--documents={folder}"], (how, folder, done.stderr)


@pytest.mark.parametrize("options", [("--documents", "-scans"), ("--documents", "--preset", "smoke"), ("--documents",)])
def test_a_value_that_looks_like_an_option_is_explained(options):
    done = subprocess.run([BIN/"docvlm-study", *options], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and "a value that starts with - follows an equals sign, as in --documents=-scans" in done.stderr


def test_a_value_that_looks_like_an_option_is_taken_after_an_equals_sign(tmp_path):
    done = subprocess.run([BIN/"docvlm-study", "--preset", "smoke", "--documents=-scans"], cwd=tmp_path, capture_output=True, text=True,
                          env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert done.returncode == 1 and f"No documents folder {tmp_path/'-scans'}" in done.stderr


def test_a_command_takes_its_options_from_the_command_line_however_it_is_started():
    code = "from docvlm.cli import study; study()"
    done = subprocess.run([sys.executable, "-c", code, "--preset", "none"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and "Unknown preset 'none'" in done.stderr
