"""The log of calls, the runner, servers that go wrong, and kills."""

import json
import random
import signal
import subprocess
import sys
import time

import pytest

from surgery.errors import EvaluationError, MissingPackageError
from surgery.evaluating.calls import Answer, Call, Log
from surgery.evaluating.models import open_language_model
from surgery.evaluating.runner import Runner
from surgery.evaluating.server import ServerModel
from tests.support.loopback import TROUBLES, loopback

pytest.importorskip("openai", reason="needs the extra eval: pip install -e '.[eval]'")


def calls(count):
    return [Call.of(f"question {number}", max_tokens=9) for number in range(count)]


class Parrot:
    """A model that says what it is told, and counts."""

    def __init__(self, identity="a", answers=None):
        self.name, self.identity, self.context, self.remarks = "parrot", {"weights": identity}, None, ()
        self.asked, self.answers = [], answers or {}

    def answer(self, calls, given, failed):
        for number, call in enumerate(calls):
            self.asked.append(call)
            text = call.messages[-1].content
            given(number, self.answers.get(text, Answer(text=text.upper(), prompt_tokens=2, tokens=1)))

    def count_tokens(self, text):
        return len(text.split())


# -- the log ------------------------------------------------------------------------------------------------------------


def test_answers_are_known_again_by_model_messages_and_parameters(tmp_path):
    first = Parrot()
    Runner(Log(tmp_path / "log")).ask(first, calls(3))
    again = Parrot()
    runner = Runner(Log(tmp_path / "log"))
    assert [answer.text for answer in runner.ask(again, calls(4))] == [f"QUESTION {k}" for k in range(4)]
    assert [call.messages[0].content for call in again.asked] == ["question 3"]
    usage = runner.usage["parrot"]
    assert (usage.calls, usage.known, usage.missing, usage.prompt_tokens, usage.tokens) == (4, 3, 0, 2, 1)
    for changed in (
        Call.of("question 0", max_tokens=8),
        Call.of("question 0", max_tokens=9, temperature=0.5),
        Call.of("question 0", max_tokens=9, seed=1),
        Call.of("question 0", max_tokens=9, continuation="x"),
    ):
        Runner(Log(tmp_path / "log")).ask(again, [changed])
        assert again.asked[-1] == changed
    other = Parrot("b")
    Runner(Log(tmp_path / "log")).ask(other, calls(1))
    assert len(other.asked) == 1


def test_the_same_call_is_made_once_and_missing_ones_are_asked_again(tmp_path):
    model = Parrot(answers={"question 1": Answer(error="too long")})
    runner = Runner(Log(tmp_path / "log"))
    answers = runner.ask(model, [*calls(2), *calls(2)])
    assert len(model.asked) == 2
    assert [answer.missing for answer in answers] == [False, True, False, True]
    assert runner.usage["parrot"].errors == {"too long": 1}
    again = Parrot()
    assert Runner(Log(tmp_path / "log")).ask(again, calls(2))[1].text == "QUESTION 1"
    assert len(again.asked) == 1


def test_a_line_cut_short_or_changed_is_asked_again_and_nothing_is_rewritten(tmp_path):
    file = tmp_path / "log"
    Runner(Log(file)).ask(Parrot(), calls(3))
    whole = file.read_bytes()
    lines = whole.splitlines(keepends=True)
    rows = [line for line in lines if b'"answer"' in line]
    torn = b"".join(lines[:-1]) + rows[-1][:-20]
    file.write_bytes(torn.replace(b"QUESTION 1", b"QUESTION 7"))
    before, model = file.read_bytes(), Parrot()
    Runner(Log(file)).ask(model, calls(3))
    assert sorted(call.messages[0].content for call in model.asked) == ["question 1", "question 2"]
    assert file.read_bytes().startswith(before + b"\n")
    assert len(Log(file)._known) == 3


def test_half_a_letter_is_kept_as_it_is_written(tmp_path):
    with loopback(reply=lambda body: "half \ud800") as server:
        model = ServerModel(server.model)
        assert Runner(Log(tmp_path / "log")).ask(model, calls(1))[0].text == "half \\ud800"
    assert Log(tmp_path / "log").known(calls(1)[0].key(model.identity)).text == "half \\ud800"


def test_dry_runs_count_and_make_no_call(tmp_path):
    Runner(Log(tmp_path / "log")).ask(Parrot(), calls(2))
    size, model = (tmp_path / "log").stat().st_size, Parrot()
    runner = Runner(Log(tmp_path / "log"), dry=True)
    assert [answer.text for answer in runner.ask(model, calls(3))] == ["QUESTION 0", "QUESTION 1", ""]
    assert (runner.usage["parrot"].calls, runner.usage["parrot"].known, model.asked) == (3, 2, [])
    assert (tmp_path / "log").stat().st_size == size


def test_prices(tmp_path):
    runner = Runner(prices={"parrot": (2.0, 10.0)})
    runner.ask(Parrot(), calls(5))
    assert runner.usage["parrot"].cost == pytest.approx((10 * 2 + 5 * 10) / 1e6)


# -- servers ------------------------------------------------------------------------------------------------------------


def test_a_thousand_calls_to_a_server_that_goes_wrong_in_every_way(tmp_path):
    """A request in three goes wrong: none is lost, none is asked again once it is answered, none has a made-up answer."""
    draw = random.Random(0)
    fate = [draw.choice(TROUBLES) if draw.random() < 0.33 else "ok" for _ in range(20_000)]
    with loopback(behave=lambda number, body: fate[number]) as server:
        model = ServerModel(server.model, parallel=16, wait=0.002, attempts=12)
        runner = Runner(Log(tmp_path / "log"))
        answers = runner.ask(model, calls(1000))
        assert [answer.text for answer in answers] == [f"you said: question {k}" for k in range(1000)]
        assert set(server.served.values()) == {1} and len(server.served) == 1000
        assert server.most <= 16
        assert len(server.requests) > 1300
    assert runner.usage[model.name].missing == 0
    assert {"status 429", "status 500"} < {
        row["error"] for row in map(json.loads, (tmp_path / "log").read_text().splitlines()) if "failed" in row
    }


@pytest.mark.parametrize("trouble", TROUBLES)
def test_what_never_comes_right_is_missing_with_its_reason(trouble, tmp_path):
    def behave(number, body):
        return trouble if body["messages"][0]["content"] == "question 1" else "ok"

    with loopback(behave=behave) as server:
        model = ServerModel(server.model, wait=0.001, attempts=3)
        runner = Runner(Log(tmp_path / "log"))
        answers = runner.ask(model, calls(4))
        assert [answer.missing for answer in answers] == [False, True, False, False]
        assert answers[1].error and answers[1].attempts == 3
        assert runner.usage[model.name].errors == {answers[1].error: 1}
        assert len(server.requests) == 6


def test_too_late_is_missing():
    with loopback(delay=0.4) as server:
        answers = Runner().ask(ServerModel(server.model, wait=0.001, attempts=2, timeout=0.1), calls(1))
    assert answers[0].error == "no answer in time"


def test_a_refusal_of_one_question_is_not_asked_again():
    with loopback(behave=lambda number, body: "400") as server:
        answers = Runner().ask(ServerModel(server.model, wait=0.001), calls(2))
        assert [answer.error for answer in answers] == ["status 400"] * 2 and len(server.requests) == 2


@pytest.mark.parametrize(
    ("status", "said"), [("401", "refuses the key"), ("403", "doesn't allow"), ("404", "no such model")]
)
def test_a_refusal_of_everything_ends_the_run(status, said):
    with loopback(behave=lambda number, body: status) as server:
        with pytest.raises(EvaluationError, match=said):
            Runner().ask(ServerModel(server.model, wait=0.001), calls(40))
        assert len(server.requests) <= 8


def test_a_server_that_is_not_there_is_given_up():
    with loopback() as server:
        pass
    with pytest.raises(EvaluationError, match=r"no answer to the last \d+ calls \(no connection"):
        Runner().ask(ServerModel(server.model, wait=0.0001, attempts=2), calls(200))


def test_what_a_server_is_asked(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    with loopback(entry={"id": "parrot", "root": "r", "created": 5, "owned_by": "us"}) as server:
        model = open_language_model(server.model)
        assert model.identity == {
            "server": server.url,
            "model": "parrot",
            "id": "parrot",
            "root": "r",
            "owned_by": "us",
        }
        answer = Runner().ask(model, [Call.of("hello", max_tokens=5, temperature=0.5, seed=3)])[0]
        asked = server.requests[0]
    assert asked["messages"] == [{"role": "user", "content": "hello"}]
    assert (asked["model"], asked["max_tokens"], asked["temperature"], asked["seed"]) == ("parrot", 5, 0.5, 3)
    assert (answer.prompt_tokens, answer.tokens, answer.fingerprint) == (7, 3, "fp")
    assert list(server.keys) == [Call.of("hello", max_tokens=5, temperature=0.5, seed=3).key(model.identity)]


def test_servers_give_no_likelihoods_and_names_must_name_one():
    with loopback() as server, pytest.raises(EvaluationError, match="gives no log-likelihoods"):
        Runner().ask(ServerModel(server.model), [Call.of("a", continuation="b")])
    for name in ("openai:", "openai:@http://x", "openai:m@ftp://x"):
        with pytest.raises(EvaluationError, match="names no model on a server"):
            ServerModel(name)


def test_without_the_client_the_line_to_type_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(MissingPackageError, match=r"pip install 'surgery\[eval\]'"):
        open_language_model("openai:m@http://localhost:1/v1")


# -- kills --------------------------------------------------------------------------------------------------------------

RUN = """
import sys
from pathlib import Path
from surgery.evaluating.calls import Call, Log
from surgery.evaluating.runner import Runner
from surgery.evaluating.server import ServerModel
print("begun", flush=True)
answers = Runner(Log(Path(sys.argv[2]))).ask(ServerModel(sys.argv[1], parallel=1, wait=.01), [Call.of(f"question {k}", max_tokens=9) for k in range(30)])
assert all(not answer.missing for answer in answers)
print("done", flush=True)
"""


def test_a_kill_at_any_moment_repeats_no_paid_call(tmp_path):
    """What was under way when it struck may be asked again: of one call at once, one for each kill, and its key is the same."""
    log, kills, draw = tmp_path / "log", 0, random.Random(1)
    with loopback(delay=0.01) as server:
        while True:
            run = subprocess.Popen(
                [sys.executable, "-c", RUN, server.model, str(log)], stdout=subprocess.PIPE, text=True
            )
            assert run.stdout.readline() == "begun\n"
            known = len(server.requests)
            if kills < 3:
                wanted = known + draw.randint(2, 8)
                while len(server.requests) < wanted and run.poll() is None:
                    time.sleep(0.002)
                time.sleep(draw.uniform(0, 0.02))
                run.send_signal(signal.SIGKILL)
                kills += run.wait() == -9
                run.stdout.close()
                continue
            assert run.communicate()[0] == "done\n"
            break
        logged = [json.loads(line) for line in log.read_bytes().split(b"\n") if line.endswith(b"}")]
        assert len({row["key"] for row in logged if "answer" in row}) == 30
        assert len(server.served) == 30
        assert sum(server.served.values()) <= 30 + kills
        assert set(server.keys.values()) <= {1, 2} and len(server.keys) == 30


def test_calls_that_were_under_way_are_known(tmp_path):
    log = Log(tmp_path / "log")
    log.sent(["a", "b"])
    log.failed("b", "why", 1)
    log.close()
    assert Log(tmp_path / "log").unanswered == {"a"}
    assert [path.name for path in tmp_path.iterdir()] == ["log"]
