"""Build the site of the repository's pages, its notebooks and the reference of its public names: python docs/build.py [FOLDER, in build/].

Pages lie where their code is, so they are first copied to build/docs/pages by the paths they have; links between them, and to the
pictures, work there as they do in the repository. A link that leads nowhere stops the build. Needs the extra `docs`.
"""

import importlib
import re
import shutil
import subprocess
import sys
from inspect import getdoc
from pathlib import Path

import nbconvert

ROOT = Path(__file__).resolve().parent.parent
PROJECT = ROOT / "build" / (sys.argv[1] if len(sys.argv) > 1 else "docs")
# The public faces: what can be imported from them is what a reader may rely on.
FACES = (
    "surgery",
    "surgery.checkpoints",
    "surgery.tasks",
    "surgery.tuning",
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
)


def stage(pages: Path) -> None:
    """Copy and write all that the site is made of into a folder."""
    beside_code = [page for package in ("surgery", "pcfg", "probes") for page in (ROOT / package).rglob("README.md")]
    texts = [*ROOT.glob("*.md"), *beside_code]
    for file in [*texts, *(ROOT / "examples").glob("*.png")]:
        target = pages / file.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)
    for notebook in (ROOT / "examples").glob("*.ipynb"):
        _write_notebook(notebook, pages / "examples")
    for text in pages.rglob("*.md"):
        text.write_text(re.sub(r"(\]\([^)\s]*)\.ipynb\)", r"\1.md)", text.read_text()))
    (pages / "reference").mkdir()
    for face in FACES:
        (pages / "reference" / f"{face}.md").write_text(_reference(face))


def _write_notebook(notebook: Path, folder: Path) -> None:
    """A notebook as a page, and the figures it shows as files beside it."""
    resources = {"output_files_dir": notebook.stem, "unique_key": notebook.stem}
    text, resources = nbconvert.MarkdownExporter().from_filename(str(notebook), resources=resources)
    (folder / f"{notebook.stem}.md").write_text(text)
    (folder / notebook.stem).mkdir(exist_ok=True)
    for name, picture in resources["outputs"].items():
        (folder / name).write_bytes(picture)


def _reference(face: str) -> str:
    """A page with the documentation of every name of a public face, each read where it is defined."""
    module = importlib.import_module(face)
    names = [getattr(module, name) for name in module.__all__]
    about = (getdoc(module) or "").split("\n\n")[0]
    listed = "\n\n".join(f"::: {name.__module__}.{name.__qualname__}" for name in names)
    return f"# {face}\n\n{about}\n\n```python\nfrom {face} import {', '.join(module.__all__)}\n```\n\n{listed}\n"


def main() -> int:
    """Build the site anew, in build/docs/site where no other folder is given; return zensical's exit status."""
    shutil.rmtree(PROJECT, ignore_errors=True)
    stage(PROJECT / "pages")
    shutil.copyfile(ROOT / "docs" / "zensical.toml", PROJECT / "zensical.toml")
    return subprocess.run([sys.executable, "-m", "zensical", "build", "--strict"], cwd=PROJECT).returncode


if __name__ == "__main__":
    sys.exit(main())
