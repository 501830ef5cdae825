"""The page that an export leaves beside its folder."""

from pocketstill_export.report.page import write_export_report

__all__ = ["write_export_report"]
