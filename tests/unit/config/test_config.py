import dataclasses
import math
from typing import get_args

import annotated_types
import pytest
import yaml

from metalora.config import SECTIONS, Config, TrackingConfig, from_dict, setting_sections, to_dict, to_yaml
from metalora.errors import UserError

OTHER = {
    "backbone": {"backbone": "timm/mixer_b16_224", "image_size": 64},
    "adapter": {
        "format": "cp",
        "alpha": 0.5,
        "target_modules": ["conv*", "re:fc[12]"],
        "rank_pattern": {"layer4.*": 2},
        "alpha_pattern": {"re:a=b": 1.5},
        "parameter_budget": 1000,
    },
    "train": {"lr": 1e-4, "clip_norm": None, "compile": True},
    "evaluate": {"knn": [1]},
    "cluster": {"workers": 0, "storage_path": "s3://bucket/runs"},
    "tracking": {"tracking_uri": "none", "run_name": "café"},
}

REFUSED = [
    ("adapter.rank", 0),
    ("adapter.alpha", 0),
    ("adapter.parameter_budget", 0),
    ("mapping.mapping_depth", 0),
    ("mapping.mapping_width", 0),
    ("mapping.mapping_lr_scale", 0),
    ("mapping.seed_scope", "model"),
    ("mapping.extractor_features", "all"),
    ("mapping.seed_granularity", "batch"),
    ("backbone.image_size", 7),
    ("data.val_fraction", -0.1),
    ("data.val_fraction", 1),
    ("data.test_fraction", 0),
    ("data.test_fraction", 1),
    ("data.on_bad_image", "ignore"),
    ("data.batch_size", 0),
    ("data.domain_sampling", "random"),
    ("data.class_sampling", "random"),
    ("data.max_pixels", 0),
    ("data.loader_workers", -1),
    ("data.keep_images", -1),
    ("train.epochs", 0),
    ("train.lr", 0),
    ("train.lr", math.inf),
    ("train.lr", math.nan),
    ("train.warmup_steps", -1),
    ("train.objective", 3),
    ("train.class_weights", "inverse"),
    ("train.keep", "first"),
    ("train.patience", 0),
    ("train.clip_norm", 0),
    ("train.accumulate", 0),
    ("train.precision", "float16"),
    ("train.kernel", "fast"),
    ("train.random_seed", -1),
    ("train.random_seed", 2**64),
    ("train.checkpoint_every", 0),
    ("train.keep_checkpoints", 0),
    ("evaluate.knn", []),
    ("evaluate.knn", [5, 0]),
    ("evaluate.knn_metric", "l1"),
    ("evaluate.knn_temperature", 0),
    ("evaluate.validate_every", -1),
    ("evaluate.evaluation_batch_size", 0),
    ("cluster.workers", -1),
    ("cluster.gpus_per_worker", -1),
    ("cluster.cpus_per_worker", 0),
    ("cluster.retries", -1),
]
WRONG_TYPES = [
    ("adapter.rank", "four"),
    ("train.epochs", 1.5),
    ("train.compile", "maybe"),
    ("data.data", 3),
    ("adapter.target_modules", 3),
    ("adapter.rank_pattern", ["a"]),
    ("adapter.rank_pattern", {"a": "b"}),
    ("evaluate.knn", ["five"]),
    ("train.random_seed", None),
]


def nested(place: str, value: object) -> dict[str, dict[str, object]]:
    section, name = place.split(".")
    return {section: {name: value}}


def fields() -> dict[str, dataclasses.Field]:
    return {f"{s}.{field.name}": field for s, kind in SECTIONS.items() for field in dataclasses.fields(kind)}


def test_the_defaults_are_accepted():
    assert from_dict({}) == from_dict(to_dict(Config())) == Config()


def test_setting_names_are_unique_over_the_sections():
    names = [place.partition(".")[2] for place in fields()]
    assert len(set(names)) == len(names) == len(setting_sections())


def test_no_setting_is_called_like_an_option_of_the_command():
    assert {"config", "print_config", "resume", "help"}.isdisjoint(setting_sections())


@pytest.mark.parametrize("values", [{}, OTHER], ids=["defaults", "other"])
def test_to_dict_and_yaml_are_inverted_by_from_dict(values):
    config = from_dict(values)
    assert from_dict(to_dict(config)) == config
    assert from_dict(yaml.safe_load(to_yaml(config))) == config


def test_values_are_taken_over():
    plain = to_dict(from_dict(OTHER))
    assert {section: {name: plain[section][name] for name in names} for section, names in OTHER.items()} == OTHER


@pytest.mark.parametrize("place", ["adapter.rank", "cluster.workers", "tracking.run_name"])
def test_settings_cannot_be_changed(place):
    section, name = place.split(".")
    config = Config()
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(getattr(config, section), name, 3)
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(config, section, None)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"adaptor": {}}, "unknown section 'adaptor', did you mean 'adapter'? (sections: backbone, adapter, "),
        ({"rank": 3}, "unknown section 'rank', it belongs in section 'adapter'"),
        ({"adapter": {"rnak": 3}}, "unknown setting adapter.rnak, did you mean 'rank'?"),
        ({"train": {"rank": 3}}, "unknown setting train.rank, it belongs in section 'adapter'"),
        ({"adapter": 3}, "section 'adapter' must hold settings, got 3"),
        ({"adapter": None}, "section 'adapter' must hold settings, got None"),
    ],
)
def test_what_is_unknown_is_named_with_what_is_near(values, message):
    with pytest.raises(UserError) as error:
        from_dict(values)
    assert str(error.value).startswith(message)


@pytest.mark.parametrize(("place", "value"), REFUSED + WRONG_TYPES)
def test_refused_values_are_named(place, value):
    with pytest.raises(UserError) as error:
        from_dict(nested(place, value))
    assert str(error.value).startswith(place)
    assert "\n" not in str(error.value)


def test_every_constraint_has_a_refused_value():
    covered = {place for place, _ in REFUSED}
    constrained = {place for place, field in fields().items() if field.default.metadata or "Literal" in str(field.type)}
    assert constrained <= covered


def test_every_number_is_bounded_below():
    lower = (annotated_types.Ge, annotated_types.Gt)
    for place, field in fields().items():
        if {int, float} & {field.type, *get_args(field.type)} and isinstance(field.type, type | type(int | None)):
            assert any(isinstance(bound, lower) for bound in field.default.metadata), place


def test_every_setting_is_described():
    assert [place for place, field in fields().items() if not field.default.description] == []


@pytest.mark.parametrize(
    ("workers", "accumulate", "batch_size", "accepted"),
    [(2, 3, 12, True), (2, 3, 8, False), (0, 1, 7, True), (0, 2, 7, False), (4, 1, 6, False)],
)
def test_a_batch_is_a_multiple_of_its_pieces(workers, accumulate, batch_size, accepted):
    values = {"cluster": {"workers": workers}, "train": {"accumulate": accumulate}, "data": {"batch_size": batch_size}}
    if accepted:
        assert from_dict(values).data.batch_size == batch_size
        return
    with pytest.raises(UserError, match=rf"^batch_size {batch_size} must be a multiple of workers x accumulate = \d "):
        from_dict(values)


@pytest.mark.parametrize(("val", "test"), [(0.5, 0.5), (0.9, 0.2)])
def test_the_fractions_leave_images_to_train_on(val, test):
    with pytest.raises(UserError, match=r"^val_fraction \+ test_fraction must be below 1, to leave images"):
        from_dict({"data": {"val_fraction": val, "test_fraction": test}})
    assert from_dict({"data": {"val_fraction": val / 2, "test_fraction": test / 2}})


def test_a_domain_is_left_out_or_held_out():
    with pytest.raises(
        UserError, match=r"^domains are left out or held out, not both: b \(--exclude-domains, --holdout-domains\)$"
    ):
        from_dict({"data": {"exclude_domains": ["a", "b"], "holdout_domains": ["b", "c"]}})


def test_replacing_a_section_checks_again():
    with pytest.raises(ValueError, match="multiple of workers"):
        dataclasses.replace(Config(), data=dataclasses.replace(Config().data, batch_size=63))
    named = dataclasses.replace(Config(), tracking=TrackingConfig(run_name="x"))
    assert named.tracking.run_name == "x"
    assert named != Config()


def test_all_refusals_are_told_at_once():
    with pytest.raises(UserError, match=r"adapter\.rank.*; train\.lr"):
        from_dict({"adapter": {"rank": 0}, "train": {"lr": -1}})


@pytest.mark.parametrize(
    ("beside", "named"),
    [
        ({"train": {"accumulate": 2}}, "accumulate 2"),
        ({"train": {"activation_checkpointing": True}}, "activation_checkpointing"),
        ({"mapping": {"seed_granularity": "task"}}, "seed_granularity task"),
    ],
)
def test_a_cuda_graph_takes_one_plain_step(beside, named):
    values = {**beside, "train": {**beside.get("train", {}), "cuda_graph": True}}
    with pytest.raises(UserError, match=f"cuda_graph cannot be combined with {named}"):
        from_dict(values)
