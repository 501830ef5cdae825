"""Our export beside others', in one run: conversion time and peak memory, then decode speed and file size.

    python benchmarks/bench_export.py [--params 60e6 | --checkpoint DIR] [--out FILE.json] [--repetitions 3]

Conversions are whole processes that take turns: ours against onnxruntime-genai's builder and llama.cpp's converter
run by hand, each ratio the median over rounds. Our whole `export` with its parity checks stands apart, since the others
check nothing. Decoding takes turns too, in processes that stay open: 128 greedy tokens after 64. `make bench-export`
makes the environments of the peers; one that is absent is a note. Prints Markdown, and one JSON object last.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peers import tables
from peers.measure import Run, machine, run, spread

ROOT = Path(__file__).resolve().parents[1]
HERE = Path(__file__).resolve().parent / "peers"
CEILING = 1.15
PROMPT, TOKENS = 64, 128
VARIANTS = ("onnx-fp32", "onnx-int4", "gguf-f16", "gguf-q8_0", "gguf-q4_k_m")
# Ours, and what is run by hand for the same: the builder's own default for int4, and its k-quants, which are ours.
PAIRS = (
    ("onnx-fp32", "builder fp32"),
    ("onnx-int4", "builder int4"),
    ("onnx-int4", "builder int4 k_quant"),
    ("onnx-int4-rtn", "builder int4"),
    ("gguf-f16", "llama.cpp f16"),
)
BUILDER = {
    "builder fp32": ["-p", "fp32"],
    "builder int4": ["-p", "int4"],
    "builder int4 k_quant": [
        "-p",
        "int4",
        "--extra_options",
        "algo_config=k_quant",
        "block_size=32",
        "accuracy_level=4",
    ],
}
WHOLE = "onnx-int4,gguf-f16"


@dataclass(frozen=True)
class System:
    """What decodes: its process, the folder of its model, and the command that makes the model where it is not ours."""

    name: str
    python: Path
    kind: str
    model: Path
    variant: str = ""
    files: str = "*.onnx*"

    @property
    def size_mib(self) -> float:
        found = {p for pattern in self.files.split("|") for p in self.model.glob(pattern)}
        return sum(p.stat().st_size for p in found) / 2**20


@dataclass
class Results:
    """Rows of the two tables, and what could not be run."""

    conversions: list[dict[str, Any]] = field(default_factory=list)
    decoding: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def make_checkpoint(folder: Path, parameters: float, tokenizer: Path) -> None:
    """A random Llama of about that many parameters with a tokenizer that llama.cpp's converter knows by its hash."""
    import torch
    from tokenizers import Tokenizer
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    folder.mkdir(parents=True)
    for path in tokenizer.glob("*token*.json"):
        shutil.copyfile(path, folder / path.name)
    shutil.copyfile(tokenizer / "chat_template.jinja", folder / "chat_template.jinja")
    known = Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab()
    rows = -(-(max(known.values()) + 1) // 128) * 128
    width = 256 if parameters < 1e8 else 512
    layer = width * (2 * width + 2 * width // 2) + 3 * width * 4 * width
    stop = known.get("<|im_end|>", max(known.values()))
    config = LlamaConfig(
        vocab_size=rows,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=max(2, round((parameters - rows * width) / layer)),
        num_attention_heads=width // 64,
        num_key_value_heads=width // 128,
        head_dim=64,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        initializer_range=0.08,
        bos_token_id=None,
        eos_token_id=stop,
        pad_token_id=stop,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(eos_token_id=stop, pad_token_id=stop)
    model.save_pretrained(folder)


def commands(checkpoint: Path, converter: Path) -> dict[str, Any]:
    """Each conversion by name: the command, given the folder to write to."""
    python = [sys.executable, "-W", "ignore"]
    found: dict[str, Any] = {
        name: lambda out, name=name: [*python, HERE / "convert.py", "ours", checkpoint, out, name]
        for name in dict.fromkeys(ours for ours, _ in PAIRS)
    }
    builder = [*python, "-m", "onnxruntime_genai.models.builder", "-i", checkpoint, "-e", "cpu"]
    for name, options in BUILDER.items():
        # Options that take many values go last.
        found[name] = lambda out, options=options: [*builder, "-o", out, "-c", out / "cache", *options]
    if converter.is_file():
        found["llama.cpp f16"] = lambda out: [
            *(*python, converter, checkpoint, "--outtype", "f16", "--outfile", out / "model.gguf")
        ]
    export = Path(sys.executable).with_name("pocketstill")
    found["whole export"] = lambda out: [export, "export", checkpoint, "--out", out / "bundle", "--variants", WHOLE]
    return found


def convert(checkpoint: Path, work: Path, options: argparse.Namespace, results: Results) -> None:
    """Runs every conversion in turns, and fills the rows of the pairs."""
    converter, repetitions, whole = options.converter, options.repetitions, not options.no_whole
    pairs = [(ours, peer) for ours, peer in PAIRS if not options.peers or peer in options.peers.split(",")]
    wanted = {"whole export", *(name for pair in pairs for name in pair)}
    ways = {name: way for name, way in commands(checkpoint, converter).items() if name in wanted}
    if "llama.cpp f16" in wanted and "llama.cpp f16" not in ways:
        results.notes.append(f"llama.cpp f16: {converter} is absent; run `make peers`")
    if not whole:
        del ways["whole export"]
    runs: dict[str, list[Run]] = {name: [] for name in ways}
    for repetition in range(repetitions):
        order = list(ways) if repetition % 2 == 0 else list(reversed(ways))
        for name in order:
            out = work / "conversion"
            out.mkdir()
            print(f"{repetition + 1}/{repetitions} {name}", file=sys.stderr, flush=True)
            done = run(ways[name](out), environment={"HF_HUB_OFFLINE": "1", "ORT_DISABLE_TELEMETRY": "1"})
            shutil.rmtree(out)
            if done.status:
                results.notes.append(f"{name}: failed ({done.last_words})")
                del ways[name]
            runs[name].append(done)
    kept = {name: [r for r in done if not r.status] for name, done in runs.items() if name in ways}
    for ours, peer in pairs:
        if ours in kept and peer in kept:
            results.conversions.append(_pair(ours, peer, kept[ours], kept[peer]))
    if "whole export" in kept:
        results.conversions.append(
            {"ours": f"whole export ({WHOLE})", "peer": "", **_figures("ours", kept["whole export"])}
        )


def _pair(ours: str, peer: str, mine: Sequence[Run], theirs: Sequence[Run]) -> dict[str, Any]:
    row: dict[str, Any] = {"ours": ours, "peer": peer, **_figures("ours", mine), **_figures("peer", theirs)}
    row["time_ratio"] = spread([a.seconds / b.seconds for a, b in zip(mine, theirs, strict=True)])
    if all(r.peak_mib for r in (*mine, *theirs)):
        pairs = [(a.peak_mib or 0, b.peak_mib or 1) for a, b in zip(mine, theirs, strict=True)]
        row["memory_ratio"] = spread([a / b for a, b in pairs])
    return row


def _figures(who: str, runs: Sequence[Run]) -> dict[str, Any]:
    peaks = [r.peak_mib for r in runs if r.peak_mib is not None]
    return {f"{who}_s": spread([r.seconds for r in runs]), f"{who}_mib": spread(peaks) if peaks else None}


def prepare(checkpoint: Path, work: Path, venvs: dict[str, Path], results: Results) -> list[System]:
    """Makes every model that is to decode, ours and the peers'."""
    own = Path(sys.executable)
    systems = [System("transformers", own, "transformers", checkpoint, files="*.safetensors")]
    for name in VARIANTS:
        out = work / name
        done = run([own, "-W", "ignore", HERE / "convert.py", "ours", checkpoint, out, name])
        if done.status:
            results.notes.append(f"{name}: failed ({done.last_words})")
        else:
            systems.append(System(name, own, "ours", out, name, "onnx/*|*.gguf"))
    for kind, venv in venvs.items():
        python, out = venv / "bin" / "python", work / kind
        label = {"optimum": "optimum-onnx fp32", "exporters": "transformers.exporters fp32"}[kind]
        if not python.exists():
            results.notes.append(f"{label}: {venv} is absent; run `make peers`")
            continue
        print(f"exporting by {label}", file=sys.stderr, flush=True)
        done = run([python, "-W", "ignore", HERE / "convert.py", kind, checkpoint, out])
        if done.status:
            results.notes.append(f"{label}: failed ({done.last_words})")
            continue
        systems.append(System(label, python, kind, out))
        results.notes.append(f"{label}: exported in {done.seconds:.1f} s, peak {done.peak_mib or 0:.0f} MiB")
    return systems


def decode(systems: Sequence[System], ids: Sequence[int], threads: int, repetitions: int, results: Results) -> None:
    """Opens every system and lets them decode in turns: one round to warm up, then those that count."""
    workers: dict[str, subprocess.Popen[str]] = {}
    try:
        for system in systems:
            command = [system.python, "-W", "ignore", HERE / "decode.py", system.kind, system.model, str(threads)]
            workers[system.name] = subprocess.Popen(
                [*map(str, command), system.variant],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            )  # fmt: skip
        for system in systems:
            if _line(workers[system.name]) != "ready":
                results.notes.append(f"{system.name}: could not be opened with {threads} thread(s)")
                workers[system.name].wait()
                del workers[system.name]
        rates, said = _rounds(workers, ids, repetitions)
    finally:
        for worker in workers.values():
            worker.kill()
            worker.wait()
    reference = said.get("transformers", [])
    for system in systems:
        if system.name in workers and system.name not in rates:
            results.notes.append(f"{system.name}: died while decoding with {threads} thread(s)")
        if system.name in rates:
            results.decoding.append({
                "system": system.name,
                "threads": threads,
                "file_mib": round(system.size_mib, 1),
                "tok_s": spread(rates[system.name]),
                "same_tokens": _agreeing(said[system.name], reference),
            })  # fmt: skip


def _rounds(
    workers: dict[str, subprocess.Popen[str]], ids: Sequence[int], repetitions: int
) -> tuple[dict[str, list[float]], dict[str, Any]]:
    """Rates and last tokens of each; a worker that dies leaves both."""
    question = json.dumps({"prompt": list(ids), "tokens": TOKENS})
    rates: dict[str, list[float]] = {name: [] for name in workers}
    said: dict[str, Any] = {}
    for repetition in range(repetitions + 1):
        for name in list(rates) if repetition % 2 else list(reversed(rates)):
            found = _line(workers[name], question)
            if not found:
                del rates[name]
                continue
            answer = json.loads(found)
            said[name] = answer["ids"]
            if repetition:
                rates[name].append(answer["tok_s"])
    return rates, said


def _line(worker: subprocess.Popen[str], question: str | None = None) -> str:
    """The worker's next line, after a question if one is given; empty when it has ended."""
    assert worker.stdout is not None and worker.stdin is not None
    with contextlib.suppress(BrokenPipeError):
        if question is not None:
            worker.stdin.write(question + "\n")
            worker.stdin.flush()
    return worker.stdout.readline().strip()


def _agreeing(found: Sequence[int], reference: Sequence[int]) -> int:
    """How many tokens are the reference's before the first other one."""
    return next((i for i, (a, b) in enumerate(zip(found, reference, strict=False)) if a != b), len(reference))


def parsed() -> argparse.Namespace:
    peers = ROOT / ".peers"
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--checkpoint", type=Path, help="a checkpoint; else a random one is made")
    parser.add_argument("--params", type=float, default=60e6, help="of the random checkpoint")
    parser.add_argument("--tokenizer", type=Path, default=ROOT.parent / "shared" / "data" / "tokenizers" / "qwen2")
    parser.add_argument("--repetitions", type=int, default=3, help="of each conversion")
    parser.add_argument("--decode-repetitions", type=int, default=5)
    parser.add_argument("--threads", default="1,2", help="of decoding, by commas")
    parser.add_argument("--only", choices=("conversion", "decoding"))
    parser.add_argument("--peers", help=f"only these conversions by hand: {', '.join(dict(map(reversed, PAIRS)))}")
    parser.add_argument("--no-whole", action="store_true", help="leave the whole export with its checks out")
    parser.add_argument("--converter", type=Path, default=peers / "llama.cpp" / "convert_hf_to_gguf.py")
    parser.add_argument("--optimum-venv", type=Path, default=peers / "optimum")
    parser.add_argument("--exporters-venv", type=Path, default=peers / "exporters")
    parser.add_argument("--out", type=Path, help="JSON file of everything measured")
    return parser.parse_args()


def main() -> int:
    options, results = parsed(), Results()
    before = machine()
    with tempfile.TemporaryDirectory(prefix="bench-export-") as name:
        work = Path(name)
        checkpoint = options.checkpoint
        if checkpoint is None:
            for file in ("tokenizer.json", "chat_template.jinja"):
                if not (options.tokenizer / file).is_file():
                    raise SystemExit(f"{options.tokenizer} holds no {file}; give --tokenizer DIR or --checkpoint DIR")
            checkpoint = work / "checkpoint"
            make_checkpoint(checkpoint, options.params, options.tokenizer)
        weights = sum(p.stat().st_size for p in checkpoint.glob("*.safetensors")) / 2**20
        if options.only != "decoding":
            convert(checkpoint, work, options, results)
        if options.only != "conversion":
            venvs = {"optimum": options.optimum_venv, "exporters": options.exporters_venv}
            systems = prepare(checkpoint, work, venvs, results)
            rows = int(json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))["vocab_size"])
            ids = [(37 * place) % (rows // 2) + rows // 4 for place in range(PROMPT)]
            for threads in map(int, options.threads.split(",")):
                decode(systems, ids, threads, options.decode_repetitions, results)

    about = {"before": before, "after": machine(), "weights_mib": round(weights, 1)}
    print(
        f"{about['weights_mib']} MiB of weights; {before['cpu']}, {before['cores']} cores, load {before['load_1min']} "
        f"before and {about['after']['load_1min']} after; medians with quartiles\n"
    )
    if results.conversions:
        print(tables.conversions(results.conversions, CEILING) + "\n")
    if results.decoding:
        print(tables.decoding(results.decoding, TOKENS) + "\n")
    for note in results.notes:
        print(f"- {note}")
    pairs = [row for row in results.conversions if row["peer"]]
    passed = all(row[key]["median"] <= CEILING for row in pairs for key in ("time_ratio", "memory_ratio") if key in row)
    said = {"benchmark": "export", "passed": passed, "ceiling": CEILING, "machine": about, **vars(results)}
    if options.out:
        options.out.write_text(json.dumps(said, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(said))
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
