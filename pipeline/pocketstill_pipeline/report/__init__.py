"""What a run found, for people: one page (`write_report`) and the card that ships with the bundle (`model_card`)."""

from __future__ import annotations

from .card import model_card
from .page import write_report

__all__ = ["model_card", "write_report"]
