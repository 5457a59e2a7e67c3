"""A grammar worked by hand, sentences of it and a small treebank, and how commands are called on them."""

RULES = """
S -> NP VP [1.0]
NP -> Det N [0.6] | NP PP [0.2] | 'her' [0.1] | 'stars' [0.1]
VP -> V NP [0.7] | VP PP [0.3]
PP -> P NP [1.0]
Det -> 'the' [0.7] | 'a' [0.3]
N -> 'man' [0.5] | 'dog' [0.3] | 'telescope' [0.2]
V -> 'saw' [1.0]
P -> 'with' [1.0]
"""
# With which attachment: VP -> VP PP and VP -> V NP either way, and one of .3 (the verb's) or .2 (the noun's) on top.
SENTENCE = "her saw the dog with stars"
VERB = "(S (NP her) (VP (VP (V saw) (NP (Det the) (N dog))) (PP (P with) (NP stars))))"
WEIGHT = 0.1 * 0.7 * (0.6 * 0.7 * 0.3) * 0.1  # her, VP -> V NP, the dog, stars
TEXT = f"{SENTENCE}\nsaw her\n\nher saw stars\nher\n"
TREES = """
( (S (NP-SBJ (DT The) (NN dog)) (VP (VBZ sees) (NP (PRP it)) (ADVP (RB now))) (. .)) )
( (S (NP-SBJ (PRP It)) (VP (VBZ sees) (NP (DT the) (NN dog))
     (NP (-NONE- *T*-1))) (. .)) )
( (S (NP (NP (DT The) (NN dog)) (PP (IN of) (NP (DT the) (NN man)))) (VP (VBZ barks)) (. .)) )
"""


def sample(work, out, *more):
    return ("sample", work / "toy.txt", "-n", 500, "--max-length", 12, "--seed", 3, "-o", work / out, *more)


def lines(folder, part, kind):
    return [line for file in sorted(folder.glob(f"{part}*.{kind}")) for line in file.read_text().splitlines()]
