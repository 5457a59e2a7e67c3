"""`surgery pcfg ...`: read grammars off trees, sample from them, parse with them, fit them to text."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli import grammars, options, pcfg_score
from cli.grammars import horizontal_order, load_both, load_grammar, need_file, pick, read_bank, whole_label
from cli.render import print_json, print_table, progress_bar, say
from cli.resuming import told_how_to_go_on
from cli.workers import by_rank
from surgery.reporting.plural import number_of

if TYPE_CHECKING:
    from pcfg.grammars.grammar import Grammar
    from pcfg.sampling.corpus import Corpus
    from pcfg.treebanks.trees import Tree

app = typer.Typer(
    help="Probabilistic grammars: read them off trees, sample, parse, fit, with exact Inside-Outside.",
    no_args_is_help=True,
)

_LISTED = 10  # sentences without a parse, or rules of a symbol

Binary = Annotated[
    bool,
    typer.Option(
        "--binary", help="Write binary trees over the grammar's own symbols, not the form of the treebank or the rules."
    ),
]
Workers = Annotated[int, typer.Option(min=1, help="Threads of the sparse engine, each with sentences of its own.")]


@app.command()
def induce(
    trees: grammars.Trees = None,
    nltk_treebank: grammars.NltkTreebank = False,
    only: grammars.Only = None,
    h: Annotated[
        str, typer.Option("--horizontal", help="Left sisters that binarisation remembers: 0, 1, 2 ... or inf.")
    ] = "1",
    v: Annotated[
        int, typer.Option("-v", "--vertical", help="2: symbols carry their parent's label; 1: they don't.")
    ] = 2,
    min_count: Annotated[
        int, typer.Option(min=1, help="Words seen fewer times are replaced by signatures such as <unk:capital-s>.")
    ] = 5,
    smooth: Annotated[
        bool,
        typer.Option("--smooth/--no-smooth", help="Mix the tags of each word with those of words of its signature."),
    ] = True,
    strength: Annotated[
        float, typer.Option(min=0, help="How many occurrences of a word its signature weighs as much as.")
    ] = 1.0,
    annotate_tags: Annotated[
        bool, typer.Option("--annotate-tags/--no-annotate-tags", help="Tags carry their parent's label.")
    ] = True,
    cut_labels: grammars.CutLabels = None,
    output: grammars.OutputFile = None,
    overwrite: options.OverwriteFile = False,
    json: options.Json = False,
) -> None:
    """Read a grammar off a treebank: trees are cleaned and binarised, rare words replaced by signatures."""
    from pcfg.errors import OptionError
    from pcfg.grammars.grammar import Grammar
    from pcfg.treebanks.induction import induce as run

    file, began = need_file(output, overwrite, trees), time.monotonic()
    if strength != 1.0 and not smooth:
        raise OptionError("--strength is for --smooth: leave one of --strength and --no-smooth out")
    with progress_bar() as progress:
        progress(0, 2, "reading trees")
        bank = pick(read_bank(trees, nltk_treebank, cut_labels=cut_labels), only)
        progress(1, 2, f"counting rules: {len(bank):,} trees")
        settings: dict[str, Any] = {"v": v, "h": horizontal_order(h), "min_count": min_count}
        settings |= {"smooth_lexicon": smooth, "annotate_tags": annotate_tags, "k": strength}
        induced = run(bank, **settings)
        grammar = Grammar.of_arrays(**induced.arrays())
        grammar.save(file)
    sizes = {**_summary(grammar), "trees": induced.trees, "tokens": induced.tokens}
    if json:
        print_json({**sizes, "output": str(file), "seconds": _since(began)})
        return
    _say_labels_left_whole(bank, cut_labels)
    say(
        f"{file}: {_sizes(sizes)}, from {number_of(induced.trees, 'tree')} of {number_of(induced.tokens, 'word')} in {_since(began):.1f} s"
    )
    say(f"Next:  surgery pcfg parse {file} --text sents.txt -o parses.txt")


@app.command()
def trees(
    source: grammars.Trees = None,
    nltk_treebank: grammars.NltkTreebank = False,
    raw: Annotated[
        Path | None,
        typer.Option(help="Sentences, one a line, for benepar to parse (extra benepar).", show_default=False),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="benepar's model, by name or path.", show_default="benepar_en3")
    ] = None,
    only: grammars.Only = None,
    max_length: Annotated[
        int | None, typer.Option(min=1, help="Leave longer sentences out.", show_default="no limit")
    ] = None,
    text: Annotated[
        Path | None,
        typer.Option(help="File to write the sentences to, as `parse --text` reads them.", show_default=False),
    ] = None,
    cut_labels: grammars.CutLabels = None,
    output: grammars.OutputFile = None,
    overwrite: options.OverwriteFile = False,
    json: options.Json = False,
) -> None:
    """Write a treebank's trees as parses are scored on them, without traces and functions, or benepar's parses of raw text."""
    from pcfg.errors import OptionError
    from pcfg.treebanks.trees import format_trees
    from surgery.files import replace_bytes

    file = need_file(output, overwrite, source, raw)
    if text is not None:
        need_file(text, overwrite, source, raw, file)
    if model is not None and raw is None:
        raise OptionError("--model is for --raw: name the file of sentences too")
    if raw is not None and cut_labels is not None:
        raise OptionError("--cut-labels and --keep-labels are for treebanks, not for --raw: leave them out")
    with progress_bar() as progress:
        everything = read_bank(source, nltk_treebank, raw, model, progress, collapse=False, cut_labels=cut_labels)
        bank = pick(everything, only)
    bank = [tree for tree in bank if max_length is None or len(tree.words()) <= max_length]
    if not bank:
        raise OptionError(f"no tree has {max_length} words or fewer: give a higher --max-length")
    replace_bytes(file, format_trees(bank).encode())
    if text is not None:
        replace_bytes(text, "".join(f"{' '.join(tree.words())}\n" for tree in bank).encode())
    words = sum(len(tree.words()) for tree in bank)
    if json:
        print_json({"trees": len(bank), "words": words, "output": str(file), "text": text and str(text)})
        return
    _say_labels_left_whole(bank, cut_labels)
    say(
        f"{file}: {number_of(len(bank), 'tree')} of {number_of(words, 'word')}"
        + (f"; {text}: their sentences" if text else "")
    )


@app.command()
def sample(
    grammar: grammars.GrammarFile,
    count: Annotated[int, typer.Option("-n", "--count", min=1, help="Number of sentences to draw.")] = 100_000,
    max_length: Annotated[
        int | None, typer.Option(min=1, help="Most words of a sentence.", show_default="no limit")
    ] = None,
    held_out: Annotated[
        float, typer.Option(help="Share of the different sentences held out as a part test, none of which is in train.")
    ] = 0.0,
    dataset: Annotated[bool, typer.Option("--dataset", help="Write a Hugging Face datasets folder too.")] = False,
    tokenizer: Annotated[bool, typer.Option("--tokenizer", help="Write a word-level tokenizer too.")] = False,
    binary: Binary = False,
    shard_size: Annotated[int, typer.Option(min=1, help="Sentences in a file.")] = 50_000,
    output: options.NeededOutput = None,
    seed: options.Seed = 0,
    overwrite: options.OverwriteFile = False,
    json: options.Json = False,
) -> None:
    """Draw sentences with their trees into a folder. A run that was stopped goes on where it was; torchrun shares the shards."""
    from pcfg.sampling.corpus import write_corpus
    from surgery.files import check_output

    folder, began = options.need_output(output), time.monotonic()
    check_output(folder, overwrite=overwrite, inputs=[grammar])
    loaded = load_grammar(grammar)
    with by_rank(), told_how_to_go_on(folder), progress_bar() as progress:
        corpus = write_corpus(
            loaded,
            folder,
            count,
            seed=seed,
            max_length=max_length,
            held_out=held_out,
            dataset=dataset,
            with_tokenizer=tokenizer,
            binary=binary,
            shard_size=shard_size,
            overwrite=overwrite,
            progress=progress,
        )
        _sampled(corpus, folder, count, max_length, _since(began), json)


def _sampled(corpus: "Corpus", folder: Path, count: int, max_length: int | None, seconds: float, json: bool) -> None:
    if json:
        print_json({"sentences": count, **vars(corpus), "output": str(folder), "seconds": seconds})
        return
    parts = ", ".join(f"{name} {number:,}" for name, number in corpus.parts.items())
    say(f"{folder}: {number_of(count, 'sentence')} of {number_of(corpus.words, 'word')} ({parts}) in {seconds:.1f} s")
    if max_length is not None:
        how = (
            "thrown away" if corpus.method == "rejection" else "made impossible, every choice conditioned on the length"
        )
        say(f"{100 * corpus.acceptance:.1f}% of free draws have {max_length} words or fewer; longer ones were {how}")


@app.command()
def parse(
    grammar: grammars.GrammarFile,
    text: grammars.Text = None,
    rule: Annotated[
        str, typer.Option(help="viterbi: the likeliest tree; mbr: the tree with the highest expected labelled recall.")
    ] = "viterbi",
    cost: Annotated[
        float | None,
        typer.Option(
            help="For mbr: taken off each label's posterior probability, 0 to 1; the higher, the fewer labels.",
            show_default="0.4",
        ),
    ] = None,
    binary: Binary = False,
    output: grammars.OutputFile = None,
    device: options.Device = None,
    workers: Workers = 1,
    overwrite: options.OverwriteFile = False,
    json: options.Json = False,
) -> None:
    """Parse sentences, a tree a line; (()) where there is none. A run that was stopped goes on where it was."""
    from pcfg.inference.parsing import write_parses

    file, began = need_file(output, overwrite, grammar, text), time.monotonic()
    loaded, sentences = load_both(grammar, text)
    with told_how_to_go_on(file), progress_bar() as progress:
        settings: dict[str, Any] = {"rule": rule, "cost": cost, "binary": binary, "device": device, "workers": workers}
        written = write_parses(loaded, sentences, file, **settings, progress=progress)
    if json:
        print_json({**vars(written), "rule": rule, "output": str(file), "seconds": _since(began)})
        return
    say(
        f"{file}: {written.sentences - len(written.unparsed):,} of {written.sentences:,} sentences parsed in {_since(began):.1f} s"
    )
    _say_unparsed(written.unparsed)


@app.command()
def spans(
    grammar: grammars.GrammarFile,
    text: grammars.Text = None,
    output: grammars.OutputFile = None,
    dtype: Annotated[str, typer.Option(help="float32 or float64.")] = "float64",
    device: options.Device = None,
    workers: Workers = 1,
    overwrite: options.OverwriteFile = False,
    json: options.Json = False,
) -> None:
    """Write the posterior probability of every span of every sentence. A run that was stopped goes on where it was.

    The file holds lengths, offsets, log_z and marginals, one sentence's after the other's from its offset on: n rows and n + 1 columns for n words, whose entry (i, j) is for words i to j - 1. pcfg.inference.parsing.read_spans takes it apart.
    """
    from pcfg.inference.parsing import write_spans

    file, began = need_file(output, overwrite, grammar, text), time.monotonic()
    loaded, sentences = load_both(grammar, text)
    with told_how_to_go_on(file), progress_bar() as progress:
        settings: dict[str, Any] = {"device": device, "dtype": dtype, "workers": workers}
        written = write_spans(loaded, sentences, file, **settings, progress=progress)
    if json:
        print_json({**vars(written), "dtype": dtype, "output": str(file), "seconds": _since(began)})
        return
    say(
        f"{file}: marginals of {written.sentences - len(written.unparsed):,} of {written.sentences:,} sentences, {written.entries:,} numbers, in {_since(began):.1f} s"
    )
    _say_unparsed(written.unparsed)


app.command()(pcfg_score.score)


@app.command()
def fit(
    start: grammars.GrammarFile,
    text: grammars.Text = None,
    em: Annotated[int, typer.Option("--em", min=1, help="Rounds of expectation-maximisation.")] = 20,
    smoothing: Annotated[float, typer.Option(min=0, help="Number added to every expected count.")] = 0.0,
    output: grammars.OutputFile = None,
    workers: Workers = 1,
    device: options.Device = None,
    overwrite: options.OverwriteFile = False,
    json: options.Json = False,
) -> None:
    """Fit a grammar's probabilities to sentences. A run that was stopped goes on after its last whole round."""
    from pcfg.learning.resumable_fit import fit_file

    file, began = need_file(output, overwrite, start, text), time.monotonic()
    grammar, sentences = load_both(start, text)
    # A smoothed lexicon scores a word by P(tag | word) / P(tag), so that log Z lacks the words' own probabilities.
    what = "log-likelihood" if grammar.lexicon is None else "log-likelihood beyond that of single words"
    with told_how_to_go_on(file), progress_bar() as progress:
        fitted = fit_file(
            grammar,
            sentences,
            em,
            file,
            smoothing=smoothing,
            workers=workers,
            device=device,
            on_round=lambda done, value: say(f"after {done:3} rounds: {what} {value:,.4f}", quiet=json),
            progress=progress,
        )
    unparsed = tuple(number + 1 for number in fitted.left_out)
    if json:
        likelihoods = fitted.log_likelihoods.tolist()
        content = {"log_likelihoods": likelihoods, "unparsed": unparsed, "words": fitted.words}
        print_json({**content, "output": str(file), "seconds": _since(began)})
        return
    per_word = fitted.log_likelihoods[-1] / fitted.words
    say(
        f"{file}: {number_of(em, 'round')} over {len(sentences) - len(unparsed):,} of {len(sentences):,} sentences in {_since(began):.1f} s, {what} {per_word:.4f} nats a word"
    )
    _say_unparsed(unparsed)


@app.command()
def show(
    grammar: grammars.GrammarFile,
    symbol: Annotated[str | None, typer.Option(help="List the rules of this symbol.", show_default=False)] = None,
    json: options.Json = False,
) -> None:
    """Show a grammar: symbols, rules, words, roots, the mean length of a sentence."""
    from pcfg.errors import OptionError

    loaded = load_grammar(grammar)
    facts = _summary(loaded)
    if symbol is not None and symbol not in loaded.symbols:
        raise OptionError(f"{grammar} has no symbol {symbol}: it has {', '.join(loaded.symbols[:8])} ...")
    if json:
        rules = {} if symbol is None else {"rules_of_symbol": dict(loaded.rules_of(symbol))}
        print_json({**facts, "roots": loaded.roots, **rules})
        return
    say(f"{grammar}: {_sizes(facts)}")
    mean = facts["expected_length"]
    say(f"sentences have {mean:.3f} words on average" if mean else "the expected length of a sentence is infinite")
    if facts["smoothed_lexicon"]:
        say("words are scored by a smoothed lexicon: posteriors are right, log Z is no likelihood")
    if facts["useless_symbols"]:
        say(f"in no tree over words: {number_of(facts['useless_symbols'], 'symbol')}")
    roots = sorted(loaded.roots.items(), key=lambda item: -item[1])
    _print_shares("roots", "root", roots)
    if symbol is not None:
        _print_shares(f"rules of {symbol}", "rule", sorted(loaded.rules_of(symbol), key=lambda item: -item[1]))


def _summary(grammar: "Grammar") -> dict[str, Any]:
    import math

    mean = grammar.expected_length
    return {
        "nonterminals": len(grammar.nonterminals),
        "preterminals": len(grammar.preterminals),
        "words": len(grammar.words),
        "binary_rules": len(grammar.rule_probs),
        "lexical_rules": len(grammar.word_probs),
        "expected_length": mean if math.isfinite(mean) else None,
        "useless_symbols": len(grammar.useless),
        "smoothed_lexicon": grammar.lexicon is not None,
    }


def _sizes(facts: dict[str, Any]) -> str:
    return (
        f"{number_of(facts['nonterminals'], 'nonterminal')}, {number_of(facts['preterminals'], 'preterminal')}, {number_of(facts['words'], 'word')}, "
        f"{number_of(facts['binary_rules'], 'binary rule')}, {number_of(facts['lexical_rules'], 'lexical rule')}"
    )


def _print_shares(title: str, column: str, shares: Sequence[tuple[str, float]]) -> None:
    rows = [[name, f"{p:.4f}"] for name, p in shares[:_LISTED]]
    if len(shares) > _LISTED:
        rest = sum(p for _, p in shares[_LISTED:])
        rows.append([f"{len(shares) - _LISTED:,} more", f"{rest:.4f}"])
    print_table(title, [column, "probability"], rows)


def _say_labels_left_whole(bank: "list[Tree]", cut: bool | None) -> None:
    if cut is None and (label := whole_label(bank)) is not None:
        say(
            f"Labels such as {label} are left whole, as no tree has a trace or one of Penn's functions: --cut-labels cuts them"
        )


def _say_unparsed(numbers: Sequence[int]) -> None:
    if numbers:
        more = f" and {len(numbers) - _LISTED:,} more" if len(numbers) > _LISTED else ""
        lines = f"line{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers[:_LISTED]))}{more}"
        say(f"Without a parse: {len(numbers):,} ({lines})")


def _since(began: float) -> float:
    return round(time.monotonic() - began, 3)
