"""Student to device: a Hugging Face checkpoint becomes ONNX and GGUF variants in one folder, each held to
the checkpoint.
"""

from pocketstill_export.adapters import merge_adapter
from pocketstill_export.card import Provenance
from pocketstill_export.choice.budget import Budget
from pocketstill_export.choice.candidates import Choice, Tolerance
from pocketstill_export.errors import ExportError
from pocketstill_export.export import ExportResult, export
from pocketstill_export.parity.measure import Parity
from pocketstill_export.variants import DEFAULT, parse_variants

__all__ = [
    "DEFAULT",
    "Budget",
    "Choice",
    "ExportError",
    "ExportResult",
    "Parity",
    "Provenance",
    "Tolerance",
    "export",
    "merge_adapter",
    "parse_variants",
]
