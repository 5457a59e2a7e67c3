"""Scores and differences against plain loops, evaluations saved and loaded, their pages, and models held against each other."""

import json
import math
import re
import shutil

import numpy as np
import pytest

from surgery.errors import EvaluationError, OptionError
from surgery.evaluating.damaging import damage
from surgery.evaluating.evaluation import Evaluation
from surgery.evaluating.formal.run import evaluate_formal
from surgery.evaluating.gallery import show_folder
from surgery.evaluating.measured import Facts, Item, Metric
from surgery.evaluating.statistics import DRAWS, difference, mcnemar, resampled, score, wilson
from tests.support.tiny import perturb, weights

EVIL = "<script>document.title='broken'</script> **bold** | `code` </pre><img src=x onerror=alert(1)>"

# -- statistics ---------------------------------------------------------------------------------------------------------


def test_means_are_resampled_by_cluster():
    values, clusters = np.array([1.0, 0.0, 1.0, 1.0, 0.0]), ["a", "a", "a", "b", "c"]
    random = np.random.default_rng(0)
    groups = [values[[number for number, name in enumerate(clusters) if name == each]] for each in "abc"]
    loop = [np.concatenate([groups[pick] for pick in random.integers(3, size=3)]).mean() for _ in range(DRAWS)]
    own = resampled(values, clusters)
    assert own.mean() == pytest.approx(np.mean(loop), abs=0.02) and own.std() == pytest.approx(np.std(loop), abs=0.02)
    assert set(np.round(own, 9)) == set(np.round(loop, 9))


def test_independent_items_have_the_standard_error_of_a_proportion_and_twins_do_not_count_twice():
    values = [1.0] * 30 + [0.0] * 70
    alone = score(values, [str(number) for number in range(100)])
    assert alone.standard_error == pytest.approx(math.sqrt(0.3 * 0.7 / 100), rel=0.05)
    twins = score(values * 4, [str(number) for number in range(100)] * 4)
    assert twins.standard_error == pytest.approx(alone.standard_error, rel=0.06)


def test_missing_values_count_as_nothing():
    found = score([1.0, None, 0.0, None], ["a", "b", "c", "d"])
    assert (found.value, found.items, found.missing, found.clusters) == (0.5, 4, 2, 2)
    nothing = score([None, None], ["a", "b"])
    assert nothing.value is None and nothing.low is None and nothing.missing == 2
    assert score([0.5, 0.7], ["a", "a"]).low is None


def test_all_alike_has_wilsons_interval():
    found = score([0.0] * 10, [str(n) for n in range(10)])
    assert (found.low, found.high) == wilson(0, 10) and found.high == pytest.approx(0.2775, abs=1e-3)
    assert score([1.0] * 10, [str(n) for n in range(10)]).low == pytest.approx(0.7225, abs=1e-3)


def test_mcnemar_is_the_exact_binomial():
    from scipy.stats import binomtest

    for gained in range(6):
        for lost in range(6):
            wanted = 1.0 if gained + lost == 0 else binomtest(gained, gained + lost).pvalue
            assert mcnemar(gained, lost) == pytest.approx(wanted)


def test_differences_are_paired():
    before = [float(number % 2) for number in range(200)]
    after = [1.0 if number < 40 else value for number, value in enumerate(before)]
    names = [str(number) for number in range(200)]
    found = difference(after, before, names)
    assert found.score.value == pytest.approx(0.1) and found.clear and (found.gained, found.lost) == (20, 0)
    assert found.p_value == pytest.approx(2 / 2**20)
    assert found.detectable == pytest.approx(2.8016 * found.score.standard_error, rel=1e-3)
    same = difference(before, before, names)
    assert (same.score.value, same.score.low, same.score.high, same.p_value, same.clear) == (0, 0, 0, 1, False)
    assert difference([1.0, None], [0.0, 1.0], ["a", "b"]).score.missing == 1
    assert difference([0.3, 0.4], [0.1, 0.2], ["a", "b"]).p_value is None


def test_power_is_what_it_says():
    """Of true differences as large as `detectable`, about four in five are found."""
    random, found = np.random.default_rng(0), 0
    for _ in range(60):
        before = (random.random(100) < 0.5).astype(float)
        flips = random.random(100)
        after = np.where(flips < 0.24, 1.0, np.where(flips > 0.92, 0.0, before))
        change = difference(after.tolist(), before.tolist(), [str(n) for n in range(100)])
        found += abs(change.score.value) > 0 and change.clear
    assert 0.2 < found / 60 < 0.95


# -- evaluations --------------------------------------------------------------------------------------------------------


def evaluation(name="model", right=0.7, evil="", seed=0):
    random = np.random.default_rng(seed)
    items = tuple(
        Item(
            f"item {n}",
            f"cluster {n // 2}",
            {"share": None if n == 5 else float(random.random() < right), "margin": float(random.normal())},
            {"skill": f"one:{n % 3}, two" if n % 2 else "three", "k": "2"},
            [("asked", f"question {n} {evil}"), ("answer", f"line 1\nline 2 {evil}")],
            {f"point {evil}": 1.0, "other": None},
            "no answer" if n == 5 else "",
        )
        for n in range(40)
    )
    metrics = (Metric("share", "a share of items", 0.25), Metric("margin", "how far ahead"))
    usage = {
        f"{name} {evil}": {
            "calls": 40,
            "known": 3,
            "missing": 1,
            "prompt_tokens": 9,
            "tokens": 5,
            "cost": 0.01,
            "errors": {f"why {evil}": 1},
        }
    }
    return Evaluation(
        "formal",
        f"{name} {evil}".strip(),
        metrics,
        items,
        (f"A remark {evil}.",),
        {"seed": 0},
        usage,
        {},
        facts=(Facts("What else.", ["a"], [[evil]]),),
    )


def test_evaluations_are_loaded_as_they_were(tmp_path):
    whole = evaluation().against(evaluation("base", 0.4, seed=1), {"the same again": evaluation("base", 0.4, seed=2)})
    whole.save(tmp_path / "out")
    again = Evaluation.load(tmp_path / "out")
    assert (
        again.table() == whole.table()
        and again.summary == whole.summary
        and json.dumps(again.content()) == json.dumps(whole.content())
    )
    assert repr(again).startswith("<Evaluation: model: share 0.") and len(again.to_pandas()) == 2
    assert "1 of 40 items are missing" in again.summary[2]
    assert again.items[0].transcript[1][1] == "line 1\nline 2 "


@pytest.mark.parametrize(
    "change", [{"format": "other"}, {"items": [{}]}, {"items": 3}, {"metrics": []}, {"base": 5}, {"kind": None}]
)
def test_damaged_reports_are_refused(tmp_path, change):
    evaluation().save(tmp_path / "out")
    content = json.loads((tmp_path / "out" / "report.json").read_text())
    (tmp_path / "out" / "report.json").write_text(json.dumps({**content, **change}))
    with pytest.raises(EvaluationError, match=r"report.json can't be read as an evaluation"):
        Evaluation.load(tmp_path / "out")
    with pytest.raises(EvaluationError, match="can't be read"):
        Evaluation.load(tmp_path)


def test_other_items_are_not_held_against_each_other():
    one = evaluation()
    with pytest.raises(EvaluationError, match="weren't asked the same items"):
        one.against(Evaluation(**{**vars(one), "items": one.items[1:]}))
    with pytest.raises(EvaluationError, match="isn't held against another"):
        one.difference("share")


def test_a_page_says_all_of_it_and_runs_nothing(tmp_path):
    evaluation(evil=EVIL).against(evaluation("base", 0.2, evil=EVIL, seed=1)).save(tmp_path / "out")
    html, markdown = ((tmp_path / "out" / name).read_text() for name in ("index.html", "README.md"))
    assert "<script" not in html and "<img src=x" not in html and html.count("</pre>") == html.count("<pre")
    for said in ("Before and after", "What was asked and said", "no answer", "difference", "detectable", "What else."):
        assert said in html and said in markdown
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "report.json",
        "index.html",
        "README.md",
        "by-skill.png",
        "differences.png",
    }
    assert re.findall(r'<img src="([^"]+)"', html) == ["by-skill.png", "differences.png"]
    assert "line 1\nline 2" in html  # line breaks are kept


def test_the_page_in_a_browser(tmp_path):
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="Playwright isn't installed (pip install playwright)"
    )
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("Chromium isn't installed (apt install chromium)")
    evaluation(evil=EVIL).save(tmp_path / "out")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program, args=["--no-sandbox"])
        tab, trouble = browser.new_page(viewport={"width": 900, "height": 900}), []
        tab.on("dialog", lambda dialog: trouble.append(dialog.message) or dialog.dismiss())
        tab.on("console", lambda message: trouble.append(message.text))
        tab.goto((tmp_path / "out" / "index.html").as_uri())
        assert "broken" not in tab.title().split("<")[0] and trouble == []
        inside = tab.get_by_text("question 5 ").first
        assert not inside.is_visible()
        tab.locator("summary", has_text="item 5").first.click()
        assert inside.is_visible()
        assert tab.evaluate("document.documentElement.scrollWidth") <= 900
        browser.close()


def test_several_evaluations_have_a_page_that_leads_to_them(tmp_path):
    evaluation("one").save(tmp_path / "runs" / "a")
    evaluation("two", 0.2).save(tmp_path / "runs" / "b")
    (tmp_path / "runs" / "c").mkdir()
    (tmp_path / "runs" / "c" / "report.json").write_text("{}")
    (tmp_path / "runs" / "a" / "index.html").unlink()
    found, page = show_folder(tmp_path / "runs")
    assert [place.name for place in found] == ["a", "b"] and page == tmp_path / "runs" / "index.html"
    assert "2 evaluations." in page.read_text() and (tmp_path / "runs" / "a" / "index.html").exists()
    assert show_folder(tmp_path / "runs" / "b")[1] == tmp_path / "runs" / "b" / "index.html"
    for name in ("c", "nothing"):
        with pytest.raises(EvaluationError):
            show_folder(tmp_path / "runs" / name)


# -- before and after ---------------------------------------------------------------------------------------------------


def formal(model, **options):
    return evaluate_formal(
        model,
        k=(1,),
        items=8,
        readings=["likelihood"],
        skills=["uppercase", "json", "question", "hashtags"],
        device="cpu",
        **options,
    )


@pytest.fixture(scope="module")
def long_llama(tiny, tmp_path_factory):
    """A tiny model that takes whole prompts."""
    folder = shutil.copytree(tiny("llama"), tmp_path_factory.mktemp("long") / "llama")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 4096}))
    return folder


def test_the_same_checkpoint_twice_differs_by_nothing(long_llama, tmp_path):
    found = formal(
        long_llama, against=shutil.copytree(long_llama, tmp_path / "copy"), floor=(0.0, 0.5), log=tmp_path / "log"
    )
    for metric in found.metrics:
        change = found.difference(metric.name)
        assert (change.score.value, change.score.low, change.score.high) == (0, 0, 0)
        assert found.floor_difference("the same again", metric.name).score.value == pytest.approx(0, abs=1e-4)
    assert found.floor_difference("noise of 0.5", "margin").score.value != 0
    assert found.usage[str(tmp_path / "copy")]["known"] == found.usage[str(tmp_path / "copy")]["calls"]


def test_a_changed_model_is_asked_anew_and_differs(long_llama, tmp_path):
    perturb(long_llama, tmp_path / "other", count=40)
    found = formal(tmp_path / "other", against=long_llama, log=tmp_path / "log")
    assert found.difference("margin").score.value != 0
    assert all(use["known"] == 0 for use in found.usage.values())


def test_a_report_of_what_made_the_model_is_linked(long_llama, tmp_path):
    tuned = shutil.copytree(long_llama, tmp_path / "tuned")
    (tuned / "report.json").write_text('{"call": {"tune": {}}}')
    assert formal(tuned).links == {"tune": str(tuned / "report.json")}


def test_damage_is_noise_of_a_known_size(long_llama, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    before, after = weights(long_llama), weights(damage(long_llama, 0.1, tmp_path / "a"))
    assert weights(damage(long_llama, 0.1, tmp_path / "b", seed=1)).keys() == after.keys()
    moved = {name for name in before if not np.array_equal(before[name], after[name])}
    assert moved and all(".layers." in name for name in moved)
    large = max(moved, key=lambda name: before[name].numel())
    assert float((after[large] - before[large]).std() / before[large].std()) == pytest.approx(0.1, rel=0.1)
    with pytest.raises(OptionError, match="`size` 0"):
        damage(long_llama, 0.0, tmp_path / "c")
