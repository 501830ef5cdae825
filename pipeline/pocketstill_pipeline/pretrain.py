"""Pretrain the small base student that the default recipe starts from: `python -m pocketstill_pipeline.pretrain`.

It reads problems by rule with their worked solutions, all drawn from the nine tenths of questions and names that
training may see (`problems.held_out`), so that no held-out question was ever in it. `make base` runs it.
"""

from __future__ import annotations

import random
import shutil
import sys
from pathlib import Path
from typing import Any

import typer

from pocketstill.errors import UserError

from . import problems
from .distill import train
from .problems.base import draw_names
from .recipe import Recipe, load_recipe

# Share of the problems by skill: more of those that are learnt later.
_MIXTURE = {
    "coin_flip": 1.0,
    "last_letters": 1.0,
    "shuffled_objects": 1.8,
    "arithmetic": 2.2,
    "tool_call": 0.8,
}
# And of lists of made-up names to say again: copying a word that it has never met is half of what the skills need.
_COPYING = 0.8
_TOKENS_A_PROBLEM = 85


def generate(recipe: Recipe) -> list[dict[str, Any]]:
    """Worked problems of the training side, as many as the recipe's token budget takes, without mistakes."""
    rng = random.Random(recipe.seed)
    names = [*(skill.name for skill in recipe.skills), "copying"]
    weights = [*(_MIXTURE[name] for name in names[:-1]), _COPYING]
    wanted = recipe.train.tokens // _TOKENS_A_PROBLEM
    rows: list[dict[str, Any]] = []
    while len(rows) < wanted:
        name = rng.choices(names, weights)[0]
        if name == "copying":
            rows.append(_copying(rng))
            continue
        problem = problems.sample(name, rng)
        solution = problems.solve(problem.question, rng)
        if problems.held_out(problem.question) or solution is None:
            continue
        messages = [{"role": "user", "content": problem.question}]
        rows.append({"messages": messages, "rationale": solution.rationale, "answer": solution.answer})
    return rows


def _copying(rng: random.Random) -> dict[str, Any]:
    text = " ".join(draw_names(rng, rng.randint(2, 6)))
    messages = [{"role": "user", "content": f'Say after me: "{text}"'}]
    return {"messages": messages, "rationale": "", "answer": text}


def pretrain(recipe_path: Path, out: Path) -> None:
    """Train a base student by a recipe and put its checkpoint into `out`; a run that was cut goes on."""
    try:
        recipe = load_recipe(recipe_path)
        run = Path("runs") / recipe.name
        result = train(recipe, generate(recipe), run, inputs={})
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(result.student, out)
        _halve(out / "model.safetensors")
    except UserError as error:
        print(f"pretrain: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    print(
        f"{result.tokens:,} tokens, dev loss {result.dev_loss}; the base student lies in {out}",
        file=sys.stderr,
    )


def _halve(weights: Path) -> None:
    """Keep the weights as float16: half the size in the repository, and far below what training moves them by."""
    from safetensors.torch import load_file, save_file

    save_file({name: tensor.half() for name, tensor in load_file(weights).items()}, weights, metadata={"format": "pt"})


if __name__ == "__main__":
    typer.run(pretrain)
