"""Reports: from any lm-eval sample log to tables, reliability diagrams and verdicts.

from lm_eval_calib.report import Report, load_predictions

report = Report.from_logs({"base": "results/base", "tuned": "results/tuned"})
report.write("report")
"""

from lm_eval_calib.logs import load_predictions
from lm_eval_calib.report.analysis import Report
from lm_eval_calib.report.comparisons import Comparison
from lm_eval_calib.report.scores import Group, Score, score

__all__ = ["Comparison", "Group", "Report", "Score", "load_predictions", "score"]
