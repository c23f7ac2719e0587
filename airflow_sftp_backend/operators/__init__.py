"""Operators that move files: arguments in, one backend for the task instance, a list of what was done out.

Every operator returns plain JSON, one object a file: ``path`` (on the server), ``size`` in bytes, ``action``, and
``source`` or ``target`` where there is another end. One bad file does not stop the others: all are tried, then the
task fails with every failure named. A task that is tried again finds what its earlier attempt has done. A file whose
name is not UTF-8 is left alone and fails: Airflow could not be told of it.
"""

from .delete import SFTPDeleteOperator
from .download import SFTPDownloadOperator
from .move import SFTPMoveOperator
from .upload import SFTPUploadOperator

__all__ = ["SFTPDeleteOperator", "SFTPDownloadOperator", "SFTPMoveOperator", "SFTPUploadOperator"]
