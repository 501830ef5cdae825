"""Student to device: a Hugging Face checkpoint becomes ONNX and GGUF variants in one folder, each held to
the checkpoint.
"""

from pocketstill_export.errors import ExportError
from pocketstill_export.export import VARIANTS, ExportResult, export
from pocketstill_export.parity import Parity

__all__ = ["VARIANTS", "ExportError", "ExportResult", "Parity", "export"]
