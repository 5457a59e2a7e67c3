"""Reports of probes, and what a stopped probe leaves."""

import math
from dataclasses import asdict

from surgery.files import replace_json
from tests.support.fuzzing.formats import Format


class ProbeReports(Format):
    def mutable(self, name):
        return name == "report.json"

    def make(self):
        from pcfg.treebanks.trees import Tree
        from probes import probe_trees
        from tests.support.tiny import build

        base = build("bert", self.folder.parent / "probe-base")
        nouns = ["cat", "dog", "fox", "hen"]
        trees = [
            Tree.parse(f"(S (NP-SBJ (DT the) (NN {a})) (VP (VBZ {v}) (NP (DT a) (NN {b}))) (. .))")
            for a in nouns
            for b in nouns
            for v in ("sees", "bites")
        ]
        probe_trees(base, trees, layers=[1], seeds=1, device="cpu").save(self.folder)

    def use(self):
        from cli.probe import _show
        from probes.report import ProbeReport

        report = ProbeReport.load(self.folder)
        report.to_json()
        report.check()
        _show(report, self.folder, json=False)
        _show(report, self.folder, json=True)


class ProbeStates(Format):
    def make(self):
        from probes.intervals import Measure

        measure = Measure("depth", "model", 1, "f1", "", 0.5, 0.4, 0.6, (0.5, 0.5))
        replace_json(self.folder / "model-1.json", [asdict(measure)] * 3)

    def use(self):
        from probes.intervals import Measure
        from surgery.resuming import read_state

        for measure in read_state(self.folder / "model-1.json", list[Measure]):
            assert math.isfinite(measure.value), measure
