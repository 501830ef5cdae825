from __future__ import annotations

from pathlib import Path

import pytest

from pocketstill.errors import UserError
from pocketstill.files import read_json, sha256_file, write_json
from pocketstill.manifest import read_manifest, up_to_date, write_manifest

CONFIG = {"rate": 0.1, "skills": ("coin",)}
INPUTS = {"ledger": "ab"}


def a_stage(folder: Path) -> None:
    (folder / "part").mkdir(parents=True)
    (folder / "part" / "rows.txt").write_text("rows")
    write_manifest(
        folder,
        stage="curate",
        config=CONFIG,
        inputs=INPUTS,
        outputs=["part"],
        seed=1,
        counts={"kept": 3},
        seconds=2,
    )


def test_a_finished_stage_is_up_to_date(tmp_path: Path) -> None:
    a_stage(tmp_path / "s")
    manifest = read_manifest(tmp_path / "s")
    assert manifest is not None
    assert manifest.outputs == {"part/rows.txt": sha256_file(tmp_path / "s" / "part" / "rows.txt")}
    assert manifest.counts == {"kept": 3}
    assert up_to_date(tmp_path / "s", CONFIG, INPUTS)


@pytest.mark.parametrize("change", ["config", "input", "output", "lost", "version", "manifest", "absent"])
def test_any_change_makes_it_stale(tmp_path: Path, change: str) -> None:
    folder = tmp_path / "s"
    a_stage(folder)
    rows, index = folder / "part" / "rows.txt", folder / "manifest.json"
    if change == "output":
        rows.write_text("other")
    if change == "lost":
        rows.unlink()
    if change == "version":
        write_json(index, {**read_json(index), "versions": {"python": "2.7"}})
    if change == "manifest":
        index.write_text('{"stage": "cur')
    if change == "absent":
        index.unlink()
    config = {**CONFIG, "rate": 0.2} if change == "config" else CONFIG
    inputs = {"ledger": "cd"} if change == "input" else INPUTS
    assert not up_to_date(folder, config, inputs)


def test_an_output_that_was_not_written_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gone\.txt was not written"):
        write_manifest(tmp_path, stage="s", config={}, inputs={}, outputs=["gone.txt"])
    with pytest.raises(UserError, match="outside"):
        write_manifest(tmp_path / "in", stage="s", config={}, inputs={}, outputs=[tmp_path / "out.txt"])
    assert read_manifest(tmp_path) is None


def test_json_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"b": 1, "a": "ü"})
    assert path.read_text(encoding="utf-8") == '{\n  "a": "ü",\n  "b": 1\n}\n'
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert read_json(path) == {"a": "ü", "b": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_broken_json_names_its_place(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"a": 1,\n oops}')
    with pytest.raises(UserError, match=r"a\.json, line 2, column 2"):
        read_json(tmp_path / "a.json")
    with pytest.raises(UserError, match="cannot write"):
        write_json(tmp_path / "absent" / "a.json", {})
