from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from pocketstill.bundle import INDEX, SUITE, Bundle, Variant, write_bundle_json
from pocketstill.errors import BundleError

ITEM = {
    "id": "1",
    "skill": "coin",
    "messages": [{"role": "user", "content": "?"}],
    "gold": "no",
    "answer_kind": "yes_no",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A bundle in form; nothing here looks inside of the weights."""
    folder = tmp_path / "bundle"
    (folder / "onnx").mkdir(parents=True)
    for name, text in {
        "onnx/model.onnx": "graph",
        "onnx/model.onnx_data": "weights",
        "chat_template.jinja": "x",
    }.items():
        (folder / name).write_text(text)
    (folder / "tokenizer.json").write_text("{}")
    (folder / SUITE).write_text(json.dumps(ITEM) + "\n")
    write(folder)
    return folder


def write(folder: Path, **changes: Any) -> Bundle:
    options: dict[str, Any] = {
        "name": "t",
        "variants": [Variant("onnx-fp32", "onnx", "onnx/model.onnx", ("onnx/model.onnx", "onnx/model.onnx_data"), 0)],
        "default": "onnx-fp32",
        "stop_ids": [0],
        "generation": {"max_new_tokens": 8},
        "context_length": 16,
        "skills": {"coin": {"kind": "yes_no", "gate": 0.5}},
    }
    return write_bundle_json(folder, **{**options, **changes})


def edit(folder: Path, **changes: Any) -> None:
    index = json.loads((folder / INDEX).read_text())
    (folder / INDEX).write_text(json.dumps({**index, **changes}))


def test_what_was_written_is_read(folder: Path) -> None:
    bundle = Bundle.load(folder)
    assert bundle.variant().bytes == len("graph" + "weights")
    assert bundle.template == "x"
    assert bundle.stop_ids == (0,)
    assert [item.gold for item in bundle.suite()] == ["no"]
    assert INDEX not in bundle.files
    assert set(bundle.files) == {
        "onnx/model.onnx",
        "onnx/model.onnx_data",
        "chat_template.jinja",
        "tokenizer.json",
        SUITE,
    }


def test_a_copy_elsewhere_is_as_good(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "copy")
    assert Bundle.load(tmp_path / "copy").name == "t"


def damage_missing(folder: Path) -> None:
    (folder / "onnx/model.onnx_data").unlink()


def damage_changed(folder: Path) -> None:
    (folder / "onnx/model.onnx_data").write_text("Weights")


def damage_extra(folder: Path) -> None:
    (folder / "onnx/other.bin").write_text("?")


def damage_extra_link(folder: Path) -> None:
    (folder / "onnx/other").symlink_to(folder.parent)


def damage_linked_file(folder: Path) -> None:
    data = folder / "onnx/model.onnx_data"
    data.rename(folder.parent / "elsewhere")
    data.symlink_to(folder.parent / "elsewhere")


def damage_linked_folder(folder: Path) -> None:
    (folder / "onnx").rename(folder.parent / "elsewhere")
    (folder / "onnx").symlink_to(folder.parent / "elsewhere")


def damage_no_index(folder: Path) -> None:
    (folder / INDEX).unlink()


def damage_index_cut_off(folder: Path) -> None:
    (folder / INDEX).write_text((folder / INDEX).read_text()[:100])


def damage_schema(folder: Path) -> None:
    edit(folder, schema=99)


def damage_default(folder: Path) -> None:
    edit(folder, default_variant="onnx-int2")


def damage_type(folder: Path) -> None:
    edit(folder, stop_ids="0")


def damage_unlisted(folder: Path) -> None:
    files = json.loads((folder / INDEX).read_text())["files"]
    edit(folder, files={k: v for k, v in files.items() if k != "tokenizer.json"})


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (damage_missing, "onnx_data is missing"),
        (damage_changed, "onnx_data has changed"),
        (damage_extra, "other.bin is not listed"),
        (damage_extra_link, "other is a link"),
        (damage_linked_file, "is a link"),
        (damage_linked_folder, "is a link"),
        (damage_no_index, "has no pocketstill.json"),
        (damage_index_cut_off, "not JSON"),
        (damage_schema, "schema"),
        (damage_default, "no variant 'onnx-int2'"),
        (damage_type, "stop_ids"),
        (damage_unlisted, "tokenizer.json is used but not listed"),
    ],
)
def test_a_damaged_bundle_is_refused_in_one_line(folder: Path, damage: Any, says: str) -> None:
    damage(folder)
    with pytest.raises(BundleError, match=says) as caught:
        Bundle.load(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "path", ["../x", "/etc/passwd", "a/../../x", "C:/x", "a\\b", "a//b", "./a", "", "a\0b", "\\\\host\\x"]
)
@pytest.mark.parametrize("place", ["files", "template", "tokenizer", "variant"])
def test_a_path_that_leaves_the_bundle_is_refused(folder: Path, path: str, place: str) -> None:
    index = json.loads((folder / INDEX).read_text())
    (folder.parent / "x").write_text("outside")
    entry = {"sha256": "0" * 64, "bytes": 7}
    index["files"][path] = entry
    if place == "template":
        index["chat_template"] = path
    if place == "tokenizer":
        index["tokenizer"] = path
    if place == "variant":
        index["variants"][0]["files"] = [path]
    (folder / INDEX).write_text(json.dumps(index))
    # Even where contents are not compared: paths are what a loader acts on.
    with pytest.raises(BundleError, match="unsafe path"):
        Bundle.load(folder, check=False)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{", "line 2"),
        ("[]", "line 2"),
        (json.dumps({**ITEM, "id": "2", "answer_kind": "poem"}), "'poem' is none of"),
        (json.dumps(ITEM), "occurs twice"),
        (json.dumps({"id": "3"}), "answer_kind"),
    ],
)
def test_a_broken_suite_names_the_line(folder: Path, line: str, says: str) -> None:
    (folder / SUITE).write_text(json.dumps(ITEM) + "\n" + line + "\n")
    with pytest.raises(BundleError, match=says):
        write(folder).suite()


def test_writing_wants_the_files_of_every_variant(folder: Path) -> None:
    with pytest.raises(BundleError, match=r"model\.gguf was not written"):
        write(folder, variants=[Variant("gguf-f16", "gguf", "model.gguf", ("model.gguf",), 0)])


def test_writing_refuses_links(folder: Path) -> None:
    (folder / "link").symlink_to("tokenizer.json")
    with pytest.raises(BundleError, match="is a link"):
        write(folder)
