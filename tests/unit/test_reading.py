import json
import os
from dataclasses import dataclass

import pytest

from metalora.errors import LONGEST, UserError
from metalora.limits import VARIABLE, Limits, limits
from metalora.reading import check_form, gate, parse_json, read_json, read_yaml, short


@pytest.fixture
def yaml(tmp_path):
    def read(text):
        (tmp_path / "c.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
        return read_yaml(tmp_path / "c.yaml")

    return read


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", {}),
        ("# nothing", {}),
        ("a: {b: [1, 2.5, x, null, true, .inf]}", {"a": {"b": [1, 2.5, "x", None, True, float("inf")]}}),
        ("a: 2024-01-01", {"a": "2024-01-01"}),  # names of runs look so
        ("a: 1:30", {"a": "1:30"}),  # of base 60 in YAML 1.1
        ("a: 1" + ":59" * 10**5, {"a": "1" + ":59" * 10**5}),
        ("a: [0x10, 0o17, 017, 1_000, -1, 1e3]", {"a": [16, "0o17", 15, 1000, -1, "1e3"]}),
        ("a: &x [1]\nb: *x", {"a": [1], "b": [1]}),
        ("a: &x {k: 1, l: 2}\nb: {<<: *x, l: 3}", {"a": {"k": 1, "l": 2}, "b": {"k": 1, "l": 3}}),
        ("\ufeffa: 1", {"a": 1}),
        ("a: '" + "x" * 10**5 + "'", {"a": "x" * 10**5}),
    ],
)
def test_yaml_is_read(yaml, text, value):
    assert yaml(text) == value


def laughs():
    levels = [f"b{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
    return "\n".join(["b0: &a0 [x, x, x, x, x, x, x, x, x]", *levels])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: !!int x", "cannot be read: invalid literal"),
        ("a: " + "9" * 5000, "cannot be read: Exceeds the limit"),
        ("a: " + "[" * 3000, "line 1: nested in more than 64 levels"),
        ("a:\n" + "".join(f"{' ' * i}b:\n" for i in range(1, 200)), "nested in more than 64 levels"),
        ("1: 2", "line 1: key '1' is no string"),
        ("a: {null: 2}", "key 'null' is no string"),
        ("a: {[1]: 2}", "is no string"),
        ("a: 1\nb:\n  c: 1\n  c: 2", "line 4: 'c' is set twice"),
        (laughs(), "with its aliases written out it is too long"),
        ("a: &x '" + "y" * 10**5 + "'\nb: [" + "*x, " * 20 + "]", "with its aliases written out it is too long"),
        ("a: &x [*x]", "alias 'x' inside the value that it names"),
        ("a: !!python/object/apply:os.system [true]", "could not determine a constructor"),
        ("a: !!binary aGk=", "could not determine a constructor"),
        ("- a", r"must hold sections with settings, got \['a'\]"),
        ("x" * 10**5, "must hold sections with settings, got 'xxx"),
        (b"\xff\xfe", "cannot be read: "),
        ("a: \0", "cannot be read: "),
        ("#" * 2**21, "it has more than 1048576 bytes"),
    ],
)
def test_yaml_is_refused_in_one_short_line(yaml, tmp_path, text, message):
    with pytest.raises(UserError, match=message) as error:
        yaml(text)
    assert str(error.value).startswith(f"config file '{tmp_path}/c.yaml' ")
    assert len(str(error.value)) < 600
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"{", "note cannot be read: Expecting"),
        (b"\xff", "note cannot be read: "),
        (b"[" * 10**6, "note cannot be read: it is nested too deeply"),
        (b'{"a": 1, "a": 2}', "the key 'a' occurs twice"),
        (b'{"a": NaN}', "NaN is no number"),
        (b'{"a": 1e999}', "1e999 is no number"),
        (b"{" + b'"a": 0, ' * 10**5 + b'"b": 0}', "the key 'a' occurs twice"),
        (b"{" + b",".join(b'"%d":0' % i for i in [*range(10**5), 9]) + b"}", "the key '9' occurs twice"),
        (b'{"a": ' + b"1" * 5000 + b"}", "Exceeds the limit"),
        (b"[]", "note cannot be read: Input should be a valid dictionary"),
        (b'{"x": 3}', r"note cannot be read: x = 3: input should be a valid string"),
    ],
)
def test_json_is_refused_in_one_short_line(data, message):
    with pytest.raises(UserError, match=message) as error:
        parse_json(data, "note", dict[str, str])
    assert len(str(error.value)) < 600


@dataclass(frozen=True)
class Note:
    name: str
    values: dict[str, float]


def test_json_becomes_what_is_wanted(tmp_path):
    (tmp_path / "n.json").write_text(json.dumps({"name": "é", "values": {"a": 1}}))
    assert read_json(tmp_path / "n.json", "note", Note) == Note("é", {"a": 1.0})
    with pytest.raises(UserError, match=r"note cannot be read: values\.a = 'x+\.\.\.x+': .* \(1 more\)"):
        check_form({"name": "n", "values": {"a": "x" * 10**6, "b": None}}, Note, "note")


def test_pipes_devices_and_folders_are_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    for name, reason in (("pipe", "a pipe or a device"), ("zero", "a pipe or a device"), (".", "Is a directory")):
        with pytest.raises(UserError, match=f"note cannot be read: .*{reason}"):
            read_json(tmp_path / name, "note")


def test_the_gate_names_what_it_is_of():
    for error in (KeyError("k"), RecursionError("deep\ndown"), MemoryError(), ZeroDivisionError(), UserError("wrong")):
        with pytest.raises(UserError, match=r"^the file") as met, gate("the file"):
            raise error
        assert met.value.__cause__ is error
    with pytest.raises(UserError, match=r"^in the file: wrong"), gate("the file"):
        raise UserError("in the file: wrong")


def test_values_are_quoted_short():
    class Odd:
        def __repr__(self):
            raise ValueError

    for value in ("x" * 10**7, list(range(10**5)), {"a": {"b": "c" * 10**5}}, int("9" * 4000), 1 << 10**6, Odd()):
        assert len(short(value)) <= 203
    assert short("it's") == '"it\'s"'
    assert len(str(UserError("x" * 10**6))) == LONGEST + 3
    assert str(UserError("a key 'x\ny\u2028z'")) == "a key 'x y z'"


def test_limits_are_settings(monkeypatch):
    assert limits() == Limits()
    monkeypatch.setenv(VARIABLE, "yaml_bytes=10, pattern_seconds=2.5")
    assert limits() == Limits(yaml_bytes=10, pattern_seconds=2.5)
    for text, message in (
        ("bytes=3", "unknown limit 'bytes'"),
        ("yaml_bytes=x", "yaml_bytes must be a number from 1 to .*, got 'x'"),
        ("yaml_bytes=nan", "from 1 to"),
        ("yaml_bytes=1e30", "from 1 to"),
        ("yaml_bytes=0.5", "from 1 to"),
        ("pattern_seconds=inf", r"from 0\.001 to"),
        ("yaml_bytes", "got ''"),
    ):
        monkeypatch.setenv(VARIABLE, text)
        with pytest.raises(UserError, match=message):
            limits()
