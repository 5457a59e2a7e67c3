"""A sweep that was stopped goes on from the last number of weights that was located."""

import pytest
import torch
from safetensors.torch import save_file

from surgery.grafting import localization
from surgery.grafting.localization import graft
from surgery.grafting.regions import kept_region
from surgery.resuming import StateError
from tests.support.tiny import perturb
from tests.tuning.test_tuning import task


def test_a_stopped_sweep_goes_on_to_the_same_skill(tiny, tmp_path, monkeypatch):
    perturb(tiny("gpt2"), tmp_path / "tuned", count=200)
    real, located = localization.locate, []

    def locate(method, grafted, evidence, k, **options):
        located.append(k)
        if len(located) == 3:
            raise KeyboardInterrupt
        return real(method, grafted, evidence, k, **options)

    def run(**options):
        pair = tiny("gpt2"), tmp_path / "tuned"
        return graft(*pair, task(), weights=40, sweep=[0.001, 0.01], seed=1, device="cpu", **options)

    whole = run()
    monkeypatch.setattr(localization, "locate", locate)
    with pytest.raises(KeyboardInterrupt):
        run(resume=tmp_path / "state")
    again = run(resume=tmp_path / "state")
    assert located == [*sorted(located[:3]), located[2]]  # the third alone is located again
    assert again.delta.to_bytes() == whole.delta.to_bytes()
    figures = [[{**point, "seconds": 0} for point in skill.report["points"]] for skill in (whole, again)]
    assert figures[0] == figures[1]
    with pytest.raises(StateError, match="is the state of another run"):
        graft(tiny("gpt2"), tmp_path / "tuned", task(), weights=41, device="cpu", resume=tmp_path / "state")


@pytest.mark.parametrize(
    "chosen", [[0.5], [[1]], [1, 1], [-1], [10], []], ids=["floats", "table", "twice", "below", "above", "none"]
)
def test_a_region_that_no_one_located_here_is_refused(tmp_path, chosen):
    kept_region(tmp_path / "3.safetensors", 10, lambda: torch.tensor([9, 0, 4]))
    found, seconds = kept_region(tmp_path / "3.safetensors", 10, lambda: pytest.fail("located again"))
    assert found.tolist() == [9, 0, 4] and seconds >= 0
    tensor = torch.tensor(chosen) if chosen else torch.tensor([], dtype=torch.int64)
    save_file({"chosen": tensor}, tmp_path / "3.safetensors", metadata={"seconds": "0.5"})
    with pytest.raises(StateError, match="can't be read"):
        kept_region(tmp_path / "3.safetensors", 10, lambda: pytest.fail("located again"))
