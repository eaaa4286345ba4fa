"""From predicted landmarks to reports that say under which protocol their numbers were measured."""

from iact.evaluation.comparing import compare
from iact.evaluation.report import NUM_WORST, THRESHOLD, Protocol, Report, check_thresholds, evaluate_predictions
from iact.evaluation.tables import format_tables
from iact.evaluation.text import format_comparison, format_report
from iact.evaluation.writing import places_of, write_numbers, write_reports

__all__ = [
    "NUM_WORST",
    "THRESHOLD",
    "Protocol",
    "Report",
    "check_thresholds",
    "compare",
    "evaluate_predictions",
    "format_comparison",
    "format_report",
    "format_tables",
    "places_of",
    "write_numbers",
    "write_reports",
]
