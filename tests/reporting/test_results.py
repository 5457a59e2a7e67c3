"""The contract of results: what every one of them offers, whoever writes the next."""

import dataclasses
import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

from surgery.errors import MissingPackageError
from surgery.reporting.results import Result

ROOT = Path(__file__).resolve().parents[2]


@dataclasses.dataclass(frozen=True)
class Planted(Result):
    """A result whose fields are long, in one line and in number."""

    sentence: str
    count: int = 3
    huge: tuple = tuple(range(100_000))

    @property
    def summary(self):
        return [self.sentence, "And a second <sentence>."]

    def table(self):
        return ["name", "value"], [[f"<row {i}>", i / 3] for i in range(self.count)]

    def save(self, folder, *, overwrite=False):
        return Path(folder)

    @classmethod
    def load(cls, folder):
        return cls("loaded")


def test_repr_is_one_line_with_the_answer():
    assert repr(Planted("The answer is 42.")) == "<Planted: The answer is 42.>"
    assert repr(Planted("Two\nlines  of it.")) == "<Planted: Two lines of it.>"
    long = repr(Planted("word " * 100))
    assert len(long) <= 200
    assert long.startswith("<Planted: word word")
    assert long.endswith("word ...>")
    whole = Planted("x" * (200 - len("<Planted: >")))
    assert len(repr(whole)) == 200
    assert "..." not in repr(whole)


def test_slots_and_further_subclasses_keep_the_repr():
    @dataclasses.dataclass(frozen=True, slots=True)
    class Slotted(Planted):
        more: int = 1

    assert repr(Slotted("Short.")) == "<Slotted: Short.>"


def test_a_notebook_shows_the_summary_and_the_table():
    shown = Planted("The <answer>.")._repr_html_()
    assert "The &lt;answer&gt;." in shown
    assert "&lt;row 2&gt;" in shown
    assert "<details>" not in shown
    long = Planted("s", count=1000)._repr_html_()
    assert "<details>" in long
    assert "800 more rows" in long
    assert len(long) < 50_000
    assert "more rows" not in Planted("s", count=200)._repr_html_()


def test_to_pandas_or_a_word_on_how_to_get_it(monkeypatch):
    pandas = pytest.importorskip("pandas")
    frame = Planted("s").to_pandas()
    assert list(frame.columns) == ["name", "value"]
    assert frame["value"].sum() == pytest.approx(1)
    assert isinstance(frame, pandas.DataFrame)
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(MissingPackageError, match=r"needs the package pandas: pip install pandas$"):
        Planted("s").to_pandas()


def results(base=Result):
    """Every public subclass; `_private` ones are bases that several share."""
    for kind in base.__subclasses__():
        if kind.__module__.split(".")[0] in ("surgery", "pcfg", "probes") and not kind.__name__.startswith("_"):
            yield kind
        yield from results(kind)


def test_every_result_of_the_packages_keeps_the_contract():
    for file in sorted(path for package in ("surgery", "pcfg", "probes") for path in (ROOT / package).rglob("*.py")):
        if "Result" in file.read_text():
            importlib.import_module(".".join(file.relative_to(ROOT).with_suffix("").parts))
    kinds = list(results())
    assert {"ProbeReport", "Bottleneck"} <= {kind.__name__ for kind in kinds}
    for kind in kinds:
        assert kind.__repr__ is Result.__repr__, f"{kind} has a repr of its own"
        assert not inspect.isabstract(kind), f"{kind} lacks {kind.__abstractmethods__}"
        assert dataclasses.is_dataclass(kind) and kind.__dataclass_params__.frozen, f"{kind} isn't a frozen dataclass"
        assert isinstance(inspect.getattr_static(kind, "summary"), property), f"{kind}.summary isn't a property"


def test_the_contract_costs_no_heavy_import():
    code = "import sys, surgery.reporting.results; print([n for n in ('torch', 'numpy', 'pandas', 'matplotlib') if n in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert run.stdout.strip() == "[]"
