"""Requests for what was made, its files and its end."""

from __future__ import annotations

from rehost.errors.base import RehostError
from rehost.errors.requests import Conflict, NotFound, RequestError, SourceHasUnfinishedJob


class ImageDiskNotFound(NotFound):
    """Image {id} has no such file: {reason}."""

    code = "Disk.NotFound"
    remedy = "`disks` of a disk image names each index with its formats; a container image has one archive instead."


class ImageFileNotFound(NotFound):
    """A file of image {id} is not at {path} on the machine of the API."""

    code = "ImageFile.NotFound"
    remedy = "Ask the API on the machine that has the region's folder; if it was removed by hand, delete the image."


class EvidenceNotFound(NotFound):
    """Verification {id} has no {kind} to show: {reason}."""

    code = "Evidence.NotFound"
    remedy = "Evidence goes with its image; verify the newest image again for new one."


class RangeNotSatisfiable(RequestError):
    """The file has {size} bytes, and the range {range} begins behind its end."""

    code = "Range.NotSatisfiable"
    remedy = "Ask for bytes that the file has; a download that goes on there is complete already."
    http_status = 416


class DownloadDamaged(RehostError):
    """{name} did not arrive whole: it has SHA-256 {found} where it should have {wanted}. What arrived was removed."""

    code = "Image.DownloadDamaged"
    remedy = "Export it once more; if it stays so, the file at the API's machine is damaged: delete the image."
    retryable = True


class DownloadNotWritten(RehostError):
    """The image cannot be written to {path}: {reason}."""

    code = "Image.DownloadNotWritten"
    remedy = "Name a folder that you may write to and that has room for the image; what has arrived is kept there."


class ImageInUse(Conflict):
    """Image {id} is in use: {reason}."""

    code = "ImageInUse"
    remedy = "Wait until what uses it has ended, or set its `in_use` to false; then delete it."


class SourceNeedsForce(SourceHasUnfinishedJob):
    """Source {id} has the unfinished job {job_id}, which would be deleted with it."""

    remedy = "Finish or delete that job first, or delete the source with `?force=true`."
