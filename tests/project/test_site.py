"""`make docs`: the site is whole, without a warning, and needs nothing from elsewhere. Skipped where the extra `docs` isn't installed."""

import os
import re
import subprocess
import sys

import pytest

from tests.support.pages import ROOT

for needed in ("zensical", "mkdocstrings_handlers.python", "nbconvert"):
    pytest.importorskip(needed, reason="needs the extra docs: pip install -e '.[docs]'")

FOLDER = f"docs-{os.environ.get('PYTEST_XDIST_WORKER', 'tested')}"  # tests of one process don't clear another's site
SITE = ROOT / "build" / FOLDER / "site"


@pytest.fixture(scope="module")
def built():
    return subprocess.run([sys.executable, "docs/build.py", FOLDER], cwd=ROOT, capture_output=True, text=True)


def test_it_is_built_without_a_warning(built):
    assert built.returncode == 0, built.stdout + built.stderr
    assert "No issues found" in built.stdout + built.stderr
    assert "griffe:" not in built.stdout + built.stderr


def test_every_public_name_has_its_documentation(built):
    for face in (
        "surgery",
        "surgery.tasks",
        "surgery.grafting",
        "surgery.unlearning",
        "surgery.tint",
        "surgery.evaluating",
        "surgery.mezo",
        "surgery.selecting",
        "surgery.sync",
        "pcfg",
        "probes",
        "probes.emergence",
    ):
        page = (SITE / "reference" / f"{face}.html").read_text()
        for name in __import__(face, fromlist=["__all__"]).__all__:
            assert re.search(rf'<h2 id="[\w.]+\.{name}"', page), f"{face}.{name}"


def test_pages_bring_their_pictures_styles_and_scripts_along(built):
    for page in SITE.rglob("*.html"):
        for source in re.findall(r'<(?:img|script|link)[^>]*?(?:src|href)="([^"#]+)"', page.read_text()):
            assert not re.match(r"https?:|//", source), f"{page.name}: {source}"
            assert page.name == "404.html" or (page.parent / source.partition("?")[0]).exists(), (
                f"{page.name}: {source}"
            )
