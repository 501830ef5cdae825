"""Which tensors of a GGUF file deserve more bits: measured group by group, then raised where it pays most.

Groups are tensors of one role over all layers (`attn_q`, `ffn_down`, the embedding, the head), or over a third of
the layers. All start at a low type. The raise with the most KL saved a byte is made first, and what the others save
is measured anew, as far as it could change the order: the accelerated greedy algorithm of M. Minoux, "Accelerated
greedy algorithms for maximizing submodular set functions", Optimization Techniques (1978), 234-243. It is exact where
savings only shrink as others are raised; here they nearly do.
"""

from __future__ import annotations

import heapq
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pocketstill_export.errors import ExportError
from pocketstill_export.gguf.imatrix import Imatrix
from pocketstill_export.gguf.quantize import quantize_gguf
from pocketstill_export.parity.logits import LogitsCheck
from pocketstill_export.variants import GgufKind

BASE = "q3_k"
LADDER = ("q4_k", "q5_k", "q6_k", "q8_0")
# A file needs a type of its own to be called by; llama.cpp reads the tensors' own. None of these asks for an imatrix.
_KINDS: dict[str, GgufKind] = {
    "q2_k": "q2_k", "q3_k": "q3_k_s", "q4_0": "q4_0", "q4_1": "q4_1", "iq4_nl": "iq4_nl", "iq4_xs": "iq4_xs",
    "q4_k": "q4_k_s", "q5_0": "q5_0", "q5_1": "q5_1", "q5_k": "q5_k_s", "q6_k": "q6_k", "q8_0": "q8_0",
}  # fmt: skip
_BLOCK_NAME = re.compile(r"blk\.(\d+)\.(\w+)\.weight")
_WHOLE_NAME = re.compile(r"(token_embd|output)\.weight")
# llama.cpp keeps these as they are, whatever is asked.
_NEVER = re.compile(r"_norm\.|ffn_gate_inp\.|position_embd|token_types")


@dataclass(frozen=True)
class Group:
    """Tensors that are raised together. `pattern` is a regular expression that finds them by name."""

    name: str
    pattern: str


@dataclass(frozen=True)
class Gain:
    """What one raise changes, all else equal: nats of mean KL saved, and bytes of the file spent."""

    group: str
    type: str
    kl_saved: float
    bytes: int

    @property
    def rate(self) -> float:
        """KL saved a byte."""
        return self.kl_saved / self.bytes


@dataclass(frozen=True)
class Mixture:
    """A file with a type a group: what it weighs, and how far it is from the checkpoint."""

    types: dict[str, str]
    bytes: int
    check: LogitsCheck


def tensor_groups(names: Sequence[str], *, parts: int = 1) -> list[Group]:
    """The groups of these GGUF tensor names, in the order of the file; `parts` cuts the layers into as many runs."""
    layers = 1 + max((int(found[1]) for name in names if (found := _BLOCK_NAME.fullmatch(name))), default=0)
    parts = max(1, min(parts, layers))
    members: dict[tuple[str, int], set[int]] = {}
    for name in names:
        if _NEVER.search(name):
            continue
        if found := _WHOLE_NAME.fullmatch(name):
            members[found[1], -1] = set()
        elif found := _BLOCK_NAME.fullmatch(name):
            members.setdefault((found[2], int(found[1]) * parts // layers), set()).add(int(found[1]))
    groups = []
    for (role, part), numbers in members.items():
        if part < 0:
            groups.append(Group(role, rf"^{role}\.weight$"))
        elif parts == 1:
            groups.append(Group(role, rf"^blk\.\d+\.{role}\.weight$"))
        else:
            own = "|".join(map(str, sorted(numbers)))
            groups.append(Group(f"{role}, layers {min(numbers)}-{max(numbers)}", rf"^blk\.({own})\.{role}\.weight$"))
    return groups


def matrices(source: str | Path) -> dict[str, int]:
    """The names of the matrices in a GGUF file, with their numbers of weights."""
    import gguf

    reader = gguf.GGUFReader(str(source))
    return {it.name: int(it.n_elements) for it in reader.tensors if len(it.shape) == 2 and min(it.shape) > 1}


class TypeSearch:
    """The search for one GGUF file. `gains` is what each group saved alone; `trials` counts the files measured."""

    def __init__(
        self,
        source: str | Path,
        scratch: str | Path,
        measure: Callable[[Path], LogitsCheck],
        *,
        base: str = BASE,
        ladder: Sequence[str] = LADDER,
        parts: int = 1,
        imatrix: Imatrix | None = None,
        seconds: float = float("inf"),
    ) -> None:
        """
        Args:
            source: the model in f32.
            scratch: a folder for the files that are tried, one at a time.
            measure: a GGUF file's logits against the checkpoint's.
            base: the type that every group starts at.
            ladder: the types that it may be raised to, by growing size.
            parts: how many runs the layers are cut into, so that early and late layers may differ.
            imatrix: passed to the quantizer.
            seconds: how long it may go on; then no further file is tried.

        Raises:
            ExportError: a base that no file can start at.
        """
        if base not in _KINDS:
            raise ExportError(f"the search cannot start at {base!r}; choose a base from {', '.join(_KINDS)}")
        self.base = base
        self._matrices = matrices(source)
        self.groups = tensor_groups(list(self._matrices), parts=parts)
        self.gains: list[Gain] = []
        self.trials = 0
        self._source, self._scratch, self._measure = Path(source), Path(scratch), measure
        self._rungs = (base, *ladder)
        self._imatrix = imatrix
        self._end = time.monotonic() + seconds
        self._known: dict[tuple[str, ...], Mixture] = {}

    @property
    def over(self) -> bool:
        """Whether its time is up."""
        return time.monotonic() > self._end

    def overrides(self, types: Mapping[str, str]) -> dict[str, str]:
        """Regular expression over tensor names to type, as `quantize_gguf` takes them."""
        return {group.pattern: types[group.name] for group in self.groups}

    def write(self, types: Mapping[str, str], target: str | Path) -> None:
        """Quantizes the source with a type a group."""
        kind = _KINDS[self._rungs[0]]
        quantize_gguf(self._source, target, kind, imatrix=self._imatrix, tensor_types=self.overrides(types))

    def measured(self, types: Mapping[str, str]) -> Mixture:
        """The file with these types, measured once."""
        key = tuple(types[group.name] for group in self.groups)
        if key not in self._known:
            path = self._scratch / "trial.gguf"
            self.write(types, path)
            self.trials += 1
            self._known[key] = Mixture(dict(types), path.stat().st_size, self._measure(path))
            path.unlink()
        return self._known[key]

    def raises(self) -> Iterator[Mixture]:
        """The base, then after each raise the mixture that it gave, until every group is at the top or time is up."""
        now = self.measured({group.name: self._rungs[0] for group in self.groups})
        yield now
        queue: list[tuple[float, int, str, str, int]] = []
        for gain in self._all_gains(now):
            heapq.heappush(queue, (-gain.rate, len(queue), gain.group, gain.type, 0))
        step, serial = 0, len(queue)
        while queue and not self.over:
            _, _, group, rung, when = heapq.heappop(queue)
            if self._rungs.index(rung) <= self._rungs.index(now.types[group]):
                continue
            raised = self.measured(now.types | {group: rung})
            if raised.bytes <= now.bytes:
                continue
            if when < step:
                gain = _gain(group, rung, now, raised)
                serial += 1
                heapq.heappush(queue, (-gain.rate, serial, group, rung, step))
                continue
            now, step = raised, step + 1
            yield now

    def trimmed(self, mixture: Mixture, good: Callable[[Mixture], bool]) -> Mixture:
        """The mixture with each group as low as `good` allows: the last raise may have made an earlier one needless.

        The groups with most weights, which save most, come first.
        """
        now = mixture
        for group in sorted(self.groups, key=lambda it: -self._weights(it)):
            while (place := self._rungs.index(now.types[group.name])) and not self.over:
                trial = self.measured(now.types | {group.name: self._rungs[place - 1]})
                if trial.bytes > now.bytes or not good(trial):
                    break
                now = trial
        return now

    def _weights(self, group: Group) -> int:
        return sum(count for name, count in self._matrices.items() if re.search(group.pattern, name))

    def _all_gains(self, base: Mixture) -> list[Gain]:
        """Every raise of one group alone; kept in `gains`."""
        for group in base.types:
            for rung in self._rungs[1:]:
                if self.over:
                    return self.gains
                raised = self.measured(base.types | {group: rung})
                # Rows that the type does not fit fall back to another, which may be what they had.
                if raised.bytes > base.bytes:
                    self.gains.append(_gain(group, rung, base, raised))
        return self.gains


def _gain(group: str, rung: str, before: Mixture, after: Mixture) -> Gain:
    return Gain(group, rung, before.check.kl_mean - after.check.kl_mean, after.bytes - before.bytes)
