"""The page of a report: every part in both forms, nothing from data that becomes markup, fit for a browser."""

import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
from PIL import Image

from surgery.reporting.page import LONG, Page, Table, Text, cell, cells, render
from tests.support.planted_page import EVIL, page

_ELEMENTS = """html head meta title style body main h1 section p h2 figure img figcaption div table thead tr th td tbody dl dt dd
details summary code pre"""


class Reader(HTMLParser):
    """What a browser finds: the elements with their attributes, and the words."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.words, self._ignored = [], [], 0
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self._ignored += tag == "style"

    def handle_endtag(self, tag):
        self._ignored -= tag == "style"

    def handle_data(self, data):
        if not self._ignored:
            self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def test_nothing_from_data_becomes_an_element():
    found = Reader(page().html())
    ours = set(re.findall(r"\w+", _ELEMENTS))
    assert {name for name, _ in found.tags} == ours
    assert len(found.all("img")) == 1
    assert not any(name.startswith("on") for _, attributes in found.tags for name in attributes)
    assert found.text.count(EVIL) == 7  # title twice, answer, caption, column, cell, legend
    assert found.all("img") == [{"src": "a%20b%231.png", "alt": 'A line that rises, called "rise"'}]


def test_the_page_is_well_formed_and_asks_for_nothing():
    text = page().html()
    body = re.sub(r"<(meta|img)([^>]*)>", r"<\1\2/>", text.removeprefix("<!doctype html>\n"))
    assert ElementTree.fromstring(body).get("lang") == "en"
    assert not re.search(r"<link|@import|url\(|https?:", re.sub(re.escape("alert"), "", text))


def plain(markdown):
    """The words of Markdown: escapes, code marks, tags, rules and links' targets taken away."""
    text = re.sub(r"(?m)^```.*$|^\|(---\|)+$|^- |^#+ |</?(details|summary)>|\*\*(?=.*\*\*: )|\*\*(?=: )", "", markdown)
    text = re.sub(r"!\[((?:\\.|[^]\\])*)\]\([^)]*\)", "", text)
    text = re.sub(r"(?<!\\)\||``? ?(?=a`b)|(?<=<i>) ?``|(?<!\\)`(?=c_d)|(?<=c_d)`", " ", text)
    return re.sub(r"\\([\\`*|(<&_#.>+=~-])", r"\1", text)


def words(text):
    return [word for word in re.split(r"[^\w]+", text) if word]


def test_markdown_and_html_say_the_same():
    markdown, html = page().markdown(), Reader(page().html())
    top, rest = markdown.split("\n# ", 1)
    assert top == "---\nlibrary_name: surgery\n---\n"
    # The page's name is in the title and in the heading; a legend has no colon.
    title = words(html.text)[: len(words(f"A title with {EVIL}"))]
    assert title + words(plain("# " + rest).replace("&quot;", '"')) == words(html.text)


def test_text_that_looks_like_a_block_stays_a_paragraph():
    markdown = page().markdown()
    assert "\n\\# no heading" in markdown
    assert "\n1\\. no list" in markdown
    assert re.findall(r"(?m)^#+ .*", markdown) == [
        "# " + re.findall(r"(?m)^# (.*)", markdown)[0],
        "## What it looks like",
        "## Numbers",
    ]
    assert "``a`b <i>``" in markdown
    assert "Apply the file ``a`b <i>``, as often as you like. `c_d`" in markdown


def test_long_tables_fold_and_short_ones_do_not():
    def folded(rows, **options):
        table = Table("Named here.", ["a"], [["x"]] * rows, **options)
        parts = (render([table]), Page("t", ["s"], [table]).markdown())
        assert len({"<details>" in part for part in parts}) == 1
        assert all("Named here." in part for part in parts)
        return "<details>" in parts[0]

    assert [folded(LONG), folded(LONG + 1)] == [False, True]
    assert [folded(1, folded=True), folded(LONG + 1, folded=False)] == [True, False]
    assert "A long table. (40 rows)" in page().markdown()
    assert "A table folded on purpose. (1 row)" in page().html()


def test_headers_name_rows_and_columns_and_numbers_line_up():
    table = Table("c", ["", "loss", "of"], [["a", -1.5, "b"], ["c", None, "2 of 3"], ["d", 12, ""]], {"loss": "nats"})
    text = render([table])
    assert re.findall(r'<th scope="col"[^>]*>(\w+)', text) == ["loss", "of"]
    assert re.findall(r'<th scope="row"[^>]*>(\w+)', text) == ["a", "c", "d"]
    assert re.findall(r'<td class="number">([^<]*)', text) == ["-1.5", "", "12"]
    assert re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", text) == [("loss", "nats")]


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, ""), (True, "yes"), (False, "no"), (12345, "12,345"), (0.123456, "0.1235"), (123456.7, "123,457"), (1e-7, "1e-07"),
     (0.0, "0"), (float("nan"), "nan"), ("two\nlines", "two lines"), ("half \ud800", "half \\ud800")],
)  # fmt: skip
def test_a_cell_is_written_for_people(value, text):
    assert cell(value) == text


def test_the_answer_is_one_to_three_sentences():
    for count in (0, 4):
        with pytest.raises(ValueError, match=f"one to three sentences, and {count} were given"):
            Page("t", ["s"] * count, [])


def test_half_a_letter_and_control_letters_are_shown_as_text(tmp_path):
    Page("half \ud800 \x1b[31m", ["a\u2028b"], [Text("c\x00d")]).write(tmp_path)
    for name in ("README.md", "index.html"):
        text = (tmp_path / name).read_text()
        assert "half \\" in text
        assert "a b" in text
        assert not {"\x1b", "\x00", "\u2028"} & set(text)


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="Playwright isn't installed (pip install playwright)"
    )
    import shutil

    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("Chromium isn't installed (apt install chromium)")
    with playwright.sync_playwright() as driver:
        running = driver.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield running
        running.close()


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    Image.new("RGB", (1500, 300), "teal").save(folder / "a b#1.png")
    page().write(folder)
    return folder / "index.html"


@pytest.mark.parametrize("width", [400, 1200])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_in_a_browser_without_scripts_and_network(browser, written, width, scheme):
    context = browser.new_context(
        offline=True, java_script_enabled=False, viewport={"width": width, "height": 900}, color_scheme=scheme
    )
    tab, trouble = context.new_page(), []
    tab.on("console", lambda message: trouble.append(message.text))
    tab.on("pageerror", lambda error: trouble.append(str(error)))
    tab.on("requestfailed", lambda request: trouble.append(request.url))
    tab.goto(written.as_uri())
    assert trouble == []
    for box in (tab.locator(name).bounding_box() for name in ("main", "h1", "figure img")):
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= width
    assert tab.locator("img").bounding_box()["width"] > 300  # it was found and drawn
    inside = tab.get_by_text("row 39")
    assert not inside.is_visible()
    tab.get_by_text("A long table. (40 rows)").click()
    assert inside.is_visible()
    context.close()


@pytest.mark.parametrize("width", [400, 1200])
def test_the_body_never_scrolls_sideways(browser, written, width):
    tab = browser.new_page(viewport={"width": width, "height": 900})
    tab.goto(written.as_uri())
    tab.locator("details").evaluate_all("all => all.forEach(one => one.open = true)")
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    wide = tab.locator(".scroll").nth(2)
    assert wide.evaluate("box => box.scrollWidth > box.clientWidth")  # the table does
    tab.close()


def test_print_opens_what_is_folded(browser, written, tmp_path):
    tab = browser.new_page()
    tab.goto(written.as_uri())
    tab.emulate_media(media="print")
    assert tab.get_by_text("row 39").is_visible()
    assert tab.get_by_text("once folded", exact=True).is_visible()
    tab.pdf(path=tmp_path / "page.pdf")
    assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF")
    tab.close()


def test_the_fractions_of_a_column_have_as_many_decimals_as_each_other():
    rows = [
        ["a", 0.81324, 52.881, 3e-9, 1, 1.0, None],
        ["b", 0.5, 4.0, 0.25, 1234, 20.0, 0.0321],
        ["c", 0, 46.72, 7.0, 2, 3.0, 1],
    ]
    columns = zip(*cells(rows), strict=True)
    assert [list(column) for column in columns] == [
        ["a", "b", "c"],
        ["0.8132", "0.5000", "0"],  # a whole number stays one
        ["52.88", "4.00", "46.72"],
        ["3e-09", "0.25", "7"],  # too far apart for one number of decimals
        ["1", "1,234", "2"],
        ["1", "20", "3"],
        ["", "0.0321", "1"],
    ]
    assert cells([[float("nan")], [2e4]]) == [["nan"], ["20,000"]] and cells([]) == []
