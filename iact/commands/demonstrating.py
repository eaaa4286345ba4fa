"""`iact demo`."""

import threading
import webbrowser
from pathlib import Path

import cv2
import numpy as np

from iact.demo import DemoServer
from iact.predictor import Predictor


def demo(
    weights: Path = Path("iact-300w"),
    host: str = "127.0.0.1",
    port: int = 8765,
    browser: bool = True,
    device: str = "auto",
) -> None:
    """Open a page in the browser to try a model with: pictures and the camera, until Ctrl-C.

    The page is served from this machine and loads nothing from elsewhere. No picture is kept. POST /predict, with the
    bytes of a picture, gives its faces as JSON.

    Args:
        weights: A weights file, a run folder, or the name of weights that the package brings along.
        host: Whom to serve: 127.0.0.1 is this machine alone, 0.0.0.0 is everyone who can reach it. Browsers give the
            camera only to pages from localhost or over https.
        port: Of the page; 0 for any that is free.
        browser: Open the page in a browser.
        device: auto, cpu or cuda."""
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # the page says what is wrong with a picture
    predictor = Predictor.from_pretrained(weights, device=device)
    with DemoServer(predictor, host=host, port=port) as server:
        predictor(np.zeros((64, 64, 3), np.uint8), boxes=[(16, 16, 48, 48)])  # the first call is slow
        print(f"the page is at {server.url} (Ctrl-C ends it)", flush=True)
        if browser:
            threading.Thread(target=webbrowser.open, args=(server.url,), daemon=True).start()
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print("ended")
