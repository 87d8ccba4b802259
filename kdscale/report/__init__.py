"""Report of a run: page, summary and model card from results, metrics and config."""

from kdscale.report.card import model_card
from kdscale.report.write import write_comparison, write_model_card, write_report

__all__ = ["model_card", "write_comparison", "write_model_card", "write_report"]
