"""A page with every kind of part, and with names from data that try to become markup."""

from surgery.reporting.page import Code, Commands, Figure, Heading, Page, Table, Text

EVIL = '<script>alert("x")</script> *a* [b](c) `d` | e &amp; <img src=x onerror=alert(1)>'


def page(figure="a b#1.png"):
    long = [[f"row {i}", i, i / 7, i % 2 == 0, None if i % 3 else "third"] for i in range(40)]
    wide = [[f"label {i}", *(i * j + 0.125 for j in range(30))] for i in range(3)]
    columns = ["name", "count", "share", "even", "note"]
    return Page(
        f"A title with {EVIL}",
        ["The answer is 42.", f"It was measured on {EVIL}.", "Nothing else was."],
        [
            Heading("What it looks like"),
            Figure(figure, f"Caption of {EVIL}", 'A line that rises, called "rise"'),
            Heading("Numbers"),
            Table("A short table.", ["", EVIL, "DSpr"], [[EVIL, "yes", 0.5]], {"DSpr": f"rank correlation {EVIL}"}),
            Table("A long table.", columns, long, {"share": "a seventh of the count"}),
            Table("A wide table.", ["label", *(f"column {j}" for j in range(30))], wide),
            Table("A table folded on purpose.", ["a"], [["once folded"]], folded=True),
            Text("Apply the file ", Code("a`b <i>"), ", as often as you like. ", Code("c_d")),
            Text("# no heading, though it looks like one"),
            Text("1. no list either"),
            Commands("surgery apply <skill> `base` -o out/\nsurgery revert out/"),
        ],
        metadata=("library_name: surgery",),
    )
