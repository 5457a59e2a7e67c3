"""Run the notebooks of `examples` and keep what they show, small enough for a repository.

python docs/notebooks.py [NAME]...        # all of them take two minutes; needs the extra `dev`
"""

import base64
import io
import sys
import sysconfig
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from PIL import Image

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
HERE = f"{sysconfig.get_path('purelib')}/"  # where packages lie on the machine that ran them is nobody's business
COLOURS = 32  # of a figure; lines and text need no more, and the file is a third as large


def run(notebook: Any) -> Any:
    """Run a notebook's cells where the repository's packages are found, and return it with their outputs."""
    NotebookClient(notebook, timeout=600, kernel_name="python3").execute(cwd=str(EXAMPLES.parent))
    return notebook


def shrink(notebook: Any) -> Any:
    """Drop what cells write to stderr, the times they ran at and this machine's paths, and redraw figures in few colours."""
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type != "code":
            continue
        cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
        for output in cell.outputs:
            for kind, text in output.get("data", {}).items():
                output.data[kind] = text.replace(HERE, "") if isinstance(text, str) else text
            if "image/png" in output.get("data", {}):
                output.data["image/png"] = _fewer_colours(output.data["image/png"])
    return notebook


def _fewer_colours(encoded: str) -> str:
    image = Image.open(io.BytesIO(base64.b64decode(encoded))).convert("RGB")
    file = io.BytesIO()
    image.quantize(COLOURS, dither=Image.Dither.NONE).save(file, "png", optimize=True)
    return base64.b64encode(file.getvalue()).decode()


if __name__ == "__main__":
    for file in sorted(EXAMPLES.glob("*.ipynb")):
        if len(sys.argv) == 1 or file.stem in sys.argv[1:]:
            print(file.name, flush=True)
            nbformat.write(shrink(run(nbformat.read(file, as_version=4))), file)
