from surgery.reporting.plural import number_of


def test_numbers_go_with_their_nouns():
    assert [number_of(n, "edit") for n in (0, 1, 2, 1200)] == ["no edits", "1 edit", "2 edits", "1,200 edits"]
    assert [number_of(n, "class", "classes") for n in (0, 1, 2)] == ["no classes", "1 class", "2 classes"]
