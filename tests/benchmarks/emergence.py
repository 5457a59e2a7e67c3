"""All figures of the page of emergence: competence over training, a skill never seen, drawn graphs, the theory's chain, times.

python -m tests.benchmarks.emergence FOLDER [PART]... [--seeds 0,1,2]

Texts of independent skills, of skills that keep to a topic, and the probes' example English. Models take a minute each; every seed has
texts and a model of its own. They and the reports are kept in FOLDER: a second run goes on where the first was stopped, and only prints
what is there. The page's figures are `independent-0-report/training.png` and `english-0-report/rules.png`.
"""

import argparse
import time
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from pcfg import Grammar
from pcfg.learning.pretraining import Pretrained, pretrain
from pcfg.learning.pretraining_recipe import PretrainRecipe
from pcfg.treebanks.cleaning import clean_trees
from pcfg.treebanks.nltk_sample import nltk_treebank
from probes.emergence import CompetenceReport, independent_skills, measure_competence, simulate, tangled_skills
from probes.emergence.example import MISSING, run_example
from probes.emergence.grammars import SKILL_RULES
from probes.emergence.theory import most_failures, scaling_excess
from probes.example import example_grammar, example_recipe

SKILLS = PretrainRecipe(layers=2, heads=4, width=64, sentences=80_000, batch_size=32, rate=3e-3, evaluation=300)


@dataclass(frozen=True)
class Run:
    """A training with checkpoints on the way, and the texts that it is measured on."""

    grammar: Grammar
    recipe: PretrainRecipe
    kept: int = 10
    texts: int = 1000
    rules: tuple[str, ...] | None = (SKILL_RULES,)


RUNS = {
    "independent": lambda: Run(independent_skills(30, 6, zipf=0.7), SKILLS),
    "tangled": lambda: Run(
        tangled_skills(15, 6, topics=3, zipf=0.7),
        replace(SKILLS, sentences=120_000, batch_size=64),
        kept=24,  # it stands still for long and then learns at once: fewer would leave two checkpoints to compare
        texts=600,
    ),
    "english": lambda: Run(example_grammar(), replace(example_recipe(), sentences=70_000, evaluation=300), rules=None),
}


def training(folder, kind, seed):
    """The report of a run, made unless it is there; and what it says."""
    name = f"{kind}-{seed}"
    run, model, report = RUNS[kind](), folder / name, folder / f"{name}-report"
    spent = time.process_time()
    if not model.exists():
        partial = folder / f"{name}.partial"
        pretrain(run.grammar, run.recipe, keep=run.kept, seed=seed, device="cpu", resume=partial).save(model)
        print(f"{name}: trained in {time.process_time() - spent:.0f} s of the processor")
    spent = time.process_time()
    if not report.exists():
        length = min(16, run.recipe.max_length)
        found = measure_competence(
            model, run.grammar, run.texts, rules=run.rules, seed=seed, max_length=length, device="cpu"
        )
        found.save(report)
        print(f"{name}: {len(found.measured)} models measured in {time.process_time() - spent:.0f} s of the processor")
    show(name, CompetenceReport.load(report))
    return CompetenceReport.load(report).comparisons


def over_seeds(kind, runs):
    """Corollary 13 over all seeds: at how many checkpoints pairs do better or worse, and by how much at least and at most."""
    print(f"\n{kind}, pairs less single skills at twice the excess, {len(runs)} seeds:")
    for failure in ("soft", "hard"):
        for way in ("mean", "worst", "apart"):
            rows = [row for run in runs for row in run if (row.failure, row.kind) == (failure, way)]
            by = [row.difference.value for row in rows]
            verdicts = ", ".join(f"{n} {verdict}" for verdict, n in Counter(row.verdict for row in rows).items())
            print(f"  {failure} {way}: {min(by):+.3f} to {max(by):+.3f} at {len(rows)} checkpoints: {verdicts}")


def show(name, report):
    """The lines of a report that the page tells."""
    print(f"\n{name}: {report.settings['sentences']:,} texts, {report.masks:,} masks, optimum {report.optimum:.3f}")
    print(f"  excess {' '.join(f'{m.excess.value:.3f}' for m in report.measured[:-1])} {told(report.last.excess)}")
    print(f"  {len(report.rules)} rules ranked, {len(report.rare)} rare, halves {report.last.halves:.2f}")
    for rule in (*report.rules[:4], report.rules[-1]):
        print(f"  {rule.rules[0]}: {told(rule.failure)}, {rule.texts} texts")
    by_texts, third = sorted(report.rules, key=lambda rule: rule.texts), len(report.rules) // 3
    rarest, commonest = ([rule.failure.value for rule in some] for some in (by_texts[:third], by_texts[-third:]))
    print(f"  the rarest third fail {np.mean(rarest):.3f} on average, the commonest {np.mean(commonest):.3f}")
    for found in report.last.explanations:
        print(f"  {found.target}: R2 {told(found.r2)}, by the number of rules {told(found.count_r2)}")
        print("   ", ", ".join(f"{rule} {value:+.1f}" for rule, value in found.coefficients[:3]))
    print(f"  theta {report.theory.theta:.3f}, {report.theory.k:.1f} different rules a text")
    for point in report.theory.points:
        theorem = "none" if point.theorem is None else f"{point.theorem:.2f}"
        print(
            f"  alpha {point.alpha}: model {point.model:.2f}, worst {point.worst:.2f} to {point.worst_bound:.2f}, "
            f"independent {point.independent:.2f}, theorem {theorem}"
        )
    for row in report.comparisons:
        print(
            f"  {row.name} ({row.excess.value:.3f}) {row.kind}, {row.failure}: {row.before.value:.3f} before, pairs "
            f"{row.pairs.value:.3f}, difference {told(row.difference, '+')} {row.verdict}"
        )


def told(rate, sign=""):
    """A number with its interval."""
    return f"{rate.value:{sign}.3f} [{rate.low:{sign}.3f}, {rate.high:{sign}.3f}]"


def planted(folder):
    """The embedded example: the skill that its model never saw among all others."""
    if not (folder / "planted").exists():
        spent = time.process_time()
        run_example(folder / "planted", device="cpu")
        print(f"planted: trained and measured in {time.process_time() - spent:.0f} s of the processor")
    rules = CompetenceReport.load(folder / "planted" / "report").rules
    place = [rule.rules[0] for rule in rules].index(MISSING) + 1
    mean = np.mean([rule.failure.value for rule in rules])
    print(
        f"\n{MISSING} is number {place} of {len(rules)}: {told(rules[0].failure)}, {told(rules[1].failure)}, mean {mean:.3f}"
    )


def drawn():
    """An adversary on drawn graphs, of skills that are all alike and of Zipf's."""
    for zipf in (0.0, 1.0):
        print(f"\nzipf {zipf}:", simulate(1000, 20_000, 8, zipf=zipf).points[0])


def chain():
    """What the theory says of models of natural language: a cloze question fails by twice total variation at most."""
    for weights, tokens in ((70e9, 1.4e12), (7e9, 1.4e11)):
        excess = scaling_excess(weights, tokens)
        print(
            f"\n{weights:.0e} weights, {tokens:.1e} tokens: excess {excess:.3f}, theta {2 * most_failures(excess):.2f}"
        )


def times(folder):
    """1,000 sentences: the example's English, and a model of the default size on a treebank's grammar (barely trained)."""
    sizes = {"english": (example_grammar, replace(example_recipe(), sentences=6400, evaluation=20), 16)}
    sizes["treebank"] = (treebank, PretrainRecipe(sentences=640, evaluation=20), 40)
    for name, (made, recipe, length) in sizes.items():
        model, grammar = folder / f"times-{name}", made()
        if not model.exists():
            pretrain(grammar, recipe, device="cpu").save(model)
        began, spent = time.monotonic(), time.process_time()
        report = measure_competence(Pretrained.load(model), grammar, 1000, max_length=length, device="cpu")
        with TemporaryDirectory() as there:
            report.save(Path(there) / "report")
        print(
            f"\n1,000 sentences of {name} ({len(grammar.words):,} words, {report.masks:,} masks): {time.monotonic() - began:.0f} s, "
            f"{time.process_time() - spent:.0f} s of the processor"
        )


def treebank():
    """Of NLTK's sample, as `surgery pcfg induce` reads it."""
    return Grammar.from_trees(clean_trees(nltk_treebank()[:3414]))


def main():
    parts = {"planted": planted, "drawn": lambda folder: drawn(), "chain": lambda folder: chain(), "times": times}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join([*RUNS, *parts])}; default: all")
    parser.add_argument("--seeds", default="0,1,2", help="of independent, tangled and english")
    options = parser.parse_args()
    if unknown := set(options.parts) - {*RUNS, *parts}:
        parser.error(f"no part is named {', '.join(sorted(unknown))}")
    options.folder.mkdir(parents=True, exist_ok=True)
    for part in options.parts or (*RUNS, *parts):
        if part in RUNS:
            over_seeds(part, [training(options.folder, part, int(seed)) for seed in options.seeds.split(",")])
        else:
            parts[part](options.folder)


if __name__ == "__main__":
    main()
