"""``metalora tune``: a campaign of trials over a search space."""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from metalora.config import Config
from metalora.errors import UserError, given_as
from pipelines.campaign.plan import CampaignConfig, Plan
from pipelines.campaign.run import run_campaign
from pipelines.campaign.spaces import Space, check_values, is_trusted_space, load_space, sections_of, trust_space
from pipelines.campaign.trials import check_plan
from pipelines.command_line import add_dry_run, add_resume, make_parser, parse
from pipelines.commands.train import begun_with
from pipelines.options import add_section, add_settings, config_file, given, resolve, resolve_section, settings_of
from pipelines.run.folder import (
    CAMPAIGN,
    continued,
    find_run,
    read_settings,
)
from pipelines.run.trust import check_places


def main(arguments: Sequence[str] | None = None) -> None:
    """Run ``metalora tune`` with command-line arguments.

    Raises:
        UserError: the command line, the space, the settings or the data cannot be used.
    """
    parser = make_parser("metalora tune", "Search a space of settings with Ray Tune; every trial is a training.")
    parser.add_argument("--config", metavar="FILE", help="YAML file of settings, which may have a section 'campaign'")
    add_dry_run(parser, "tried")
    add_resume(parser, "a campaign")
    add_section(parser, "campaign", CampaignConfig)
    add_settings(parser)
    options = parse(parser, arguments)
    plan = _resumed_plan(options) if options.resume else _new_plan(options)
    run_campaign(plan, resume=bool(options.resume), dry_run=options.dry_run)


def _new_plan(options: argparse.Namespace) -> Plan:
    file = config_file(options)
    asked = {**file.pop("campaign", {}), **given(CampaignConfig, options)}
    space = load_space(str(asked.get("space", CampaignConfig().space)))
    trust_space(space.name)
    settings = settings_of(CampaignConfig, {**space.campaign, **asked}, "campaign")
    base = begun_with(options)
    for section, values in sections_of(space.settings).items():
        base[section] = {**base.get(section, {}), **values}
    base["cluster"] = {"workers": 1, **base.get("cluster", {})}
    _refuse_searched(space, options, file)
    config = _at_least_one_worker(resolve(options, base, file))
    check_values(space, config)
    check_places(config, options)
    return Plan(settings, config, space)


def _resumed_plan(options: argparse.Namespace) -> Plan:
    folder = find_run(options.resume, Path(resolve_section(options, "cluster").output), CAMPAIGN, "campaign")
    before = check_plan(read_settings(folder, CAMPAIGN), folder)
    campaign = {name: value for name, value in before["campaign"].items() if name not in ("metric", "mode")}
    settings = settings_of(CampaignConfig, {**campaign, **given(CampaignConfig, options)}, "campaign")
    if hasattr(options, "space"):
        trust_space(settings.space)
    elif not is_trusted_space(settings.space):
        raise UserError(
            f"campaign {folder.name!r} searches {settings.space!r}, Python that was never run here: look at it, then "
            f"continue with --resume {folder.name} --space {settings.space}"
        )
    space = load_space(settings.space)
    _refuse_searched(space, options, {})
    config = _at_least_one_worker(resolve(options, continued(folder, before["config"])))
    check_values(space, config)
    check_places(config, options, folder)
    return Plan(settings, config, space)


def _at_least_one_worker(config: Config) -> Config:
    """Return the settings with one worker per trial where none was asked for: it trains alone in its process."""
    return replace(config, cluster=replace(config.cluster, workers=max(1, config.cluster.workers)))


def _refuse_searched(space: Space, options: argparse.Namespace, file: Mapping[str, Any]) -> None:
    in_file = {name for settings in file.values() if isinstance(settings, Mapping) for name in settings}
    for name in sorted(space.searched):
        if hasattr(options, name) or name in in_file:
            raise UserError(
                f"{name} is searched by space {space.name!r}: leave it out, or search another space{given_as(name)}"
            )
