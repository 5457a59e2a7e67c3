"""Grammars, rules, trees, and what stopped estimation, sampling and pretraining leave."""

import contextlib

from tests.support.fuzzing.formats import Format

BANK = ["(S (NP (DT the) (NN dog)) (VP (VB sees) (NP (DT a) (NN cat))))", "(S (NP (NN fish)) (VP (VB sees)))"] * 3
RULES = """% start S
S -> NP VP [0.5] | VP [0.5]
NP -> 'the' N [0.75] | N [0.25]
N -> 'dog' [0.5] | 'cat' [0.25] | 'New York' [0.25]
VP -> 'sees' [0.5] | 'sees' NP [0.25] | X [0.25]
X -> 'a' 'fish' 'the' [1.0]
"""


class Grammars(Format):
    def make(self):
        from pcfg.grammars.grammar import Grammar
        from pcfg.treebanks.trees import Tree

        trees = [Tree.parse(line) for line in BANK]
        Grammar.from_trees(trees).save(self.folder / "trees.json")
        Grammar.from_trees(trees, smooth_lexicon=False).save(self.folder / "plain.json")
        Grammar.from_text(RULES).save(self.folder / "rules.json")

    def use(self):
        from pcfg.grammars.grammar import Grammar
        from pcfg.inference.chart import inside_outside
        from pcfg.sampling.sampler import sample

        for name in self.changed:
            grammar = Grammar.load(self.folder / name)
            inside_outside(grammar, [["the", "dog", "sees"], ["a"]], device="cpu").best_trees()
            sample(grammar, 2, seed=0, max_length=6)
            grammar.to_text()


class Rules(Grammars):
    def make(self):
        (self.folder / "rules.txt").write_text(RULES)

    def use(self):
        from cli.grammars import load_grammar
        from pcfg.inference.chart import inside_outside

        grammar = load_grammar(self.folder / "rules.txt")
        inside_outside(grammar, [["the", "dog", "sees"]], device="cpu").best_trees()
        grammar.to_text()


class Trees(Format):
    def make(self):
        (self.folder / "trees.mrg").write_text(
            "\n".join([*BANK, "( (S (NP-SBJ-1 (-NONE- *T*-1)) (VP (VB run) (. .))))"])
        )

    def use(self):
        from pcfg.grammars.grammar import Grammar
        from pcfg.treebanks.cleaning import clean_trees
        from pcfg.treebanks.evalb import score_labelled, score_unlabelled
        from pcfg.treebanks.trees import read_trees

        trees = read_trees(self.folder / "trees.mrg")
        Grammar.from_trees(trees)
        cleaned = clean_trees(trees)
        score_labelled(cleaned, cleaned)
        score_unlabelled(cleaned, cleaned)


class FitStates(Format):
    def setup(self):
        from pcfg.grammars.grammar import Grammar

        self.grammar = Grammar.from_text(RULES.replace("New York", "York"))
        self.sentences = [["the", "dog", "sees"], ["a", "fish", "the"], ["cat", "sees", "the", "cat"]]

    def make(self):
        from pcfg.learning.resumable_fit import fit_file

        self.setup()

        def stop(done, value):
            if done == 2:
                raise KeyboardInterrupt

        with contextlib.suppress(KeyboardInterrupt):
            fit_file(self.grammar, self.sentences, 4, self.folder / "fitted.json", on_round=stop)

    def use(self):
        from pcfg.learning.resumable_fit import fit_file

        fit_file(self.grammar, self.sentences, 4, self.folder / "fitted.json")


class CorpusStates(FitStates):
    def mutable(self, name):
        return name.endswith(("report.json", "call.json"))

    def make(self):
        from pcfg.sampling.corpus import write_corpus

        self.setup()

        def stop(done, total, text):
            if done:
                raise KeyboardInterrupt

        with contextlib.suppress(KeyboardInterrupt):
            write_corpus(self.grammar, self.folder / "corpus", 4, seed=0, max_length=6, shard_size=2, progress=stop)

    def use(self):
        from pcfg.sampling.corpus import write_corpus

        write_corpus(self.grammar, self.folder / "corpus", 4, seed=0, max_length=6, shard_size=2)


class PretrainStates(Format):
    def make(self):
        from pcfg.grammars.grammar import Grammar
        from pcfg.grammars.random_grammar import random_arrays  # noqa: F401
        from pcfg.learning.pretraining import PretrainRecipe, pretrain

        self.grammar = Grammar.from_text("S -> A B [1.0]\nA -> 'a' [0.5] | 'b' [0.5]\nB -> 'c' [0.5] | 'd' [0.5]")
        self.recipe = PretrainRecipe(
            layers=1, heads=1, width=8, sentences=64, max_length=4, batch_size=16, evaluation=8
        )

        def stop(done, total, text):
            if done == 2:
                raise KeyboardInterrupt

        with contextlib.suppress(KeyboardInterrupt):
            pretrain(self.grammar, self.recipe, device="cpu", resume=self.folder, progress=stop)

    def use(self):
        from pcfg.learning.pretraining import pretrain

        pretrain(self.grammar, self.recipe, device="cpu", resume=self.folder)
