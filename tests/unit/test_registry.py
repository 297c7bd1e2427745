from abc import ABC, abstractmethod
from typing import Literal

import pytest

from metalora.errors import UserError
from metalora.registry import Choice, Field, Registry, nearest


@pytest.fixture
def registry() -> Registry:
    registry: Registry = Registry("fruit")

    @registry.register("pear")
    class Pear:
        """A pear."""

    @registry.register("apple")
    class Apple:
        """An apple."""

        seeds: int = Field(default=5, ge=1, description="seeds")
        colour: Literal["red", "green"] = "red"

    return registry


def test_entries_come_back(registry):
    assert list(registry) == ["apple", "pear"]
    assert [registry.get(name).name for name in registry] == ["apple", "pear"]
    assert "apple" in registry
    assert "fig" not in registry


def test_a_taken_name_is_refused_and_the_entry_stays(registry):
    before = registry.get("pear")
    with pytest.raises(ValueError, match=r"^fruit 'pear' is registered already$"):
        registry.register("pear")
    assert registry.get("pear") is before


def test_a_method_that_leaves_out_what_its_base_requires_is_refused(registry):
    class Base(ABC):
        @abstractmethod
        def weigh(self): ...

        @abstractmethod
        def cut(self): ...

    with pytest.raises(TypeError, match=r"^\w+ 'plum' does not define cut, weigh$"):

        @registry.register("plum")
        class Plum(Base):
            pass

    assert "plum" not in registry


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("aple", "unknown fruit 'aple', did you mean 'apple'? (choices: apple, pear)"),
        ("xyz", "unknown fruit 'xyz' (choices: apple, pear)"),
    ],
)
def test_an_unknown_name_lists_the_choices(registry, name, message):
    for get in (registry.get, registry.make, registry.options):
        with pytest.raises(UserError) as error:
            get(name)
        assert str(error.value) == message


@pytest.mark.parametrize("choice", ["apple", {"name": "apple"}, Choice("apple"), Choice.parse("apple")])
def test_a_method_is_made_of_a_name_alone(registry, choice):
    method = registry.make(choice)
    assert (method.seeds, method.colour) == (5, "red")
    assert registry.make(method) is method
    assert registry.full(choice) == {"name": "apple", "seeds": 5, "colour": "red"}


def test_options_are_given_checked_and_never_changed(registry):
    method = registry.make({"name": "apple", "seeds": "7"})  # as a command line has it
    assert method.seeds == 7
    assert method == registry.make(Choice("apple", {"seeds": 7}))
    with pytest.raises(AttributeError):
        method.seeds = 8


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"name": "apple", "seed": 1}, "fruit 'apple' has no option 'seed', did you mean 'seeds'? (options: seeds"),
        ({"name": "pear", "seeds": 1}, "fruit 'pear' has no option 'seeds'"),
        ({"name": "apple", "seeds": 0}, "fruit 'apple': seeds = 0: input should be greater than or equal to 1"),
        ({"name": "apple", "colour": "blue"}, "fruit 'apple': colour = 'blue': input should be 'red' or 'green'"),
        ({"seeds": 1}, "fruit: wanted a name, or {name: NAME, OPTION: VALUE}, got {'seeds': 1}"),
        (3, "fruit: wanted a name, or {name: NAME, OPTION: VALUE}, got 3"),
    ],
)  # fmt: skip
def test_a_choice_that_is_none_is_one_error(registry, choice, message):
    with pytest.raises(UserError) as error:
        registry.make(choice)
    assert str(error.value).startswith(message)


def test_the_plain_form_is_as_short_as_it_can_be():
    assert Choice("tr").plain() == "tr"
    options = {"name": "multi_lora", "branches": 2}
    assert Choice.parse(options).plain() == options
    assert str(Choice.parse(options)) == "multi_lora(branches=2)"


def test_a_registry_may_hold_methods_with_a_state():
    registry: Registry = Registry("callback", frozen=False)

    @registry.register("count")
    class Count:
        every: int = 1

    method = registry.make("count")
    method.seen = 3
    assert (method.every, method.seen) == (1, 3)


def test_nearest_takes_any_iterable():
    assert nearest("rnak", (name for name in ("lr", "rank"))) == ", did you mean 'rank'?"
    assert nearest("rnak", []) == ""
