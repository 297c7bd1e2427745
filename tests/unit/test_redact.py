import pytest

from metalora.redact import is_redacted, redact, redact_settings, redact_uri


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name, value in {
        "MLFLOW_TRACKING_PASSWORD": "correct-horse",
        "OTHER_URI": "postgresql://me:battery%40staple@db/x",
        "SERVICE_TOKEN_PATH": "/var/run/secrets/token",
        "SHORT_SECRET": "auto",
    }.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("http://alice:secret@host:5000/x", "http://alice:***@host:5000/x"),
        ("http://alice:p@ss@host/x", "http://alice:***@host/x"),
        ("postgresql+psycopg2://u:p/w?#1@h/db", "postgresql+psycopg2://u:***@h/db"),
        ("https://ghp_abcdef@host/x", "https://***@host/x"),
        ("s3://KEY:SECRET@bucket/p?region=eu", "s3://KEY:***@bucket/p?region=eu"),
        ("mysql://h/db?user=a&password=zz", "mysql://h/db?user=a&password=***"),
        ("abfs://c@acct.dfs.core.windows.net/p?sig=abc&x=1", "abfs://c@acct.dfs.core.windows.net/p?sig=***&x=1"),
        ("see http://a:b@h and http://c:d@i", "see http://a:***@h and http://c:***@i"),
        ("'http://a:b@h': refused", "'http://a:***@h': refused"),
        ("http://bob@corp.com:secret@host/x", "http://***@corp.com:***@host/x"),
        ("postgresql://bob@corp:secret@host/db", "postgresql://bob@corp:***@host/db"),
        ("http://bob:2024/secret@host", "http://bob:***@host"),
        ("s3://AKIA:12/secret+key@bucket/t.parquet", "s3://AKIA:***@bucket/t.parquet"),
        ("http://token:@host", "http://***:***@host"),
        ("postgresql://h/db?user=bob&pass=secret", "postgresql://h/db?user=bob&pass=***"),
        ("http://host:8080/a?passive=1", "http://host:8080/a?passive=1"),
        ("http://host:8080/a/b", "http://host:8080/a/b"),
        ("sqlite:////a/m.db", "sqlite:////a/m.db"),
        ("models:/camp@champion", "models:/camp@champion"),
        ("photos/a@b:c", "photos/a@b:c"),
    ],
)
def test_passwords_and_tokens_of_uris_are_hidden(text, wanted):
    assert redact_uri(text) == redact(text) == wanted


def test_secrets_of_the_environment_are_hidden_wherever_they_stand():
    assert redact("login correct-horse failed") == "login *** failed"
    assert redact("battery%40staple, battery@staple") == "***, ***"
    assert redact("auto, /var/run/secrets/token") == "auto, /var/run/secrets/token"


def test_settings_of_any_depth_are_hidden():
    settings = {"a": ["http://u:pw@h", 3, None], "b": {"c": ("x", "s3://k:s@b")}}
    assert redact_settings(settings) == {"a": ["http://u:***@h", 3, None], "b": {"c": ["x", "s3://k:***@b"]}}


def test_what_was_hidden_is_known():
    assert is_redacted(redact_uri("http://u:pw@h"))
    assert is_redacted(redact_uri("mysql://h/db?password=zz"))
    assert not is_redacted("http://u@h")
    assert not is_redacted("plain ***@")
