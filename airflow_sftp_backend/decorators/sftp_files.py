"""Wait for files, and call a decorated function with their rows."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from airflow.sdk import BaseOperator
from airflow.sdk.bases.decorator import DecoratedOperator, task_decorator_factory

from airflow_sftp_backend._arguments import InvalidArgument
from airflow_sftp_backend.sensors.sftp import SFTPFileSensor
from airflow_sftp_backend.version_compat import arguments_of_call

if TYPE_CHECKING:
    from airflow.sdk import Context
    from airflow.sdk.bases.decorator import TaskDecorator

    from airflow_sftp_backend._file_rows import FoundFile

_FILES_PARAMETER: Final = "files"


class SFTPFilesDecoratedOperator(DecoratedOperator, SFTPFileSensor):
    """Wait for files like `SFTPFileSensor`, then call a function with their rows.

    :param python_callable: the function; its parameter ``files`` receives the rows
    :param op_args: positional arguments of the function. (templated)
    :param op_kwargs: further arguments of the function. (templated)
    :param kwargs: arguments of `SFTPFileSensor` and ``BaseSensorOperator``
    """

    template_fields: Sequence[str] = (*DecoratedOperator.template_fields, *SFTPFileSensor.template_fields)
    custom_operator_name = "@task.sftp_files"

    def __init__(
        self,
        *,
        python_callable: Callable[..., object],
        op_args: Collection[Any] | None = None,
        op_kwargs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        _check_function(python_callable, op_kwargs or {})
        if refused := sorted({"manifest", "from_manifest"} & kwargs.keys()):
            raise InvalidArgument(
                f"@task.sftp_files takes no {refused[0]}: the function receives the rows of the files as"
                f" {_FILES_PARAMETER!r}; manifests are arguments of the upload, download, move, delete and sync"
                " operators"
            )
        op_kwargs = {_FILES_PARAMETER: None, **(op_kwargs or {})}
        super().__init__(python_callable=python_callable, op_args=op_args, op_kwargs=op_kwargs, **kwargs)

    # The arguments of the function are rendered as in every `@task`.
    render_template = BaseOperator.render_template

    def execute(self, context: Context) -> Any:
        """Wait for the files and call the function, or defer.

        :param context: the context of the task
        :returns: the result of the function
        :raises Exception: as `SFTPFileSensor.execute`, or an exception of the function
        """
        return self._call(context, SFTPFileSensor.execute(self, context))

    # Not `execute_complete`: with `soft_fail`, Airflow would skip the task if the function fails.
    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context) -> Any:
        """Call the function after a deferred wait.

        :param next_method: the method that returns the files
        :param next_kwargs: its arguments
        :param context: the context of the task
        :returns: the result of the function
        :raises Exception: as `SFTPFileSensor.execute_complete`, or an exception of the function
        """
        return self._call(context, super().resume_execution(next_method, next_kwargs, context))

    def _call(self, context: Context, files: list[FoundFile]) -> object:
        arguments = {**context, **self.op_kwargs, _FILES_PARAMETER: files}
        function = self.python_callable
        return function(*self.op_args, **arguments_of_call(function, self.op_args, arguments))


def _check_function(function: Callable[..., object], arguments: Mapping[str, object]) -> None:
    name = getattr(function, "__name__", "the function")
    if _FILES_PARAMETER not in inspect.signature(function).parameters:
        raise InvalidArgument(f"{name} has no parameter {_FILES_PARAMETER!r}, which receives the rows of the files")
    if _FILES_PARAMETER in arguments:
        raise InvalidArgument(f"{_FILES_PARAMETER!r} receives the rows of the files; omit it in the call of {name}")
    if inspect.iscoroutinefunction(function):
        raise InvalidArgument(f"{name} is a coroutine function, which @task.sftp_files does not support; use def")


def sftp_files_task(python_callable: Callable[..., object] | None = None, **kwargs: Any) -> TaskDecorator:
    """Decorate a function as a task that waits for files: ``@task.sftp_files``.

    :param python_callable: the function; its parameter ``files`` receives the rows
    :param kwargs: arguments of `SFTPFileSensor` and ``BaseSensorOperator``
    :returns: the decorator
    """
    return task_decorator_factory(
        python_callable=python_callable, decorated_operator_class=SFTPFilesDecoratedOperator, **kwargs
    )
