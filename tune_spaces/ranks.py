"""How much rank helps, by format. A tensor ring of rank R has R x R channels; ranks that do not fit are left out."""

from ray import tune

RATE = tune.loguniform(1e-3, 3e-2)

SPACE = [
    {"format": tune.choice(["lora", "cp"]), "rank": tune.choice([4, 8, 16, 32]), "lr": RATE},
    {"format": "multi_lora", "format.branches": 4, "rank": tune.choice([4, 8, 16, 32]), "lr": RATE},
    {"format": "tr", "rank": tune.choice([4, 8, 16, 32]), "lr": RATE},
]
SETTINGS: dict[str, object] = {}
CAMPAIGN = {"searcher": "grid", "grid_points": 3}
