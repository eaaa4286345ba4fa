"""`iact demo`: how it starts and how it ends."""

import os
import signal
import socket
import webbrowser
from urllib.request import urlopen

import pytest
from programs import iact

from iact.demo import DemoServer


def test_the_page_is_opened_and_ctrl_c_ends_it(small_run, monkeypatch):
    pages = []

    def open_page(url):
        try:
            with urlopen(url) as response:
                pages.append((url, response.read().decode()))
        finally:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(webbrowser, "open", open_page)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # pytest in a shell's background ignores it
    try:
        ended = iact("demo", "--weights", small_run, "--port", 0, "--device", "cpu")
    finally:
        signal.signal(signal.SIGINT, before)
    ((url, page),) = pages
    assert "Facial landmarks" in page
    assert (ended.code, ended.err) == (0, "")
    assert ended.out == f"the page is at {url} (Ctrl-C ends it)\nended\n" and url.startswith("http://127.0.0.1:")
    with pytest.raises(OSError):
        urlopen(url)


def test_no_browser_is_opened_where_none_is_wanted(small_run, monkeypatch):
    opened = []
    monkeypatch.setattr(webbrowser, "open", opened.append)
    monkeypatch.setattr(DemoServer, "serve_forever", lambda server: opened.append(server.server_address[0]))
    ended = iact("demo", "--weights", small_run, "--port", 0, "--no-browser", "--host", "0.0.0.0")
    assert ended.code == 0 and opened == ["0.0.0.0"] and "the page is at http://127.0.0.1:" in ended.out


def test_a_demo_that_cannot_start_says_why(small_run, tmp_path, monkeypatch):
    monkeypatch.setattr(DemoServer, "serve_forever", lambda server: pytest.fail("it started"))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        cases = [
            (("--port", port), (f"port: 127.0.0.1:{port} cannot be opened (Address already in use)", "0 for any")),
            (("--port", 65536), ("port: expected 0 to 65535, got 65536",)),
            (("--port", -1), ("port: expected 0 to 65535, got -1",)),
            (("--port", 0, "--host", "203.0.113.7"), ("203.0.113.7:0 cannot be opened",)),
            (("--port", 0, "--host", "no host"), ("no host:0 cannot be opened",)),
            (("--port", 0, "--host", "two..dots"), ("two..dots:0 cannot be opened",)),
            (("--port", 0, "--device", "toaster"), ("device: expected auto, cpu or cuda", "toaster")),
            (("--port", 0, "--weights", tmp_path), (f"{tmp_path}: no weights here",)),
        ]
        for arguments, words in cases:
            ended = iact("demo", "--weights", small_run, "--no-browser", *arguments)
            assert ended.said(*words) and ended.out == "", (arguments, ended)
