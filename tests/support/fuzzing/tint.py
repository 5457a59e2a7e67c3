"""Runs and verifications of TinT, and what a stopped run leaves."""

from tests.support.fuzzing.formats import Format


def tint_model(folder):
    from tests.support.tiny import build

    return build("llama", folder)


class TintRuns(Format):
    def make(self):
        from surgery.tint import run_text

        base = tint_model(self.folder.parent / "tint-base")
        text = self.folder.parent / "text.txt"
        text.write_text("the film was good and the food was bad . " * 20)
        run = run_text(
            base,
            text,
            window=16,
            windows=3,
            dev_windows=1,
            lr=[1e-3, 1e-2],
            methods=("frozen", "TinT exact"),
            device="cpu",
        )
        run.save(self.folder)

    def use(self):
        from surgery.tint import Run

        run = Run.load(self.folder)
        run.markdown()
        for point in run.points:
            run.value(point["method"], point.get("share"))


class TintVerifications(Format):
    def make(self):
        from surgery.tint import verify

        verify(tint_model(self.folder.parent / "tint-verified"), sweep=False, device="cpu").save(self.folder)

    def use(self):
        from surgery.tint import Verification

        found = Verification.load(self.folder)
        found.markdown()


class TintStates(Format):
    def make(self):
        from surgery.resuming import Memo, resumable

        with resumable(self.folder, {"call": 1}) as state:
            known = Memo(state / "figures.jsonl")
            for key in ("a", "b", "c"):
                known.get((key, 0.5), lambda: [1.0, 2.0])

    def use(self):
        from surgery.resuming import Memo, resumable

        with resumable(self.folder, {"call": 1}) as state:
            known = Memo(state / "figures.jsonl")
            for key in ("a", "b", "c"):
                assert known.get((key, 0.5), lambda: [1.0, 2.0]) == [1.0, 2.0]
