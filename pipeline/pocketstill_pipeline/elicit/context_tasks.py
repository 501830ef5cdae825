"""The tasks of learning in context: which query is asked behind which demonstrations, by rule or from a file."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from pocketstill.errors import UserError
from pocketstill_pipeline.example import Split
from pocketstill_pipeline.problems import families
from pocketstill_pipeline.reading import BadRow, read_data

if TYPE_CHECKING:
    from .in_context import InContext

UNSEEN_FAMILY, UNSEEN_TASK, TARGET_TASK = "unseen_family", "unseen_task", "target_task"
_BARE = "{}"
# After so many draws a family has no task on the side that is wanted.
_DRAWS = 400


class Row(NamedTuple):
    """An instance of a task."""

    input: str
    output: str


@dataclass(frozen=True)
class Task:
    """A task with what is asked of it.

    Attributes:
        name: unique in its entry.
        about: what tags say of it: its family, or its name in a file.
        around: the surface form of its inputs, `{}` for the input.
        pool: rows that demonstrations are taken from.
        queries: rows that are asked about; a query never demonstrates itself.
        tags: what kind of held-out task it is.
    """

    name: str
    about: str
    around: str
    pool: Sequence[Row]
    queries: Sequence[Row]
    split: Split = "train"
    tags: tuple[str, ...] = ()

    def asked(self, text: str) -> str:
        """An input in the task's surface form."""
        return self.around.replace("{}", text)


@dataclass(frozen=True)
class Tasks:
    """All tasks of an entry, training ones first, and the rows of its file that cannot be used."""

    tasks: list[Task]
    bad: list[BadRow] = field(default_factory=list)


def target_of(name: str) -> str:
    """The name of the task that tests other rows of one that is trained on."""
    return f"{name}-target"


def find_tasks(settings: InContext, seed: int) -> Tasks:
    """The tasks of an entry, the same for the same seed.

    Raises:
        UserError: the file cannot be read, has too few tasks or rows, or a family no task to train on.
    """
    if settings.file:
        return _from_file(settings, seed)
    return Tasks([*_trained(settings, seed), *_held_out(settings, seed)])


def _trained(settings: InContext, seed: int) -> Iterator[Task]:
    names = settings.trained_families
    for index in range(settings.tasks):
        rng = random.Random(f"{seed}/{settings.entry}/task/{index}")
        yield from _by_rule(settings, rng, names[index % len(names)], index)


def _by_rule(settings: InContext, rng: random.Random, family: str, index: int) -> Iterator[Task]:
    task = _draw(family, rng, held_out=False)
    if task is None:
        raise UserError(f"elicit: all tasks of the family {family!r} are held out; leave it out of families")
    around = _form(settings, rng)
    target = settings.heldout_seen if settings.regime == "multitask" else 0
    of_target = target // settings.tasks + (index < target % settings.tasks)
    rows = _rows(task, rng, settings.pool_size + settings.queries + of_target)
    asked, rest = rows[: settings.queries], rows[settings.queries :]
    tested, pool = rest[:of_target], [*asked, *rest[of_target:]]
    name = f"{family}-{index:05}"
    yield Task(name, family, around, pool, asked)
    if tested:
        yield Task(target_of(name), family, around, pool, tested, "heldout", (TARGET_TASK,))


def _held_out(settings: InContext, seed: int) -> Iterator[Task]:
    """A task a query: unseen families for the most part, and of the seen families tasks that nothing trained on."""
    unseen, seen = settings.heldout_families, settings.trained_families
    for kind, names, count in (
        (UNSEEN_FAMILY, unseen, settings.heldout if unseen else 0),
        (UNSEEN_TASK, seen, settings.heldout_seen),
    ):
        made = 0
        for index in range(4 * count):
            rng = random.Random(f"{seed}/{settings.entry}/{kind}/{index}")
            family = names[index % len(names)]
            task = _draw(family, rng, held_out=kind == UNSEEN_TASK)
            if task is None or made == count:
                continue
            made += 1
            around = _form(settings, rng)
            query, *pool = _rows(task, rng, settings.pool_size + 1)
            yield Task(f"{kind}-{family}-{index:05}", family, around, pool, [query], "heldout", (kind,))


def _draw(family: str, rng: random.Random, *, held_out: bool) -> families.Task | None:
    """A task of the family on one side of its own held-out tenth; a family that is held out whole has all tasks."""
    for _ in range(_DRAWS):
        task = families.draw_task(family, rng)
        if family in families.HELD_OUT or families.tenth(task) == held_out:
            return task
    return None


def _rows(task: families.Task, rng: random.Random, count: int) -> list[Row]:
    return [Row(*pair) for pair in task.pairs(rng, count)]


def _form(settings: InContext, rng: random.Random) -> str:
    named = [form.around for form in families.FORMS if not settings.forms or form.name in settings.forms]
    return rng.choice(named)


def _from_file(settings: InContext, seed: int) -> Tasks:
    data = read_data(settings.file, form="question", columns={"question": "input", "gold": "output"})
    rows: dict[str, dict[Split | None, list[Row]]] = {}
    bad = list(data.bad)
    for row in data.rows:
        name = row.extra.get("task")
        if not isinstance(name, str) or not name or row.gold is None:
            bad.append(BadRow(row.where, f"the field {'output' if name else 'task'!r} is missing"))
            continue
        rows.setdefault(name, {}).setdefault(row.split, []).append(Row(str(row.messages[-1]["content"]), row.gold))
    lonely = next((name for name, found in rows.items() if sum(map(len, found.values())) < 2), None)
    if lonely is not None or len(rows) < 2:
        what = f"the task {lonely!r} has one row" if lonely is not None else f"it has {len(rows)} tasks"
        raise UserError(f"{settings.file}: {what}; learning in context needs two tasks or more, of two rows or more")
    rng = random.Random(f"{seed}/{settings.entry}/file")
    unseen = settings.unseen_tasks or rng.sample(sorted(rows), max(1, round(settings.unseen_share * len(rows))))
    unknown = sorted(set(unseen) - set(rows))
    if unknown or len(set(unseen)) == len(rows):
        what = f"has no task {unknown[0]!r}" if unknown else "has no task beside the unseen ones"
        raise UserError(f"{settings.file}: {what}; its tasks are {', '.join(sorted(rows)[:12])}")
    trained: list[Task] = []
    held: list[Task] = []
    for name, found in rows.items():
        pool, tested = _split_rows(found, random.Random(f"{seed}/{settings.entry}/rows/{name}"))
        if name in unseen:
            held.append(Task(name, name, _BARE, pool, tested, "heldout", (UNSEEN_TASK,)))
            continue
        trained.append(Task(name, name, _BARE, pool, pool[: settings.queries]))
        if settings.regime == "multitask":
            held.append(Task(target_of(name), name, _BARE, pool, tested, "heldout", (TARGET_TASK,)))
    return Tasks([*trained, *held], bad)


def _split_rows(found: dict[Split | None, list[Row]], rng: random.Random) -> tuple[list[Row], list[Row]]:
    """Rows to train on and to take demonstrations from, and rows to test; without splits a fifth are tested."""
    tested = list(dict.fromkeys(found.get("heldout", [])))
    pool = list(dict.fromkeys([*found.get("train", []), *found.get(None, [])]))
    rng.shuffle(pool)
    if not tested or not pool:
        both = pool or tested
        count = max(1, len(both) // 5)
        return both[count:], both[:count]
    return pool, tested
