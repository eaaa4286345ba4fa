"""Trained networks as files that run without this package: ONNX, `torch.export` programs, AOTInductor packages."""

from iact.export.deployed import Deployed
from iact.export.exporting import Exported, Format, export_model
from iact.export.parity import NumberFormat, Parity

__all__ = ["Deployed", "Exported", "Format", "NumberFormat", "Parity", "export_model"]
