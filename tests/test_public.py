from __future__ import annotations

import subprocess
import sys

import pytest

import pocketstill

HEAVY = "{'torch', 'transformers', 'onnx', 'pydantic', 'matplotlib', 'numpy', 'onnxruntime_genai', 'tokenizers'}"


def test_the_public_names() -> None:
    assert dir(pocketstill) == ["Model", "UserError", "__version__", "equal", "extract", "load"]
    for name in dir(pocketstill):
        assert getattr(pocketstill, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nope'"):
        _ = pocketstill.nope


def test_the_version_is_that_of_the_distribution() -> None:
    from importlib.metadata import PackageNotFoundError, version

    try:
        assert version("pocketstill") == pocketstill.__version__
    except PackageNotFoundError:
        pytest.skip("pocketstill is not installed, only on the path")


def test_importing_costs_next_to_nothing() -> None:
    code = f"import sys, pocketstill; print(sorted({HEAVY} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("module", ["model", "verify", "chat", "grading", "template", "bundle", "measure", "isolate"])
def test_the_runtime_never_imports_the_workshop(module: str) -> None:
    code = (
        "import sys\n"
        "for name in ('torch', 'transformers', 'pydantic', 'matplotlib', 'onnx', 'gguf', 'llama_cpp',"
        " 'pocketstill_export', 'pocketstill_pipeline'): sys.modules[name] = None\n"
        f"import pocketstill.{module}\n"
    )
    subprocess.run([sys.executable, "-c", code], timeout=60, check=True)
