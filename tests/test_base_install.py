"""What ships to a device: the runtime works where nothing of the workshop is installed."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from running import Finished, complaint_of, environment, pocketstill, result_of

ROOT = Path(__file__).resolve().parents[1]
# Imported by every interpreter on its start, those that `verify` starts too.
_GUARD = """
import sys

class Guard:
    blocked = frozenset({blocked!r})

    def __init__(self, finder):
        self.finder = finder

    def __getattr__(self, name):
        return getattr(self.finder, name)

    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in self.blocked else self.finder.find_spec(name, path, target)

sys.meta_path[:] = map(Guard, sys.meta_path)
"""


def closure_of(distribution: str) -> set[str]:
    """The distributions that installing this one without extras brings, itself included."""
    requirements = pytest.importorskip("packaging.requirements", reason="reads requirements")
    found: set[tuple[str, str]] = set()
    wanted = [(distribution, "")]
    while wanted:
        name, extra = wanted.pop()
        if (normal(name), extra) in found:
            continue
        found.add((normal(name), extra))
        try:
            lines = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue  # an extra's, or another platform's
        for needed in map(requirements.Requirement, lines):
            if needed.marker is None or needed.marker.evaluate({"extra": extra}):
                wanted += [(needed.name, more) for more in ("", *needed.extras)]
    return {name for name, _ in found}


def normal(distribution: str) -> str:
    return re.sub(r"[-_.]+", "-", distribution).lower()


def guarded(folder: Path, blocked: set[str]) -> dict[str, str]:
    (folder / "sitecustomize.py").write_text(_GUARD.format(blocked=sorted(blocked)), encoding="utf-8")
    return environment(PYTHONPATH=str(folder))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment in which everything that the base install does not bring cannot be imported."""
    allowed = closure_of("pocketstill")
    assert {"numpy", "onnxruntime-genai", "tokenizers"} <= allowed
    assert not {"torch", "transformers", "llama-cpp-python", "datasets", "openai", "matplotlib"} & allowed
    blocked = {
        module
        for module, owners in metadata.packages_distributions().items()
        if not {normal(owner) for owner in owners} & allowed
    }
    assert {"torch", "transformers", "llama_cpp", "datasets", "pytest"} <= blocked
    return guarded(tmp_path_factory.mktemp("guard"), blocked)


def python(program: str, env: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program, *arguments], env=env, capture_output=True, text=True, check=False, timeout=120
    )


def test_the_guard_guards(base: dict[str, str]) -> None:
    done = python("import transformers", base)
    assert done.returncode == 1 and "No module named 'transformers'" in done.stderr


def test_importing_needs_the_base_alone(base: dict[str, str]) -> None:
    program = "import pocketstill; print([getattr(pocketstill, name) is not None for name in dir(pocketstill)])"
    done = python(program, base)
    assert done.returncode == 0 and "False" not in done.stdout, done.stderr


def test_an_answer_in_three_lines_needs_the_base_alone(base: dict[str, str], finished: Finished) -> None:
    program = "import pocketstill, sys\nmodel = pocketstill.load(sys.argv[1])\nprint(repr(model.answer('Is it?').text))"
    done = python(program, base, str(finished.bundle))
    assert done.returncode == 0 and len(done.stdout) > 4, done.stderr


def test_an_application_needs_nothing_of_the_command(finished: Finished, tmp_path: Path) -> None:
    program = (
        "import pocketstill, sys; from pocketstill.verify import verify\n"
        "assert pocketstill.load(sys.argv[1]).answer('Is it?').text is not None\n"
        "print(verify(sys.argv[1], limit=1, cores=1, repetitions=1, on_progress=lambda *_: None).passed)\n"
    )
    without = {"torch", "transformers", "pydantic", "datasets", "typer", "click", "rich"}
    done = python(program, guarded(tmp_path, without), str(finished.bundle))
    assert done.stdout == "True\n", done.stderr


def test_verifying_needs_the_base_alone(base: dict[str, str], finished: Finished) -> None:
    found = result_of(pocketstill("verify", finished.bundle, "--limit", "2", "--cores", "1", env=base))
    assert found["passed"] is True and found["engine"] == "onnx"


def test_chatting_needs_the_base_alone(base: dict[str, str], finished: Finished) -> None:
    done = pocketstill("chat", finished.bundle, "--ask", "A coin is heads up. Is it?", env=base)
    assert done.returncode == 0 and done.stdout.strip() and done.stderr == ""


@pytest.mark.parametrize("command", [("verify",), ("chat", "--ask", "Is it?")])
def test_the_other_engine_says_which_extra_brings_it(
    base: dict[str, str], finished: Finished, command: tuple[str, ...]
) -> None:
    done = pocketstill(command[0], finished.bundle, "--variant", "gguf-f16", *command[1:], env=base)
    assert "pip install 'pocketstill[gguf]'" in complaint_of(done)


@pytest.mark.parametrize("command", ["run", "collect", "distill"])
def test_the_workshop_says_which_extra_brings_it(base: dict[str, str], finished: Finished, command: str) -> None:
    said = complaint_of(pocketstill(command, finished.recipe, env=base))
    assert "pip install 'pocketstill[workshop]'" in said


def test_doctor_needs_the_base_alone(base: dict[str, str]) -> None:
    assert result_of(pocketstill("doctor", env=base))


@pytest.mark.slow
def test_a_real_environment_with_the_base_alone(finished: Finished, tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True, timeout=120)
    binaries = tmp_path / "venv" / Path(sysconfig.get_path("scripts")).name
    # From a copy, so that nothing is built in the working tree.
    source = tmp_path / "source"
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(".git", ".venv", "runs", "tests", ".*cache*"))
    pip = [str(binaries / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    done = subprocess.run(
        [*pip, "--constraint", str(ROOT / "constraints.txt"), str(source)],
        capture_output=True, text=True, check=False, timeout=900,
    )  # fmt: skip
    if "No matching distribution" in done.stderr or "Failed to establish" in done.stderr:
        pytest.skip(f"packages cannot be fetched here: {done.stderr.splitlines()[-1]}")
    assert done.returncode == 0, done.stderr

    def run(*arguments: str) -> Any:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        said = subprocess.run(
            [str(binaries / "pocketstill"), *arguments], capture_output=True, text=True, check=False, timeout=300,
            env=clean, cwd=tmp_path,
        )  # fmt: skip
        assert said.returncode == 0, said.stderr
        return said.stdout

    listed = subprocess.run([*pip[:3], "list", "--format", "json"], capture_output=True, text=True, check=True)
    installed = {normal(row["name"]) for row in json.loads(listed.stdout)}
    assert "onnxruntime-genai" in installed
    assert not {"torch", "transformers", "datasets", "llama-cpp-python", "openai", "matplotlib"} & installed
    assert json.loads(run("verify", str(finished.bundle), "--cores", "1").splitlines()[-1])["passed"] is True
    assert run("chat", str(finished.bundle), "--ask", "A coin is heads up. Is it?").strip()
