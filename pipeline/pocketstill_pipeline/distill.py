"""Distill: train the student on what curation kept (Fine-tune-CoT: Ho et al. 2023, arXiv 2212.10071, section 3)."""

from __future__ import annotations

import json
import logging
import os
import random
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from pocketstill.errors import UserError
from pocketstill.files import sha256_file
from pocketstill.manifest import MANIFEST, read_manifest, up_to_date, write_manifest

from .packing import Collate, Encoded, encode, pack
from .recipe import Recipe

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


# Dense bf16 peak of a device in FLOP/s, from the makers' data sheets, for the model FLOPs utilisation.
_PEAK_FLOPS = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L4": 121e12, "4090": 165e12}


@dataclass(frozen=True)
class DistillResult:
    """What was trained: where it is, how many tokens it took, how fast, and the last losses."""

    student: Path
    parameters: int
    steps: int
    tokens: int
    tokens_per_second: float
    mfu: float | None
    train_loss: float
    dev_loss: float | None


def distill(recipe: Recipe, curated: Path, out: Path) -> DistillResult:
    """Train the recipe's student on `curated`/train.parquet; writes `out`/student, curve.jsonl, manifest.json last.

    Checkpoints lie in `out`/checkpoints until the training ends, and a second call goes on from the last one.

    Raises:
        UserError: nothing to train on, or a checkpoint of the recipe that cannot be loaded.
    """
    from .tables import read_parquet

    kept = read_manifest(curated)
    if kept is None:
        raise UserError(f"{curated}: no finished curation there; run `pocketstill curate` first")
    inputs = {"curate/train.parquet": kept.outputs["train.parquet"]} | _base_files(recipe)
    if up_to_date(out, _config(recipe), inputs):
        return _result(out)
    rows = read_parquet(curated / "train.parquet")
    if not rows:
        raise UserError(
            f"{curated / 'train.parquet'}: no example was kept; see rejected.parquet beside it for the reasons"
        )
    return train(recipe, rows, out, inputs=inputs)


def train(recipe: Recipe, rows: list[dict[str, Any]], out: Path, *, inputs: dict[str, str]) -> DistillResult:
    """Train on rows of `messages`, `rationale`, `answer`; see `distill`."""
    from .students import hush_transformers, load_student

    hush_transformers()
    started = time.monotonic()
    out.mkdir(parents=True, exist_ok=True)
    (out / MANIFEST).unlink(missing_ok=True)
    texts = (
        text
        for row in rows
        for text in (
            "\n".join([*(m["content"] for m in row["messages"]), row["rationale"], row["answer"]]),
            *(m["content"] for m in row.get("demonstrations") or ()),
        )
    )
    model, tokenizer = load_student(recipe, texts)
    encoded = encode(
        tokenizer, recipe.student.template, rows,
        shots=recipe.train.shots, learn_demonstrations=recipe.train.learn_demonstrations,
    )  # fmt: skip
    weights = [float(row.get("weight", 1.0)) for row in rows]
    learnt, dev = _split_dev(list(zip(encoded, weights, strict=True)), recipe.seed)
    length = _row_length(encoded, recipe)
    packed = _fill(learnt, length, recipe)
    trainer = _trainer(recipe, model, tokenizer, packed, dev, length, out)
    last = _last_checkpoint(out / "checkpoints")
    # transformers starts to resume by loading on the device that it was saved from.
    trainer.train(resume_from_checkpoint=str(last) if last else None)
    counts = _finish(model, tokenizer, trainer, out)
    write_manifest(
        out,
        stage="distill",
        config=_config(recipe),
        inputs=inputs,
        outputs=["student", "curve.jsonl"],
        seed=recipe.seed,
        counts=counts | {"examples": len(learnt), "dev_examples": len(dev)},
        seconds=time.monotonic() - started,
    )
    shutil.rmtree(out / "checkpoints", ignore_errors=True)
    return _result(out)


def _result(out: Path) -> DistillResult:
    manifest = read_manifest(out)
    counts = {} if manifest is None else manifest.counts
    named = {key: value for key, value in counts.items() if key in DistillResult.__dataclass_fields__}
    return DistillResult(student=out / "student", **named)


def _config(recipe: Recipe) -> dict[str, Any]:
    config = recipe.model_dump(mode="json", include={"student", "train", "seed"})
    if recipe.student.base is not None:
        # A base in a folder counts by its content (`_base_files`), wherever the folder lies.
        config["student"]["base"] = Path(recipe.student.base).name
    return config


def _base_files(recipe: Recipe) -> dict[str, str]:
    folder = Path(recipe.student.base) if recipe.student.base else None
    if folder is None or not folder.is_dir():
        return {}
    return {f"base/{path.name}": sha256_file(path) for path in sorted(folder.iterdir()) if path.is_file()}


Weighted = tuple[Encoded, float]


def _split_dev(examples: list[Weighted], seed: int) -> tuple[list[Weighted], list[Encoded]]:
    """Keep a fiftieth (at most 400) of the training examples for the dev loss of the curve."""
    order = list(examples)
    random.Random(seed).shuffle(order)
    count = min(400, len(order) // 50)
    return order[count:], [encoded for encoded, _ in order[:count] or order[:1]]


def weighted_pass(learnt: list[Weighted], rng: random.Random) -> list[Encoded]:
    """One pass: each example as often as its weight, whose fraction is drawn. On average that is a weighted loss."""
    times = (int(weight) + (rng.random() < weight % 1 if weight % 1 else 0) for _, weight in learnt)
    return [encoded for (encoded, _), count in zip(learnt, times, strict=True) for _ in range(count)]


def _fill(learnt: list[Weighted], length: int, recipe: Recipe) -> list[list[Encoded]]:
    """As many passes over the examples as the token budget takes, each packed in another order."""
    rng = random.Random(recipe.seed)
    rows: list[list[Encoded]] = []
    tokens = 0
    while tokens < recipe.train.tokens:
        once = pack(weighted_pass(learnt, rng), length, rng)
        if not once and not any(len(ids) <= length for (ids, _), _ in learnt):
            raise UserError(f"every example is longer than student.context_length ({length} tokens); raise it")
        rng.shuffle(once)
        for row in once:
            rows.append(row)
            tokens += sum(len(ids) for ids, _ in row)
            if tokens >= recipe.train.tokens:
                break
    return rows


def _row_length(encoded: list[Encoded], recipe: Recipe) -> int:
    """Rows of 256 tokens where all examples fit, or else of the context: attention costs the row's square."""
    longest = max(len(ids) for ids, _ in encoded)
    return min(recipe.student.context_length, 256 if longest <= 256 else -(-longest // 64) * 64)


def _trainer(
    recipe: Recipe,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    packed: list[list[Encoded]],
    dev: list[Encoded],
    length: int,
    out: Path,
) -> Any:
    import torch
    from transformers import Trainer, TrainingArguments
    from transformers.trainer_callback import PrinterCallback, ProgressCallback

    from .optimizers import make_optimizer, schedule

    logging.getLogger("torch._dynamo").setLevel(logging.ERROR)
    cuda = torch.cuda.is_available()
    rows_a_step = max(1, recipe.train.batch_tokens // length)
    steps = max(1, len(packed) // rows_a_step)
    # Eager attention, compiled, beats SDPA on a CPU at these sizes.
    model.set_attn_implementation("sdpa" if cuda else "eager")
    arguments = TrainingArguments(
        output_dir=str(out / "checkpoints"),
        max_steps=steps,
        per_device_train_batch_size=rows_a_step,
        per_device_eval_batch_size=rows_a_step,
        eval_strategy="steps",
        eval_steps=max(1, steps // 10),
        save_strategy="steps",
        save_steps=max(1, steps // (recipe.train.checkpoints + 1)),
        save_total_limit=1,
        logging_steps=max(1, steps // 100),
        bf16=cuda or _has_bf16(),
        use_cpu=not cuda,
        torch_compile=recipe.train.compile and _can_compile(),
        max_grad_norm=1.0,
        seed=recipe.seed,
        data_seed=recipe.seed,
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=cuda,
        train_sampling_strategy="sequential",
    )
    optimizer = make_optimizer(model, recipe.train)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule(recipe.train, steps))
    trainer = Trainer(
        model=model,
        args=arguments,
        data_collator=Collate(length, tokenizer.pad_token_id),
        train_dataset=_as_dataset(packed),
        eval_dataset=_as_dataset(pack(dev, length, random.Random(0))),
        optimizers=(optimizer, scheduler),
        callbacks=[_curve_callback(out / "curve.jsonl", packed, rows_a_step)],
    )
    for noisy in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(noisy)
    return trainer


def _as_dataset(rows: list[list[Encoded]]) -> Any:
    import torch

    class Rows(torch.utils.data.Dataset[dict[str, Any]]):
        def __len__(self) -> int:
            return len(rows)

        def __getitem__(self, index: int) -> dict[str, Any]:
            return {"texts": rows[index]}

    return Rows()


def _curve_callback(path: Path, packed: list[list[Encoded]], rows_a_step: int) -> Any:
    from transformers import TrainerCallback

    sizes = [sum(len(ids) for ids, _ in row) for row in packed]
    bar = Progress(
        TextColumn("distill"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[note]}"),
        TimeRemainingColumn(), console=Console(stderr=True),
    )  # fmt: skip

    class Curve(TrainerCallback):  # type: ignore[misc]
        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.first = state.global_step
            self.task = bar.add_task("distill", total=state.max_steps, completed=state.global_step, note="compiling")
            kept = [line for line in _lines(path) if line["step"] <= state.global_step]
            path.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
            # After a resume the clock goes on from what was spent before.
            self.started = time.monotonic() - (kept[-1]["seconds"] if kept else 0.0)
            self.before = kept[-1]["seconds"] if kept else 0.0
            bar.start()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            bar.update(self.task, completed=state.global_step)

        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
            line: dict[str, Any] = {
                "step": state.global_step,
                "tokens": sum(sizes[: state.global_step * rows_a_step]),
            }
            names = {"loss": "loss", "eval_loss": "dev_loss", "learning_rate": "learning_rate"}
            line |= {names[key]: float(value) for key, value in (logs or {}).items() if key in names}
            line["seconds"] = round(time.monotonic() - self.started, 2)
            if "loss" in line or "dev_loss" in line:
                with path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(line) + "\n")
            if "loss" in line:
                done = line["tokens"] - sum(sizes[: self.first * rows_a_step])
                bar.update(
                    self.task,
                    note=f"loss {line['loss']:.3f}, {done / (line['seconds'] - self.before):,.0f} tokens/s",
                )

        def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            bar.stop()

    return Curve()


def _lines(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.endswith("}")]


def _last_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that was written to its end (the trainer's state is what it writes last)."""
    whole = [path for path in folder.glob("checkpoint-*") if (path / "trainer_state.json").is_file()]
    return max(whole, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


def _has_bf16() -> bool:
    """Whether this processor multiplies bf16 natively; without that, autocast only costs time."""
    import torch

    return bool(torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _can_compile() -> bool:
    compiler = os.environ.get("CXX") or "c++"
    return any(shutil.which(name) for name in (compiler, "g++", "clang++"))


def _finish(model: Any, tokenizer: Any, trainer: Any, out: Path) -> dict[str, Any]:
    """Save the student; returns what the manifest counts."""
    student = out / "student"
    shutil.rmtree(student, ignore_errors=True)
    model.save_pretrained(student)
    tokenizer.save_pretrained(student)
    lines = _lines(out / "curve.jsonl")
    timed = [line for line in lines if "loss" in line]
    devs = [line["dev_loss"] for line in lines if "dev_loss" in line]
    # The first tenth holds the compilation, so the rate is read after it.
    first, last = timed[len(timed) // 10], timed[-1]
    seconds = last["seconds"] - first["seconds"]
    rate = (last["tokens"] - first["tokens"]) / seconds if seconds > 0 else last["tokens"] / last["seconds"]
    parameters = sum(p.numel() for p in model.parameters())
    return {
        "parameters": parameters,
        "steps": trainer.state.global_step,
        "tokens": last["tokens"],
        "tokens_per_second": round(rate, 1),
        "mfu": _mfu(parameters, rate),
        "train_loss": last["loss"],
        "dev_loss": devs[-1] if devs else None,
    }


def _mfu(parameters: int, tokens_per_second: float) -> float | None:
    """Model FLOPs utilisation with 6 FLOPs a parameter and token (Chowdhery et al. 2022, appendix B); None on a CPU."""
    import torch

    if not torch.cuda.is_available():
        return None
    name = torch.cuda.get_device_name()
    peak = next((flops for part, flops in _PEAK_FLOPS.items() if part in name), None)
    return None if peak is None else 6 * parameters * tokens_per_second / peak
