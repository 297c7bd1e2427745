"""What the mapping net should look like: depth, width, one seed a layer or one for all, and how fast it learns."""

from ray import tune

SPACE = [
    {
        "format": tune.choice(["cp", "tr"]),
        "mapping_depth": tune.choice([1, 2, 3, 4]),
        "mapping_width": tune.choice([16, 32, 64, 128]),
        "seed_scope": tune.choice(["layer", "shared"]),
        "extractor_features": tune.choice(["stats", "pooled", "both"]),
        "mapping_lr_scale": tune.loguniform(0.02, 1.0),
    }
]
SETTINGS: dict[str, object] = {}
CAMPAIGN = {"searcher": "optuna", "scheduler": "asha", "trials": 48}
