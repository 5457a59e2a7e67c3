"""Three short chapters of our own with questions and key points, for tests and the embedded example."""

from surgery.evaluating.tutoring.questions import Question

_TIDES = """# Tides

The Moon pulls on the Earth, and it pulls harder on the side that faces it than on the far side. This difference stretches the
oceans along the line between the two bodies. Water bulges on the near side, and also on the far side, where the pull is weaker
than the pull on the Earth as a whole.

As the Earth turns under the two bulges, most coasts meet each of them once a day, so they have two high tides about 12 hours
and 25 minutes apart. The extra 25 minutes come from the Moon's own motion along its orbit.

The Sun raises tides too, a little under half as high. At new and full moon the Sun and the Moon pull along one line, and the
tides are large: spring tides. At the half moons they pull at right angles, and the tides are small: neap tides."""

_YEAST = """# Yeast and bread

Yeast is a fungus of single cells. It feeds on sugar. With oxygen it turns sugar into carbon dioxide and water and gains much
energy. Without oxygen it ferments: sugar becomes carbon dioxide and alcohol, and the cell gains little energy.

In dough the oxygen is used up within minutes, and fermentation does the rest. The carbon dioxide is caught by gluten, a net of
proteins that forms when flour is kneaded with water, and the dough rises. In the oven the gas expands, the alcohol evaporates,
and the heat kills the yeast and sets the net.

Cold slows the yeast down, so a dough in the refrigerator rises overnight. Salt slows it too, by drawing water out of the cells."""

_MEDIAN = """# Mean and median

The mean of some numbers is their sum divided by how many they are. The median is the middle one once they are sorted; of an even
number of them it is halfway between the middle two.

The two agree when the numbers lie evenly to both sides. They part when a few numbers are far out on one side. Of the incomes 20,
22, 25, 28 and 205 the mean is 60, though four of five people earn less than half of that; the median is 25. A change of the
largest number moves the mean and leaves the median where it is.

For a sum, such as the cost of feeding everybody, the mean is the number to know. To say what is usual, the median is safer."""


def _question(chapter: str, question: str, key_points: str, domain: str, **more: str | bool) -> Question:
    title = chapter.partition("\n")[0].lstrip("# ")
    return Question(question=question, key_points=key_points, chapter=chapter, place=title, domain=domain, **more)  # type: ignore[arg-type]


QUESTIONS = (
    _question(_TIDES, "Why is there a high tide on the side of the Earth that faces away from the Moon?", "The Moon's pull is weaker there than on the Earth as a whole; the difference of the pulls stretches the ocean to both sides.", "physics", answer_in_chapter=True, closed_book=True, difficulty="medium"),
    _question(_TIDES, "Why aren't high tides exactly twelve hours apart?", "The Moon moves along its orbit while the Earth turns; the Earth has to turn a little further.", "physics", answer_in_chapter=True, closed_book=True, difficulty="easy"),
    _question(_TIDES, "The chapter says that spring tides come in spring only. Why is that?", "It doesn't say so; spring tides come at every new and full moon, about twice a month.", "physics", misleading=True, closed_book=False, difficulty="medium"),
    _question(_YEAST, "What makes the holes in bread?", "Yeast ferments sugar and gives off carbon dioxide; gluten catches the gas.", "biology", answer_in_chapter=True, closed_book=True, difficulty="easy"),
    _question(_YEAST, "Is there alcohol in bread when it comes out of the oven?", "Fermentation makes alcohol; nearly all of it evaporates in the oven.", "biology", answer_in_chapter=True, closed_book=True, difficulty="easy"),
    _question(_YEAST, "How would the dough differ if it were kept full of oxygen?", "Yeast would respire instead of fermenting: no alcohol, more energy and growth, still carbon dioxide.", "biology", closed_book=False, difficulty="hard"),
    _question(_MEDIAN, "A firm doubles the pay of its best paid person. What happens to the mean and the median of its pay?", "The mean rises; the median stays (unless very few people work there).", "statistics", answer_in_chapter=True, closed_book=True, difficulty="easy"),
    _question(_MEDIAN, "Why is the mean in the chapter's example a bad guide to what people there earn?", "One income far above the others pulls the mean to 60, while four of five earn less than half of that.", "statistics", answer_in_chapter=True, closed_book=False, difficulty="medium"),
)  # fmt: skip
