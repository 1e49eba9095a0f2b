"""Hours of bad luck, run by `make soak`: kill -9 at random moments over a whole study, and ten thousand pages.

The study is smoke's, since it is run several times over. After `make study`, `DOCVLM_KILL_PRESET=nano make soak` kills nano's, compares
with the run that is there, and takes about twice a study's time."""
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import psutil
import pyarrow.parquet as pq
import pytest
from PIL import Image
from safetensors import safe_open

from docvlm.files import digest_of, read_json, root
from docvlm.core import open_study
from docvlm.steps import STEPS
from docvlm.provenance import artefact_digest, compare_results, copy_sources, study_command

pytestmark = pytest.mark.soak
PRESET = os.environ.get("DOCVLM_KILL_PRESET", "smoke")
KILLS = int(os.environ.get("DOCVLM_KILLS", 20))
SEED = int(os.environ.get("DOCVLM_KILL_SEED", 0))


def start(study, folder, log): return subprocess.Popen(**study_command(study, folder), stdout=log, stderr=subprocess.STDOUT, start_new_session=True)


def strike(process, victim):
    "kill -9, as a power cut takes study and kernel, the user the study, the kernel's memory the kernel."
    children = psutil.Process(process.pid).children(recursive=True)
    for one in {"both": [process, *children], "study": [process], "kernel": children}[victim]:
        try: os.kill(one.pid, signal.SIGKILL)
        except ProcessLookupError: pass
    process.wait()
    psutil.wait_procs(children, timeout=60)


def whole(folder):
    "Every file that a later step would read can be read to its end."
    for path in (folder/"data").rglob("*"):
        hidden = any(part.startswith(".") or part.startswith("checkpoint-") for part in path.relative_to(folder).parts)
        if hidden or not path.is_file(): continue
        if path.suffix == ".json": json.loads(path.read_text(encoding="utf-8"))
        elif path.suffix == ".parquet": pq.read_table(path)
        elif path.suffix == ".png": Image.open(path).load()
        elif path.suffix == ".safetensors":
            with safe_open(path, "pt") as file: [file.get_tensor(name) for name in file.keys()]


def assert_same(study, calm, rough):
    for name in STEPS:
        path = study.step(name).path.relative_to(root())
        before, after = read_json(calm/path), read_json(rough/path)
        row = compare_results(name, before, after)
        assert row["differs"] == 0 and row["machine"] == "same", row
        for artefact in before.get("artefacts", []):
            if artefact.endswith(".parquet"): assert artefact_digest(calm/artefact) == artefact_digest(rough/artefact), artefact
            if "adapters" in artefact: assert digest_of(calm/artefact/"adapter_model.safetensors") == digest_of(rough/artefact/"adapter_model.safetensors")


def test_kills_at_random_moments_change_nothing(tmp_path):
    study, rng, kills, completed = open_study(PRESET), random.Random(SEED), 0, 0
    calm, rough, began = root() if PRESET == "nano" else copy_sources(study, tmp_path/"calm"), copy_sources(study, tmp_path/"rough"), time.perf_counter()
    with (tmp_path/"log").open("w") as log:
        assert start(study, calm, log).wait() == 0, (tmp_path/"log").read_text()[-3000:]
        longest = 120 if PRESET == "nano" else (time.perf_counter() - began)/3
        while kills < KILLS:
            process = start(study, rough, log)
            try: code = process.wait(timeout=rng.uniform(1, longest))
            except subprocess.TimeoutExpired:
                strike(process, victim := rng.choice(("both", "study", "kernel")))
                kills += 1
                print(f"kill {kills}: {victim}", flush=True)
                whole(rough)
            else:
                assert code == 0, (tmp_path/"log").read_text()[-3000:]
                assert_same(study, calm, rough)
                completed += 1
                shutil.rmtree(rough)
                copy_sources(study, rough)
        assert start(study, rough, log).wait() == 0, (tmp_path/"log").read_text()[-3000:]
    print(f"{kills} kills, {completed + 1} studies completed")
    assert_same(study, calm, rough)


def test_ten_thousand_pages_stream_in_flat_memory(tmp_path):
    "The memory that the data step takes for 10,000 pages is that for 1,000, but for the rows themselves."
    code = """
import resource, sys
from docvlm.core import open_study
from docvlm.data import prepare_data
found = prepare_data(open_study("smoke", sys.argv[1]))
print(found["splits"]["train"]["pages"], resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
    peak = {}
    clone = copy_sources(open_study("smoke"), tmp_path/"clone")
    for pages in (1_000, 10_000):
        documents = tmp_path/f"documents-{pages}"
        for split, count in (("train", pages), ("test", 20)):
            (documents/split).mkdir(parents=True)
            with (documents/split/"metadata.jsonl").open("w") as lines:
                for number in range(count):
                    page = Image.effect_noise((400, 300), 40 + number % 50)
                    page.putpixel((0, 0), number % 256)
                    page.save(documents/split/f"{number}.png", compress_level=1)
                    lines.write(json.dumps({"file_name": f"{number}.png", "question": "Total?", "answers": [str(number)]}) + "\n")
        env = os.environ | {"PYTHONPATH": str(clone)}
        done = subprocess.run([sys.executable, "-c", code, str(documents)], cwd=clone, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        assert int(done.stdout.split()[0]) == pages
        peak[pages] = int(done.stdout.split()[1])*1024
        shutil.rmtree(documents)
    grown = peak[10_000] - peak[1_000]
    print(f"peak {peak[1_000]/2**20:.0f} MiB for 1,000 pages, {peak[10_000]/2**20:.0f} MiB for 10,000")
    assert grown < 9_000*20_000, f"{grown/9_000:.0f} bytes more for each page"
