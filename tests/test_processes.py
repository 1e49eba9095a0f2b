"Two processes (gloo, as `accelerate launch` or `torchrun` starts them) train and answer as one does."
import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from safetensors.torch import load_file

from docvlm.core import open_study
from docvlm.files import root, write_json
from docvlm.presets import TOKEN_PX
from docvlm.provenance import copy_sources, study_command

BIN = Path(sys.executable).parent
STUDY = open_study("smoke", settings={"max_pixels": 64*TOKEN_PX**2, "seeds": (42,)})
RUN = STUDY.run_dir.relative_to(root())
LAUNCH = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node"]


def launch(folder, *arguments):
    "A command in a copy of the repository, one thread a process."
    whole = study_command(STUDY, folder) | {"args": arguments}
    whole["env"] |= {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(**whole, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done


def run(folder, processes, command):
    "A docvlm command under so many processes; what it printed."
    return launch(folder, *LAUNCH, str(processes), *shlex.split(STUDY.command(str(BIN/f"docvlm-{command}")))).stdout


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    found = {processes: copy_sources(STUDY, tmp_path_factory.mktemp(f"with-{processes}")) for processes in (2, 1)}
    for processes, folder in found.items():
        in_fp32(folder)
        if processes == 1: with_pages_of(found[2], folder)
        run(folder, processes, "train")
    return found


def with_pages_of(folder, other):
    "Copy drawn pages and results to another copy of the repository."
    for part in ("data/cache", f"{RUN}/results"): shutil.copytree(folder/part, other/part, dirs_exist_ok=True)


def in_fp32(folder):
    "Let the study in a copy compute in fp32, whose roundings are small enough to compare step by step."
    write_json(folder/RUN/"precision.json", {"precision": "fp32"})


def record(folder): return json.loads((folder/RUN/"adapters/lora-r16-seed42/record.json").read_text())
def weights(folder): return load_file(folder/RUN/"adapters/lora-r16-seed42/adapter_model.safetensors")


def trained_alike(folder, other):
    "One process trained in `folder` and two in `other`: the same steps, losses and weights."
    one, two = record(folder), record(other)
    assert (one["processes"], two["processes"]) == (1, 2) and one["steps"] == two["steps"]
    assert one["trainable_parameters"] == two["trainable_parameters"]
    for a, b in zip(one["loss"], two["loss"], strict=True): assert abs(a["loss"] - b["loss"]) < 2e-3*a["loss"], (a, b)
    ours, theirs = weights(folder), weights(other)
    assert ours.keys() == theirs.keys()
    assert max(float((ours[name] - theirs[name]).abs().max()) for name in ours) < 5e-3  # Adam's first steps are as long as the learning rate


def test_two_processes_take_the_steps_of_one(folders):
    trained_alike(folders[1], folders[2])


SPREAD = """
"docvlm-train; accelerate spreads a model over GPUs only, so it is told that the processes have one each."
import sys
from accelerate import PartialState
from accelerate.utils import DistributedType
from torch.distributed.tensor import DTensor
from docvlm import cli, training

begin, record = PartialState.__init__, training._record

def with_gpus(self, *args, **kwargs):
    begin(self, *args, **kwargs)
    if self.distributed_type == DistributedType.MULTI_CPU: self.distributed_type = DistributedType.MULTI_GPU

def counting(trainer, *rest):
    spread = [isinstance(p, DTensor) for p in trainer.model.parameters()]
    print("all spread" if all(spread) else f"{spread.count(False)} of {len(spread)} parameters are whole", file=sys.stderr)
    return record(trainer, *rest)

PartialState.__init__, training._record = with_gpus, counting
cli.train()
"""


@pytest.mark.slow
def test_a_model_spread_by_fsdp_takes_the_steps_of_one_process(folders, tmp_path):
    folder, script = copy_sources(STUDY, tmp_path/"spread"), tmp_path/"spread.py"
    script.write_text(SPREAD)
    in_fp32(folder)
    with_pages_of(folders[1], folder)
    done = launch(folder, BIN/"accelerate", "launch", "--config_file", folder/"data"/"fsdp.yaml", "--num_processes", "2",
                  "--mixed_precision", "no", *shlex.split(STUDY.command(str(script))))
    assert "all spread" in done.stderr
    trained_alike(folders[1], folder)


def test_two_processes_give_the_answers_of_one(folders):
    answered, said, frames = folders[1]/RUN/"predictions", [], []
    for processes in (1, 2):
        for file in answered.glob("*.parquet"): file.unlink()
        said.append(json.loads(run(folders[1], processes, "evaluate")))
        frames.append(pd.concat(pd.read_parquet(answered/f"{name}.parquet") for name in ("base", "lora-r16-seed42")))
    assert said[0] == said[1] and len(frames[0])
    pd.testing.assert_frame_equal(frames[0], frames[1], atol=0.02)  # other batches, other rounding of confidences under bf16
