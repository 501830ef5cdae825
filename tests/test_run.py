"""The whole way in one command: what it leaves, what it skips, and that a kill anywhere costs nothing but time."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
from collections import Counter
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path

import pytest
from running import (
    COMMAND,
    SECRET,
    SHIPPED,
    VARIANTS,
    Finished,
    NotedTeacher,
    complaint_of,
    environment,
    files_of,
    killed_at,
    pocketstill,
    result_of,
    stages_rewritten,
    write_recipe,
)

from pocketstill.bundle import Bundle
from pocketstill.files import sha256_file
from pocketstill.manifest import MANIFEST, read_manifest
from pocketstill.verify import verify

pytest.importorskip("torch", reason="needs the workshop extra")

from pocketstill_pipeline.problems.base import normalise
from pocketstill_pipeline.tables import read_parquet

STAGES = ("collect", "curate", "distill", "export", "verify")


def changed(finished: Finished, folder: Path, *changes: tuple[str, str]) -> tuple[Path, Path]:
    """A copy of the finished run with its recipe changed: (recipe, runs)."""
    shutil.copytree(finished.runs, folder / "runs")
    base_url = re.search(r'base_url = "(.*)"', finished.recipe.read_text(encoding="utf-8"))
    assert base_url is not None
    return write_recipe(folder / "tiny.toml", base_url[1], *changes), folder / "runs"


def kept_files(bundle: Path) -> dict[str, str]:
    """SHA-256 of what a bundle ships; its card tells of speed and time, which differ from run to run."""
    return {
        path.relative_to(bundle).as_posix(): sha256_file(path)
        for path in bundle.rglob("*")
        if path.is_file() and path.name not in ("MODEL_CARD.md", "pocketstill.json")
    }


def test_the_bundle_is_whole_and_verifies(finished: Finished) -> None:
    bundle = Bundle.load(finished.bundle, check=True)
    assert [variant.name for variant in bundle.variants] == list(SHIPPED)
    assert "onnx/model_q4.onnx" in bundle.files and "onnx/model.onnx" not in bundle.files
    assert {"MODEL_CARD.md", "suite.jsonl", "tokenizer.json", "chat_template.jinja"} <= bundle.files.keys()
    assert set(bundle.lineage) == set(STAGES)
    result = verify(finished.bundle, limit=1, repetitions=1, cores=1, on_progress=lambda *_: None)
    assert result.passed and result.variant == bundle.default


def test_the_last_line_is_one_json_object(finished: Finished) -> None:
    (line,) = finished.done.stdout.splitlines()
    found = json.loads(line)
    assert found["stage"] == "bundle" and found["variant"] == "onnx-int4"
    assert found["bundle"] == str(finished.bundle) and found["report"] == str(finished.root / "report.html")
    assert set(found["skills"]) >= {"coin_flip", "last_letters", "tool_call"}


def test_progress_has_no_warnings(finished: Finished) -> None:
    assert "warn" not in finished.done.stderr.lower()


class Loads(HTMLParser):
    """What a browser would fetch to show a page."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            link = name in ("href", "xlink:href") and tag != "a"
            if link or name in ("src", "srcset", "poster", "data", "background", "action"):
                self.found.append(value or "")


def test_the_report_needs_nothing_but_itself(finished: Finished) -> None:
    text = (finished.root / "report.html").read_text(encoding="utf-8")
    page = Loads()
    page.feed(text)
    styles = re.findall(r"url\(\s*['\"]?([^)'\"]*)", text)
    assert [link for link in page.found + styles if not link.startswith(("#", "data:"))] == []
    assert "<script" not in text and "@import" not in text
    assert "<svg" in text


def test_nothing_of_a_key_is_kept(finished: Finished, noted_teacher: NotedTeacher) -> None:
    assert noted_teacher.keys == {f"Bearer {SECRET}"}
    files = [path for path in finished.runs.rglob("*") if path.is_file()]
    assert len(files) > 30
    assert [path for path in files if SECRET[3:].encode() in path.read_bytes()] == []
    assert SECRET[3:] not in finished.done.stdout + finished.done.stderr


def test_no_copy_of_the_data_is_left_in_the_users_home(finished: Finished) -> None:
    assert [path for path in finished.home.rglob("*") if path.is_file()] == []


def test_held_out_questions_are_never_trained_on(finished: Finished) -> None:
    curated = finished.root / "curate"

    def asked(name: str) -> set[str]:
        return {normalise(row["messages"][-1]["content"]) for row in read_parquet(curated / name)}

    suite = {normalise(item.messages[-1]["content"]) for item in Bundle.load(finished.bundle).suite()}
    trained = asked("train.parquet")
    assert trained and len(suite) >= 12 and asked("heldout.parquet") <= suite
    assert not trained & suite
    others = [path for path in finished.root.rglob("*.parquet") if path.parent != curated]
    assert others == []


def test_a_second_run_does_nothing_again(finished: Finished) -> None:
    before = files_of(finished.root)
    again = pocketstill("run", finished.recipe, "--runs", finished.runs)
    assert result_of(again) == result_of(finished.done)
    assert files_of(finished.root) == before


def test_another_curation_is_trained_anew_and_asks_nothing(
    finished: Finished, noted_teacher: NotedTeacher, tmp_path: Path
) -> None:
    recipe, runs = changed(finished, tmp_path, ("max_per_question = 8", "max_per_question = 1"))
    before, asked = files_of(runs / "tiny"), len(noted_teacher.asked)
    result_of(pocketstill("run", recipe, "--runs", runs, "--until", "distill"))
    assert stages_rewritten(before, files_of(runs / "tiny")) == {"curate", "distill"}
    assert len(noted_teacher.asked) == asked


def test_another_training_keeps_what_was_collected_and_curated(finished: Finished, tmp_path: Path) -> None:
    recipe, runs = changed(finished, tmp_path, ("tokens = 8000", "tokens = 6000"))
    before = files_of(runs / "tiny")
    result_of(pocketstill("run", recipe, "--runs", runs))
    assert stages_rewritten(before, files_of(runs / "tiny")) == {"distill", "export", "verify", "bundle"}
    Bundle.load(runs / "tiny" / "device", check=True)


def test_another_budget_is_measured_anew(finished: Finished, tmp_path: Path) -> None:
    sizes = {variant.name: variant.bytes / 2**20 for variant in Bundle.load(finished.bundle).variants}
    budget = sum(sizes.values()) / len(sizes)
    recipe, runs = changed(finished, tmp_path, ("tolerance = 1.0", f"tolerance = 1.0\nmax_file_mib = {budget}"))
    before = files_of(runs / "tiny")
    result_of(pocketstill("run", recipe, "--runs", runs))
    assert stages_rewritten(before, files_of(runs / "tiny")) == {"verify", "bundle"}
    bundle = Bundle.load(runs / "tiny" / "device", check=True)
    assert [variant.name for variant in bundle.variants] == [min(sizes, key=lambda name: sizes[name])]


def test_another_note_reaches_the_report_and_measures_nothing(finished: Finished, tmp_path: Path) -> None:
    recipe, runs = changed(finished, tmp_path, ("seed = 3", 'seed = 3\nnotes = ["A word about this run."]'))
    before = files_of(runs / "tiny")
    result_of(pocketstill("run", recipe, "--runs", runs))
    after = files_of(runs / "tiny")
    assert all(before[f"verify/{name}.json"] == after[f"verify/{name}.json"] for name in (*VARIANTS, "checkpoint"))
    assert "A word about this run." in (runs / "tiny" / "report.html").read_text(encoding="utf-8")


def test_the_config_for_onnxruntime_genai_names_the_file_that_ships(finished: Finished, tmp_path: Path) -> None:
    recipe, runs = changed(finished, tmp_path)
    root = runs / "tiny"
    shipped = json.loads((root / "device" / "genai_config.json").read_text(encoding="utf-8"))
    assert shipped["model"]["decoder"]["filename"] == "onnx/model_q4.onnx"
    report = json.loads((root / "verify" / "report.json").read_text(encoding="utf-8"))
    for row in report["variants"]:
        row["passed"] = row["variant"] == "onnx-fp32"
    (root / "verify" / "report.json").write_text(json.dumps(report | {"default": "onnx-fp32"}), encoding="utf-8")
    (root / MANIFEST).unlink()
    result_of(pocketstill("bundle", recipe, "--runs", runs))
    shipped = json.loads((root / "device" / "genai_config.json").read_text(encoding="utf-8"))
    assert shipped["model"]["decoder"]["filename"] == "onnx/model.onnx"
    assert verify(root / "device", limit=1, repetitions=1, cores=1, on_progress=lambda *_: None).engine == "onnx"


def test_a_run_that_passes_no_gate_says_so_and_shows_why(finished: Finished, tmp_path: Path) -> None:
    recipe, runs = changed(finished, tmp_path, ("tolerance = 1.0", "tolerance = 1.0\nmax_file_mib = 0.01"))
    (runs / "tiny" / "report.html").unlink()
    said = complaint_of(pocketstill("run", recipe, "--runs", runs))
    assert "no variant passed" in said and "budget of 0.01 MiB" in said and "report.html" in said
    assert (runs / "tiny" / "report.html").is_file() and read_manifest(runs / "tiny") is None


# Where each stage is killed: just before the nth such event of the interpreter, in the midst of the stage's work.
KILLS = (
    ("curate", "open", "curate/suite.jsonl", 1),
    ("distill", "open", "trainer_state.json", 3),
    ("distill", "open", "student/config.json", 1),
    ("export", "open", "model-f16.gguf", 1),
    ("verify", "open", ".gguf-f16.json.", 1),
    ("bundle", "os.rename", ".device.partial", 1),
)


@dataclass(frozen=True)
class Chain:
    """A run that was killed in the midst of every stage, and each time run again."""

    root: Path
    asked: tuple[str, ...]
    kept: dict[str, dict[str, tuple[int, int, int]]]


@pytest.fixture(scope="module")
def killed(noted_teacher: NotedTeacher, finished: Finished, tmp_path_factory: pytest.TempPathFactory) -> Chain:
    runs = tmp_path_factory.mktemp("killed") / "runs"
    root, first = runs / "tiny", len(noted_teacher.asked)
    arguments = ("run", str(finished.recipe), "--runs", str(runs))

    def start() -> subprocess.Popen[str]:
        return subprocess.Popen(
            [COMMAND, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
        )

    with noted_teacher.killing(len(finished.asked) // 2, start) as process:
        process.communicate(timeout=120)
    assert process.returncode == -signal.SIGKILL
    assert read_manifest(root / "collect") is None and (root / "collect" / "ledger.sqlite").is_file()
    kept = {}
    for stage, event, part, nth in KILLS:
        done = killed_at(event, part, nth, *arguments)
        assert done.returncode == -signal.SIGKILL, (stage, done.stderr)
        folder = root if stage == "bundle" else root / stage
        assert not (folder / MANIFEST).exists() and folder.is_dir()
        kept[stage] = files_of(root)
    result_of(pocketstill(*arguments))
    return Chain(root, tuple(noted_teacher.asked[first:]), kept)


def test_killed_in_every_stage_it_ends_in_the_same_bundle(killed: Chain, finished: Finished) -> None:
    Bundle.load(killed.root / "device", check=True)
    assert kept_files(killed.root / "device") == kept_files(finished.bundle)
    for stage in ("curate", "export"):
        one, other = read_manifest(killed.root / stage), read_manifest(finished.root / stage)
        assert one is not None and other is not None
        volatile = {"parity.json"}
        assert {k: v for k, v in one.outputs.items() if k not in volatile} == {
            k: v for k, v in other.outputs.items() if k not in volatile
        }


def test_killed_in_every_stage_it_asks_nothing_twice(killed: Chain, finished: Finished) -> None:
    """The one request that was in flight at the kill, and had no answer, is the only one that is sent again."""
    assert Counter(finished.asked).most_common(1)[0][1] == 1
    again = {request for request, times in Counter(killed.asked).items() if times > 1}
    assert again == {killed.asked[len(finished.asked) // 2 - 1]}
    assert len(killed.asked) == len(finished.asked) + 1
    assert set(killed.asked) == set(finished.asked)


def test_a_killed_training_goes_on_from_its_checkpoint(killed: Chain) -> None:
    lines = [json.loads(line) for line in (killed.root / "distill" / "curve.jsonl").read_text().splitlines()]
    steps = [line["step"] for line in lines if "loss" in line]
    assert steps == list(range(1, len(steps) + 1))
    assert any("checkpoint-" in name for name in killed.kept["distill"])
    assert not (killed.root / "distill" / "checkpoints").exists()


def test_a_variant_that_was_verified_before_the_kill_is_not_verified_again(killed: Chain) -> None:
    before, after = killed.kept["verify"], files_of(killed.root)
    for name in ("verify/onnx-int4.json", "verify/checkpoint.json"):
        assert before[name] == after[name]


def test_kills_leave_no_litter(killed: Chain, finished: Finished) -> None:
    assert files_of(killed.root).keys() == files_of(finished.root).keys()
