"""One wording of storage errors: file system, fsspec, obstore, botocore, network or hub.

Stores raise what `worded` returns. `explain` and `explained` turn it, and errors that the file
system raises elsewhere, into a KdscaleError for a person to read.
"""

import errno
import getpass
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from kdscale.errors import KdscaleError, StoreError
from kdscale.store.aws import endpoint
from kdscale.store.redact import redact
from kdscale.store.retry import (
    chain,
    class_names,
    error_code,
    http_status,
    is_transient,
    is_unknown_host,
)

_DOING = {
    **dict.fromkeys(("get", "get_range", "get_ranges", "get_file", "size"), "read"),
    **dict.fromkeys(("put", "put_if_absent", "put_file"), "written"),
    "list": "listed",
    "delete": "deleted",
}
_NO_CREDENTIALS = {
    "NoCredentialsError",
    "PartialCredentialsError",
    "CredentialRetrievalError",
    "DefaultCredentialsError",
    "ClientAuthenticationError",
    "ProfileNotFound",
    "TokenRetrievalError",
    "SSOTokenLoadError",
    "UnauthorizedSSOTokenError",
}
_NO_BUCKET = ("NoSuchBucket", "ContainerNotFound", "bucket does not exist")
_EXPIRED = {"ExpiredToken", "ExpiredTokenException", "RequestExpired"}
_OTHER_REGION = {"AuthorizationHeaderMalformed", "PermanentRedirect"}
_TLS = ("certificate", "SSL", "peer sent no", "InvalidContentType")
_HUB = {"huggingface_hub", "httpx"}
_ENDPOINT = "Check AWS_ENDPOINT_URL (or your provider's setting), the network, and the server."

# What the file system of a machine says, and what to do about it.
_RIGHTS = ("access was denied", "Give {user} the right to it, or choose another place.")
_NO_FOLDER = ("a file is where a folder is needed", "Correct the path {where}.")
_FILE_SYSTEM = {
    errno.ENOSPC: ("the disk is full", "Free space on that disk, or choose another place."),
    errno.EDQUOT: (
        "the disk quota is used up",
        "Free space within the quota, or choose another place.",
    ),
    errno.EROFS: (
        "the file system is read-only",
        "Mount it for writing, or choose another place. A disk with faults is mounted so.",
    ),
    errno.EACCES: _RIGHTS,
    errno.EPERM: _RIGHTS,
    errno.ENOTDIR: _NO_FOLDER,
    errno.EEXIST: _NO_FOLDER,
    errno.EISDIR: ("it is a folder, where a file is needed", "Correct the path {where}."),
    errno.ENOENT: ("it does not exist", "Correct the path {where}, or put there what it names."),
    errno.ENAMETOOLONG: ("a name in its path is too long", "Choose a shorter path."),
    errno.ELOOP: ("its path is a circle of links", "Correct the links on the path {where}."),
    errno.EIO: ("the disk fails", "Look at the kernel's log and check the disk."),
    errno.ESTALE: ("the network mount is stale", "Mount it again."),
    errno.EFBIG: ("the file is too large", "Raise the limit (`ulimit -f`), or another place."),
    errno.EMFILE: ("this process has too many files open", "Raise the limit: `ulimit -n 65536`."),
    errno.ENFILE: ("this machine has too many files open", "Raise the kernel's fs.file-max."),
    errno.EBUSY: ("it is in use", "End what uses it."),
}
# What only a disk of this machine can be, whatever store is asked.
_OF_THIS_MACHINE = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EMFILE, errno.ENFILE),
}
_IN_THE_WAY = {errno.ENOTDIR, errno.EEXIST}
_SCARCE = 64 * 2**20  # bytes


def worded(error: BaseException, verb: str, url: str, path: Path | None = None) -> StoreError:
    """`error`, met by a store's method `verb` at `url` (a folder's path or a URL).

    path: the file of this machine that the method read or wrote besides.
    """
    shown, number = redact(url), _errno(error)
    text = f"{verb} {shown}: {type(error).__name__}: {redact(str(error))}"
    is_remote = "://" in url
    if number in _FILE_SYSTEM and (not is_remote or number in _OF_THIS_MACHINE):
        where = (str(path) if path else "A disk of this machine") if is_remote else shown
        # The obstacle is not the object that was asked for.
        named = getattr(error, "filename", None) if number in _IN_THE_WAY else None
        what, fix = _of_file_system(number, redact(str(named)) if named else where)
        what = f"{what} ({_cause(error)})"
        return StoreError(text, f"{where} cannot be used: {what}.", what, fix)
    what, fix = _of_remote(error) if is_remote else (_cause(error), "Look at the file system.")
    problem = f"{shown} cannot be {_DOING.get(verb, 'used')}: {what}."
    return StoreError(text, problem, what, fix, passes=is_transient(error))


def explain(error: BaseException) -> KdscaleError | None:
    """Return the KdscaleError for `error`, if it or a cause of it is about a place for data.

    None where it is not: then it is a fault of ours, or of a library.
    """
    for link in chain(error):
        if isinstance(link, KdscaleError):
            # Ray's own class around an error has the error in `cause`.
            inner = getattr(link, "cause", None)
            return inner if isinstance(inner, KdscaleError) else link
        if isinstance(link, StoreError):
            return KdscaleError(link.problem, link.fix)
        if isinstance(link, OSError) and link.errno in _FILE_SYSTEM:
            where = redact(str(link.filename)) if link.filename else "A file"
            what, fix = _of_file_system(link.errno, where)
            full = "" if link.filename or link.errno not in _OF_THIS_MACHINE else _full_disks()
            return KdscaleError(f"{where} cannot be used: {what} ({_cause(link)}).", fix + full)
        if type(link).__module__.partition(".")[0] in _HUB:
            return KdscaleError(
                f"The hub does not give what is asked of it: {_cause(link)}.",
                "Check the name, the network, HF_ENDPOINT, and HF_TOKEN if it is private or gated.",
            )
        if isinstance(link, FileNotFoundError):
            return KdscaleError(
                f"Something is missing: {_cause(link)}.",
                "Check the path or URL, and that nothing removes it.",
            )
    return None


@contextmanager
def explained() -> Iterator[None]:
    """Turn errors about a place for data in the block into KdscaleError."""
    try:
        yield
    except KdscaleError:
        raise
    except Exception as error:
        found = explain(error)
        if found is None:
            raise
        raise found from error


def is_bucket_missing(error: BaseException) -> bool:
    """Return whether the bucket is missing, rather than an object in it."""
    return any(
        error_code(link) in _NO_BUCKET or any(sign in str(link) for sign in _NO_BUCKET)
        for link in chain(error)
    )


def _of_remote(error: BaseException) -> tuple[str, str]:
    """Return what is wrong, and what to do about it."""
    links = list(chain(error))
    cause = _cause(error)
    names = set().union(*map(class_names, links))
    codes = set(map(error_code, links))
    statuses = list(filter(None, map(http_status, links)))
    server = redact(endpoint() or "the provider's own")
    if names & _NO_CREDENTIALS:
        return (
            f"no credentials were found ({cause})",
            "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or what your provider uses instead).",
        )
    if is_bucket_missing(error) or "FileNotFoundError" in names:
        which = "the bucket" if is_bucket_missing(error) else "it"
        return (
            f"{which} does not exist ({cause})",
            "Create the bucket, or correct its name in the URL.",
        )
    if codes & _EXPIRED:
        return f"the credentials have expired ({cause})", "Log in again, or renew the credentials."
    if codes & _OTHER_REGION or 301 in statuses:
        return f"the bucket is in another region ({cause})", "Set AWS_REGION to the bucket's."
    if "PermissionError" in names or not {401, 403}.isdisjoint(statuses):
        return (
            f"access was denied ({cause})",
            "Correct the credentials, or grant them to read, write, list and delete under the URL.",
        )
    if any(map(is_unknown_host, links)):
        return f"no name server knows the host of the endpoint {server} ({cause})", _ENDPOINT
    if any(sign in str(link) for link in links for sign in _TLS):
        return (
            f"the endpoint {server} makes no secure connection ({cause})",
            "Check its certificate, and whether it speaks https at all.",
        )
    if is_transient(error) and not statuses:
        return f"the endpoint {server} does not answer ({cause})", _ENDPOINT
    if statuses:
        return (
            f"the endpoint {server} answers with status {statuses[0]} ({cause})",
            "Check the URL, and the server's own log.",
        )
    return cause, "Check the URL, and that the protocol allows what is asked."


def _of_file_system(number: int, where: str) -> tuple[str, str]:
    what, fix = _FILE_SYSTEM[number]
    return what, fix.format(where=where, user=_user())


def _errno(error: BaseException) -> int:
    """Return the number that the kernel gave, from any link of the chain.

    0 where there is none.
    """
    numbers = (link.errno for link in chain(error) if isinstance(link, OSError))
    return next((number for number in numbers if isinstance(number, int)), 0)


def _cause(error: BaseException) -> str:
    """Return the text of the first error in the chain."""
    root = list(chain(error))[-1]
    return redact(str(root)).strip().rstrip(".:") or type(root).__name__


def _full_disks() -> str:
    """Return the usual folders that are nearly full, for an error that names no file."""
    usual = {
        "TMPDIR": Path(tempfile.gettempdir()),
        "RAY_TMPDIR": Path(os.environ.get("RAY_TMPDIR") or "/tmp/ray"),
        "HF_HOME": Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface"),
        "the present folder": Path.cwd(),
    }
    full = []
    for name, folder in usual.items():
        with suppress(OSError):
            if shutil.disk_usage(folder).free < _SCARCE:
                full.append(f"{folder} ({name})")
    return f" Next to full: {', '.join(full)}." if full else ""


def _user() -> str:
    with suppress(OSError, KeyError, ImportError):
        return f"the user {getpass.getuser()}"
    return f"the user {os.getuid()}"
