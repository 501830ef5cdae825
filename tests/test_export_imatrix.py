"""The importance matrix is that of llama.cpp's llama-imatrix, and so is its file."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the workshop extra")
pytest.importorskip("gguf", reason="needs the workshop extra")

from export_students import make_student
from imatrix_cases import CASES, CONTEXT, DATA, TEXT, make_case, run_tool

from pocketstill_export.calibration import read_calibration
from pocketstill_export.checkpoint import Checkpoint, read_checkpoint
from pocketstill_export.errors import ExportError
from pocketstill_export.gguf.imatrix import Imatrix, compute_imatrix, read_imatrix, write_imatrix

HEADS = ("token_embd.weight", "output.weight")
IDS = [list(range(3, 40)), [5, 60, 61, 4, 9, 7] * 9, [7]]


def case(name: str, folder: Path, *, context: int = CONTEXT) -> tuple[Checkpoint, list[list[int]]]:
    checkpoint = read_checkpoint(make_case(name, folder))
    return checkpoint, read_calibration(TEXT, checkpoint, context_length=context)


def worst_difference(found: Imatrix, expected: Imatrix) -> float:
    """The largest relative difference of any column of any matrix of `expected`."""
    return max(float(np.abs(found.sums[name] / values - 1).max()) for name, values in expected.sums.items())


@pytest.mark.parametrize("name", CASES)
def test_every_column_is_llama_imatrix_within_one_percent(name: str, tmp_path: Path) -> None:
    checkpoint, sequences = case(name, tmp_path)
    found = compute_imatrix(checkpoint, sequences, dataset=TEXT.name)
    expected = read_imatrix(DATA / f"{name}.gguf")
    # The tool collects the head too when it is a matrix of its own.
    assert set(found.sums) - set(expected.sums) == (set() if "output.weight" in expected.sums else {HEADS[0]})
    assert {found.counts[tensor] for tensor in expected.sums} == set(expected.counts.values())
    assert (found.dataset, found.chunks, found.chunk_size) == (expected.dataset, expected.chunks, expected.chunk_size)
    assert worst_difference(found, expected) < 0.01


def test_every_matrix_of_a_block_is_there(tmp_path: Path) -> None:
    import gguf

    from pocketstill_export.gguf.write import write_gguf

    checkpoint, sequences = case("phi3", tmp_path)
    write_gguf(checkpoint, tmp_path / "m.gguf", precision="f32", context_length=128, name="t")
    tensors = gguf.GGUFReader(tmp_path / "m.gguf").tensors
    matrices = {tensor.name: int(tensor.shape[0]) for tensor in tensors if len(tensor.shape) == 2}
    found = compute_imatrix(checkpoint, sequences)
    assert {name: values.size for name, values in found.sums.items()} == matrices


def test_without_bos_the_difference_would_show(tmp_path: Path) -> None:
    checkpoint, sequences = case("llama-bos", tmp_path)
    assert len({ids[0] for ids in sequences}) == 1
    bare = [[ids[1], *ids[1:]] for ids in sequences]
    assert worst_difference(compute_imatrix(checkpoint, bare), read_imatrix(DATA / "llama-bos.gguf")) > 0.02


def test_texts_of_any_length_count_alone(tmp_path: Path) -> None:
    """Texts share a batch, padded; none may see or count the padding."""
    checkpoint = read_checkpoint(make_student(tmp_path / "student"))
    together = compute_imatrix(checkpoint, IDS)
    alone = [compute_imatrix(checkpoint, [ids]) for ids in IDS]
    assert set(together.counts.values()) == {sum(map(len, IDS))}
    for name, values in together.sums.items():
        np.testing.assert_allclose(values, sum(one.sums[name] for one in alone), rtol=1e-4)


def test_a_tied_head_stands_under_the_embedding(tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    folder = make_student(tmp_path / "student")
    found = compute_imatrix(read_checkpoint(folder), IDS[:1])
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.inference_mode():
        states = model(torch.tensor(IDS[:1]), output_hidden_states=True).hidden_states[-1][0]
    np.testing.assert_allclose(found.sums[HEADS[0]], states.square().sum(0).numpy(), rtol=1e-4)
    assert HEADS[0] not in compute_imatrix(read_checkpoint(folder), IDS[:1], head=False).sums


def test_the_file_is_the_tools_own(tmp_path: Path) -> None:
    """What llama-imatrix wrote, read and written again, is the same bytes."""
    for name in CASES:
        write_imatrix(read_imatrix(DATA / f"{name}.gguf"), tmp_path / "again.gguf")
        assert (tmp_path / "again.gguf").read_bytes() == (DATA / f"{name}.gguf").read_bytes()


@pytest.mark.parametrize("ids", [[], [[]], [list(range(3)) * 50], [[3, 9999]]])
def test_sequences_that_cannot_be_run_are_refused(ids: list[list[int]], tmp_path: Path) -> None:
    checkpoint = read_checkpoint(make_student(tmp_path / "student"))
    with pytest.raises(ExportError, match=r"no token|has 150 tokens, .* takes 128|id 9999 is beyond"):
        compute_imatrix(checkpoint, ids)


def test_inputs_that_overflow_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = make_student(tmp_path / "student")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.input_layernorm.weight"] *= 1e25
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ExportError, match=r"the inputs of blk\.1\.attn_k\.weight are not finite"):
        compute_imatrix(read_checkpoint(folder), IDS)


def test_architectures_whose_names_are_unknown_are_refused(tmp_path: Path) -> None:
    folder = make_student(tmp_path / "student", "Olmo2")
    with pytest.raises(ExportError, match="no importance matrix for Olmo2ForCausalLM"):
        compute_imatrix(read_checkpoint(folder, any_architecture=True), IDS)


def test_files_that_are_no_importance_matrix_are_refused(tmp_path: Path) -> None:
    import gguf

    (tmp_path / "old.dat").write_bytes(b"\x01\x00\x00\x00 an imatrix of 2024 has no header")
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", arch="llama")
    writer.add_tensor("token_embd.weight", np.ones((2, 2), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    cut = (DATA / "llama.gguf").read_bytes()[:-400]
    (tmp_path / "cut.gguf").write_bytes(cut)
    for name in ("old.dat", "model.gguf", "cut.gguf", "missing.gguf"):
        with pytest.raises(ExportError, match=rf"{name} is (no importance matrix|not there)") as caught:
            read_imatrix(tmp_path / name)
        assert "\n" not in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize("context", [32, 128])
@pytest.mark.parametrize("name", CASES)
def test_llama_imatrix_run_beside_ours_agrees(name: str, context: int, tmp_path: Path) -> None:
    programs = os.environ.get("POCKETSTILL_LLAMA_BIN")
    if not programs:
        pytest.skip("set POCKETSTILL_LLAMA_BIN to the folder of llama.cpp's programs")
    checkpoint, sequences = case(name, tmp_path / "student", context=context)
    run_tool(Path(programs).resolve(), checkpoint.folder, TEXT, tmp_path / "tool.gguf", context=context)
    assert worst_difference(compute_imatrix(checkpoint, sequences), read_imatrix(tmp_path / "tool.gguf")) < 0.01
