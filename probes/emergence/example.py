"""The embedded example: a small model trained without one skill, measured over its training."""

from collections.abc import Callable
from pathlib import Path

from pcfg.devices import Device
from probes.emergence.grammars import SKILL_RULES, independent_skills, without_rule
from probes.emergence.measuring import measure_competence
from probes.emergence.report import CompetenceReport
from surgery.files import check_output, new_folder
from surgery.progress import Progress, silent

FOLDER = "surgery-emergence-example"
SKILLS, DRAWN, MISSING = 24, 5, "P -> U9 V9"
_SENTENCES, _MEASURED, _KEPT = 80_000, 600, 6


def run_example(
    output: Path | None = None,
    *,
    overwrite: bool = False,
    device: Device | None = None,
    seed: int = 0,
    say: Callable[[str], None] = print,
    progress: Progress = silent,
) -> tuple[CompetenceReport, Path]:
    """Train a small model on a grammar without one skill, and measure it on the grammar with all of them.

    An earlier run's folder of the default name is replaced. Returns the report and the folder, which holds the model too.
    """
    from pcfg.learning.pretraining import pretrain
    from pcfg.learning.pretraining_recipe import PretrainRecipe

    folder = output or Path(FOLDER)
    overwrite = overwrite or output is None
    check_output(folder, overwrite=overwrite, replaces="mlm")
    grammar = independent_skills(SKILLS, DRAWN, zipf=0.7)
    recipe = PretrainRecipe(
        layers=2,
        heads=4,
        width=64,
        sentences=_SENTENCES,
        max_length=2 * DRAWN,
        batch_size=32,
        rate=3e-3,
        evaluation=200,
    )
    say(f"1. A model of 2 layers, 64 wide, learns from {_SENTENCES:,} texts of {DRAWN} skills, none of them {MISSING}")
    trained = pretrain(without_rule(grammar, MISSING), recipe, keep=_KEPT, seed=seed, device=device, progress=progress)
    say(
        f"2. It and {_KEPT} checkpoints on the way against the exact posterior, on {_MEASURED} texts with all {SKILLS} skills"
    )
    report = measure_competence(
        trained, grammar, _MEASURED, rules=[SKILL_RULES], seed=seed, device=device, progress=progress
    )
    place = [rule.rules[0] for rule in report.rules].index(MISSING) + 1
    say(f"3. {MISSING}, which it never saw, is number {place} of {len(report.rules)} by failure\n")
    with new_folder(folder, overwrite=overwrite, replaces="mlm") as staged:
        trained.save(staged / "mlm")
        grammar.save(staged / "skills.pcfg.json")
        report.save(staged / "report")
    return report, folder
