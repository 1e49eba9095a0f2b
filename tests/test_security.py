"Nothing that comes from outside is run, and nothing of this machine goes out."
import ast
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CODE = sorted((ROOT/"docvlm").rglob("*.py"))
NOTEBOOKS = sorted((ROOT/"nbs").rglob("*.ipynb"))
FORBIDDEN = {  # calls, by what they would let in
    "runs text": {"eval", "exec", "compile", "os.system", "os.popen", "subprocess.getoutput", "pd.eval"},
    "unpickles": {"pickle.load", "pickle.loads", "torch.load", "joblib.load", "dill.load", "dill.loads", "pd.read_pickle", "marshal.loads", "shelve.open"},
    "builds any object": {"yaml.load", "yaml.unsafe_load", "yaml.full_load"},
    "unpacks an archive": {"shutil.unpack_archive", "zipfile.ZipFile"},
}
SECRETS = re.compile(r"hf_[A-Za-z0-9]{30,}|sk-[A-Za-z0-9_-]{20,}|AKIA[0-9A-Z]{16}|gh[pousr]_[A-Za-z0-9]{30,}|xox[bap]-[\w-]{20,}"
                     r"|-----BEGIN [A-Z ]*PRIVATE KEY|wandb_[A-Za-z0-9]{20,}|(?i:api_key|password|secret)[\"']?\s*[:=]\s*[\"'][^\"'{$]{8,}[\"']")
PLACES = re.compile(r"(?<![\w.\-/])/(?:home|root|Users|work|tmp|mnt|srv|opt|var)/[\w.\-]+|[A-Z]:\\\\Users\\\\|\b[\w.+-]+@(?!users\.noreply)[\w-]+\.internal\b")


def cells(path): return json.loads(path.read_text(encoding="utf-8"))["cells"]


def sources():
    yield from ((path.name, path.read_text(encoding="utf-8")) for path in CODE)
    for path in NOTEBOOKS:
        code = "\n".join("".join(cell["source"]) for cell in cells(path) if cell["cell_type"] == "code")
        yield path.name, re.sub(r"^[%!].*$", "", code, flags=re.M)


def harm(source):
    "What a piece of Python would let in."
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            yield from (f"{name} {why}" for why, names in FORBIDDEN.items() if name in names)
            if re.search(r"(?<!\.str)\.extract(all)?$", name) and not any(
                keyword.arg == "filter" and ast.unparse(keyword.value) == "'data'" for keyword in node.keywords):
                yield f"{name} unpacks an archive to any place"
            for keyword in node.keywords:
                value = ast.unparse(keyword.value)
                if keyword.arg == "trust_remote_code" and value != "False": yield f"{name} runs code from the hub"
                if keyword.arg == "shell" and value != "False": yield f"{name} goes through a shell"
                if keyword.arg == "allow_pickle" and value != "False": yield f"{name} unpickles"
                if keyword.arg == "autoescape" and value == "False": yield f"{name} does not escape HTML"
                if keyword.arg == "host" and "0.0.0.0" in value: yield f"{name} listens to everybody"
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            names = {alias.name for alias in node.names} | {getattr(node, "module", None)}
            yield from (f"imports {name}" for name in names & {"pickle", "cPickle", "dill", "shelve", "marshal", "joblib", "cloudpickle"})


@pytest.mark.parametrize("name, source", sources(), ids=lambda value: value if len(value) < 40 else "")
def test_nothing_from_outside_is_run(name, source): assert not list(harm(source))


@pytest.mark.parametrize("source", ["eval(x)", "import pickle", "from joblib import load", "torch.load(p)", "f(trust_remote_code=True)",
                                    "subprocess.run(x, shell=True)", "np.load(p, allow_pickle=True)", "Environment(autoescape=False)",
                                    "zipfile.ZipFile(p)", "tar.extractall(p)", "tarfile.open(p).extract(m, filter='fully_trusted')", "serve(host='0.0.0.0')"])
def test_the_search_finds(source): assert list(harm(source))


def published():
    "Every text that leaves the machine: results, notebooks with outputs, figures, the report, the README."
    for folder, suffixes in (("data/results", (".json",)), ("data", (".csv", ".md")), ("data/nano", (".json", ".md", ".jinja")), ("nbs", (".ipynb",)), ("docvlm", (".py",)),
                             ("figures", (".svg", ".json")), ("paper", (".html", ".md", ".bib", ".typ", ".j2", ".css"))):
        pattern = "*" if folder == "data" else "**/*"
        yield from (path for path in sorted((ROOT/folder).glob(pattern)) if path.suffix in suffixes)
    yield from (ROOT/name for name in ("README.md", "settings.ini", "environment.yml", "Makefile", "requirements.lock", ".dockerignore"))


@pytest.mark.parametrize("path", published(), ids=lambda path: str(path.relative_to(ROOT)))
def test_no_secret_and_no_place_of_this_machine_goes_out(path):
    text = re.sub(r"base64,[A-Za-z0-9+/=\\n]+", "", path.read_text(encoding="utf-8"))  # pictures
    assert not (found := SECRETS.search(text)), f"a secret: {found[0][:12]}…"
    if path.suffix == ".ipynb": text = json.dumps([cell.get("outputs", []) for cell in cells(path)])
    if path.suffix != ".py": assert not (found := PLACES.search(text)), f"a place: {text[max(0, found.start() - 60):found.end() + 30]}"


@pytest.mark.parametrize("text", ["hf_" + "a"*34, "sk-" + "a"*40, '"api_key": "abcdefgh1"', "-----BEGIN RSA PRIVATE KEY"])
def test_a_secret_is_found(text): assert SECRETS.search(text)


@pytest.mark.parametrize("text", ["see /home/me/x", '"/work/main"', "in /root/.cache", "(/tmp/x)"])
def test_a_place_is_found(text): assert PLACES.search(text)


def test_picture_limits_hold_whoever_opens_them():
    from docvlm.inputs.images import FORMATS, MAX_PIXELS
    from PIL import Image, PngImagePlugin
    assert MAX_PIXELS <= 2*Image.MAX_IMAGE_PIXELS, "Pillow refuses from twice its limit on"
    assert PngImagePlugin.MAX_TEXT_CHUNK <= 2**20
    assert not {"EPS", "PDF", "SVG", "WMF"} & set(FORMATS), "formats that run programs or fetch"


@pytest.fixture(scope="module")
def tiny():
    "A study's base with a small adapter, and the adapter's files."
    from docvlm.presets import get_preset
    from docvlm.model import add_lora, load_base
    preset = get_preset("smoke")
    return preset, add_lora(load_base(preset, "fp32", "cpu"), preset, 2, 0)


def saved(tiny, folder):
    tiny[1].save_pretrained(folder)
    return folder


def opened(tiny, folder):
    from docvlm.model import load_adapter, load_base
    return load_adapter(load_base(tiny[0], "fp32", "cpu"), folder)


def test_an_adapter_is_read_back(tiny, tmp_path):
    import torch
    model = opened(tiny, saved(tiny, tmp_path))
    before, after = (dict(m.named_parameters()) for m in (tiny[1], model))
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("damage, message", [
    (lambda weights: weights.popitem(), "lacks"),
    (lambda weights: weights.update(extra=next(iter(weights.values())).clone()), "unknown"),
    (lambda weights: weights.update({name: value[:, :1].contiguous() for name, value in weights.items()}), "shape"),
    (lambda weights: weights.update({name: value*float("nan") for name, value in weights.items()}), "not finite")],
    ids=["tensor missing", "tensor unknown", "wrong shape", "not a number"])
def test_an_adapter_of_other_tensors_is_refused(tiny, tmp_path, damage, message):
    from docvlm.files import StudyError
    from safetensors.torch import load_file, save_file
    path = saved(tiny, tmp_path)/"adapter_model.safetensors"
    weights = load_file(path)
    damage(weights)
    save_file(weights, path)
    with pytest.raises(StudyError, match=message): opened(tiny, tmp_path)


def test_an_adapter_or_base_in_pickle_is_refused(tiny, tmp_path):
    import shutil
    import torch
    from dataclasses import replace
    from docvlm.files import StudyError
    from docvlm.model import load_base
    saved(tiny, tmp_path/"adapter")
    (tmp_path/"adapter"/"adapter_model.safetensors").unlink()
    torch.save({}, tmp_path/"adapter"/"adapter_model.bin")
    with pytest.raises(StudyError, match="adapter_model.safetensors"): opened(tiny, tmp_path/"adapter")
    shutil.copytree(ROOT/tiny[0].base, tmp_path/"base", ignore=shutil.ignore_patterns("*.safetensors"))
    torch.save({}, tmp_path/"base"/"pytorch_model.bin")
    with pytest.raises(StudyError, match="safetensors"): load_base(replace(tiny[0], base=str(tmp_path/"base")), "fp32", "cpu")


def test_damaged_adapter_files_are_named(tiny, tmp_path):
    from docvlm.files import StudyError
    saved(tiny, tmp_path)
    path = tmp_path/"adapter_model.safetensors"
    whole = path.read_bytes()
    for content in (b"", whole[:100], b"\xff"*64, whole[:len(whole)//2]):
        path.write_bytes(content)
        with pytest.raises(StudyError, match="adapter_model.safetensors"): opened(tiny, tmp_path)
