"""The names of variants: what each stands for, and where its file lies in the bundle.

`gguf-<type>` is a type of llama.cpp's quantizer. `onnx-<precision>` is fp32, fp16, int8 or int4; int4 may name how
its weights are rounded: `onnx-int4[-<method>][-sym][-b<block>]`, for instance `onnx-int4-hqq-b128`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from pocketstill.bundle import EngineName
from pocketstill_export.errors import ExportError

# Full types first, then by falling size. The last six ask for an importance matrix: llama.cpp refuses them without.
GgufKind = Literal[
    "f32", "bf16", "f16",
    "q8_0", "q6_k", "q5_k_m", "q5_k_s", "q5_1", "q5_0",
    "q4_k_m", "q4_k_s", "q4_1", "q4_0", "iq4_nl", "iq4_xs",
    "q3_k_l", "q3_k_m", "q3_k_s", "iq3_m", "iq3_s", "q2_k",
    "iq3_xs", "iq3_xxs", "q2_k_s", "iq2_m", "iq2_s", "iq2_xs",
]  # fmt: skip
Precision = Literal["fp32", "fp16", "int8", "int4"]
# kquant is the default: k-quants with 8 bits where a small model needs them; kmixed is the builder's own mixture.
Int4Method = Literal["kquant", "kmixed", "rtn", "hqq", "gptq"]

# What `--variants all` stands for: one of each kind that people ship.
USUAL = ("onnx-fp32", "onnx-fp16", "onnx-int8", "onnx-int4", "gguf-f16", "gguf-q8_0", "gguf-q6_k", "gguf-q5_k_m",
         "gguf-q4_k_m", "gguf-q4_0", "gguf-iq4_xs", "gguf-q3_k_m")  # fmt: skip
DEFAULT = ("onnx-fp32", "onnx-int4", "gguf-f16", "gguf-q8_0", "gguf-q4_k_m")

_INT4 = re.compile(r"onnx-int4(?:-(?P<method>[a-z]+))??(?P<symmetric>-sym)?(?:-b(?P<block>\d+))?")
_BLOCKS = (16, 32, 64, 128, 256)


@dataclass(frozen=True)
class VariantSpec:
    """One variant: its engine, the kind of its weights, and for int4 ONNX the way of rounding.

    `method`, `block` and `symmetric` say something for int4 alone; `block` counts the weights that share a scale.
    """

    name: str
    engine: EngineName
    kind: str
    method: Int4Method = "kquant"
    block: int = 32
    symmetric: bool = False

    @property
    def file(self) -> str:
        """Its file in the bundle; ONNX weights lie beside it, in `<file>_data`. transformers.js knows these names."""
        if self.engine == "gguf":
            return f"model-{self.kind}.gguf"
        if self.kind == "int4":
            rest = self.name.removeprefix("onnx-int4").replace("-", "_")
            return f"onnx/model_q4{rest}.onnx"
        return "onnx/model.onnx" if self.kind == "fp32" else f"onnx/model_{self.kind}.onnx"

    @property
    def quantized(self) -> bool:
        """Whether its weights have fewer bits than half precision."""
        return self.kind not in ("f32", "bf16", "f16", "fp32", "fp16")


def parse_variant(name: str) -> VariantSpec:
    """The variant of that name.

    Raises:
        ExportError: there is none; the nearest name is in the message.
    """
    if name.startswith("gguf-") and name[5:] in get_args(GgufKind):
        return VariantSpec(name, "gguf", name[5:])
    if name.startswith("onnx-") and name[5:] in get_args(Precision):
        return VariantSpec(name, "onnx", name[5:])
    parts = _INT4.fullmatch(name)
    if parts and (parts["method"] or "kquant") in get_args(Int4Method) and int(parts["block"] or 32) in _BLOCKS:
        method: Int4Method = parts["method"] or "kquant"  # type: ignore[assignment]
        return VariantSpec(name, "onnx", "int4", method, int(parts["block"] or 32), bool(parts["symmetric"]))
    near = difflib.get_close_matches(name, known_names(), 1)
    raise ExportError(
        f"there is no variant {name!r}{f'; did you mean {near[0]}?' if near else ''}; choose from "
        f"{', '.join(known_names())}; int4 takes -sym and -b{{{','.join(map(str, _BLOCKS))}}}"
    )


def parse_variants(names: Sequence[str]) -> list[VariantSpec]:
    """Several, each named once; `all` stands for USUAL.

    Raises:
        ExportError: no name, an unknown one, or one twice.
    """
    expanded = [one for name in names for one in (USUAL if name == "all" else (name,))]
    if not expanded or len(set(expanded)) != len(expanded):
        raise ExportError(f"variants must name each one once, at least one of {', '.join(known_names())}")
    return [parse_variant(name) for name in expanded]


def known_names() -> list[str]:
    """Every name, but for the endings of int4."""
    methods = [f"onnx-int4-{method}" for method in get_args(Int4Method)]
    return [*(f"onnx-{p}" for p in get_args(Precision)), *methods, *(f"gguf-{kind}" for kind in get_args(GgufKind))]
