"""What a launcher shows: lines and bars with their writer's name, words for silence, and which failure came first."""

from __future__ import annotations

import dataclasses
import io
import re
import signal
from pathlib import Path
from typing import Any, cast

import pytest

pytest.importorskip("click")

from distnet.errors import ConfigError
from distnet.launch.children import Child, Line
from distnet.launch.children.last_words import LastWords
from distnet.launch.ending import serving
from distnet.launch.failures import Failure, check_loss, failure_policy
from distnet.launch.joining import parse_ranks
from distnet.launch.output.chatter import is_chatter
from distnet.launch.output.console import Output
from distnet.launch.output.lines import LineCutter, Piece
from distnet.launch.program import program_of
from distnet.launch.service import joining_line
from distnet.launch.signals import StopRequested, holding_signals
from distnet.launch.start_line import start_line
from distnet.launch.watching.watch import Watch, worker_names
from distnet.semantics import SEMANTICS
from distnet.settings.job import JobSettings


# ---- lines -----------------------------------------------------------------------------------------------------------
def cut(*chunks: bytes, partial_after_s: float | None = 0.5) -> list[Piece]:
    """Return the pieces of a stream that came in those chunks, an instant apart."""
    cutter = LineCutter(partial_after_s)
    pieces = [piece for chunk in chunks for piece in cutter.feed(chunk, 0.0)]
    return [*pieces, *cutter.close()]


@pytest.mark.parametrize(
    ("chunks", "pieces"),
    [
        ([b"one\ntwo\nthr", b"ee\n"], [Piece("one"), Piece("two"), Piece("three")]),
        ([b"no end"], [Piece("no end")]),
        ([b"from elsewhere\r\n"], [Piece("from elsewhere")]),
        ([b"cut\r", b"\nhere\n"], [Piece("cut", whole=False), Piece("cut"), Piece("here")]),
        ([b" 1 %\r", b" 2 %\r", b"all\n"], [Piece(" 1 %", whole=False), Piece(" 2 %", whole=False), Piece("all")]),
        ([b"\r 1 %\r 2 %\n"], [Piece(" 2 %")]),
        ([b"\n\n"], [Piece(""), Piece("")]),
    ],
)
def test_a_stream_is_cut_into_lines_and_states_of_bars(chunks: list[bytes], pieces: list[Piece]) -> None:
    assert cut(*chunks) == pieces


def test_records_come_only_whole() -> None:
    assert cut(b'{"a": 1}\r{"b"', b": 2}\n", partial_after_s=None) == [Piece('{"a": 1}\r{"b": 2}')]


def test_a_line_without_an_end_is_told_of_once_and_a_bar_sooner() -> None:
    cutter = LineCutter(0.5)
    assert cutter.feed(b"name? ", 10.0) == []
    assert cutter.waits
    assert cutter.due(10.4) == []
    assert cutter.due(10.5) == [Piece("name? ", whole=False)]
    assert cutter.due(11.0) == []
    assert cutter.feed(b"\r 3 %", 12.0) == []
    assert cutter.due(12.25) == [Piece(" 3 %", whole=False)]


# ---- output ----------------------------------------------------------------------------------------------------------
class Terminal(io.StringIO):
    """A terminal that keeps what it is told; ``screen`` is what it then shows."""

    def isatty(self) -> bool:
        return True

    def screen(self) -> list[str]:
        lines, row = [""], 0
        for text in re.split(r"(\x1b\[\d*[AJ]|\n)", self.getvalue()):
            if text == "\n":
                row += 1
                lines += [""] * (row + 1 - len(lines))
            elif text.endswith("A") and text.startswith("\x1b"):
                row -= int(text[2:-1])
            elif text == "\x1b[J":
                lines[row:] = [""]
            else:
                lines[row] = text or lines[row]
        return lines[:-1]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time that outputs see; its only element can be set."""
    now_s = [100.0]
    monkeypatch.setattr("distnet.launch.output.console.time.monotonic", lambda: now_s[0])
    return now_s


def test_a_terminal_keeps_one_line_a_bar_below_the_others(monkeypatch: pytest.MonkeyPatch, clock: list[float]) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stdout", terminal)
    monkeypatch.setattr("sys.stderr", terminal)
    shown = Output()
    for step in range(5):
        for rank in range(2):
            shown.show(f"worker {rank}", "stderr", Piece(f"{step}/5", whole=False))
        shown.show("worker 0", "stdout", Piece(f"line {step}"))
        clock[0] += 1.0
    assert terminal.screen() == [*(f"[worker 0] line {step}" for step in range(5)), "[worker 0] 4/5", "[worker 1] 4/5"]
    shown.show("worker 0", "stderr", Piece("5/5"))
    assert terminal.screen()[-2:] == ["[worker 0] 5/5", "[worker 1] 4/5"]
    shown.show("worker 1", "stderr", Piece("\x1b[31m" + "x" * 200, whole=False))
    clock[0] += 1.0
    shown.tick()
    assert len(terminal.screen()[-1]) == 79
    shown.close()


def test_a_file_gets_a_bars_first_state_at_once_its_last_one_and_few_between(
    monkeypatch: pytest.MonkeyPatch, clock: list[float]
) -> None:
    file = io.StringIO()
    monkeypatch.setattr("sys.stderr", file)
    shown = Output(stdout_is_taken=True)
    shown.show("worker 0", "stderr", Piece("\x1b[K0 %", whole=False))
    assert file.getvalue() == "[worker 0] 0 %\n"
    for step in range(1, 3601):
        clock[0] += 1.0
        shown.show("worker 0", "stderr", Piece(f"step {step}", whole=False))
        shown.tick()
    assert "[worker 0] step 1\n" in file.getvalue()
    assert file.getvalue().count("\n") < 450
    shown.show("worker 0", "stderr", Piece("all"))
    shown.show("worker 0", "stdout", Piece("half", whole=False))
    shown.show("worker 0", "stdout", Piece("half"))  # its end was all that was missing
    shown.show("worker 1", "stdout", Piece("a question?", whole=False))
    shown.close()
    assert file.getvalue().splitlines()[-3:] == ["[worker 0] all", "[worker 0] half", "[worker 1] a question?"]


@pytest.mark.parametrize(
    ("line", "chatter"),
    [
        ("WARNING: All log messages before absl::InitializeLog() is called are written to STDERR", True),
        ("I0000 00:00:1764345600.1 1 cpu_feature_guard.cc:210] This TensorFlow binary is optimized to use", True),
        ("E0000 00:00:1764345600.1 1 cuda_dnn.cc:8310] Unable to register cuDNN factory: Attempting to", True),
        ("2026-11-28 10:00:00.1: I tensorflow/core/util/port.cc:153] oneDNN custom operations are on.", True),
        ("2026-11-28 10:00:00.1: W external/xla/cuda.cc:1] Could not find cuda drivers on your machine", True),
        ("ValueError: Could not find cuda drivers", False),
        ("2026-11-28 10:00:00.1: E tensorflow/core/framework/x.cc:1] out of memory", False),
    ],
)
def test_harmless_lines_are_known(line: str, chatter: bool) -> None:
    assert is_chatter(line) is chatter


# ---- words for silence -----------------------------------------------------------------------------------------------
def a_session(rank: int, *, incarnation: int | None = None, presence: str = "live") -> dict[str, Any]:
    return {"role": "worker", "rank": rank, "incarnation": incarnation or rank + 1, "presence": presence}


def an_end(rank: int, how: str, *, incarnation: int | None = None) -> dict[str, Any]:
    return {"rank": rank, "incarnation": incarnation or rank + 1, "how": how}


def counters(**values: Any) -> dict[str, Any]:
    usual: dict[str, Any] = {"sessions": [], "ended": [], "awaited": [], "round": 0, "queue_depth": 0, "updates": 0}
    return usual | {"floats": 10, "groups": 0} | values


def test_a_round_that_waits_is_told_of_after_10_s_and_then_less_and_less() -> None:
    watch = Watch(workers=3)
    both = [a_session(0), a_session(1)]
    watch.look(counters(sessions=both, round=12), 0.0)
    waiting = counters(sessions=both, awaited=[1, 2], round=12, queue_depth=1)
    said = {now_s: lines for now_s in range(1, 200) if (lines := watch.look(waiting, float(now_s)))}
    assert list(said) == [11, 21, 41, 81, 161]
    assert said[11] == ["round 12 waits for worker 1; worker 2 (not connected yet), 10 s"]
    lines = watch.look(counters(sessions=both, awaited=[0, 1, 2], round=13, queue_depth=0, updates=1), 200.0)
    assert lines == ["the rounds go on, after 3 min 19 s"]


def test_rounds_in_which_everyone_computes_are_no_wait() -> None:
    watch = Watch(workers=2)
    for now_s in range(100):
        both = [a_session(rank) | {"applied": now_s} for rank in range(2)]
        stats = counters(sessions=both, awaited=[0, 1], round=now_s, updates=now_s)
        assert watch.look(stats, float(now_s)) == (["workers 0 and 1 connected, 2 of 2"] if now_s == 0 else [])


def test_rounds_that_go_on_without_a_worker_are_told_of_once() -> None:
    watch, said = Watch(workers=3), {}
    for number in range(9):
        silent = a_session(1) | {"applied": 1 if number < 6 else number}
        both = [a_session(0) | {"applied": number}, silent]
        if lines := watch.look(counters(sessions=both, round=number, updates=number), float(number)):
            said[number] = lines
    assert said == {
        0: ["workers 0 and 1 connected, 2 of 3"],
        2: [
            "the rounds go on without worker 2 (not connected yet)",
            "the rounds go on without worker 1, which pushes nothing",
        ],
        6: ["worker 1 takes part in the rounds"],
    }


def test_who_comes_goes_and_dies_is_said() -> None:
    watch = Watch(workers=3)
    assert watch.look(counters(sessions=[a_session(0)]), 0.0) == ["worker 0 connected, 1 of 3"]
    ended = [an_end(0, "done"), an_end(1, "died")]
    assert watch.look(counters(sessions=[a_session(2)], ended=ended), 1.0) == [
        "workers 1 and 2 connected, 3 of 3",
        "worker 0 is done",
        "worker 1 is lost: the connection ended without a goodbye",
    ]
    again = counters(sessions=[a_session(2), a_session(1, incarnation=4)], ended=ended)
    assert watch.look(again, 2.0) == ["worker 1 connected again"]
    assert watch.look(again, 3.0) == []
    assert watch.seen == {0, 1, 2}
    assert watch.done == {0}


def test_a_missing_worker_0_is_the_one_that_brings_the_model() -> None:
    watch = Watch(workers=2)
    watch.look(counters(floats=0), 0.0)
    assert watch.look(counters(floats=0), 10.0) == [
        "worker 0 has not connected yet, 10 s; it brings the model, which the others wait for"
    ]
    watch.leave(0)
    watch.leave(1)
    assert watch.look(counters(floats=0), 1000.0) == []


def test_workers_that_only_form_groups_are_not_waited_for() -> None:
    watch = Watch(workers=2, launched=range(2))
    watch.look(counters(floats=0), 0.0)
    assert watch.look(counters(floats=0, groups=1), 10.0) == []
    assert watch.look(counters(floats=0, groups=1), 1000.0) == []


def test_hundreds_of_workers_make_no_flood() -> None:
    watch = Watch(workers=600)
    lines = []
    for now_s in range(60):
        here = [a_session(rank) for rank in range(10 * (now_s + 1))]
        lines += watch.look(counters(sessions=here, updates=now_s), float(now_s))
    done = counters(ended=[an_end(rank, "done") for rank in range(536, 600)])
    lines += watch.look(done, 61.0)
    assert len(lines) < 30
    assert not watch.knows_all
    assert worker_names(range(600)) == "workers 0, 1, 2, 3 and 596 others"


def test_a_launched_worker_is_done_once_its_process_has_succeeded() -> None:
    watch = Watch(workers=2, launched=[0, 1])
    watch.look(counters(sessions=[a_session(0), a_session(1)]), 0.0)
    ended = counters(ended=[an_end(0, "done"), an_end(1, "silent")])
    assert watch.look(ended, 1.0) == ["worker 1 is lost: nothing was heard for its timeout"]
    assert watch.silent == {1}
    watch.finish(0)
    assert watch.look(ended, 2.0) == ["worker 0 is done"]
    assert watch.look(counters(sessions=[a_session(1, incarnation=9)]), 3.0) == ["worker 1 connected again"]
    assert watch.silent == set()


def test_what_is_said_of_an_older_process_is_not_said_of_the_one_that_starts_again() -> None:
    watch = Watch(workers=2, launched=[0, 1])
    watch.look(counters(sessions=[a_session(0), a_session(1)]), 0.0)
    watch.look(counters(sessions=[a_session(0)], ended=[an_end(1, "silent")]), 1.0)
    assert watch.silent == {1}
    watch.start(1)
    assert watch.silent == set()
    watch.look(counters(sessions=[a_session(0)], ended=[an_end(1, "silent"), an_end(1, "silent")]), 2.0)
    assert watch.silent == set()
    watch.look(counters(sessions=[a_session(0), a_session(1, incarnation=9)]), 3.0)
    watch.look(counters(sessions=[a_session(0)], ended=[an_end(1, "silent", incarnation=9)]), 4.0)
    assert watch.silent == {1}


# ---- last words ------------------------------------------------------------------------------------------------------
def said_when_stopped(*lines: str) -> list[str]:
    """Return what is shown of a child's last lines on its standard error."""
    shown: list[str] = []
    words, child = LastWords(lambda line: shown.append(line.text)), cast(Child, object())
    for line in lines:
        words.take(Line(child, "stderr", line))
    words.close()
    return shown


@pytest.mark.parametrize("links", [(), ("Timeout: late", "", "During handling of the above exception, another …", "")])
def test_tracebacks_of_being_stopped_are_left_out(links: tuple[str, ...]) -> None:
    begin = ["Traceback (most recent call last):", "  File …"]
    chain = [*begin, *links, *begin] if links else begin
    assert said_when_stopped("one", *chain, "KeyboardInterrupt", "two") == ["one", "two"]
    other = [*chain, "ValueError: no milk", "two"]
    assert said_when_stopped(*other) == other
    assert said_when_stopped(*other[:-1]) == other[:-1]
    assert said_when_stopped(*other, *begin, "KeyboardInterrupt") == other


# ---- failures --------------------------------------------------------------------------------------------------------
def a_failure(rank: int, status: int, at_s: float, words: str = "") -> Failure:
    return Failure(rank=rank, status=status, at_s=at_s, words=words)


def test_the_failure_that_others_follow_comes_first() -> None:
    killed = a_failure(2, -signal.SIGKILL, 1.1)
    followers = [
        a_failure(0, 1, 1.0, "distnet.errors.RoundAborted: rank 2 was lost, and on_loss is 'abort'"),
        a_failure(1, 1, 1.05, "PeerClosed: the server closed the connection"),
        a_failure(3, 143, 1.0),
        a_failure(4, 1, 1.02, "distnet.frameworks.ranks.Departed: rank 2 has left the job"),
    ]
    assert sorted([*followers, killed], key=lambda failure: failure.order)[0] is killed
    assert killed.in_words == "worker 2 was killed by SIGKILL (out of memory?)"
    assert (
        a_failure(0, 1, 1.0, "ValueError: no milk").in_words == "worker 0 ended with exit code 1 (ValueError: no milk)"
    )


def test_restarts_that_could_not_help_are_refused() -> None:
    aborting = dataclasses.replace(SEMANTICS["sync"], on_loss="abort")
    with pytest.raises(ConfigError, match="--max-restarts goes with --on-loss shrink or wait"):
        failure_policy(aborting, max_restarts=1, then="continue")
    assert failure_policy(SEMANTICS["sync"], max_restarts=1, then="stop").max_restarts == 1


def test_an_on_loss_that_would_do_nothing_is_refused() -> None:
    waiting = JobSettings(semantics="sync", on_loss="wait")
    with pytest.raises(ConfigError, match="--on-loss wait goes with --max-restarts"):
        check_loss(waiting, launched=True)
    check_loss(waiting, launched=False)
    check_loss(dataclasses.replace(waiting, max_restarts=1), launched=True)
    with pytest.raises(ConfigError, match="--on-loss shrink is for rounds, which async-apply has none of"):
        check_loss(JobSettings(semantics="async-apply", on_loss="shrink"), launched=False)


def test_rounds_wait_for_a_worker_that_starts_again_unless_told_otherwise() -> None:
    assert JobSettings(semantics="sync", max_restarts=2).semantics_value().on_loss == "wait"
    assert JobSettings(semantics="sync", max_restarts=2, on_loss="shrink").semantics_value().on_loss == "shrink"
    assert JobSettings(semantics="sync").semantics_value().on_loss == "shrink"
    line = start_line(JobSettings(semantics="sync", max_restarts=2), "run")
    assert "started again, up to 2 times, and the rounds wait for it; then it stops the job" in line
    line = start_line(JobSettings(semantics="sync", on_loss="abort"), "run")
    assert line.endswith("all rounds end with a lost worker, or one silent for 30 min")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ok.pyy", "neither a Python script, whose name ends in .py, nor a program that can be run; did you mean"),
        ("okk.py", "there is no script"),
        ("o.py3", "there is no script and no program"),
        (".", "is a folder"),
    ],
)
def test_a_script_that_is_none_is_refused(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "ok.py").touch()
    (tmp_path / "ok.pyy").touch()
    with pytest.raises(ConfigError, match=message) as caught:
        program_of([str(tmp_path / name)])
    with pytest.raises(ConfigError, match="there is no module nosuch_project in"):
        program_of(["-m", "nosuch_project"])
    assert program_of(["-m", "distnet.cli.main", "5"])[1:] == ["-m", "distnet.cli.main", "5"]
    assert name == "." or f"did you mean {tmp_path / 'ok.py'}?" in str(caught.value)


# ---- other machines --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("text", "ranks"), [("2-3", [2, 3]), ("0,4", [0, 4]), ("6,0-1", [0, 1, 6]), ("7", [7])])
def test_ranks_are_read(text: str, ranks: list[int]) -> None:
    assert parse_ranks(text) == ranks


@pytest.mark.parametrize("text", ["", "3-2", "a", "0-99999", "-1", "1,,2", "1-2,2"])
def test_ranks_that_make_no_sense_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--ranks"):
        parse_ranks(text)


def test_what_to_run_on_another_machine_names_the_first_address() -> None:
    assert joining_line("tcp://a:1,tcp://a:2", 4, recipe=None) == (
        "distnet run --join tcp://a:1 --workers 4 --ranks 0-3 SCRIPT"
    )


# ---- signals ---------------------------------------------------------------------------------------------------------
def finish_while_told(said: list[str], *numbers: signal.Signals) -> None:
    """Finish something while these signals come."""
    with holding_signals(lambda: said.append("once more")):
        for number in numbers:
            signal.raise_signal(number)
        said.append("finished")


def test_one_signal_does_not_break_what_should_be_finished_and_the_next_one_does() -> None:
    said: list[str] = []
    with pytest.raises(StopRequested):
        finish_while_told(said, signal.SIGTERM)
    assert said == ["once more", "finished"]
    with pytest.raises(KeyboardInterrupt):
        finish_while_told(said, signal.SIGTERM, signal.SIGINT)
    assert said == ["once more", "finished", "once more"]


class SlowServer:
    """A server that is told to stop once more while it writes its last checkpoint."""

    def __init__(self, number: signal.Signals) -> None:
        self._number = number
        self.stopped = False

    def __enter__(self) -> None:
        pass

    def __exit__(self, *error: object) -> None:
        signal.raise_signal(self._number)
        self.stopped = True

    def failures(self) -> list[str]:
        return ["it does not say how far it is"]


def serve(server: SlowServer, said: list[str], stop: BaseException | None) -> None:
    """Serve until this comes."""
    with serving(server, said.append, checkpoint=None):  # type: ignore[arg-type]
        if stop is not None:
            raise stop


def test_a_second_signal_does_not_break_the_last_checkpoint() -> None:
    said: list[str] = []
    server = SlowServer(signal.SIGINT)
    with pytest.raises(StopRequested, match="SIGTERM"):
        serve(server, said, StopRequested(signal.SIGTERM))
    assert server.stopped
    assert said == ["stopping the server; once more to give it up"]
    server = SlowServer(signal.SIGTERM)
    with pytest.raises(StopRequested, match="SIGTERM"):
        serve(server, said, None)  # at the end of a job, the first signal still counts
    assert server.stopped
