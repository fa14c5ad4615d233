"""The page about the API says what the code does."""

import re
from typing import Any

from fastapi.routing import APIRoute

import make_api_page
from diptych.core.clock import SystemClock
from diptych.frontend.app import create_app
from diptych.frontend.settings import FrontendSettings
from diptych.frontend.text.tokenizer import Tokenizer


def test_the_page_is_what_the_code_says() -> None:
    assert make_api_page.PAGE.read_text() == make_api_page.render(), "run `make docs`"


def test_every_route_is_listed(tokenizer: Tokenizer) -> None:
    settings = FrontendSettings(model_name="m", max_model_len=64)
    no_service: Any = None  # no request is served
    app = create_app(no_service, tokenizer, settings, SystemClock())
    table = re.findall(r"^\| (`.+?) \| ", make_api_page.INTRODUCTION, re.MULTILINE)
    listed = {path for row in table for path in re.findall(r"(/[\w/{}.-]+)", row)}

    served = {re.sub(r"\{.*?\}", "{}", route.path) for route in app.routes if isinstance(route, APIRoute)}
    assert {re.sub(r"\{.*?\}", "{}", path) for path in listed} == served
