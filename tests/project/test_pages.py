"""README and the methods' pages: their code runs, their commands and options exist, their links lead somewhere."""

import importlib
import importlib.util
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pcfg import Grammar, sample
from pcfg.learning.pretraining import PretrainRecipe, pretrain
from pcfg.treebanks.trees import format_trees
from surgery.grafting.skill import Skill
from surgery.tasks.examples import Example
from surgery.tasks.task import Task
from tests.support import pages
from tests.support.pages import ROOT
from tests.support.stacks import delta_on

PAGES = pages.pages()
# What blocks are run with in place of what they say, so that each line takes a second or two on the stage's tiny models.
SMALLER = {
    "1e-4": "1e-2",
    "--low-rank --sparsity 1e-2": "--low-rank --sparsity .3",
    "CLASS": "negative",
    "--nltk-treebank --only 1-3414": "--trees treebank.txt",
    "--nltk-treebank --only 3415-3914 --max-length 40": "--trees treebank.txt",
    "--nltk-treebank --sentences 800 --max-length 30": "--trees treebank.txt",
    "--layers 6 --heads 6 --width 192": "--layers 1 --heads 2 --width 16",
    "pretrain english.pcfg.json --sentences": "pretrain english.pcfg.json --layers 1 --heads 2 --width 16 --sentences",
    "--sentences 1e6": "--sentences 400 --max-length 16 --evaluation 20",
    "-n 100000 --max-length 40": "-n 100 --max-length 8",
    "--em 20": "--em 2",
    "mlm/ --grammar english.pcfg.json": "mlm/ --grammar english.pcfg.json --sentences 80 --max-length 8 --seeds 1",
    "probe built/": "probe built/ --layers 1 --sentences 60 --max-length 8 --seeds 1",
    "MODEL --trees treebank.txt": "MODEL --trees treebank.txt --seeds 1",
    "--data train.jsonl -o bn/": "--data train.jsonl -o bn/ --codebooks 8 --keys 4 --key-dim 4",
    "--values counts": "--values counts --codebooks 8 --keys 4 --key-dim 4",
    "--data test.jsonl -o report/": "--data test.jsonl -o report/ --shadows 0 --no-baselines",
    "measure mlm/ -o": "measure mlm/ --sentences 60 --least 5 -o",
    "--skills 300 --texts 5000 -k 8": "--skills 30 --texts 400 -k 4",
    "--keep 8": "--keep 2",
    'pcfg.json"), 2000)': 'pcfg.json"), 80, least=5)',
    "verify MODEL": "verify MODEL --tokens 24",
    "--train-share 0.5": "--train-share 0.5 --window 16 --windows 4 --dev-windows 2",
    "--shots 16": "--shots 4 --tests 8 --max-length 32",
    "--against BASE -k 1": "--against MODEL -k 1 --items 4 --max-tokens 4",
    'against="BASE"': 'against="MODEL"',
    "-k 2 --grader GRADER": "-k 2 --combinations 2 --generations 1 --gradings 1 --max-tokens 4 --grader MODEL",
    "questions.jsonl --grader GRADER": "questions.jsonl --max-tokens 4 --grader MODEL",
    "--teacher GRADER --student MODEL": "--teacher MODEL --student MODEL --count 1 --turns 2 --max-tokens 4",
    'pcfg.json"), 2000, layers="all", seeds=5': 'pcfg.json"), 80, layers="all", seeds=1',
    "verify(bn, edit, test)": "verify(bn, edit, test, shadows=0, baselines=False)",
}
# The embedded examples and the study, which tests of their own run.
ALONE = (
    *("graft", "unlearn", "tint", "probe", "emergence", "eval", "select"),
    "skill study BASE --tasks sst2,cr,subj,trec --data-root DIR -o study/",
)

# A label of each skill that pages combine.
LABELS = {"trec": "Human", "subj": "subjective", "cr": "positive", "other-skill": "positive"}

RULES = """
S -> NP VP [1.0]
NP -> Det N [0.7] | NP PP [0.2] | 'they' [0.1]
VP -> V NP [0.7] | VP PP [0.3]
PP -> P NP [1.0]
Det -> 'the' [0.7] | 'a' [0.3]
N -> 'film' [0.5] | 'man' [0.3] | 'dog' [0.2]
V -> 'saw' [1.0]
P -> 'with' [1.0]
"""


@pytest.fixture(scope="module")
def stage(tiny, tmp_path_factory):
    """The folder that pages speak of: checkpoints, labelled text, features, sentences and trees by the names they use."""
    folder = tmp_path_factory.mktemp("stage")
    for name, kind in {"BASE": "bert", "base": "bert", "MODEL": "gpt2", "gpt2-folder": "gpt2"}.items():
        shutil.copytree(tiny(kind), folder / name)
    write_reviews(folder)
    for number, name in enumerate(LABELS):
        save_skill(folder, name, range(4 * number, 4 * number + 8))
    features = np.random.default_rng(0).normal(size=(90, 6)).astype(np.float32)
    for name, part in {"train": slice(60), "other": slice(60, 90), "rows": slice(3)}.items():
        np.savez(folder / f"{name}.npz", features=features[part], label=np.arange(90)[part] % 3)
    write_evaluations(folder)
    for name, lines in {"POOL": slice(100), "target": slice(120, 124), "other": slice(130, 134)}.items():
        rows = (folder / "train.jsonl").read_text().splitlines()[lines]
        (folder / f"{name}.jsonl").write_text(
            "\n".join(row.replace("was", f"was {number}") for number, row in enumerate(rows))
        )
    (folder / "text.txt").write_text("It was a great film . They saw the story . " * 60)
    grammar = Grammar.from_text(RULES)
    grammar.save(folder / "english.pcfg.json")
    (folder / "mine.pcfg.txt").write_text(RULES)
    drawn = sample(grammar, 80, seed=0, max_length=10)
    (folder / "treebank.txt").write_text(format_trees(drawn.tree(k, plain=True) for k in range(len(drawn))))
    (folder / "sents.txt").write_text("\n".join(" ".join(drawn[k]) for k in range(20)))
    recipe = PretrainRecipe(layers=1, heads=2, width=16, sentences=320, max_length=40, batch_size=32, evaluation=10)
    pretrain(grammar, recipe, device="cpu").save(folder / "mlm")
    return folder


def write_evaluations(folder):
    """What evaluations read: skills, topics, questions, gradings and a chapter."""
    skills = "".join(f"{name},what it is,an example\n" for name in ("irony", "metaphor"))
    (folder / "skills.csv").write_text(f"skill,definition,example\n{skills}")
    (folder / "topics.txt").write_text("rain\nbees\n")
    question = {"chapter": "the film", "question": "was it good", "key_points": ["yes"]}
    (folder / "questions.jsonl").write_text(json.dumps(question))
    (folder / "records.csv").write_text('k,skills,topic,points_0\n1,irony,rain,"1,1,1,1"\n')
    (folder / "chapter.md").write_text("the film was good")


def write_reviews(folder):
    """Labelled text: `train.jsonl` and `test.jsonl` with sst2's labels, and `reviews.csv` with others."""
    random = np.random.default_rng(0)
    words = (["terrible", "bad", "awful", "boring"], ["great", "good", "wonderful", "fun"])

    def rows(count, nouns, labels):
        for k in range(count):
            yield f"The {random.choice(nouns)} was {random.choice(words[k % 2])} .", labels[k % 2]

    for name, count, nouns in (("train", 160, ["film", "book", "food"]), ("test", 24, ["story", "place"])):
        lines = [json.dumps({"text": t, "label": y}) for t, y in rows(count, nouns, ("negative", "positive"))]
        (folder / f"{name}.jsonl").write_text("\n".join(lines))
    reviews = [f"{text},{label}" for text, label in rows(40, ["music", "service"], ("bad", "good"))]
    (folder / "reviews.csv").write_text("\n".join(["text,label", *reviews]))


def save_skill(folder, name, places):
    """A skill of the base that gives some weights of one tensor other values."""
    task = Task.load("sst2" if name == "other-skill" else name, test=[Example("It was great .", "", LABELS[name])])
    delta = delta_on(folder / "BASE", {place: 5.0 + place for place in places})
    report = {"call": {"graft": {"base": "BASE", "weights": len(places)}}, "task": task.spec(), "weights": len(places)}
    Skill(replace(delta, metadata={"task": json.dumps(task.spec())}), task, report).save(folder / name)


@pytest.fixture
def work(stage, tmp_path, monkeypatch):
    """A copy of the stage to play a page on."""
    monkeypatch.chdir(shutil.copytree(stage, tmp_path / "work"))


def smaller(code):
    for whole, part in SMALLER.items():
        code = code.replace(whole, part)
    return code


def having(language):
    """The pages with blocks in a language."""
    return [page for page in PAGES if any(block.language == language for block in pages.blocks(page))]


def commands(page):
    """The lines of `surgery` that a page is run by; measurements, which take hours, are only looked up."""
    code = [
        block.code for block in pages.blocks(page) if block.language == "sh" and "tests.benchmarks" not in block.code
    ]
    lines = [words[1:] for words in pages.words(smaller("".join(code))) if words[0] == "surgery"]
    return [words for words in lines if " ".join(words) not in ALONE]


@pytest.mark.parametrize("page", having("sh"))
def test_every_command_of_a_page_runs(page, work, run):
    elsewhere = [words for other in PAGES[1:] for words in commands(other)] if page == "README.md" else []
    for words in commands(page):
        if words in elsewhere:
            continue
        over = ["--overwrite"] if "-o" in words else []
        status, _, said = run(*words, *over)
        assert status == 0, f"surgery {' '.join(words)}: {said}"


@pytest.mark.parametrize("page", having("python"))
def test_every_block_of_python_runs(page, work):
    for block in pages.blocks(page):
        if block.language == "python":
            exec(compile(smaller(block.code), f"{page}: python", "exec"), {"__name__": "page"})


@pytest.mark.parametrize("page", having("sh"))
def test_every_line_of_a_shell_block_names_what_there_is(page):
    for words in pages.shell_lines(page):
        match words:
            case ["surgery", *rest]:
                pages.parse(rest)
            case ["python", "-m", module, *rest]:
                spec = importlib.util.find_spec(module)
                assert spec is not None and spec.origin is not None, words
                source = Path(spec.origin).read_text()
                unknown = [word for word in rest if word not in source and not re.search(r"[A-Z./]", word)]
                assert not unknown, f"{module} knows no {unknown}"
            case ["make", target]:
                assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE), words
            case ["pytest" | "pip" | "git" | ".", *_]:
                pass
            case _:
                pytest.fail(f"{page}: what is {' '.join(words)}?")


@pytest.mark.parametrize("page", [page for page in PAGES if page != "CHANGELOG.md"])  # which names what is gone, too
def test_commands_options_modules_and_files_in_the_prose_exist(page):
    known = pages.options()
    for code in pages.inline(page):
        if code.startswith("surgery "):
            command, left = pages.find(code.split()[1:])
            assert not hasattr(command, "commands") or not left or left[0].startswith("-"), f"{code}: no such command"
        if not re.match(r"(pip|git|pytest|make) ", code):
            unknown = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", code)) - known
            assert not unknown, f"{code}: no command has {unknown}"
        if re.fullmatch(r"(surgery|pcfg|probes|cli|tests)(\.\w+)+", code):
            pages.resolve(code)
        if re.fullmatch(r"(surgery|pcfg|probes|cli|tests|docs|examples)/[\w./-]*", code):
            assert (ROOT / code).exists(), f"no {code}"


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files_and_headings(page):
    for link in pages.links(page):
        if re.match(r"https?://", link):
            continue
        file, _, anchor = link.partition("#")
        target = ((ROOT / page).parent / file).resolve() if file else ROOT / page
        assert target.exists(), f"{page}: no {link}"
        assert not anchor or anchor in pages.anchors(target), f"{page}: no heading for {link}"


def test_readme_is_short_and_leads_to_every_page():
    assert (ROOT / "README.md").stat().st_size <= 10_000
    linked = {link.partition("#")[0] for link in pages.links("README.md")}
    assert {page for page in PAGES if page != "README.md"} <= linked


@pytest.mark.parametrize("page", [page for page in PAGES if "/" in page])
def test_a_methods_page_says_how_to_choose_and_how_to_measure_again(page):
    assert {"use", "which-way-to-choose", "how-it-works", "what-we-measured", "measure-it-again"} <= pages.anchors(page)
    assert any("benchmarks" in word for words in pages.shell_lines(page) for word in words)


def test_contributing_names_what_its_files_have():
    for line in (ROOT / "CONTRIBUTING.md").read_text().splitlines():
        named = re.findall(r"`([\w/.]+)`", line) if line.startswith("| a") else []
        modules = [ROOT / name for name in named if name.endswith(".py")]
        source = "".join(module.read_text() for module in modules)
        for name in named:
            if modules and re.fullmatch(r"[A-Za-z_]{4,}", name) and name != "__all__":
                assert name in source, f"{name} isn't in {[module.name for module in modules]}"
