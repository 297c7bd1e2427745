"""Every setting: the sections, and their reading and writing."""

from metalora.config.config import (
    RENAMED,
    SECTIONS,
    Config,
    check_file,
    current_names,
    current_sections,
    from_dict,
    place_settings,
    setting_sections,
    to_dict,
    to_yaml,
)
from metalora.config.sections import (
    AdapterConfig,
    BackboneConfig,
    ClusterConfig,
    DataConfig,
    EvaluateConfig,
    MappingConfig,
    TrackingConfig,
    TrainConfig,
)

__all__ = [
    "RENAMED",
    "SECTIONS",
    "AdapterConfig",
    "BackboneConfig",
    "ClusterConfig",
    "Config",
    "DataConfig",
    "EvaluateConfig",
    "MappingConfig",
    "TrackingConfig",
    "TrainConfig",
    "check_file",
    "current_names",
    "current_sections",
    "from_dict",
    "place_settings",
    "setting_sections",
    "to_dict",
    "to_yaml",
]
