"""Options that several verbs share, made from the table of settings."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeVar

import click

from edged.settings import SETTINGS, Setting, Settings, read_settings

Decorated = TypeVar("Decorated", bound=Callable[..., Any])

HOME_KEY = "edged.home"  # where --home is kept in the click context, before or after the verb


class SettingType(click.ParamType[Any]):
    """A flag whose value is read by the setting's own parser."""

    def __init__(self, setting: Setting) -> None:
        self.name = setting.metavar
        self._parse = setting.parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            return self._parse(value)
        except ValueError as error:
            self.fail(f"{value!r} will not do; expected {error}", param, ctx)


def setting_option(field: str) -> Callable[[Decorated], Decorated]:
    setting = SETTINGS[field]
    flag = "--" + field.replace("_", "-")
    return click.option(flag, field, type=SettingType(setting), metavar=setting.metavar, help=setting.help)


def home_option(command: Decorated) -> Decorated:
    """`--home`, for the group and for every verb; the one after the verb wins."""

    def remember(ctx: click.Context, _param: click.Parameter, home: Any) -> None:
        if home is not None:
            ctx.meta[HOME_KEY] = home

    setting = SETTINGS["home"]
    return click.option(
        "--home",
        type=SettingType(setting),
        metavar=setting.metavar,
        help=setting.help,
        expose_value=False,
        callback=remember,
    )(command)


def current_settings(**flags: object) -> Settings:
    """Settings of this invocation. Raises SettingsError."""
    context = click.get_current_context()
    return read_settings(os.environ, {"home": context.meta.get(HOME_KEY), **flags})
