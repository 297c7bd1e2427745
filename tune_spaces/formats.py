"""Each format at one budget of trained parameters, its learning rate tuned over the same range."""

from ray import tune

SPACE = [{"format": tune.choice(["lora", "multi_lora", "cp", "tr"]), "lr": tune.loguniform(1e-3, 3e-2)}]
SETTINGS = {"parameter_budget": 110_000}
CAMPAIGN = {"searcher": "grid", "grid_points": 6, "seeds": 2}
