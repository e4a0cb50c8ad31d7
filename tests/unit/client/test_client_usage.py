from __future__ import annotations

import pytest
from ktrdr_client.cli.usage import usage_sentence


@pytest.mark.parametrize(
    ("message", "arguments", "sentence"),
    [
        (
            "Invalid value for '--batch-size': Input should be a valid integer, unable to parse string as an integer",
            ["train", "x", "--batch-size", "many"],
            "--batch-size must be a whole number, was 'many'",
        ),
        (
            "Invalid value for '--learning-rate': Input should be a valid number, unable to parse string as a number.",
            ["train", "x", "--learning-rate=fast"],
            "--learning-rate must be a number, was 'fast'",
        ),
        (
            "Invalid value for '--limit': Input should be greater than or equal to 1",
            ["list", "--limit", "0"],
            "--limit must be at least 1, was '0'",
        ),
        (
            "Invalid value for '--port': Input should be less than or equal to 65535",
            ["up", "--port", "99999"],
            "--port must be at most 65535, was '99999'",
        ),
        (
            "Invalid value for '--mode': Value error, 'gpu' is not one of 'auto', 'local', 'host'.",
            ["train", "x", "--mode", "gpu"],
            "--mode must be one of 'auto', 'local', 'host', was 'gpu'",
        ),
        ("Missing argument 'ID'.", ["show"], "Missing argument 'ID'"),
        ("Invalid value for 'FILE': something new", ["x"], "Invalid value for 'FILE': something new"),
    ],
)
def test_sentence_names_option_rule_and_value(message: str, arguments: list[str], sentence: str) -> None:
    assert usage_sentence(message, arguments) == sentence
