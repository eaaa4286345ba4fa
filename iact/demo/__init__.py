"""A page in the browser to try a model with: `DemoServer(predictor).serve_forever()`."""

from iact.demo.server import DemoServer

__all__ = ["DemoServer"]
