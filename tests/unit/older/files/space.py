from ray import tune

SPACE = [{"format": "lora", "lr": 0.01}, {"format": "multi_lora", "branches": tune.choice([1, 2]), "lr": 0.01}]
CAMPAIGN = {"seeds": 2, "searcher": "grid"}
