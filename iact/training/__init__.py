"""Training: faces in, a run folder with weights, log and pictures out."""

from iact.training.loop import train

__all__ = ["train"]
