"""Looking at what a recipe's teacher said: what came in, what was dropped and why, and samples side by side."""

from .reading import Inspection, inspect_run
from .view import inspect_command

__all__ = ["Inspection", "inspect_command", "inspect_run"]
