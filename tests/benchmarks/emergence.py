"""Competence over training: texts of independent skills, of skills that keep to a topic, and the probes' example English.

python -m tests.benchmarks.emergence FOLDER

Models take minutes each. They and the reports are kept in FOLDER: a second run goes on where the first was stopped, and only
prints when everything is there. The last lines are the time of 1,000 sentences, one model, and the adversary's figures.
"""

import sys
import time
from dataclasses import replace
from pathlib import Path

from pcfg.learning.pretraining import pretrain
from pcfg.learning.pretraining_recipe import PretrainRecipe
from probes.emergence import CompetenceReport, independent_skills, measure_competence, simulate, tangled_skills
from probes.emergence.grammars import SKILL_RULES
from probes.example import example_grammar, example_recipe

KEPT, MEASURED = 10, 1000


def runs():
    """Name, grammar, recipe and rules of each training."""
    skills = PretrainRecipe(layers=2, heads=4, width=64, sentences=80_000, batch_size=32, rate=3e-3, evaluation=300)
    yield "independent", independent_skills(30, 6, zipf=0.7), skills, [SKILL_RULES]
    longer = replace(skills, sentences=120_000, batch_size=64)
    yield "tangled", tangled_skills(15, 6, topics=3, zipf=0.7), longer, [SKILL_RULES]
    yield "english", example_grammar(), replace(example_recipe(), sentences=70_000, evaluation=300), None


def measured(folder, name, grammar, recipe, rules):
    """The report of a training, made unless it is there."""
    model, report = folder / name, folder / f"{name}-report"
    if not model.exists():
        pretrain(grammar, recipe, keep=KEPT, device="cpu", resume=folder / f"{name}.partial").save(model)
    if not report.exists():
        length = min(16, recipe.max_length)
        measure_competence(model, grammar, MEASURED, rules=rules, max_length=length, device="cpu").save(report)
    return CompetenceReport.load(report)


def main(folder):
    folder.mkdir(parents=True, exist_ok=True)
    for name, grammar, recipe, rules in runs():
        report = measured(folder, name, grammar, recipe, rules)
        print(f"\n{name}: {len(report.rules)} rules ranked, {len(report.rare)} rare, halves {report.last.halves:.2f}")
        for found in report.last.explanations:
            print(f"  {found.target}: R2 {found.r2.value:.2f}, by the number of rules {found.count_r2.value:.2f}")
        for point in report.theory.points:
            theorem = "none" if point.theorem is None else f"{point.theorem:.2f}"
            print(
                f"  alpha {point.alpha}: model {point.model:.2f}, worst {point.worst:.2f} to {point.worst_bound:.2f}, "
                f"independent {point.independent:.2f}, theorem {theorem}"
            )
        for row in report.comparisons:
            d = row.difference
            print(
                f"  {row.name} ({row.excess.value:.3f}) {row.kind}, {row.failure}: {row.before.value:.3f} before, pairs "
                f"{row.pairs.value:.3f}, difference {d.value:+.3f} [{d.low:+.3f}, {d.high:+.3f}] {row.verdict}"
            )
    began, spent = time.monotonic(), time.process_time()
    measure_competence(folder / "english", example_grammar(), MEASURED, max_length=16, training=False, device="cpu")
    print(f"\n1,000 sentences: {time.monotonic() - began:.0f} s, {time.process_time() - spent:.0f} s of the processor")
    for line in simulate(1000, 20_000, 8).summary:
        print(line)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
