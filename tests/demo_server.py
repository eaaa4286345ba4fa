"""A demo server in this process, with a network of a few thousand weights and a detector that tests can foretell."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import cv2
import numpy as np

from iact import Predictor
from iact.demo import DemoServer


def find_boxes(image: np.ndarray) -> np.ndarray:
    """No face in a picture less than 100 px wide, two in one of 300 px or more, else one in the middle."""
    height, width = image.shape[:2]
    boxes = [(0.3, 0.3, 0.7, 0.7)] if width < 300 else [(0.1, 0.3, 0.4, 0.7), (0.6, 0.3, 0.9, 0.7)]
    return np.array(boxes if width >= 100 else []).reshape(-1, 4) * (width, height, width, height)


@contextmanager
def serving(weights: Path, detector=find_boxes) -> Iterator[DemoServer]:
    predictor = Predictor.from_pretrained(weights, device="cpu", detector=detector)
    with DemoServer(predictor, port=0) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def encoded(image: np.ndarray, suffix: str = ".png") -> bytes:
    return cv2.imencode(suffix, image[..., ::-1])[1].tobytes()


def ask(server: DemoServer, path: str, data: bytes | None = None, **headers: str) -> tuple[int, dict]:
    """The status and the JSON of an answer; header names are given with _ for -."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    request = Request(server.url.rstrip("/") + path, data, named)
    try:
        with urlopen(request, timeout=60) as response:
            return response.status, json.loads(response.read())
    except HTTPError as error:
        return error.code, json.loads(error.read())
