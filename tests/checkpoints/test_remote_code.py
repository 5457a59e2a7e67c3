"""Code that a model folder brings along is never run, whatever the terminal answers."""

import ast
import json
import shutil
from pathlib import Path

import pytest
import transformers

from surgery import Checkpoint, graft, score, tune
from surgery.checkpoints.models import load_tokenizer
from surgery.errors import SurgeryError
from surgery.tint import count
from surgery.unlearning import Encoder
from tests.checkpoints.test_refusals import rename_architecture
from tests.checkpoints.test_structure import configure
from tests.support.tiny import perturb
from tests.tuning.test_tuning import task

ROOT = Path(__file__).resolve().parents[2]
TRAP = """
from pathlib import Path
Path({marker!r}).touch()
from transformers import BertConfig, BertForMaskedLM, BertTokenizerFast
class TrapConfig(BertConfig):
    model_type = "trap"
class TrapModel(BertForMaskedLM):
    config_class = TrapConfig
class TrapTokenizer(BertTokenizerFast):
    pass
def generate(model, **kwargs):
    pass
"""
CODE = {
    "AutoConfig": "trap.TrapConfig",
    "AutoModel": "trap.TrapModel",
    "AutoModelForMaskedLM": "trap.TrapModel",
    "AutoModelForCausalLM": "trap.TrapModel",
    "AutoModelForSequenceClassification": "trap.TrapModel",
    "AutoTokenizer": ["trap.TrapTokenizer", "trap.TrapTokenizer"],
    "AutoImageProcessor": "trap.TrapTokenizer",
    "AutoProcessor": "trap.TrapTokenizer",
}


def calls():
    """Every call in the packages and the examples, with the file and line it stands at."""
    for folder in ("surgery", "probes", "pcfg", "cli", "examples"):
        for file in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call):
                    yield f"{file.relative_to(ROOT)}:{node.lineno}", node


def keyword(node, name):
    return next((k.value.value for k in node.keywords if k.arg == name and isinstance(k.value, ast.Constant)), None)


def test_every_loader_says_that_no_code_is_run():
    found = []
    for place, node in calls():
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if name in ("from_pretrained", "from_config"):
            found.append(place)
            assert keyword(node, "trust_remote_code") is False, f"{place}: {name} without trust_remote_code=False"
        if name == "load" and ast.unparse(node.func) == "torch.load":
            assert keyword(node, "weights_only") is True, f"{place}: torch.load without weights_only=True"
        assert name != "pipeline" and keyword(node, "allow_pickle") is not True, place
        assert keyword(node, "trust_remote_code") is not True, place
        assert ast.unparse(node.func) not in ("pickle.load", "pickle.loads", "joblib.load", "eval", "exec"), place
    assert {place.partition(":")[0] for place in found} >= {
        "surgery/checkpoints/models.py",
        "surgery/checkpoints/structure.py",
        "surgery/unlearning/features/encoders.py",
        "probes/loading.py",
    }


LOADERS = {
    "structure": lambda folder: Checkpoint(folder).block_weights(),
    "tokenizer": lambda folder: load_tokenizer(Checkpoint(folder)),
    "score": lambda folder: score(folder, task(), device="cpu"),
    "tune": lambda folder: tune(folder, task(), device="cpu"),
    "graft": lambda folder: graft(folder, folder.parent / "tuned", task(), weights=5, device="cpu"),
    "encoder": lambda folder: Encoder.open(folder, device="cpu"),
    "probe": lambda folder: probed(folder),
    "untrained probe": lambda folder: probed(folder, untrained=0),
    "tint": lambda folder: count(folder),
}


def probed(folder, **options):
    from probes import ProbedModel

    return ProbedModel.load(folder, device="cpu", **options)


@pytest.fixture
def trapped(copied, tmp_path, monkeypatch):
    """`trapped(kind)`: a model folder whose every loader could run code, a terminal that says yes, and a marker."""
    marker = tmp_path / "ran"
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))

    def get(kind):
        folder = copied(kind)
        (folder / "trap.py").write_text(TRAP.format(marker=str(marker)))
        (folder / "custom_generate").mkdir()
        (folder / "custom_generate" / "generate.py").write_text(TRAP.format(marker=str(marker)))
        for file in ("config.json", "tokenizer_config.json"):
            content = json.loads((folder / file).read_text())
            (folder / file).write_text(json.dumps({**content, "auto_map": CODE}))
        (folder / "preprocessor_config.json").write_text(json.dumps({"auto_map": CODE}))
        return folder, marker

    return get


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("known", [True, False], ids=["transformers has it too", "its own"])
def test_no_loader_runs_it(trapped, tmp_path, kind, loader, known):
    folder, marker = trapped(kind)
    if not known:
        rename_architecture(folder, "TrapModel", "trap")
        content = json.loads((folder / "tokenizer_config.json").read_text())
        (folder / "tokenizer_config.json").write_text(json.dumps({**content, "tokenizer_class": "TrapTokenizer"}))
    if loader == "graft":
        perturb(folder, tmp_path / "tuned") if known else shutil.copytree(folder, tmp_path / "tuned")
    try:
        LOADERS[loader](folder)
    except SurgeryError as error:
        assert "trust_remote_code" not in str(error) and "\n" not in str(error)
    assert not marker.exists()


def test_the_trap_works(trapped):
    folder, marker = trapped("bert")
    transformers.AutoConfig.from_pretrained(folder, trust_remote_code=True)
    assert marker.exists()


@pytest.mark.parametrize("field", ["attn_implementation", "_attn_implementation", "experts_implementation"])
@pytest.mark.parametrize("loader", ["structure", "score", "encoder", "probe"])
def test_attention_from_the_hub_is_not_fetched(copied, field, loader, monkeypatch):
    folder = copied("bert")
    configure(folder, **{field: "someone/kernel"})
    fetched = []
    monkeypatch.setattr("transformers.modeling_utils.lazy_import_flash_attention", lambda *a, **k: fetched.append(a))
    with pytest.raises(
        SurgeryError, match=rf"asks for code from the hub \({field}: someone/kernel\), .*: delete {field}"
    ):
        LOADERS[loader](folder)
    assert not fetched
