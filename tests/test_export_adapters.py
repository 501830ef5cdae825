"""A LoRA adapter kept apart gives the logits that PEFT gives, in llama.cpp and in onnxruntime-genai."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the workshop extra")
pytest.importorskip("peft", reason="needs peft")

from export_students import IDS, make_student, worst_kl

from pocketstill_export.adapters import merge_adapter, read_adapter
from pocketstill_export.checkpoint import read_checkpoint
from pocketstill_export.companions import write_companions
from pocketstill_export.errors import ExportError
from pocketstill_export.gguf.adapters import write_gguf_adapter
from pocketstill_export.onnx.adapters import add_onnx_adapters
from pocketstill_export.onnx.build import build_onnx
from pocketstill_export.parity.logits import EXACT_KL, F16_KL
from pocketstill_export.variants import parse_variants

PEERS = Path(__file__).parents[1] / ".peers"
LLAMA_CPP = PEERS / "llama.cpp" / "convert_lora_to_gguf.py"
needs_llama_cpp = pytest.mark.skipif(not LLAMA_CPP.is_file(), reason="run `make peers`")

EVERY = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
PHI3 = ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]
# Written by llama.cpp's script from the adapter's README and from the base's path on the machine that trained it.
FROM_THE_CARD = ("general.name", "general.tags", "general.base_model.", "general.license", "general.size_label")


def make_adapter(student: Path, folder: Path, *, seed: int = 1, **settings: Any) -> Path:
    """An adapter as PEFT saves it, with random weights on both sides."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    settings = {"r": 4, "lora_alpha": 6, "target_modules": EVERY, "task_type": "CAUSAL_LM"} | settings
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(student), LoraConfig(**settings))
        torch.manual_seed(seed)
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(parameter, std=0.2)
        model.save_pretrained(folder)
    return folder


def peft_logits(student: Path, adapter: Path | None) -> list[np.ndarray]:
    """What transformers gives, with PEFT's adapter on it."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(student, dtype=torch.float32)
    if adapter is not None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PEFT asks transformers for a name that it renamed
            model = PeftModel.from_pretrained(model, adapter)
    with torch.no_grad():
        return [model(torch.tensor([ids])).logits[0].numpy() for ids in IDS]


def llama_logits(base: Path, adapter: Path | None) -> list[np.ndarray]:
    """What llama.cpp gives, with the adapter of a file of its own on it."""
    import ctypes

    import llama_cpp as llama

    quiet = llama.llama_log_callback(lambda *_: None)
    llama.llama_log_set(quiet, None)
    parameters = llama.llama_model_default_params()
    parameters.use_extra_bufts = False
    model = llama.llama_model_load_from_file(os.fsencode(base), parameters)
    options = llama.llama_context_default_params()
    options.n_ctx, options.n_threads, options.n_threads_batch = 128, 1, 1
    options.n_outputs_max = options.n_outputs_max_per_seq = 128
    context = llama.llama_init_from_model(model, options)
    lora = None
    if adapter is not None:
        lora = llama.llama_adapter_lora_init(model, os.fsencode(adapter))
        assert lora, f"llama.cpp refuses {adapter}"
        one = (llama.llama_adapter_lora_p_ctypes * 1)(ctypes.cast(lora, llama.llama_adapter_lora_p_ctypes))
        assert llama.llama_set_adapters_lora(context, one, 1, (ctypes.c_float * 1)(1.0)) == 0
    rows = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(model))
    found = []
    for ids in IDS:
        llama.llama_memory_clear(llama.llama_get_memory(context), True)
        batch = llama.llama_batch_init(len(ids), 0, 1)
        for at, token in enumerate(ids):
            batch.token[at], batch.pos[at], batch.n_seq_id[at], batch.seq_id[at][0] = token, at, 1, 0
            batch.logits[at] = True
        batch.n_tokens = len(ids)
        assert llama.llama_decode(context, batch) == 0
        found.append(np.ctypeslib.as_array(llama.llama_get_logits(context), (len(ids), rows)).copy())
        llama.llama_batch_free(batch)
    llama.llama_free(context)
    llama.llama_model_free(model)
    del quiet
    return found


def worst(found: list[np.ndarray], expected: list[np.ndarray]) -> float:
    return max(worst_kl(f, e) for f, e in zip(found, expected, strict=True))


# ---- GGUF ----

KINDS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "llama with its head": ("Llama", {"tie_word_embeddings": False}, {"target_modules": [*EVERY, "lm_head"]}),
    "qwen2 with ranks of their own": ("Qwen2", {}, {"rank_pattern": {"down_proj": 8, "layers.0.*.q_proj": 2}}),
    "qwen3": ("Qwen3", {}, {"target_modules": ["q_proj", "v_proj"]}),
    "mistral": ("Mistral", {}, {}),
    "gemma3": ("Gemma3", {}, {}),
    "phi3": ("Phi3", {"num_key_value_heads": 4}, {"target_modules": PHI3}),
}


def convert_all(jobs: list[tuple[Path, Path, Path]]) -> None:
    """llama.cpp's script on each (base, adapter, outfile), in one process, since importing takes most of it."""
    program = (
        "import json, runpy, sys\n"
        "script, *jobs = json.loads(sys.argv[1])\n"
        "sys.path.insert(0, script.rpartition('/')[0])\n"
        "for base, adapter, out in jobs:\n"
        "    sys.argv = [script, '--base', base, '--outfile', out, adapter]\n"
        "    runpy.run_path(script, run_name='__main__')\n"
    )
    names = json.dumps([str(LLAMA_CPP.resolve()), *([str(path) for path in job] for job in jobs)])
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", program, names], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    """By kind: our file, and llama.cpp's."""
    root = tmp_path_factory.mktemp("converted")
    jobs, files = [], {}
    for at, (kind, (architecture, config, settings)) in enumerate(KINDS.items()):
        student = make_student(root / f"student{at}", architecture, **config)
        adapter = make_adapter(student, root / f"adapter{at}", **settings)
        files[kind] = (root / f"ours{at}.gguf", root / f"theirs{at}.gguf")
        write_gguf_adapter(read_checkpoint(student), adapter, files[kind][0], name="pirate")
        jobs.append((student, adapter, files[kind][1]))
    convert_all(jobs)
    return files


@needs_llama_cpp
@pytest.mark.parametrize("kind", KINDS)
def test_gguf_equals_llama_cpps_own_converter(kind: str, converted: dict[str, tuple[Path, Path]]) -> None:
    from gguf import GGUFReader

    ours, theirs = map(GGUFReader, converted[kind])
    expected = {tensor.name: tensor for tensor in theirs.tensors}
    assert {tensor.name for tensor in ours.tensors} == set(expected)
    for tensor in ours.tensors:
        assert tensor.tensor_type == expected[tensor.name].tensor_type
        np.testing.assert_array_equal(tensor.data, expected[tensor.name].data, err_msg=tensor.name)
    keys = [
        {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
        for reader in (ours, theirs)
    ]
    mine, wanted = ({k: v for k, v in one.items() if not k.startswith(FROM_THE_CARD)} for one in keys)
    assert mine == wanted
    assert wanted["adapter.lora.alpha"] == 6.0
    assert keys[0]["general.name"] == "pirate"


SCALED: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "mistral": ("Mistral", {}),
    "qwen2 with ranks of their own": ("Qwen2", {"rank_pattern": {"down_proj": 8, "layers.0.*.q_proj": 2}}),
    "gemma3": ("Gemma3", {}),
    "phi3": ("Phi3", {"target_modules": PHI3}),
    "gpt2": ("GPT2", {"target_modules": ["c_attn", "c_proj", "c_fc"], "fan_in_fan_out": True}),
    "one alpha for some": ("Llama", {"alpha_pattern": {"o_proj": 24, "layers.1.mlp.up_proj": 1}}),
    "rank-stabilised": ("Qwen3", {"use_rslora": True, "r": 9}),
}


@pytest.mark.parametrize("kind", SCALED)
def test_llama_cpp_gives_pefts_logits(kind: str, tmp_path: Path) -> None:
    """llama.cpp's own script turns GPT-2's pairs over, and loses the scales of the last two kinds."""
    from pocketstill_export.gguf.write import write_gguf

    architecture, settings = SCALED[kind]
    student = make_student(tmp_path / "student", architecture)
    adapter = make_adapter(student, tmp_path / "adapter", **settings)
    checkpoint = read_checkpoint(student)
    base, lora = tmp_path / "base.gguf", tmp_path / "lora.gguf"
    write_gguf(checkpoint, base, precision="f32", context_length=128, name="t")
    write_gguf_adapter(checkpoint, adapter, lora, name="t")
    expected = peft_logits(student, adapter)
    assert worst(llama_logits(base, lora), expected) < EXACT_KL
    assert worst(llama_logits(base, None), expected) > 0.01


# ---- ONNX ----


class Genai:
    """A folder opened by onnxruntime-genai, once; adapters are put on generators."""

    def __init__(self, folder: Path, file: str, adapters: dict[str, Path]) -> None:
        import onnxruntime_genai as og

        config = og.Config(str(folder))
        decoder = {"filename": file, "session_options": {"intra_op_num_threads": 1}}
        config.overlay(json.dumps({"model": {"decoder": decoder}}))
        self._og, self._model = og, og.Model(config)
        self._adapters = og.Adapters(self._model)
        for name, path in adapters.items():
            self._adapters.load(str(path), name)

    def logits(self, adapter: str | None) -> list[np.ndarray]:
        found = []
        for ids in IDS:
            parameters = self._og.GeneratorParams(self._model)
            parameters.set_search_options(max_length=len(ids) + 1)
            generator = self._og.Generator(self._model, parameters)
            if adapter is not None:
                generator.set_active_adapter(self._adapters, adapter)
            generator.append_tokens(np.array(ids, dtype=np.int32))
            found.append(np.array(generator.get_output("logits"))[0])
        return found


@dataclass(frozen=True)
class Opened:
    """A student, two adapters of it, and its bundle before and after it was opened to them."""

    student: Path
    adapters: dict[str, Path]
    folder: Path
    files: dict[str, list[str]]
    before: dict[str, list[np.ndarray]]

    def model(self, kind: str) -> Genai:
        place = int(kind == "fp16")
        assert all(["-fp16." in file for file in files] == [False, True] for files in self.files.values())
        return Genai(self.folder, FILES[kind], {n: self.folder / files[place] for n, files in self.files.items()})


ONNX: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "llama": ("Llama", {}, {"target_modules": ["q_proj", "down_proj"], "use_rslora": True}),
    "qwen3 untied": (
        "Qwen3",
        {"tie_word_embeddings": False, "attention_bias": True},
        {"target_modules": ["v_proj", "lm_head"], "r": 3, "alpha_pattern": {"lm_head": 2}},
    ),
    "phi3": ("Phi3", {}, {"target_modules": ["gate_up_proj"]}),
}
SPECS = parse_variants(["onnx-fp32", "onnx-int4", "onnx-int8", "onnx-fp16", "gguf-f16"])
FILES = {spec.kind: spec.file for spec in SPECS if spec.engine == "onnx"}


@pytest.fixture(scope="module", params=ONNX)
def opened(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Opened:
    architecture, config, settings = ONNX[request.param]
    root = tmp_path_factory.mktemp("opened")
    student = make_student(root / "student", architecture, **config)
    every = PHI3 if architecture == "Phi3" else EVERY
    adapters = {
        "all": make_adapter(student, root / "all", target_modules=every),
        "some": make_adapter(student, root / "some", **settings),
    }
    checkpoint, folder = read_checkpoint(student), root / "bundle"
    folder.mkdir()
    onnx = [spec for spec in SPECS if spec.engine == "onnx"]
    built = build_onnx(checkpoint, folder, onnx, context_length=128)
    write_companions(checkpoint, folder, context_length=128, generation={}, onnx=onnx, genai_config=built)
    before = {precision: Genai(folder, file, {}).logits(None) for precision, file in FILES.items()}
    shutil.copytree(folder, root / "closed")
    files = add_onnx_adapters(checkpoint, folder, SPECS, adapters)
    return Opened(student, adapters, folder, files, before)


def test_one_onnx_model_gives_pefts_logits_with_each_adapter_and_none(opened: Opened) -> None:
    model = opened.model("fp32")
    for name, adapter in (("all", opened.adapters["all"]), (None, None), ("some", opened.adapters["some"])):
        assert worst(model.logits(name), peft_logits(opened.student, adapter)) < EXACT_KL, name


@pytest.mark.parametrize("kind", FILES)
def test_without_an_adapter_the_model_is_its_base(kind: str, opened: Opened) -> None:
    """But for the order of sums: onnxruntime fuses fewer operators where adapters enter."""
    assert worst(opened.model(kind).logits(None), opened.before[kind]) < (F16_KL if kind == "fp16" else 1e-9)


@pytest.mark.parametrize("kind", ["int4", "int8", "fp16"])
def test_narrower_bases_take_the_same_adapters(kind: str, opened: Opened) -> None:
    """What is left is the rounding of the base: far less than what the adapter does."""
    model = opened.model(kind)
    for name, adapter in opened.adapters.items():
        expected = peft_logits(opened.student, adapter)
        left = {"int4": 0.2, "int8": 0.01, "fp16": 0.001}[kind]
        assert worst(model.logits(name), expected) < left * worst(model.logits(None), expected), name


def test_onnx_adapters_are_written_alike_twice(opened: Opened) -> None:
    again = opened.folder.with_name("closed")
    assert add_onnx_adapters(read_checkpoint(opened.student), again, SPECS, opened.adapters) == opened.files
    for name in (*FILES.values(), *(file for files in opened.files.values() for file in files)):
        assert (again / name).read_bytes() == (opened.folder / name).read_bytes(), name


# ---- what cannot be kept apart, and merging ----


def edit(name: str, value: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {name: value}))

    return change


def rename(old: str, new: str) -> Callable[[Path], None]:
    """A tensor of another name."""

    def change(folder: Path) -> None:
        from safetensors.torch import load_file, save_file

        tensors = load_file(folder / "adapter_model.safetensors")
        save_file({k.replace(old, new): v for k, v in tensors.items()}, folder / "adapter_model.safetensors")

    return change


def poison(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "adapter_model.safetensors")
    next(iter(tensors.values()))[0, 0] = float("nan")
    save_file(tensors, folder / "adapter_model.safetensors")


def pickled(folder: Path) -> None:
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")


def cut(folder: Path) -> None:
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def linked(folder: Path) -> None:
    path = folder / "adapter_model.safetensors"
    path.rename(folder.with_name("elsewhere"))
    path.symlink_to(folder.with_name("elsewhere"))


A, B = "layers.1.mlp.up_proj.lora_A", "layers.1.mlp.up_proj.lora_B"
REFUSED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no adapter": (lambda folder: (folder / "adapter_config.json").unlink(), "has no adapter_config.json"),
    "no weights": (lambda folder: (folder / "adapter_model.safetensors").unlink(), "has no adapter_model.safetensors"),
    "pickle": (pickled, r"adapter_model\.bin is a pickle"),
    "cut short": (cut, "not a whole safetensors file"),
    "a link that leaves": (linked, r"adapter_model\.safetensors is a link that leads out"),
    "NaN": (poison, "NaN or infinite"),
    "another kind": (edit("peft_type", "IA3"), "adapters of type IA3"),
    "DoRA": (edit("use_dora", True), "use_dora cannot be kept apart; merge it"),
    "saved modules": (edit("modules_to_save", ["lm_head"]), "modules_to_save cannot be kept apart"),
    "biases": (edit("bias", "lora_only"), "bias 'lora_only' cannot be kept apart"),
    "activated LoRA": (edit("alora_invocation_tokens", [3]), "alora_invocation_tokens cannot be kept apart"),
    "a setting of tomorrow": (edit("use_tomorrow", True), "use_tomorrow cannot be kept apart"),
    "changed base": (edit("init_lora_weights", "pissa"), "init_lora_weights 'pissa' changed the base"),
    "no alpha": (edit("lora_alpha", 0), "lora_alpha is missing or 0"),
    "half a pair": (rename(B, "layers.1.mlp.up_proj.lora_C"), "lora_C.weight is not lora_A or lora_B"),
    "a pair without B": (rename("layers.1.mlp.up_proj.lora_B", "layers.7.mlp.up_proj.lora_B"), "has no lora_B"),
    "another layer": (rename("layers.1.mlp", "layers.7.mlp"), r"layers\.7\.mlp\.\w+\.weight is not a weight of"),
    "an embedding": (rename(A + ".weight", "embed_tokens.lora_embedding_A"), "not lora_A or lora_B of a linear"),
    "another base": (rename("mlp.up_proj", "mlp.down_proj_"), "is not a weight of"),
}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("plain")
    student = make_student(root / "student")
    return student, make_adapter(student, root / "adapter")


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_kept_apart_is_refused_in_one_line(kind: str, plain: tuple[Path, Path], tmp_path: Path) -> None:
    change, reason = REFUSED[kind]
    student, adapter = plain
    shutil.copytree(adapter, tmp_path / "adapter")
    change(tmp_path / "adapter")
    with pytest.raises(ExportError, match=reason) as caught:
        read_adapter(read_checkpoint(student), tmp_path / "adapter")
    assert "\n" not in str(caught.value)


def test_an_adapter_of_another_base_is_refused(plain: tuple[Path, Path], tmp_path: Path) -> None:
    other = read_checkpoint(make_student(tmp_path / "other", intermediate_size=80))
    with pytest.raises(ExportError, match=r"the base wants \(.*80.*\); give the base"):
        read_adapter(other, plain[1])
    with pytest.raises(ExportError, match="give the base that it was trained on"):
        merge_adapter(tmp_path / "other", plain[1], tmp_path / "merged")
    assert not (tmp_path / "merged").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other"]


def test_an_adapter_of_the_tied_head_is_refused(plain: tuple[Path, Path], tmp_path: Path) -> None:
    adapter = make_adapter(plain[0], tmp_path / "adapter", target_modules=["lm_head"])
    with pytest.raises(ExportError, match=r"lm_head\.weight .*its head is the embedding"):
        read_adapter(read_checkpoint(plain[0]), adapter)


def test_a_head_trained_beside_the_adapter_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    student = make_student(tmp_path / "student", tie_word_embeddings=False)
    adapter = make_adapter(student, tmp_path / "adapter", target_modules=["lm_head"])
    checkpoint = read_checkpoint(student)
    assert list(read_adapter(checkpoint, adapter).pairs) == ["lm_head.weight"]
    tensors = load_file(adapter / "adapter_model.safetensors")
    kept = next(name for name in tensors if "base_layer" in name)
    tensors[kept][0, 0] += 1
    save_file(tensors, adapter / "adapter_model.safetensors")
    with pytest.raises(ExportError, match=r"holds another lm_head\.weight than"):
        read_adapter(checkpoint, adapter)


def test_names_that_are_no_file_names_are_refused(plain: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"adapter name '\.\./up' cannot be a file name"):
        add_onnx_adapters(read_checkpoint(plain[0]), tmp_path, [], {"../up": plain[1]})


@pytest.mark.parametrize("settings", [{}, {"use_dora": True}], ids=["LoRA", "DoRA"])
def test_merging_gives_pefts_logits(settings: dict[str, Any], plain: tuple[Path, Path], tmp_path: Path) -> None:
    student, adapter = plain[0], make_adapter(plain[0], tmp_path / "adapter", seed=3, **settings)
    merge_adapter(student, adapter, tmp_path / "merged")
    assert worst(peft_logits(tmp_path / "merged", None), peft_logits(student, adapter)) < EXACT_KL
    read_checkpoint(tmp_path / "merged")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
        assert (tmp_path / "merged" / name).read_bytes() == (student / name).read_bytes(), name
    with pytest.raises(ExportError, match="merged exists; give a new folder"):
        merge_adapter(student, adapter, tmp_path / "merged")
