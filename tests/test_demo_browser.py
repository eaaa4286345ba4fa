"""The page of `iact demo` in a real browser: headless Chromium, where there is one."""

import base64
import json
import shutil
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from demo_server import ask, encoded, serving

from iact.data.synthetic import draw_face
from iact.demo import server as demo_server
from iact.layouts import W300

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="Chromium or chromedriver is not installed")
FLAGS = ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1000,800")
CAMERA = ("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream")
GREY = np.full((256, 256, 3), 128, np.uint8)
WAIT = 60  # s


@pytest.fixture(scope="module")
def server(small_run):
    with serving(small_run) as server:
        yield server


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """Chromium, whose camera sees drawn faces."""
    folder = tmp_path_factory.mktemp("browser")
    frames = [draw_face(0, number, W300)[0] for number in (0, 1)]
    (folder / "camera.mjpeg").write_bytes(b"".join(encoded(frame, ".jpg") for frame in frames))
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, *CAMERA, f"--use-file-for-fake-video-capture={folder / 'camera.mjpeg'}"):
        options.add_argument(flag)
    options.add_experimental_option("prefs", {"download.default_directory": str(folder)})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    driver.downloads = folder
    yield driver
    driver.quit()


@pytest.fixture
def page(browser, server):
    browser.get(server.url)
    return browser


def text(page, name: str) -> str:
    return page.find_element("id", name).text


def wait(condition, what: str) -> None:
    """Until the condition holds; an AssertionError after a minute."""
    end = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.05)


def wait_for(page, words: str) -> str:
    """The sentence on the page, once it has these words."""
    wait(lambda: words in text(page, "status"), f"{words!r} did not come, but {text(page, 'status')!r}")
    return text(page, "status")


def choose(page, *files: Path) -> None:
    page.find_element("id", "file").send_keys("\n".join(map(str, files)))


def picture_of(page, canvas: str = "canvas") -> np.ndarray:
    """What is on a canvas of the page, RGB [H, W, 3]."""
    url = page.execute_script("return document.querySelector(arguments[0]).toDataURL()", canvas)
    data = np.frombuffer(base64.b64decode(url.split(",")[1]), np.uint8)
    return cv2.imdecode(data, cv2.IMREAD_COLOR)[..., ::-1]


def put(folder: Path, name: str, image: np.ndarray) -> Path:
    (folder / name).write_bytes(encoded(image))
    return folder / name


def test_landmarks_are_drawn_where_they_are_and_saved(page, server, tmp_path):
    path = put(tmp_path, "grey.png", GREY)
    choose(page, path)
    assert wait_for(page, "1 face") == "1 face in grey.png."
    answer = ask(server, "/predict", path.read_bytes())[1]
    (face,) = answer["faces"]
    drawn = picture_of(page)
    marked = (np.abs(drawn.astype(int) - 128).max(axis=2) > 12).astype(np.uint8)
    scale = drawn.shape[1] / 256
    points = ((np.array(face["landmarks"]) + 0.5) * scale).astype(int)
    assert marked[points[:, 1], points[:, 0]].all() and scale > 1.5
    x0, y0, x1, y1 = ((np.array(face["box"]) + 0.5) * scale).round().astype(int)
    near = cv2.dilate(marked, np.ones((3, 3)))  # where a white line's edge meets its dark rim, the mix may be grey
    assert near[y0, x0:x1].all() and near[y0:y1, x1].all()
    inside = np.array([points.min(axis=0), points.max(axis=0), (x0, y0), (x1, y1)])
    left, top, width, height = cv2.boundingRect(marked)
    expected = [*inside.min(axis=0), *np.ptp(inside, axis=0)]
    np.testing.assert_allclose([left, top, width, height], expected, atol=12)
    mean = np.mean(face["scores"])
    assert text(page, "facts").split("\n")[:4] == ["Faces", "1", "Mean score", f"{mean:.2f}"]
    page.find_element("id", "save").click()
    saved = page.downloads / "landmarks.json"
    wait(saved.exists, "landmarks.json was not saved")
    found = {"layout": server.predictor.describe()["layout"], "pictures": {"grey.png": [face]}, "left_out": []}
    assert json.loads(saved.read_text()) == found


def test_each_of_several_faces_has_its_close_up(page, tmp_path):
    choose(page, put(tmp_path, "two.png", cv2.resize(GREY, (400, 256))))
    assert wait_for(page, "2 faces") == "2 faces in two.png."
    assert page.execute_script("return document.querySelectorAll('#faces canvas').length") == 2
    assert text(page, "faces").count("Box 120 × 120 px at (") == 2
    for item in (1, 2):
        close = picture_of(page, f"#faces li:nth-child({item}) canvas")
        assert close.shape == (176, 176, 3) and (close != 128).any()


def test_pictures_of_no_use_are_said(page, tmp_path, monkeypatch):
    (tmp_path / "notes.jpg").write_text("not a picture")
    choose(page, tmp_path / "notes.jpg")
    assert wait_for(page, "decoded") == "notes.jpg: not a picture that can be decoded"
    choose(page, put(tmp_path, "small.png", GREY[:, :90]))
    assert wait_for(page, "No face").startswith("No face was found in small.png. The detector looks for")
    assert text(page, "faces") == "" and page.find_element("id", "canvas").is_displayed()
    choose(page, tmp_path / "notes.jpg")
    wait_for(page, "decoded")
    assert not page.find_element("id", "canvas").is_displayed()
    assert not page.find_element("id", "save").is_enabled()
    monkeypatch.setattr(demo_server, "LARGEST", 100)
    page.refresh()
    choose(page, tmp_path / "small.png")
    assert "small.png: the picture has 0.0 MB; expected at most" in wait_for(page, "expected at most")


def test_a_picture_that_only_the_server_can_read_is_said(page, tmp_path):
    (tmp_path / "scan.tif").write_bytes(encoded(GREY, ".tif"))
    choose(page, tmp_path / "scan.tif")
    assert wait_for(page, "1 face").endswith("This browser cannot show the picture, so only the landmarks are drawn.")


@pytest.mark.parametrize("kind, field", [("drop", "dataTransfer"), ("paste", "clipboardData")])
def test_pictures_are_dropped_and_pasted(page, kind, field):
    script = """
        const [kind, field, data] = arguments, files = new DataTransfer();
        const bytes = Uint8Array.from(atob(data), letter => letter.charCodeAt(0));
        for (const name of ["a.png", "b.png"]) files.items.add(new File([bytes], name, { type: "image/png" }));
        const made = kind === "drop" ? DragEvent : ClipboardEvent;
        document.body.dispatchEvent(new made(kind, { [field]: files, bubbles: true, cancelable: true }));"""
    page.execute_script(script, kind, field, base64.b64encode(encoded(GREY)).decode())
    assert wait_for(page, "1 face") == "1 face in a.png (the first of 2 files)."


def test_the_camera_s_frames_come_one_after_the_other(page, server, monkeypatch):
    seen = []
    find = server.predictor.predictor.detector.detector
    monkeypatch.setattr(server.predictor.detector, "detector", lambda image: seen.append(image) or find(image))
    page.find_element("id", "camera").click()
    assert "in the camera's picture." in wait_for(page, "camera's picture")
    wait(lambda: len(seen) > 4, "the camera's pictures do not come")
    assert text(page, "camera") == "Stop the camera" and "Frames" in text(page, "facts")
    assert {image.shape for image in seen} == {seen[0].shape} and np.ptp(seen[0]) > 100
    page.find_element("id", "camera").click()
    assert wait_for(page, "stopped") and text(page, "camera") == "Start the camera"
    assert page.find_element("id", "canvas").is_displayed()


REFUSE = "navigator.mediaDevices.getUserMedia = async () => { throw new DOMException('', '%s') }"
CAMERAS = {
    REFUSE % "NotFoundError": "there is none",
    REFUSE % "NotAllowedError": "the browser did not allow it",
    "Object.defineProperty(navigator, 'mediaDevices', { value: undefined })": "localhost or over https",
}


@pytest.mark.parametrize("script, words", CAMERAS.items(), ids=CAMERAS.values())
def test_a_camera_that_is_not_there_is_said(page, script, words):
    page.execute_script(script)
    page.find_element("id", "camera").click()
    assert words in wait_for(page, "No pictures from the camera: ")
    assert text(page, "camera") == "Start the camera"


def test_it_fits_a_phone(page, tmp_path):
    screen = {"width": 360, "height": 740, "deviceScaleFactor": 2, "mobile": True}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    try:
        choose(page, put(tmp_path, "wide.png", cv2.resize(GREY, (800, 256))))
        wait_for(page, "2 faces")
        assert page.execute_script("return document.documentElement.scrollWidth") == 360
        canvas = page.find_element("id", "canvas").size
        assert 280 < canvas["width"] <= 360 and picture_of(page).shape[1] == pytest.approx(2 * canvas["width"], abs=2)
        page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen | {"width": 740, "height": 360})
        wait(lambda: page.find_element("id", "canvas").size["width"] > 600, "the picture does not grow")
        page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)  # turned, and turned back
        wait(lambda: page.execute_script("return document.documentElement.scrollWidth") == 360, "it does not shrink")
    finally:
        page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_nothing_is_asked_of_others_and_nothing_goes_wrong(page, server, tmp_path):
    page.get_log("browser")
    page.refresh()
    choose(page, put(tmp_path, "grey.png", GREY))
    wait_for(page, "1 face")
    asked = page.execute_script("return performance.getEntriesByType('resource').map(entry => entry.name)")
    assert asked and all(url.startswith((server.url, "data:")) for url in asked)
    assert page.get_log("browser") == []


def test_a_server_that_has_gone_is_said(browser, small_run, tmp_path):
    with serving(small_run) as server:
        browser.get(server.url)
        wait(lambda: "landmarks" in text(browser, "about"), "the page is not there")
    choose(browser, put(tmp_path, "grey.png", GREY))
    assert "grey.png: the server does not answer (is iact demo" in wait_for(browser, "does not answer")


def test_another_network_behind_an_open_page_is_said(browser, small_run, tmp_path, monkeypatch):
    with serving(small_run) as server:
        browser.get(server.url)
        wait(lambda: "landmarks" in text(browser, "about"), "the page is not there")
        described = server.predictor.describe()
        monkeypatch.setattr(server.predictor, "describe", lambda: described | {"about": "29 landmarks"})
        choose(browser, put(tmp_path, "grey.png", GREY))
        assert "reload the page" in wait_for(browser, "another network")


def test_a_file_that_has_gone_is_said(page, tmp_path):
    path = put(tmp_path, "grey.png", GREY)
    page.execute_script(
        "document.getElementById('file').addEventListener('change', e => e.stopImmediatePropagation(), true)"
    )
    page.find_element("id", "file").send_keys(str(path))
    path.unlink()
    page.execute_script(
        "const file = document.getElementById('file').files[0], data = new DataTransfer(); data.items.add(file);"
        "document.dispatchEvent(new DragEvent('drop', { dataTransfer: data }))"
    )
    assert "grey.png: it cannot be read" in wait_for(page, "cannot be read")
