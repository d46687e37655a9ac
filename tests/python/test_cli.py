"""The command line: help that reads well, exit codes, and one clear message for whatever is wrong."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("click")
pytest.importorskip("tensorboardX")

import numpy as np

import distnet
from distnet.alexnet.job.config import TrainConfig, read_config_file
from distnet.alexnet.recipes import RECIPES
from distnet.benchmark.bounds import explain
from distnet.cli.bench import _in_words, _table
from distnet.cli.commands import COMMANDS
from distnet.cli.main import main
from distnet.semantics import SEMANTICS


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Run a command in this process; returns its exit code and what it wrote."""
    code = main(arguments)
    output = capsys.readouterr()
    return code, output.out, output.err


LONGEST_S = 280.0  # a training's, with its imports of TensorFlow, beside whatever else the machine does

pytestmark = pytest.mark.timeout(300)


def start(*arguments: str, **options: Any) -> subprocess.Popen[str]:
    """Start a command as a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "distnet", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def finish(process: subprocess.Popen[str], within_s: float = LONGEST_S) -> tuple[int, str, str]:
    """Wait for a command's end."""
    try:
        output, errors = process.communicate(timeout=within_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise
    return process.returncode, output, errors


# ---- help ------------------------------------------------------------------------------------------------------------
def test_the_list_of_commands_says_what_each_is_for(capsys: pytest.CaptureFixture[str]) -> None:
    code, output, _ = said(capsys, "--help")
    assert code == 0
    assert "..." not in output.partition("Commands:")[2]
    for name in COMMANDS:
        assert f"\n  {name} " in output


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(capsys: pytest.CaptureFixture[str], name: str) -> None:
    code, output, errors = said(capsys, name, "--help")
    assert code == 0
    assert output.startswith(f"Usage: distnet {name}")
    assert errors == ""
    assert "--json" in output


def test_the_help_of_a_training_names_every_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    _, output, _ = said(capsys, "train", "--help")
    assert [name for name in RECIPES if f"'{name}'" not in output] == []


def test_the_module_can_be_run() -> None:
    code, output, _ = finish(start("--help"))
    assert code == 0
    assert "train --demo" in output


# ---- wrong settings: exit code 2, one message ------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--workers", "0"], "workers is 0; expected a whole number from 1 to 4096"),
        (["train", "--semantics", "async-lockfre"], "did you mean 'async-lockfree'?"),
        (["train", "--recipe", "tutorail"], "no recipe is named 'tutorail'; did you mean 'tutorial'?"),
        (["train", "--config", "/no/such/file.toml"], "cannot read /no/such/file.toml: No such file or directory"),
        (["train", "--semantics", "async-sharded", "--servers", "1"], "async-sharded needs at least 2 servers, not 1"),
        (["train", "--epochs", "1", "--steps", "5"], "give one of them"),
        (["train", "--checkpoint-every", "soon"], "--checkpoint-every is 'soon'"),
        (["train", "--trainer", "karas"], "--trainer is 'karas'; did you mean 'keras'?"),
        (["compare", "--semantics", "sync,asink"], "no semantics is named 'asink'"),
        (["compare", "--seeds", "1,two"], "expected whole numbers with commas between"),
        (["compare", "--seeds", "1,1"], "names a seed twice"),
        (["worker", "--rank", "0"], "--address is missing"),
        (["worker", "--address", "tcp://127.0.0.1:1", "--rank", "2"], "rank is 2; expected 0 to 1 with 2 workers"),
        (["run", "--semantics", "synk", "script.py"], "did you mean 'sync'?"),
        (["run", "--optimizer", "adm", "script.py"], "did you mean 'adam'?"),
        (
            ["run", "--optimizer", "sgd(0.1)", "--learning-rate", "0.2", "script.py"],
            "is given in two places, --learning-",
        ),
        (["run", "--schedule", "cosine(update=5)", "script.py"], "at character 8: cosine has no setting 'update'"),
        (["run", "-n", "0", "script.py"], "workers is 0"),
        (["bench", "--sizes", "huge"], "no size is named 'huge'"),
        (["bench", "--transport", "rdma"], "no transport is named 'rdma'"),
    ],
)
def test_a_wrong_setting_is_one_message_and_exit_code_2(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, arguments: list[str], message: str
) -> None:
    place = ["--out", str(tmp_path / "run")] if arguments[0] in ("train", "compare") else []
    code, output, errors = said(capsys, *arguments, *place)
    assert code == 2
    assert output == ""
    assert message in errors
    assert errors.startswith("distnet: ")
    assert len(errors.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_resume_takes_the_runs_own_settings(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, _, errors = said(capsys, "train", "--resume", str(tmp_path), "--out", str(tmp_path / "other"))
    assert code == 2
    assert "--resume goes on in the run's own folder with its own settings; leave out --out" in errors
    code, _, errors = said(capsys, "train", "--resume", str(tmp_path))
    assert code == 2
    assert f"{tmp_path} holds no run" in errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], "no command is named 'trian'; did you mean 'train'?"),
        (["script.py"], "did you mean 'distnet run script.py'?"),
        (["train", "--wrokers", "2"], "--workers"),
        (["train", "--workers", "two"], "'two' is not a valid integer"),
        (["run"], "Missing argument"),
        (["run", "--lerning-rate", "0.1", "script.py"], "--learning-rate"),  # and is no script of that name
        (["train", "--lr", "0.1"], "--learning-rate"),
    ],
)
def test_wrong_usage_is_exit_code_2(capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    code, _, errors = said(capsys, *arguments)
    assert code == 2
    assert "Error: " in errors
    assert message in errors


def test_a_folder_that_cannot_be_written_is_exit_code_1(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    code, _, errors = said(capsys, "train", "--out", str(tmp_path / "file" / "run"))
    assert code == 1
    assert "cannot write" in errors
    assert "Not a directory" in errors


def test_data_that_are_not_there_are_named_by_the_launcher(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, _, errors = said(capsys, "train", "--data", str(tmp_path / "nowhere"), "--out", str(tmp_path / "run"))
    assert code == 2
    assert f"there is no folder {tmp_path / 'nowhere'}" in errors
    assert list(tmp_path.iterdir()) == []


def test_a_missing_extra_is_one_line() -> None:
    program = "import sys; sys.modules['click'] = None; from distnet.cli.main import main; sys.exit(main(['train']))"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert result.stderr == "distnet: this needs the package click; install it with: pip install 'distnet-ps[train]'\n"


# ---- whole commands --------------------------------------------------------------------------------------------------
SCRIPT = """
import sys
import numpy as np
import distnet

client = distnet.connect(parameters=[np.zeros(4, np.float32), np.zeros((2, 3), np.float32)])
for _ in range(5):
    client.push_pull([np.ones(4, np.float32), np.ones((2, 3), np.float32)])
client.close()
print("rank", client.rank, sys.argv[1:])
"""


@pytest.mark.parametrize("semantics", SEMANTICS)
def test_run_starts_a_script_once_for_each_rank(tmp_path: Path, semantics: str) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    code, output, errors = finish(start("run", "-n", "3", "--semantics", semantics, "--json", str(script), "--x", "1"))
    assert code == 0, errors
    assert json.loads(output)["server"]["updates"] == (5 if semantics == "sync" else 15)
    said_by_workers = {line for line in errors.splitlines() if line.startswith("[worker")}
    assert said_by_workers == {f"[worker {rank}] rank {rank} ['--x', '1']" for rank in range(3)}


def test_run_takes_a_module_and_settings_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "job.toml").write_text('semantics = "async-apply"\nworkers = 3\noptimizer = "momentum(0.25)"\n')
    (tmp_path / "worker_of_mine.py").write_text(SCRIPT)
    arguments = ["--config", "job.toml", "-n1", "--learning-rate", "0.5", "-m", "worker_of_mine", "-n", "7", "--config"]
    code, output, errors = finish(start("run", *arguments, cwd=tmp_path))
    assert code == 0, errors
    assert output == "[worker 0] rank 0 ['-n', '7', '--config']\n"
    assert "async-apply" in errors
    assert "momentum(0.5, momentum=0.9, nesterov=false, weight_decay=0)" in errors


def test_run_names_a_script_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, errors = said(capsys, "run", "/no/such/script.py")
    assert code == 2
    assert "there is no script /no/such/script.py" in errors


def test_serve_ends_when_its_workers_are_done() -> None:
    options = ["--workers", "1", "--learning-rate", "0.5", "--json"]
    server = start("serve", "--address", "tcp://127.0.0.1:0", *options)
    assert server.stdout is not None
    try:
        address = json.loads(server.stdout.readline())["address"]
        client = distnet.connect(address, rank=0, parameters={"w": np.zeros(3, np.float32)})
        client.push({"w": np.ones(3, np.float32)})
        client.close()
    finally:
        code, output, errors = finish(server)
    assert code == 0, errors
    assert json.loads(output)["server"]["updates"] == 1


def test_serve_says_that_its_port_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        code, output, errors = finish(start("serve", "--address", f"tcp://127.0.0.1:{taken.getsockname()[1]}"))
    assert code == 1
    assert output == ""
    assert errors.startswith("distnet: ConnectError: ")
    assert len(errors.splitlines()) == 1


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_serve_obeys_being_stopped(number: signal.Signals, code: int) -> None:
    server = start("serve", "--address", "tcp://127.0.0.1:0")
    assert server.stdout is not None
    assert server.stdout.readline().startswith("serving at ")
    server.send_signal(number)
    assert finish(server, within_s=20.0)[0] == code


def test_a_worker_without_a_server_says_so() -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    code, _, errors = finish(
        start(
            "worker",
            "--rank",
            "0",
            "--address",
            f"tcp://127.0.0.1:{port}",
            "--data",
            "generated",
            "--connect-timeout",
            "0",
        )
    )
    assert code == 1
    assert errors.startswith("distnet: ConnectError: ")
    assert len(errors.splitlines()) == 1


def test_bench_measures_and_checks(capsys: pytest.CaptureFixture[str]) -> None:
    code, output, errors = said(capsys, "bench", "--sizes", "small", "--seconds", "2", "--json")
    assert code == 0, errors
    rows = json.loads(output)["rows"]
    assert {(row["transport"], row["semantics"]) for row in rows} == {(t, s) for t in ("shm", "tcp") for s in SEMANTICS}
    assert all(row["sustained_s"] > 0 for row in rows)


def test_bench_fits_80_columns_and_breaks_at_words() -> None:
    rows = [
        {
            "size": "resnet50",
            "bytes": 102_228_128,
            "transport": transport,
            "semantics": semantics,
            "latency_s": 1.2345,
            "sustained_s": 1.2345,
            "per_s": 123_456.0,
            "bytes_per_s": 123.4e9,
            "ratios": dict.fromkeys(
                ("memcpy", "SGD in place", "bare TCP exchange")[: 3 if transport == "tcp" else 2], 99.99
            ),
            "in_words": explain(
                transport, 1.0, copy_s=0.4, update_s=0.5, sockets_s=0.6, small_s=0.1, python_s=0.05
            ).in_words,
            "copy_spread": 0.5,
        }
        for transport in ("shm", "tcp")
        for semantics in SEMANTICS
    ]
    for text in (_table(rows), _in_words(rows)):
        assert max(map(len, text.splitlines())) <= 80
    assert "× TCP" not in _table(rows[:5]).splitlines()[2]
    words = " ".join(_in_words(rows).split())
    assert all(" ".join(row["in_words"].split()) in words for row in rows)


# ---- training: AlexNet on a few generated images -------------------------------------------------------------------
def train_a_little(out: Path, *options: str) -> subprocess.Popen[str]:
    """Start a training that takes a few seconds."""
    pytest.importorskip("tensorflow")
    return start("train", "--data", "generated", "--batch-size", "16", "--out", str(out), *options)


def wait_for_records(process: subprocess.Popen[str], folder: Path, within_s: float = 90.0) -> None:
    """Wait until workers have told about steps."""
    give_up_s = time.monotonic() + within_s
    while time.monotonic() < give_up_s and process.poll() is None:
        metrics = folder / "metrics.jsonl"
        if metrics.exists() and '"worker"' in metrics.read_text():
            return
        time.sleep(0.05)
    pytest.fail(f"no step was recorded: {finish(process, 5.0)}")


def process_of(launcher: subprocess.Popen[str], *words: str) -> int:
    """Return the child of a launcher whose command line has those words, one after another."""
    children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
    for pid in children:
        command = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
        if any(tuple(command[at : at + len(words)]) == words for at in range(len(command))):
            return int(pid)
    pytest.fail(f"no child has {words} in its command line")


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        ["--semantics", "sync", "--workers", "3"],  # 7 steps: two workers do 2, one does 3
        ["--semantics", "async-sharded", "--transport", "tcp", "--overlap"],
        ["--semantics", "local", "--workers", "1"],
        ["--semantics", "async-lockfree", "--trainer", "keras"],
    ],
    ids=lambda options: options[1],
)
def test_a_training_leaves_a_folder_that_can_be_run_again(tmp_path: Path, options: list[str]) -> None:
    code, output, errors = finish(train_a_little(tmp_path / "run", "--steps", "7", "--json", *options))
    assert code == 0, errors
    summary = json.loads(output)
    assert json.loads((tmp_path / "run" / "summary.json").read_text()) == {
        name: value for name, value in summary.items() if name != "folder"
    }
    assert summary["examples"] == 7 * 16
    assert summary["steps"] == 7
    assert summary["updates"] == (3 if "sync" in options else 7)
    assert 0.0 <= summary["accuracy"] <= 1.0
    assert {path.name.partition(".tfevents")[0] for path in (tmp_path / "run").iterdir()} == {
        "config.toml", "metrics.jsonl", "events.out", "checkpoints", "summary.json", "logs",
    }  # fmt: skip
    config = TrainConfig.from_mapping(read_config_file(tmp_path / "run" / "config.toml"))
    assert config.to_mapping() == summary["config"]
    checkpoint = distnet.checkpoint.load(tmp_path / "run" / "checkpoints")
    sizes: list[int] = [array.size for array in checkpoint.parameters.values()]
    assert sum(sizes) == 1_068_298
    assert min(checkpoint.versions) == summary["updates"]
    assert checkpoint.ema is not None
    if "local" in options:  # once is enough
        code, output, errors = finish(start("evaluate", str(tmp_path / "run"), "--json"))
        assert code == 0, errors
        result = json.loads(output)
        assert result["accuracy"] == pytest.approx(summary["accuracy"])
        assert (result["updates"], result["scored"]) == (7, "ema")


@pytest.mark.slow
def test_a_training_names_the_worker_that_was_killed_and_ends(tmp_path: Path) -> None:
    launcher = train_a_little(tmp_path, "--epochs", "3", "--evaluate", "never")
    wait_for_records(launcher, tmp_path)
    os.kill(process_of(launcher, "--rank", "1"), signal.SIGKILL)
    killed_s = time.monotonic()
    code, _, errors = finish(launcher)
    assert code == 1
    assert "worker 1 was killed by SIGKILL" in errors
    assert time.monotonic() - killed_s < 20


@pytest.mark.slow
@pytest.mark.timeout(600)  # two trainings, one after the other
def test_a_training_stops_in_order_at_ctrl_c_and_goes_on_where_it_was(tmp_path: Path) -> None:
    began = time.time() - 1.0
    options = ["--steps", "201", "--semantics", "sync", "--evaluate", "after", "--holdout", "200"]
    launcher = train_a_little(tmp_path, *options)
    wait_for_records(launcher, tmp_path)
    launcher.send_signal(signal.SIGINT)
    code, output, errors = finish(launcher)
    assert code == 130
    assert output == ""
    assert errors.splitlines()[-1] == "distnet: stopped by Ctrl-C"
    assert f"go on with: distnet train --resume {tmp_path}" in errors.splitlines()
    assert "Traceback" not in errors
    before = min(distnet.checkpoint.load(tmp_path / "checkpoints").versions)
    assert 0 < before < 101
    code, output, errors = finish(start("train", "--resume", str(tmp_path), "--json"))
    assert code == 0, errors
    summary = json.loads(output)
    assert (summary["steps"], summary["examples"], summary["updates"]) == (201, 201 * 16, 101)
    assert summary["resumed_at_examples"] == [before * 2 * 16]
    assert [result["examples"] for result in summary["evaluations"]][-1] == 201 * 16
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    for rank in (0, 1):
        steps = [record["step"] for record in records if record["kind"] == "worker" and record["rank"] == rank]
        assert steps == sorted(set(steps)), "nothing is told twice"
        assert steps[-1] == 101 - rank
    (resumed,) = (record for record in records if record["kind"] == "resumed")
    assert resumed["steps"] == {"0": before, "1": before}
    assert all(began <= record["time"] <= time.time() for record in records), "seconds since the epoch"


@pytest.mark.slow
@pytest.mark.skipif(not os.access("/dev/full", os.W_OK), reason="needs /dev/full")
def test_a_full_disk_ends_a_training_with_one_message(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    code, _, errors = finish(train_a_little(tmp_path, "--steps", "20"))
    assert code == 1
    assert "No space left on device; make room or give another folder with --out" in errors
    assert "Traceback" not in errors
