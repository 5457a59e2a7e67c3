"""Bottlenecks, erasers and reports of verification, each file with its checksum."""

import contextlib
import json
from dataclasses import replace

import numpy as np
from safetensors.numpy import load, save

from surgery.errors import SurgeryError
from tests.support.fuzzing.formats import Format


def bottleneck(values="sgd"):
    from surgery.unlearning import Bottleneck
    from surgery.unlearning.features.rows import Rows
    from surgery.unlearning.values import Sgd

    rng = np.random.default_rng(0)
    features, labels = rng.normal(size=(40, 6)).astype(np.float32), [f"c{i % 3}" for i in range(40)]
    more = (
        {"sgd": Sgd(epochs=1)}
        if values == "sgd"
        else {"keys_from": Rows.of(rng.normal(size=(20, 6)).astype(np.float32))}
    )
    return Bottleneck.fit_rows(
        Rows.of(features, labels), codebooks=4, keys=5, key_dim=3, values=values, device="cpu", **more
    )


class Checked(Format):
    """Files of bottlenecks and erasers, which carry a checksum each."""

    def mutate(self, rng):
        ((name, raw),) = super().mutate(rng).items()
        if rng.random() < 0.8:
            with contextlib.suppress(Exception):
                raw = self.summed(name, raw)
        return {name: raw}

    def summed(self, name, raw):
        from surgery.unlearning.storage import _table_checksum, hash_arrays

        if name.endswith(".json"):
            table = json.loads(raw)
            table.pop("checksum", None)
            return json.dumps({**table, "checksum": _table_checksum(table)}).encode()
        arrays = load(raw)
        return save(arrays, {"checksum": hash_arrays(arrays).hexdigest()})


class Bottlenecks(Checked):
    values = "sgd"

    def make(self):
        from surgery.unlearning import unlearn

        whole = bottleneck(self.values)
        edited = unlearn(
            whole, forget=["c1"], method="activations" if self.values == "sgd" else "counts", device="cpu"
        ).apply(whole)
        edited.save(self.folder)
        self.encoder = {
            "source": "a/b",
            "kind": "text",
            "pooling": "mean",
            "width": 6,
            "max_length": None,
            "dtype": "float32",
            "fingerprint": 64 * "0",
        }
        replace(edited, encoder=self.encoder).write(self.folder) if self.values == "sgd" else None

    def use(self):
        from cli.bottleneck import show
        from surgery.unlearning import Bottleneck
        from surgery.unlearning.card import bottleneck_card

        loaded = Bottleneck.load(self.folder)
        bottleneck_card(loaded.facts)
        loaded.predict(np.ones((2, 6), np.float32))
        show(self.folder, json=True)
        show(self.folder, json=False)


class Counted(Bottlenecks):
    values = "counts"


class Erasers(Checked):
    def make(self):
        from surgery.unlearning import unlearn

        unlearn(bottleneck(), forget=["c1"], method="activations", device="cpu").save(self.folder)

    def summed(self, name, raw):
        from surgery.unlearning.storage import hash_arrays

        other = {**self.sound, name: raw}
        report, arrays = json.loads(other["report.json"]), load(other["eraser.safetensors"])
        content = {key: report[key] for key in ("edit", "bottleneck", "previous")}
        report["hash"] = hash_arrays(arrays, json.dumps(content, sort_keys=True).encode()).hexdigest()
        self.extra = {"report.json": super().summed("report.json", json.dumps(report).encode())}
        return self.extra["report.json"] if name == "report.json" else super().summed(name, raw)

    def mutate(self, rng):
        self.extra = {}
        found = super().mutate(rng)
        return {**self.extra, **found}

    def use(self):
        from cli.bottleneck import show
        from surgery.unlearning import Eraser
        from surgery.unlearning.card import eraser_card

        eraser = Eraser.load(self.folder)
        eraser_card(eraser.content)
        repr(eraser)
        show(self.folder, json=True)
        show(self.folder, json=False)
        whole = bottleneck()
        with contextlib.suppress(SurgeryError):
            eraser.apply(replace(whole))
        forged = replace(eraser, bottleneck=whole.fingerprint)  # as an eraser that was forged for this very bottleneck
        forged.undo(forged.apply(whole))


class VerifyReports(Checked):
    def make(self):
        from surgery.unlearning import unlearn, verify
        from surgery.unlearning.features.rows import Rows

        whole = bottleneck()
        eraser = unlearn(whole, forget=["c1"], method="activations", device="cpu")
        rng = np.random.default_rng(1)
        rows = Rows.of(rng.normal(size=(30, 6)).astype(np.float32), [f"c{i % 3}" for i in range(30)])
        verify(whole, eraser, rows, device="cpu").save(self.folder, figures=False)

    def use(self):
        from surgery.unlearning import Report

        report = Report.load(self.folder)
        report.markdown()
