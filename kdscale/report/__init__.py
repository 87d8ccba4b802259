"""`results.json`, metrics and config of a run to a page, a summary and a model card."""

from kdscale.report.card import model_card
from kdscale.report.write import write_comparison, write_model_card, write_report

__all__ = ["model_card", "write_comparison", "write_model_card", "write_report"]
