"""Every notebook runs in JupyterLab as it is: cell by cell through a Jupyter server. Slow; after `make study`: `make notebooks`.

With PRESET=smoke the notebooks of the steps get that preset, as from papermill, after their cell of parameters."""
import asyncio
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
import uuid
from pathlib import Path

import pytest
from tornado.websocket import websocket_connect

from docvlm.core import open_study
from docvlm.steps import SEPARATE_STEPS, STEPS

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted(path.relative_to(ROOT / "nbs").with_suffix("").as_posix() for path in (ROOT / "nbs").rglob("*.ipynb")
                   if ".ipynb_checkpoints" not in path.parts)
LONGEST_CELL_S = 3600
PRESET = os.environ.get("PRESET", "nano")
STEP_NOTEBOOKS = {notebook for notebook, *_ in (STEPS | SEPARATE_STEPS).values()}
pytestmark = pytest.mark.slow


class Server:
    "JupyterLab as `make lab` starts it, on a port and with a token of its own."
    def __init__(self, folder):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port, self.token = free.getsockname()[1], uuid.uuid4().hex
        private = {f"JUPYTER_{name}_DIR": str(folder / name) for name in ("CONFIG", "RUNTIME")}
        self.log = (folder / "log").open("w")
        self.process = subprocess.Popen(
            [Path(sys.executable).parent / "jupyter-lab", "--no-browser", f"--port={self.port}", "--ServerApp.port_retries=0",
             f"--ServerApp.root_dir={ROOT}", f"--IdentityProvider.token={self.token}", *["--allow-root"] * (os.geteuid() == 0), "nbs/index.ipynb"],
            cwd=ROOT, env=os.environ | private, stdout=self.log, stderr=subprocess.STDOUT)

    def call(self, path, body=None, method=None):
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}/{path}", json.dumps(body).encode() if body else None,
                                         {"Authorization": f"token {self.token}"}, method=method or ("POST" if body else "GET"))
        with urllib.request.urlopen(request, timeout=120) as reply: return reply.read()

    def wait(self, limit_s=180):
        end = time.monotonic() + limit_s
        while True:
            assert self.process.poll() is None, f"JupyterLab ended, see {self.log.name}"
            try: return self.call("api/status")
            except OSError:
                assert time.monotonic() < end, f"JupyterLab does not answer, see {self.log.name}"
                time.sleep(.5)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    started = Server(tmp_path_factory.mktemp("jupyter"))
    try:
        started.wait()
        yield started
    finally:
        started.process.terminate()
        started.process.wait(60)
        started.log.close()


def test_lab_serves(server):
    assert b"<title>JupyterLab</title>" in server.call("lab")
    listed = {item["name"] for item in json.loads(server.call("api/contents/nbs"))["content"]}
    assert {f"{name}.ipynb" for name in NOTEBOOKS if "/" not in name} <= listed


async def run_cells(server, kernel, cells):
    "The first error, as (cell number, what it says), or None."
    url = f"ws://127.0.0.1:{server.port}/api/kernels/{kernel}/channels?token={server.token}"
    channels = await websocket_connect(url, connect_timeout=120, max_message_size=2**30)
    for number, code in cells:
        header = {"msg_id": uuid.uuid4().hex, "msg_type": "execute_request", "session": "test", "username": "test", "version": "5.3"}
        content = {"code": code, "silent": False, "store_history": True, "user_expressions": {}, "allow_stdin": False, "stop_on_error": True}
        await channels.write_message(json.dumps({"channel": "shell", "header": header, "parent_header": {}, "metadata": {}, "content": content}))
        while True:
            raw = await asyncio.wait_for(channels.read_message(), LONGEST_CELL_S)
            assert raw is not None, f"the kernel's connection was closed in cell {number}"
            if isinstance(raw, bytes): continue  # buffers of widgets
            message = json.loads(raw)
            if message["msg_type"] == "execute_reply" and message["parent_header"].get("msg_id") == header["msg_id"]: break
        if message["content"]["status"] != "ok": return number, f"{message['content'].get('ename')}: {message['content'].get('evalue')}"


@pytest.fixture(scope="module")
def study():
    "Up to date, so that no notebook trains anew."
    states = {step: open_study(PRESET).step(step).state() for step in STEPS}
    assert set(states.values()) == {"fresh"}, f"run `make study PRESET={PRESET}` first: {states}"


@pytest.mark.parametrize("name", NOTEBOOKS)
@pytest.mark.usefixtures("study")
def test_notebook(server, name):
    cells = json.loads(server.call(f"api/contents/nbs/{name}.ipynb"))["content"]["cells"]
    code = []
    for number, cell in enumerate(cells):
        if cell["cell_type"] != "code": continue
        code.append((number, cell["source"]))
        if name in STEP_NOTEBOOKS and "parameters" in cell["metadata"].get("tags", []): code.append((number, f"preset = {PRESET!r}"))
    session = json.loads(server.call("api/sessions", {"path": f"nbs/{name}.ipynb", "name": name, "type": "notebook", "kernel": {"name": "python3"}}))
    try: assert asyncio.run(run_cells(server, session["kernel"]["id"], code)) is None
    finally: server.call(f"api/sessions/{session['id']}", method="DELETE")
