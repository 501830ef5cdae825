"""The command: what a user did wrong is one line and status 2, and nothing heavy is imported to say so."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from running import (
    COMMAND,
    Finished,
    complaint_of,
    environment,
    limited_to,
    pocketstill,
    result_of,
    write_recipe,
)

from pocketstill.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = ("run", "collect", "curate", "distill", "export", "verify", "bundle", "chat", "doctor", "teacher serve")
HEAVY = {
    "torch", "transformers", "onnxruntime", "onnxruntime_genai", "llama_cpp", "tokenizers", "datasets", "openai",
    "rich", "jinja2", "numpy", "matplotlib", "pocketstill_pipeline", "pocketstill_export",
}  # fmt: skip


def answered(ledger: Path) -> int:
    """How many answers a ledger holds, after SQLite itself has found it whole."""
    with closing(sqlite3.connect(ledger)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        return int(connection.execute("SELECT count(*) FROM requests WHERE state = 'done'").fetchone()[0])


def imported_after(*commands: str) -> set[str]:
    """Which of HEAVY are imported after these command lines were run in one process."""
    program = (
        "import sys\n"
        "from pocketstill.cli import app\n"
        "for line in sys.argv[1:]:\n"
        "    try: app(line.split(), standalone_mode=False)\n"
        "    except SystemExit: pass\n"
        "print(' '.join(sorted({name.partition('.')[0] for name in sys.modules})), file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *commands], capture_output=True, text=True, check=True, timeout=60
    )
    return HEAVY & set(done.stderr.splitlines()[-1].split())


def test_help_imports_nothing_heavy() -> None:
    assert imported_after("--help") == set()


def test_the_help_of_every_command_imports_nothing_heavy() -> None:
    assert imported_after(*(f"{command} --help" for command in COMMANDS), "teacher --help") == set()


def test_help_names_every_command() -> None:
    done = pocketstill("--help")
    assert done.returncode == 0 and "offline" in done.stdout
    for command in COMMANDS:
        assert f"\n  {command.split()[0]} " in done.stdout


def test_a_wrong_key_names_the_nearest(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "r.toml", "embedded", ("samples = 2", "sample = 2"))
    done = pocketstill("run", recipe, "--runs", tmp_path)
    assert complaint_of(done) == done.stderr.strip()
    assert f"{recipe}: unknown key 'teacher.sample'; nearest: 'samples'" in done.stderr


def test_an_unknown_stage_lists_them(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "r.toml")
    said = complaint_of(pocketstill("run", recipe, "--runs", tmp_path, "--until", "destill"))
    assert "'destill'" in said and "collect, curate, distill, export, verify, bundle" in said


def test_a_missing_recipe_and_an_impossible_folder_are_one_line(tmp_path: Path) -> None:
    assert "none.toml: cannot be read" in complaint_of(pocketstill("run", tmp_path / "none.toml"))
    recipe = write_recipe(tmp_path / "r.toml")
    assert "Not a directory" in complaint_of(pocketstill("run", recipe, "--runs", recipe))


@pytest.mark.parametrize(
    ("stage", "says"),
    [
        ("curate", "run `pocketstill collect` first"),
        ("distill", "run `pocketstill curate` first"),
        ("export", "run `pocketstill distill` first"),
        ("verify", "run `pocketstill export` first"),
        ("bundle", "run `pocketstill verify RECIPE` first"),
    ],
)
def test_a_stage_without_the_one_before_it_says_which(tmp_path: Path, stage: str, says: str) -> None:
    from pocketstill_pipeline.run import run_recipe

    recipe = write_recipe(tmp_path / "r.toml")
    with pytest.raises(UserError, match=re.escape(says)):
        run_recipe(recipe, tmp_path, until=stage, only=True)


def test_a_dead_teacher_is_one_line_and_what_it_answered_is_kept(tmp_path: Path) -> None:
    from teaching import serving

    from pocketstill_pipeline.teacher import TeacherConfig
    from pocketstill_pipeline.teacher.server import make_app

    with serving(make_app(TeacherConfig())) as url:
        once = write_recipe(tmp_path / "once.toml", url, ("samples = 2", "samples = 1"))
        asked = result_of(pocketstill("collect", once, "--runs", tmp_path))["requests"]
    twice = write_recipe(tmp_path / "twice.toml", url)
    said = complaint_of(pocketstill("run", twice, "--runs", tmp_path))
    assert url in said and "nobody answers there" in said
    assert answered(tmp_path / "tiny" / "collect" / "ledger.sqlite") == asked > 0


def test_a_broken_line_of_a_replay_is_named(tmp_path: Path) -> None:
    from teaching import recorded, write_rows

    write_rows(tmp_path / "said.jsonl", [recorded("q", "r", "1", "1")])
    with (tmp_path / "said.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"question": "q2", "reasoning"\n')
    recipe = write_recipe(
        tmp_path / "r.toml", "replay", ("concurrency = 1", 'concurrency = 1\nreplay = ["said.jsonl"]')
    )
    said = complaint_of(pocketstill("run", recipe, "--runs", tmp_path))
    assert f"{tmp_path / 'said.jsonl'}, line 2: not JSON" in said
    assert answered(tmp_path / "tiny" / "collect" / "ledger.sqlite") == 0


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_setup_without_a_compiler_says_how_to_get_one(tmp_path: Path) -> None:
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    # `false` in the place of Python: should the check be missed, nothing is installed either.
    done = subprocess.run(
        ["make", "setup", "PYTHON=false"], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60,
        env=os.environ | {"CXX": "no-such-compiler"},
    )  # fmt: skip
    assert done.returncode == 2
    first, *rest = done.stderr.splitlines()
    assert first.startswith("setup: no C++ compiler found; install g++ or clang++")
    assert all(line.startswith("make") for line in rest)
    assert not (tmp_path / ".venv").exists()


@contextmanager
def full(folder: Path, most_bytes: int, means: str) -> Iterator[Any]:
    """A way to run the command with so little room; afterwards there is room."""
    if means == "limit":
        yield lambda *arguments: limited_to(most_bytes, *arguments)
        return
    mount = ["mount", "-t", "tmpfs", "-o", f"size={most_bytes}", "none", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a small file system cannot be mounted here; the size limit is tested all the same")
    yield pocketstill
    subprocess.run(["mount", "-o", "remount,size=64m", str(folder)], check=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    yield folder
    if folder.is_mount():
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("means", ["limit", "tmpfs"])
def test_a_full_disk_is_one_line_and_loses_no_answer(tmp_path: Path, disk: Path, means: str) -> None:
    recipe = write_recipe(tmp_path / "r.toml")
    ledger = disk / "tiny" / "collect" / "ledger.sqlite"
    with full(disk, 160_000, means) as run:
        said = complaint_of(run("collect", recipe, "--runs", disk))
        assert str(disk) in said and "free some" in said
        kept = answered(ledger)
    found = result_of(pocketstill("collect", recipe, "--runs", disk))
    assert found["from_cache"] == kept > 0 and found["failed"] == 0
    assert answered(ledger) == kept + found["requests"]


@pytest.mark.parametrize(
    ("stage", "most_bytes"),
    [("distill", 100_000), pytest.param("export", 60_000, marks=pytest.mark.slow), ("bundle", 90_000)],
)
def test_a_full_disk_in_a_later_stage_is_one_line_too(
    finished: Finished, tmp_path: Path, stage: str, most_bytes: int
) -> None:
    root = tmp_path / "runs" / "tiny"
    shutil.copytree(finished.root, root)
    folder = root if stage == "bundle" else root / stage
    (folder / "manifest.json").unlink()
    said = complaint_of(limited_to(most_bytes, stage, finished.recipe, "--runs", tmp_path / "runs"))
    assert "no space left" in said or "File too large" in said
    assert not (folder / "manifest.json").exists()


def test_two_processes_never_work_on_the_same_run(tmp_path: Path) -> None:
    from teaching import chat_app, serving

    arrived = threading.Event()

    def stall(body: Any, count: int) -> str:
        arrived.set()
        released.wait(60)
        return "no"

    released = threading.Event()
    with serving(chat_app(stall)) as url:
        recipe = write_recipe(tmp_path / "r.toml", url)
        with subprocess.Popen(
            [COMMAND, "collect", str(recipe), "--runs", str(tmp_path)], env=environment(),
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        ) as first:  # fmt: skip
            try:
                assert arrived.wait(60)
                for command in ("run", "curate"):
                    said = complaint_of(pocketstill(command, recipe, "--runs", tmp_path))
                    assert f"{tmp_path / 'tiny'}: another process is at work on this run" in said
            finally:
                first.kill()
                released.set()
    assert answered(tmp_path / "tiny" / "collect" / "ledger.sqlite") == 0


def test_an_interrupted_run_says_that_it_goes_on(tmp_path: Path) -> None:
    from teaching import chat_app, serving

    arrived, released = threading.Event(), threading.Event()

    def stall(body: Any, count: int) -> str:
        arrived.set()
        released.wait(60)
        return "no"

    with serving(chat_app(stall)) as url:
        recipe = write_recipe(tmp_path / "r.toml", url)
        with subprocess.Popen(
            [COMMAND, "collect", str(recipe), "--runs", str(tmp_path)], env=environment(),
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        ) as process:  # fmt: skip
            try:
                assert arrived.wait(60)
                process.send_signal(signal.SIGINT)
                _, err = process.communicate(timeout=60)
            finally:
                process.kill()
                released.set()
    assert process.returncode == 130
    assert "Traceback" not in err and err.splitlines()[-1] == "pocketstill: interrupted; run it again to go on"


def test_training_without_a_compiler_goes_on_uncompiled(finished: Finished, tmp_path: Path) -> None:
    shutil.copytree(finished.root / "curate", tmp_path / "tiny" / "curate")
    empty = tmp_path / "empty"
    empty.mkdir()
    recipe = write_recipe(tmp_path / "r.toml", "embedded", ("compile = false", "compile = true"))
    alone = environment(PATH=str(empty), CXX="no-such-compiler", CC="no-such-compiler")
    assert result_of(pocketstill("distill", recipe, "--runs", tmp_path, env=alone))["tokens"] > 0


def test_verify_ends_with_what_scripts_rely_on(finished: Finished, tmp_path: Path) -> None:
    out = tmp_path / "v.json"
    done = pocketstill("verify", finished.bundle, "--limit", "1", "--cores", "1", "--out", out)
    found = result_of(done)
    assert len(done.stdout.splitlines()) == 1
    keys = {
        "passed", "variant", "file_mib", "skills", "load_s", "ttft_ms", "prefill_tok_s", "decode_tok_s",
        "peak_rss_mib",
    }  # fmt: skip
    assert keys <= found.keys() and found["passed"] is True
    assert all({"n", "accuracy", "low", "high"} <= skill.keys() for skill in found["skills"].values())
    assert len(json.loads(out.read_text(encoding="utf-8"))["answers"]) == sum(s["n"] for s in found["skills"].values())


@pytest.fixture
def copied(finished: Finished, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished.bundle, tmp_path / "device"))


def test_a_changed_bundle_is_refused_everywhere(copied: Path) -> None:
    path = copied / "onnx" / "model_q4.onnx_data"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
    for arguments in (("verify", copied), ("chat", copied, "--ask", "Is it?")):
        said = complaint_of(pocketstill(*arguments))
        assert f"{path} has changed since the bundle was made" in said


def test_a_gate_that_is_not_met_is_status_1(copied: Path) -> None:
    index = json.loads((copied / "pocketstill.json").read_text(encoding="utf-8"))
    index["skills"]["coin_flip"]["gate"] = 1.0
    (copied / "pocketstill.json").write_text(json.dumps(index), encoding="utf-8")
    done = pocketstill("verify", copied, "--limit", "1", "--cores", "1")
    assert done.returncode == 1
    found = json.loads(done.stdout)
    assert found["passed"] is False and "coin_flip" in found["failures"][0]


def test_what_is_no_bundle_is_named(tmp_path: Path) -> None:
    assert "no such folder" in complaint_of(pocketstill("verify", tmp_path / "none"))
    assert "it has no pocketstill.json" in complaint_of(pocketstill("verify", tmp_path))
    assert "it has no pocketstill.json" in complaint_of(pocketstill("chat", tmp_path, "--ask", "Is it?"))


def test_an_unknown_variant_lists_those_it_has(finished: Finished) -> None:
    for command in ("verify", "chat"):
        said = complaint_of(pocketstill(command, finished.bundle, "--variant", "onnx-int3"))
        assert "'onnx-int3'" in said and "it has onnx-int4, gguf-f16" in said


@pytest.mark.parametrize("variant", ["onnx-int4", "gguf-f16"])
def test_chat_answers_one_question_on_stdout(finished: Finished, variant: str) -> None:
    done = pocketstill("chat", finished.bundle, "--variant", variant, "--ask", "A coin is heads up. Is it?")
    assert done.returncode == 0 and done.stdout.strip() and done.stderr == ""


def test_chat_answers_every_line_of_a_pipe(finished: Finished) -> None:
    done = pocketstill("chat", finished.bundle, stdin=None, input="A coin is heads up.\nIs it?\n")
    assert done.returncode == 0 and len(done.stdout.splitlines()) == 2


def test_doctor_ends_with_one_object() -> None:
    assert result_of(pocketstill("doctor"))


def test_the_teacher_serves_until_interrupted() -> None:
    import urllib.request

    with subprocess.Popen(
        [COMMAND, "teacher", "serve", "--port", "0"], env=environment(), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        try:
            assert process.stdout is not None
            url = json.loads(process.stdout.readline())["base_url"]
            assert url.startswith("http://127.0.0.1:")
            with urllib.request.urlopen(f"{url}/models", timeout=20) as response:
                assert json.load(response)["data"][0]["id"] == "embedded"
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=20)
        finally:
            process.kill()
    assert process.returncode == 0 and err == ""
