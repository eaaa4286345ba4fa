"""The server behind `iact demo`, over HTTP."""

import http.client
import itertools
import json
import re
import socket
import struct
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from types import SimpleNamespace
from urllib.request import urlopen

import numpy as np
import pytest
from demo_server import ask, encoded, find_boxes, serving
from made_clips import Scene
from PIL import Image

from iact import Predictor
from iact.data.synthetic import draw_face
from iact.demo import answering
from iact.demo import server as demo_server
from iact.layouts import W300
from iact.results import face_fields

FACE = draw_face(0, 0, W300)[0]


@pytest.fixture(scope="module")
def server(small_run):
    with serving(small_run) as server:
        yield server


@pytest.fixture(scope="module")
def predictor(small_run):
    return Predictor.from_pretrained(small_run, device="cpu", detector=find_boxes)


def test_the_page_is_whole_and_asks_nobody_else(server):
    with urlopen(server.url) as response:
        page, policy = response.read().decode(), response.headers["Content-Security-Policy"]
    assert "<title>iact: facial landmarks</title>" in page and policy.startswith("default-src 'none'")
    files = [name for name in re.findall(r'(?:src|href)="([^"]*)"', page) if not name.startswith("data:")]
    assert sorted(files) == ["page.css", "page.js"]
    for name in [*files, "drawing.js"]:
        with urlopen(server.url + name) as response:
            page += response.read().decode()
    assert "//" not in re.sub(r"(^|\s)//\s", "", page)  # comments apart, no address of another server


def test_the_model_is_described(server, predictor):
    status, model = ask(server, "/model")
    layout = predictor.layout
    assert status == 200 and model["layout"] == layout.name and model["names"] == list(layout.names)
    assert [tuple(curve) for curve in model["curves"]] == list(layout.curves) and model["largest"] == 50_000_000
    assert model["about"].startswith(f"{layout.num_landmarks} landmarks ({layout.name}), trained on synthetic")


@pytest.mark.parametrize("width, faces", [(80, 0), (256, 1), (400, 2)])
def test_faces_are_those_of_the_predictor(server, predictor, width, faces):
    image = np.asarray(Image.fromarray(FACE).resize((width, 256)))
    status, answer = ask(server, "/predict", encoded(image))
    assert status == 200 and len(answer["faces"]) == faces and (answer["width"], answer["height"]) == (width, 256)
    assert answer["faces"] == [face_fields(face) for face in predictor(image)]
    assert answer["about"] == ask(server, "/model")[1]["about"]
    times = answer["milliseconds"]
    assert times["total"] == pytest.approx(times["decoding"] + times["detector"] + times["network"], abs=0.3)
    assert min(times.values()) >= 0 and times["total"] > 0


def saved(picture: Image.Image, kind: str, **settings) -> bytes:
    buffer = BytesIO()
    picture.save(buffer, kind, **settings)
    return buffer.getvalue()


def test_pictures_are_read_as_files_are(server, predictor):
    upright = Image.fromarray(FACE[:, :200])
    exif = upright.getexif()
    exif[0x0112] = 6  # to be turned to the right
    turned = saved(upright.transpose(Image.Transpose.ROTATE_90), "png", exif=exif)
    grey, deep = upright.convert("L"), Image.fromarray(FACE[:, :200, 0].astype(np.uint16) * 257)
    transparent = Image.fromarray(np.dstack([FACE[:, :200], np.zeros((256, 200), np.uint8)]))
    seen = {  # what the network should see of each
        turned: FACE[:, :200],
        saved(grey, "png"): np.repeat(np.asarray(grey)[..., None], 3, axis=2),
        saved(deep, "png"): np.repeat(FACE[:, :200, :1], 3, axis=2),
        saved(transparent, "png"): FACE[:, :200],
    }
    for data, image in seen.items():
        status, answer = ask(server, "/predict", data)
        assert status == 200 and (answer["width"], answer["height"]) == (200, 256)
        assert answer["faces"] == [face_fields(face) for face in predictor(np.ascontiguousarray(image))]
    assert len({json.dumps(ask(server, "/predict", data)[1]["faces"]) for data in seen}) == 3  # and it does see it


def test_faces_of_a_camera_are_followed(small_run):
    looks = []

    def find_once(image):
        looks.append(len(looks))
        time.sleep(0.002)
        return find_boxes(image) if len(looks) < 3 else np.zeros((0, 4))

    with serving(small_run, find_once) as server:
        server.predictor.predictor.model.head[-1].bias.data += 1  # surer than the score at which a face counts as lost
        first, second = (ask(server, "/predict?camera=1", encoded(FACE))[1] for _ in range(2))
        assert looks == [0] and second["milliseconds"]["detector"] == 0 < first["milliseconds"]["detector"]
        assert [face["id"] for face in first["faces"] + second["faces"]] == [0, 0]
        (face,) = ask(server, "/predict", encoded(FACE))[1]["faces"]
        assert "id" not in face and face["box"] != first["faces"][0]["box"]  # a second look was taken
        assert ask(server, "/predict?camera=2", encoded(FACE))[1]["faces"] == []  # it has not been seen there
        for camera in range(3, 30):
            ask(server, f"/predict?camera={camera}", encoded(FACE))
        assert ask(server, "/predict?camera=1", encoded(FACE))[1]["faces"] == []  # forgotten for so many others


JPEG = encoded(FACE, ".jpg")
REFUSED = {
    "text": ("/predict", b"not a picture", {}, 400, "not a picture that can be decoded"),
    "nothing": ("/predict", b"", {}, 400, "not a picture that can be decoded"),
    "half": ("/predict", JPEG[: len(JPEG) // 2], {}, 400, "the picture is cut short"),
    "large": ("/predict", bytes(30_000_000), {}, 413, "the picture has 30.0 MB; expected at most 2 MB"),
    "no length": ("/predict", JPEG, {"Content_Length": "x"}, 411, "expected a number of bytes, got 'x'"),
    "below 0": ("/predict", JPEG, {"Content_Length": "-1"}, 411, "expected a number of bytes, got '-1'"),
    "path": ("/other", JPEG, {}, 404, "/other: nothing is taken here (pictures go to /predict)"),
    "page": ("/predict", None, {}, 404, "/predict: there is nothing here (the page is at /)"),
    "code": ("/server.py", None, {}, 404, "/server.py: there is nothing here"),
    "upwards": ("/../../pyproject.toml", None, {}, 404, "there is nothing here"),
    "hidden": ("/%2e%2e/%2e%2e/pyproject.toml", None, {}, 404, "there is nothing here"),
    "host": ("/predict", JPEG, {"Host": "faces.example:8765"}, 403, "expected localhost or an address, got 'faces"),
    "host of the page": ("/", None, {"Host": "127.0.0.1.example"}, 403, "got '127.0.0.1.example'"),
    "no host": ("/model", None, {"Host": ""}, 403, "expected localhost or an address, got ''"),
    "odd host": ("/model", None, {"Host": "[::1"}, 403, "expected localhost or an address, got '[::1'"),
    "another page": ("/predict", JPEG, {"Origin": "http://faces.example"}, 403, "got 'http://faces.example'"),
    "odd path": ("//[", None, {}, 404, "there is nothing here"),
    "odd page": ("/predict", JPEG, {"Origin": "http://["}, 403, "got 'http://['"),
    "a page in a frame": ("/predict", JPEG, {"Origin": "null"}, 403, "expected a page of this server, got 'null'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_request_of_no_use_is_refused_with_a_sentence(server, monkeypatch, case):
    monkeypatch.setattr(demo_server, "LARGEST", 2_000_000)
    path, data, headers, status, words = REFUSED[case]
    said = ask(server, path, data, **headers)
    assert said[0] == status and set(said[1]) == {"error"} and words in said[1]["error"]
    assert ask(server, "/predict", JPEG)[0] == 200


class Looking(Scene):
    """A predictor that asks its detector `looks` times, calls that it counts, and then may fail."""

    detector, looks, calls, fails = staticmethod(find_boxes), 0, [], False

    def __call__(self, image, *boxes, **settings):
        self.calls.append(image)
        for _ in range(self.looks):
            self.detector(image)
        if self.fails:
            raise ValueError("planted")
        return super().__call__(image, *boxes, **settings)


def test_the_detector_s_time_is_that_of_all_its_calls_for_a_picture(monkeypatch):
    """By a clock that goes on by a second whenever it is read."""
    monkeypatch.setattr(answering, "time", SimpleNamespace(perf_counter=itertools.count().__next__))
    timed = answering.TimedPredictor(Looking())
    for looks, fails, expected in ((2, False, 2000), (0, False, 0), (3, True, None), (1, False, 1000)):
        timed.predictor.looks, timed.predictor.fails = looks, fails
        if fails:
            with pytest.raises(ValueError, match="planted"):
                timed(JPEG)
        else:
            assert timed(JPEG)["milliseconds"]["detector"] == expected


def test_a_wide_face_that_rests_is_looked_at_once_for_each_picture(monkeypatch):
    timed = answering.TimedPredictor(Looking(np.array([50.0, 80, 150, 130])))
    monkeypatch.setattr(Looking, "calls", [])
    assert [[face["id"] for face in timed(JPEG, camera="1")["faces"]] for _ in range(3)] == [[0]] * 3
    assert len(Looking.calls) == 3


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:9", "127.0.0.1:8765", "[::1]:80", "192.168.0.7", socket.gethostname()]
)
def test_names_of_this_machine_are_answered(server, host):
    assert ask(server, "/model", Host=host)[0] == 200
    assert ask(server, "/predict", JPEG, Host=host, Origin=f"http://{host}")[0] == 200


def test_a_request_without_a_length_is_refused(server):
    with socket.create_connection(server.server_address) as connection:
        connection.sendall(b"POST /predict HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert b" 411 " in connection.makefile("rb").readline()


def test_one_connection_serves_many_pictures(server):
    connection = http.client.HTTPConnection(*server.server_address, timeout=60)
    codes = []
    for data in (JPEG, b"not a picture", JPEG):
        connection.request("POST", "/predict", data)
        response = connection.getresponse()
        codes.append((response.status, "error" in json.loads(response.read()), response.will_close))
    connection.close()
    assert codes == [(200, False, False), (400, True, False), (200, False, False)]


def test_two_are_answered_at_once(small_run):
    both = threading.Barrier(2, timeout=60)

    def find_together(image):
        both.wait()  # until the other is here
        return find_boxes(image)

    pictures = [encoded(draw_face(0, number, W300)[0]) for number in (1, 2)]
    with serving(small_run) as server:
        alone = [ask(server, "/predict", picture)[1]["faces"] for picture in pictures]
    with serving(small_run, find_together) as server, ThreadPoolExecutor(2) as pool:
        together = list(pool.map(lambda picture: ask(server, "/predict", picture)[1]["faces"], pictures))
    assert together == alone and alone[0] != alone[1]


def test_a_mistake_of_ours_is_said_and_the_server_goes_on(small_run, capfd):
    def fail(image):
        raise RuntimeError("planted") if image.shape[1] < 100 else ValueError("found")

    with serving(small_run, fail) as server:
        status, answer = ask(server, "/predict", encoded(FACE[:, :90]))
        assert status == 500 and "the server made a mistake" in answer["error"]
        assert ask(server, "/model")[0] == 200
    assert "RuntimeError: planted" in capfd.readouterr().err


def test_a_sender_that_leaves_is_no_error(small_run, capfd):
    with serving(small_run) as server:
        before = threading.active_count()
        with socket.create_connection(server.server_address) as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # leaves at once
            connection.sendall(b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9000\r\n\r\nhalf")
            while threading.active_count() == before:
                time.sleep(0.01)  # until somebody reads it
        while threading.active_count() > before:
            time.sleep(0.01)
        assert ask(server, "/predict", JPEG)[0] == 200
    assert capfd.readouterr().err == ""


def test_pictures_that_wait_are_given_up_when_the_server_ends(small_run, monkeypatch):
    begun, go_on = [], threading.Event()

    def find_slowly(image):
        begun.append(1)
        go_on.wait(60)
        return find_boxes(image)

    monkeypatch.setattr(demo_server, "AT_ONCE", 1)
    with ThreadPoolExecutor(3) as senders:
        with serving(small_run, find_slowly) as server:
            answers = [senders.submit(ask, server, "/predict", encoded(FACE)) for _ in range(3)]
            wait_until(lambda: begun and len(server._connections) == 3)
            threading.Timer(0.2, go_on.set).start()
        assert len(begun) == 1
        assert all(isinstance(answer.exception(), (OSError, http.client.HTTPException)) for answer in answers)


def wait_until(condition):
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)
