"""Reports of probes, and what a stopped probe leaves."""

import math

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
        from probes.page import write_pages
        from probes.report import ProbeReport

        report = ProbeReport.load(self.folder)
        report.to_json()
        write_pages(report, [])
        _show(report, self.folder, json=False)
        _show(report, self.folder, json=True)


class ProbeStates(Format):
    def make(self):
        from probes.experiment import _keep
        from probes.intervals import Measure

        _keep(self.folder / "model-1.json", [Measure("depth", "model", 1, "f1", "", 0.5, 0.4, 0.6, (0.5, 0.5))] * 3)

    def use(self):
        from probes.experiment import _kept

        for measure in _kept(self.folder / "model-1.json"):
            assert math.isfinite(measure.value), measure
