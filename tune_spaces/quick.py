"""A look at all formats in minutes on 2 cores."""

from ray import tune

RATE = tune.choice([6e-3, 1.2e-2])

SPACE = [
    {"format": "lora", "rank": 8, "lr": RATE},
    {"format": "tr", "rank": 4, "mapping_depth": tune.choice([1, 2]), "lr": RATE},
]
SETTINGS = {"epochs": 3}
CAMPAIGN = {"searcher": "grid", "scheduler": "asha"}
