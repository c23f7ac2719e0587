"""Transfer, sync, move and delete files on SFTP servers as Airflow tasks.

Every operator but the sync returns a list of JSON objects, one for each file: ``path`` (on the server), ``size`` in
bytes, ``action``, and ``source`` or ``target`` for the other end. The sync returns counts, and such a list of the
changed files. With ``manifest=``, the list is written to a file, and the result is a `ManifestResult`. The failure of
one file does not stop the others: the operator tries all files, then fails the task and names every failure. A retry
recognises the results of earlier attempts. A file whose name is not UTF-8 fails and stays unchanged, because XCom
cannot carry the name.
"""

from airflow_sftp_backend._file_rows import FileResult, ManifestResult, SyncManifestResult, SyncResult

from .delete import SFTPDeleteOperator
from .download import SFTPDownloadOperator
from .move import SFTPMoveOperator
from .sync import SFTPSyncOperator
from .upload import SFTPUploadOperator

__all__ = [
    "FileResult",
    "ManifestResult",
    "SFTPDeleteOperator",
    "SFTPDownloadOperator",
    "SFTPMoveOperator",
    "SFTPSyncOperator",
    "SFTPUploadOperator",
    "SyncManifestResult",
    "SyncResult",
]
