import pytest

from metalora.errors import UserError
from metalora.registry import Registry, nearest


@pytest.fixture
def registry() -> Registry[int]:
    registry: Registry[int] = Registry("fruit")
    registry.register("pear", 1)
    registry.register("apple", 2)
    return registry


def test_entries_come_back(registry):
    assert registry.register("plum", 3) == 3
    assert [registry.get(name) for name in registry] == [2, 1, 3]
    assert list(registry) == ["apple", "pear", "plum"]
    assert "plum" in registry
    assert "fig" not in registry


def test_a_taken_name_is_refused_and_the_entry_stays(registry):
    with pytest.raises(ValueError, match=r"^fruit 'pear' is registered already$"):
        registry.register("pear", 9)
    assert registry.get("pear") == 1


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("aple", "unknown fruit 'aple', did you mean 'apple'? (choices: apple, pear)"),
        ("xyz", "unknown fruit 'xyz' (choices: apple, pear)"),
    ],
)
def test_an_unknown_name_lists_the_choices(registry, name, message):
    with pytest.raises(UserError) as error:
        registry.get(name)
    assert str(error.value) == message


def test_nearest_takes_any_iterable():
    assert nearest("rnak", (name for name in ("lr", "rank"))) == ", did you mean 'rank'?"
    assert nearest("rnak", []) == ""
