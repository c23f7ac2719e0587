"""Keep the texts of arguments that contain no template."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseOperator

if TYPE_CHECKING:
    import jinja2
    from airflow.sdk import Context


class PlainTextOperator(BaseOperator):
    """Leave texts without a template unchanged.

    With ``render_template_as_native_obj=True``, Airflow would convert the names ``2024`` and ``1_000`` to numbers.
    """

    def render_template(
        self,
        content: Any,
        context: Context,
        jinja_env: jinja2.Environment | None = None,
        seen_oids: set[int] | None = None,
    ) -> Any:
        """Render the templates in a value.

        :param content: the value
        :param context: the context of the task
        :param jinja_env: Jinja environment; None for that of the DAG
        :param seen_oids: ids of objects that are rendered already
        :returns: the rendered value; a text without a template stays as it is
        """
        if isinstance(content, str) and not self.template_ext:
            jinja_env = jinja_env or self.get_template_env()
            if not _has_template(content, jinja_env):
                return content
        return super().render_template(content, context, jinja_env, seen_oids)


def _has_template(text: str, env: jinja2.Environment) -> bool:
    starts = (env.variable_start_string, env.block_start_string, env.comment_start_string)
    prefixes = (env.line_statement_prefix, env.line_comment_prefix)  # None unless a DAG sets them
    return any(start in text for start in starts) or any(prefix is not None and prefix in text for prefix in prefixes)
