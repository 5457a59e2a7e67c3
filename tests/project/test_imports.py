"""Which way packages may point, and what must not be imported early."""

import ast
import importlib
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("surgery", "probes", "pcfg", "cli")
# Package -> what of the project it may import; a longer prefix narrows it.
ALLOWED = {
    "cli": ("cli", "probes", "surgery", "pcfg"),
    "probes": (
        "probes",
        "pcfg",
        "surgery.checkpoints.checkpoint",
        "surgery.tasks",
        "surgery.errors",
        "surgery.faces",
        "surgery.files",
        "surgery.jsonfile",
        "surgery.locks",
        "surgery.reporting",
        "surgery.progress",
        "surgery.provenance",
        "surgery.quiet",
        "surgery.resuming",
        "surgery.sync",
    ),
    # What makes files appear whole, holds them against other runs, reads JSON, picks a device, adds up memory and goes on
    # after a kill is written once; none of it knows of checkpoints.
    "pcfg": (
        "pcfg",
        "surgery.compiling",
        "surgery.devices",
        "surgery.files",
        "surgery.jsonfile",
        "surgery.locks",
        "surgery.errors",
        "surgery.memory",
        "surgery.progress",
        "surgery.provenance",
        "surgery.quiet",
        "surgery.reporting",
        "surgery.resuming",
        "surgery.sync",
    ),
    "surgery": ("surgery",),
}
METHODS = (
    "surgery.grafting",
    "surgery.unlearning",
    "surgery.tint",
    "surgery.mezo",
    "surgery.evaluating",
    "surgery.selecting",
)


def imports():
    for package in PACKAGES:
        for file in sorted((ROOT / package).rglob("*.py")):
            module = ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.ImportFrom):
                    assert node.level == 0, f"{file}: relative imports hide where they point"
                    # `from surgery.tasks import task` may name a module: both readings must be allowed.
                    yield module, [node.module]
                elif isinstance(node, ast.Import):
                    yield module, [alias.name for alias in node.names]


def inside(name, prefix):
    return name == prefix or name.startswith(f"{prefix}.")


def test_packages_point_one_way():
    seen = set()
    for module, names in imports():
        if module == "surgery.__main__":  # the command by its module's name, which the command's package can't hold
            assert names == ["cli.main"]
            continue
        for name in names:
            if name.split(".")[0] in PACKAGES:
                seen.add((module.split(".")[0], name.split(".")[0]))
                assert any(inside(name, prefix) for prefix in ALLOWED[module.split(".")[0]]), f"{module} imports {name}"
    assert ("cli", "surgery") in seen


def test_methods_do_not_import_each_other_nor_does_the_foundation_import_them():
    for module, names in imports():
        if module == "surgery":
            continue  # the package's own face names them all
        for name in names:
            for method in METHODS:
                if inside(name, method):
                    assert inside(module, method) or inside(module, "cli"), f"{module} imports {name}"


def test_only_one_module_imports_matplotlib_and_one_rich():
    found = {(module, name.split(".")[0]) for module, names in imports() for name in names}
    assert {module for module, name in found if name == "matplotlib"} == {"surgery.reporting.figures"}
    assert {module for module, name in found if name == "rich"} == {"cli.render"}


@pytest.mark.parametrize(
    "statement",
    [
        "import surgery",
        "import surgery.unlearning",
        "import surgery.tint",
        "import surgery.mezo",
        "import surgery.evaluating",
        "import surgery.selecting",
        "import surgery.sync",
        "import pcfg",
        "import probes",
        "import probes.emergence",
        "import cli.main",
    ],
)
def test_heavy_libraries_wait_until_they_are_needed(statement):
    code = f"import sys; {statement}; print([n for n in ('torch', 'transformers', 'matplotlib', 'datasets', 'sklearn', 'numpy', 'numba', 'nltk') if n in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert run.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "package",
    [
        "surgery",
        "surgery.checkpoints",
        "surgery.tasks",
        "surgery.tuning",
        "surgery.grafting",
        "surgery.unlearning",
        "surgery.tint",
        "surgery.mezo",
        "surgery.evaluating",
        "surgery.selecting",
        "surgery.sync",
        "pcfg",
        "probes",
        "probes.emergence",
    ],
)
def test_every_name_of_the_face_is_there(package):
    face = importlib.import_module(package)
    assert sorted(face._HOMES) == sorted(face.__all__)
    for name in face.__all__:
        assert getattr(face, name).__name__ == name
        # Importing a module of that name would put the module where the face has its name.
        assert importlib.util.find_spec(f"{package}.{name}") is None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        face.nonsense  # noqa: B018
    assert set(face.__all__) <= set(dir(face))


def test_the_command_is_a_module_too_and_says_its_version():
    import surgery

    assert re.fullmatch(r"\d+\.\d+\.\d+.*", surgery.__version__)
    run = subprocess.run([sys.executable, "-m", "surgery", "--version"], capture_output=True, text=True, cwd=ROOT)
    assert run.stdout.strip() == surgery.__version__
