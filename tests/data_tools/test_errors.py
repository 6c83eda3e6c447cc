"""What errors and lines show: texts of others escaped once, URLs without their secrets, JSON as it is."""

from __future__ import annotations

import json
import logging
import os
import random
import sys
import time
from pathlib import Path

import pytest
from sample_files import picture

from data_tools import __main__ as cli
from data_tools.errors import (
    DataError,
    Parser,
    UserError,
    escape_output,
    print_json,
    print_line,
    printable,
    printable_lines,
)

SECRETS = ("us3r", "s3cret", "t0ken")


def hostile(draw: random.Random) -> str:
    """A name of letters, and of what changes a terminal, a line or the direction of reading."""
    odd = "\n\r\t\x00\x07\x1b\x7f\x85\x9b\u2028\u202a\u202e\u2066\u2069\udce9\ud800\ufeff \\"
    return "".join(draw.choice(odd) if draw.random() < 0.5 else draw.choice("aé日") for _ in range(12))


@pytest.mark.parametrize("seed", range(20))
def test_a_text_is_escaped_once_wherever_it_goes(seed: int, capsys: pytest.CaptureFixture[str]) -> None:
    name = hostile(random.Random(seed)) + "\nerror: forged"
    shown = printable(name)
    assert shown.isprintable() and printable(shown) == shown
    assert str(DataError(f"{UserError(name)}")) == printable_lines(name)
    print_line(str(UserError(name)))
    print_line(name, error=True)
    with pytest.raises(SystemExit):
        Parser(prog="x").parse_args([f"--{name}"])
    told = capsys.readouterr()
    assert told.out == f"{printable_lines(name)}\n" == told.err[: len(told.out)]
    assert told.err.count("\n") == told.err.count("\n  ") + 3, "the line, the usage and the parser's error"
    assert not any(line.startswith("error: forged") for line in told.err.splitlines())


def test_json_gives_names_back_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    value = {"image": "".join(map(hostile, map(random.Random, range(9)))), "https://us3r:s3cret@h?t0ken": 1}
    print_json(value)
    line = capsys.readouterr().out
    assert json.loads(line) == value and line[:-1].isprintable()


@pytest.mark.parametrize("tail", ["", ".", ": refused", ", then again", " (the server)", "'", "\nerror"])
def test_no_line_shows_what_is_secret_in_a_url(tail: str, capsys: pytest.CaptureFixture[str]) -> None:
    url = "https://us3r:s3cret@host:8080/a/b.tar?X-Amz-Signature=t0ken#t0ken"
    for show in (print_line, lambda text: print_line(f"error: {DataError(text)}")):
        show(f"no answer from {url}{tail}")
    shown = capsys.readouterr().out
    assert shown.count("https://host:8080/a/b.tar") == 2 and not any(word in shown for word in SECRETS)


@pytest.mark.parametrize("part", ["a", "a.", "://", "a://", "a://@", "\x1b", "\n  ", "a:"])
def test_a_long_text_is_shown_at_once(part: str) -> None:
    begun = time.process_time()
    assert len(printable_lines(part * 100_000)) >= 100_000
    assert time.process_time() - begun < 5, "seconds, of which a pattern that looks back needs hours"


def test_what_a_logger_without_handlers_says_is_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setattr(logging, "lastResort", logging.StreamHandler())
    escape_output()
    assert logging.lastResort is not None
    record = logging.makeLogRecord({"msg": "shards of %s", "args": ("a\nerror: forged\x1b[2J",)})
    assert logging.lastResort.format(record) == "shards of a\\nerror: forged\\x1b[2J"


def test_an_error_that_nobody_caught_is_shown_as_others_are(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    escape_output()
    try:
        raise ValueError("x\nerror: forged\x1b[2J https://us3r:s3cret@host/a?t0ken")
    except ValueError as error:
        sys.excepthook(ValueError, error, error.__traceback__)
    told = capsys.readouterr().err
    assert "ValueError: x\n  error: forged\\x1b[2J https://host/a\n" in told
    assert told.startswith("Traceback") and all(line[:2] == "  " for line in told.splitlines()[1:])


@pytest.mark.parametrize("options", [(), ("--classes", "c.json")])
def test_a_name_that_is_not_utf8_has_one_backslash(
    options: tuple[str, ...],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "images" / os.fsdecode(b"caf\xe9")
    folder.mkdir(parents=True)
    (folder / "0.jpg").write_bytes(picture(0))
    (folder / "1.jpg").write_bytes(picture(0)[:100])
    (folder / "x.txt").write_bytes(b"")
    (tmp_path / "c.json").write_text('["caf\\\\xe8"]')
    cli.main(["pack", "images", "out", *options])
    said = "".join(capsys.readouterr())
    assert "caf\\" in said and "\\\\" not in said


def test_files_have_the_permissions_that_umask_gives(tmp_path: Path) -> None:
    (tmp_path / "images/a").mkdir(parents=True)
    (tmp_path / "images/a/0.jpg").write_bytes(picture(0))
    before = os.umask(0o077)
    try:
        assert cli.main(["pack", str(tmp_path / "images"), str(tmp_path / "out")]) == 0
    finally:
        os.umask(before)
    written = [tmp_path / "out", *(tmp_path / "out").rglob("*")]
    assert len(written) > 2 and not any(path.stat().st_mode & 0o077 for path in written)
