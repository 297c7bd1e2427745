"""Every setting: the sections, and their reading and writing."""

from metalora.config.config import (
    SECTIONS,
    Config,
    check_file,
    describe_settings,
    from_dict,
    methods_in,
    nearest_setting,
    place_settings,
    put,
    searchable_settings,
    setting_sections,
    settings_meant,
    spelled_out,
    to_dict,
    to_yaml,
)
from metalora.config.facts import Facts, facts_of, setting
from metalora.config.older import RENAMED, current_names, current_sections, now_options, old_names
from metalora.config.run_sections import ClusterConfig, EvaluateConfig, TrackingConfig, TrainConfig
from metalora.config.sections import AdapterConfig, BackboneConfig, DataConfig, MappingConfig

__all__ = [
    "RENAMED",
    "SECTIONS",
    "AdapterConfig",
    "BackboneConfig",
    "ClusterConfig",
    "Config",
    "DataConfig",
    "EvaluateConfig",
    "Facts",
    "MappingConfig",
    "TrackingConfig",
    "TrainConfig",
    "check_file",
    "current_names",
    "current_sections",
    "describe_settings",
    "facts_of",
    "from_dict",
    "methods_in",
    "nearest_setting",
    "now_options",
    "old_names",
    "place_settings",
    "put",
    "searchable_settings",
    "setting",
    "setting_sections",
    "settings_meant",
    "spelled_out",
    "to_dict",
    "to_yaml",
]
