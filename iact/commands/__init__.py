"""The programs behind `iact ...` and `scripts/`: arguments in, files and a short report out."""

from iact.commands.checking import check
from iact.commands.demonstrating import demo
from iact.commands.evaluating import evaluate, measure
from iact.commands.exporting import export
from iact.commands.predicting import predict
from iact.commands.reporting import info
from iact.commands.training import train

__all__ = ["check", "demo", "evaluate", "export", "info", "measure", "predict", "train"]
