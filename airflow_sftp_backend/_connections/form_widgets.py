"""Build the connection form of Airflow 3.0 and 3.1.

These versions read the fields from the hook instead of the provider info.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from .fields import FIELDS

if TYPE_CHECKING:
    from wtforms import Field as FormField


def connection_form_widgets() -> dict[str, FormField]:
    """Return the fields for a hook's ``get_connection_form_widgets``.

    :returns: the fields of wtforms, by the name in Extra. Choices are a validator, defaults are part of the field.
    """
    # Late imports: Airflow replaces these classes by its own before it calls the hook.
    from wtforms import BooleanField, IntegerField, PasswordField, StringField, validators

    classes = {"boolean": BooleanField, "integer": IntegerField}
    widgets = {}
    for field in FIELDS:
        if not field.group:
            continue
        schema = field.type.schema
        types, choices = cast("list[str]", schema["type"]), cast("list[str | None]", schema.get("enum", []))
        is_password = schema.get("format") == "password"
        widget_class = PasswordField if is_password else classes.get(types[0], StringField)
        widgets[field.name] = widget_class(
            field.label,
            validators=[validators.Optional(), *([validators.any_of([*filter(None, choices)])] if choices else [])],
            description=field.description,
            default=field.form_default,
        )
    return widgets
