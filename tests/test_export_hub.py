"""A checkpoint by name, from a real server on loopback that answers as the hub does."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="needs the workshop extra")
pytest.importorskip("starlette", reason="needs the workshop extra")

from running import complaint_of, environment, pocketstill, result_of
from teaching import serving

COMMIT = "0123456789abcdef0123456789abcdef01234567"
VARIANTS = ("--variants", "gguf-f16")


class Hub:
    """The parts of the hub's API that a download uses: repository, tree, and files with their hashes."""

    def __init__(self, repositories: dict[str, dict[str, bytes]], gated: tuple[str, ...] = ()) -> None:
        self.repositories, self.gated = repositories, gated
        self.fetched: list[str] = []

    def app(self) -> Any:
        from starlette.applications import Starlette
        from starlette.routing import Route

        return Starlette(
            routes=[
                Route("/api/models/{owner}/{name}/tree/{revision}", self.tree),
                Route("/api/models/{owner}/{name}", self.repository),
                Route("/api/models/{owner}/{name}/revision/{revision}", self.repository),
                Route("/{owner}/{name}/resolve/{revision}/{file:path}", self.file, methods=["GET", "HEAD"]),
            ]
        )

    def _find(self, request: Any) -> Any:
        from starlette.responses import JSONResponse

        name = f"{request.path_params['owner']}/{request.path_params['name']}"
        if name in self.gated:
            return None, JSONResponse({"error": "gated"}, 403, {"X-Error-Code": "GatedRepo"})
        if name not in self.repositories:
            return None, JSONResponse({"error": "none"}, 404, {"X-Error-Code": "RepoNotFound"})
        if request.path_params.get("revision", "main") not in ("main", COMMIT):
            return None, JSONResponse({"error": "none"}, 404, {"X-Error-Code": "RevisionNotFound"})
        return self.repositories[name], None

    async def repository(self, request: Any) -> Any:
        from starlette.responses import JSONResponse

        files, refusal = self._find(request)
        siblings = [{"rfilename": name} for name in files or ()]
        return refusal or JSONResponse({"id": "x", "sha": COMMIT, "siblings": siblings})

    async def tree(self, request: Any) -> Any:
        from starlette.responses import JSONResponse

        files, refusal = self._find(request)
        return refusal or JSONResponse(
            [
                {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                for name, data in files.items()
            ]
        )

    async def file(self, request: Any) -> Any:
        from starlette.responses import Response

        files, refusal = self._find(request)
        if refusal:
            return refusal
        data = files[request.path_params["file"]]
        if request.method == "GET":
            self.fetched.append(request.path_params["file"])
        headers = {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": COMMIT}
        return Response(data, headers=headers | {"Content-Length": str(len(data))})


@pytest.fixture
def hub(tiny_checkpoint: Path) -> Hub:
    files = {path.name: path.read_bytes() for path in tiny_checkpoint.iterdir() if path.is_file()}
    card = b"---\nlicense: mit\ndatasets:\n- some/data\n---\n# tiny\n"
    extra = {"README.md": card, "modeling_evil.py": b"raise SystemExit", "pytorch_model.bin": b"pickle"}
    only_pickle = {"config.json": files["config.json"], "pytorch_model.bin": b"pickle"}
    return Hub({"some/tiny": files | extra, "some/pickle": only_pickle}, gated=("some/gated",))


def export(url: str, folder: Path, name: str, *more: str) -> Any:
    home = environment(HF_ENDPOINT=url, HF_HOME=str(folder / "home"), HF_HUB_OFFLINE="0", HF_TOKEN="")
    return pocketstill("export", name, "--out", folder / "out", *VARIANTS, *more, env=home)


def test_a_model_of_the_hub(hub: Hub, tmp_path: Path) -> None:
    with serving(hub.app()) as url:
        done = export(url.removesuffix("/v1"), tmp_path, "some/tiny")
    assert result_of(done)["default"] == "gguf-f16"
    assert not {"modeling_evil.py", "pytorch_model.bin"} & set(hub.fetched)
    card = (tmp_path / "out" / "MODEL_CARD.md").read_text()
    for line in ("license: mit", 'base_model: "some/tiny"', 'data: "some/data"'):
        assert line in card
    # The second time without any hub: the cache has it.
    again = export("http://127.0.0.1:9", tmp_path, "some/tiny")
    assert result_of(again)["folder"] == str(tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "more", "reason"),
    [
        ("some/nothing", (), "neither a folder here nor a model of the hub"),
        ("some/gated", (), "asks for consent"),
        ("some/pickle", (), "pytorch_model.bin, a pickle"),
        ("some/tiny", ("--revision", "v9"), "has no revision v9"),
        ("tiny", (), "is no folder, and no `owner/model`"),
    ],
)
def test_refusals(name: str, more: tuple[str, ...], reason: str, hub: Hub, tmp_path: Path) -> None:
    with serving(hub.app()) as url:
        assert reason in complaint_of(export(url.removesuffix("/v1"), tmp_path, name, *more))
    assert not (tmp_path / "out").exists()


def test_no_hub_and_no_cache(tmp_path: Path) -> None:
    assert "the hub cannot be reached" in complaint_of(export("http://127.0.0.1:9", tmp_path, "some/tiny"))
