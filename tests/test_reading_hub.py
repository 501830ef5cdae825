"""Data sets through `datasets`: folders that it saved, and a real loopback server that answers as the hub does."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("datasets", reason="needs the workshop extra")
pytest.importorskip("starlette", reason="needs the workshop extra")

import datasets
from running import environment
from teaching import serving

from pocketstill.errors import UserError
from pocketstill_pipeline.reading import describe, read_data, read_documents

COMMIT = "0123456789abcdef0123456789abcdef01234567"
CARD = """---
configs:
- config_name: main
  data_files:
  - split: train
    path: train.jsonl
  - split: test
    path: test.jsonl
- config_name: other
  data_files: test.jsonl
---
"""
_ASK = """
import json, sys
from pocketstill.errors import UserError
from pocketstill_pipeline.reading import describe, read_data
for source in sys.argv[1:]:
    try:
        print(json.dumps(describe(read_data(source))["splits"]))
    except UserError as error:
        print(json.dumps(str(error)))
"""


def lines(count: int) -> bytes:
    return b"".join(json.dumps({"question": f"q{i}", "answer": str(i)}).encode() + b"\n" for i in range(count))


class Hub:
    """The parts of the hub's API that streaming a data set uses."""

    def __init__(self) -> None:
        self.files = {"train.jsonl": lines(600), "test.jsonl": lines(2), "README.md": CARD.encode()}
        self.gated = False

    def app(self) -> Any:
        from starlette.applications import Starlette
        from starlette.routing import Route

        return Starlette(
            routes=[
                Route("/api/datasets/some/set/revision/{revision}", self.repository),
                Route("/api/datasets/some/set/tree/{revision}", self.tree),
                Route("/datasets/some/set/resolve/{revision}/{file:path}", self.file, methods=["GET", "HEAD"]),
                Route("/datasets/some/gated/resolve/{revision}/{file:path}", self.closed, methods=["GET", "HEAD"]),
                Route("/{path:path}", self.nothing, methods=["GET", "HEAD", "POST"]),
            ]
        )

    async def nothing(self, request: Any) -> Any:
        from starlette.responses import JSONResponse

        return JSONResponse({"error": "none"}, 404, {"X-Error-Code": "RepoNotFound"})

    async def closed(self, request: Any) -> Any:
        from starlette.responses import JSONResponse

        return JSONResponse({"error": "gated"}, 403, {"X-Error-Code": "GatedRepo"})

    async def repository(self, request: Any) -> Any:
        from starlette.responses import JSONResponse

        return JSONResponse({"id": "some/set", "sha": COMMIT, "siblings": [{"rfilename": name} for name in self.files]})

    async def tree(self, request: Any) -> Any:
        from starlette.responses import JSONResponse

        return JSONResponse(
            [
                {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                for name, data in self.files.items()
            ]
        )

    async def file(self, request: Any) -> Any:
        from starlette.responses import JSONResponse, Response

        name = request.path_params["file"]
        if name not in self.files:
            return JSONResponse({"error": "none"}, 404, {"X-Error-Code": "EntryNotFound"})
        data = self.files[name]
        headers = {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        wanted = request.headers.get("range")
        if request.method == "GET" and wanted:
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            end = min(int(last or len(data)), len(data) - 1)
            headers["Content-Range"] = f"bytes {first}-{end}/{len(data)}"
            return Response(data[int(first) : end + 1], 206, headers)
        return Response(data, headers=headers | {"Content-Length": str(len(data))})


def ask(folder: Path, endpoint: str, *sources: str, **more: str) -> list[Any]:
    """What each source is read as, by a process that has this hub."""
    home = {"HF_ENDPOINT": endpoint, "HF_HOME": str(folder), "HF_HUB_OFFLINE": "0", "HF_TOKEN": ""} | more
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", _ASK, *sources], env=environment(**home), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_a_data_set_of_the_hub_is_streamed(tmp_path: Path) -> None:
    with serving(Hub().app()) as url:
        sources = ("hf:some/set@main", "hf:some/set@main:test", "hf:some/set@other")
        found = ask(tmp_path, url.removesuffix("/v1"), *sources)
    assert found == [{"train": 600, "heldout": 2}, {"none": 2}, {"train": 2}]
    # Nothing was kept: only the card was fetched whole.
    assert not list(tmp_path.rglob("*.arrow"))


def test_what_the_hub_has_not_is_one_line(tmp_path: Path) -> None:
    sources = ("hf:some/set", "hf:some/set@nope", "hf:some/set@main:nope", "hf:some/none", "hf:some/gated", "hf:a b")
    said = [
        "Please pick one among the available configs: ['main', 'other']",
        "'nope' not found. Available: ['main', 'other']",
        "Bad split: nope. Available splits: ['train', 'test']",
        "is neither a data set of the hub nor a folder here",
        "asks for consent or a login",
        "is no data set's name; write hf:owner/name",
    ]
    with serving(Hub().app()) as url:
        found = ask(tmp_path, url.removesuffix("/v1"), *sources)
    for source, complaint, part in zip(sources, found, said, strict=True):
        assert complaint.startswith(f"{source}: ") and part in complaint and "\n" not in complaint


def test_no_hub_is_one_line(tmp_path: Path) -> None:
    (said,) = ask(tmp_path, "http://127.0.0.1:9", "hf:some/set", HF_HUB_OFFLINE="1")
    assert "the hub cannot be reached and the data set is not in the local cache" in said and "\n" not in said


def test_what_is_in_the_cache_needs_no_hub(tmp_path: Path) -> None:
    load = "import datasets; datasets.load_dataset('some/set', 'main')"
    with serving(Hub().app()) as url:
        env = environment(HF_ENDPOINT=url.removesuffix("/v1"), HF_HOME=str(tmp_path), HF_HUB_OFFLINE="0", HF_TOKEN="")
        subprocess.run([sys.executable, "-c", load], env=env, check=True, capture_output=True)
    found = ask(tmp_path, "http://127.0.0.1:9", "hf:some/set@main:train", HF_HUB_OFFLINE="1")
    assert found == [{"none": 600}]


def test_saved_folders(tmp_path: Path) -> None:
    features = datasets.Features(
        {"question": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])}
    )
    table = datasets.Dataset.from_dict({"question": ["a", "b"], "label": [1, 0]}, features=features)
    table.save_to_disk(tmp_path / "one")
    row = read_data(str(tmp_path / "one")).rows[0]
    assert (row.messages[0]["content"], row.gold, row.split) == ("a", "yes", None)
    datasets.DatasetDict({"train": table, "validation": table}).save_to_disk(tmp_path / "two")
    data = read_data(str(tmp_path / "two"))
    assert describe(data)["splits"] == {"train": 2, "heldout": 2}
    assert data.rows[-1].where == f"{tmp_path / 'two'}:validation, row 2"
    assert [document.text for document in read_documents_of(tmp_path, table)] == ["a", "b"]


def test_splits_with_longer_names_are_told_by_their_words(tmp_path: Path) -> None:
    table = datasets.Dataset.from_dict({"question": ["a", "b"], "answer": ["1", "2"]})
    names = ("train_sft", "auxiliary_train", "test_sft", "dev_r1", "held_out")
    datasets.DatasetDict(dict.fromkeys(names, table)).save_to_disk(tmp_path / "set")
    assert describe(read_data(str(tmp_path / "set")))["splits"] == {"train": 4, "heldout": 6}


def read_documents_of(folder: Path, table: Any) -> Any:
    table.rename_column("question", "text").save_to_disk(folder / "texts")
    return read_documents(str(folder / "texts"))


def test_a_saved_folder_that_is_broken_is_one_line(tmp_path: Path) -> None:
    datasets.Dataset.from_dict({"question": ["a"]}).save_to_disk(tmp_path / "one")
    next((tmp_path / "one").glob("*.arrow")).write_bytes(b"no")
    with pytest.raises(UserError, match="is no whole folder of save_to_disk") as caught:
        read_data(str(tmp_path / "one"))
    assert "\n" not in str(caught.value)
