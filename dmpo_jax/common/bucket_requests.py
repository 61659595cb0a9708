"""Requests to the storage of buckets: file systems, retries within a bound, and plain errors."""

import datetime
import functools
import logging
import os
import time
from collections.abc import Callable
from typing import Any, TypeVar

from dmpo_jax.errors import InputError, cut

SCHEMES = {"gs": "gcsfs", "s3": "s3fs"}
EXTRAS = {"gs": "pip install 'dmpo-jax[gcs]'", "s3": "pip install s3fs"}
# Seconds for which a request that fails for a transient reason is repeated, and the longest pause.
RETRY_SECONDS, RETRY_PAUSE = 300.0, 30.0
TRANSIENT = {408, 429, 500, 502, 503, 504}
LOGGER = logging.getLogger(__name__)
T = TypeVar("T")


def version_of(info: dict[str, Any]) -> str:
  """The version in an entry of `bucket.BucketPath.find`."""
  field = next((k for k in ("generation", "etag", "ETag", "mtime") if info.get(k)), "size")
  return f"{info.get('size')}-{info.get(field)}"


def seconds_of(info: dict[str, Any]) -> float:
  """The time of change in an entry of a listing, in seconds since 1970; 0.0: unknown."""
  value = info.get("mtime") or info.get("updated") or info.get("LastModified")
  if isinstance(value, str):
    value = datetime.datetime.fromisoformat(value)
  return value.timestamp() if isinstance(value, datetime.datetime) else 0.0


@functools.cache
def filesystem(scheme: str) -> Any:
  """The fsspec file system of a scheme; raises InputError if its package is not installed."""
  # The requests that gcsfs sends for each path to learn its kind of bucket need other credentials.
  os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
  try:
    import fsspec

    # Other processes write too: a listing that was kept would be wrong. For all users of fsspec in
    # this process, as orbax is one.
    protocols = ("gs", "gcs") if scheme == "gs" else (scheme,)
    for protocol in protocols:
      fsspec.config.conf.setdefault(protocol, {})["use_listings_cache"] = False
    logging.getLogger(SCHEMES[scheme]).setLevel(logging.CRITICAL)  # errors are raised
    return fsspec.filesystem(protocols[-1])
  except ImportError as error:
    raise InputError(
      f"{scheme}:// needs {SCHEMES[scheme]}, which is not installed: {EXTRAS[scheme]}"
    ) from error


@functools.cache
def check_bucket(scheme: str, name: str) -> None:
  """Raises InputError if a bucket is missing; asks once."""
  try:
    filesystem(scheme).info(name)
  except FileNotFoundError as error:
    raise InputError(
      f"the bucket {scheme}://{name} does not exist; check its name, or create it"
    ) from error
  except Exception as error:  # an account may be allowed to use objects and not to see the bucket
    LOGGER.debug("bucket %s: %s", name, error)


def retrying(path: Any, what: str, request: Callable[[], T]) -> T:
  """The result of a request, repeated while it fails for a transient reason.

  Args:
    path: What is read or written, for messages.
    what: "read", "write", "list" or "remove".
    request: Sends it.

  Raises:
    InputError: There are no credentials, or access is denied.
    FileNotFoundError: The object is missing.
    FileExistsError: It exists, and was to be created.
    OSError: `RETRY_SECONDS` have passed, or the request fails in another way.
  """
  start, pause, warned = time.monotonic(), 1.0, False
  while True:
    try:
      return request()
    except (InputError, FileNotFoundError, FileExistsError):
      raise
    except Exception as error:
      _raise_denied(path, what, error)
      if not _is_transient(error):
        raise OSError(5, f"cannot {what} ({_reason(error)})", str(path)) from error
      waited = time.monotonic() - start
      if waited + pause > RETRY_SECONDS:
        raise OSError(
          5,
          f"cannot {what} ({_reason(error)}): the storage has not answered for {waited:.0f} s; "
          "run the same command again to resume",
          str(path),
        ) from error
      if not warned:
        LOGGER.warning("%s: cannot %s (%s); trying again", path, what, _reason(error))
        warned = True
      time.sleep(pause)
      pause = min(2 * pause, RETRY_PAUSE)


def _raise_denied(path: Any, what: str, error: Exception) -> None:
  """Raises InputError for missing credentials and denied access."""
  text, code = str(error), getattr(error, "code", None)
  kind = type(error).__name__
  login = "gcloud auth application-default login, or GOOGLE_APPLICATION_CREDENTIALS"
  if path.scheme == "s3":
    login = "aws configure, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
  if kind in ("DefaultCredentialsError", "NoCredentialsError") or str(code) == "401":
    raise InputError(
      f"{path}: cannot {what}: no valid credentials ({_reason(error)}); log in with {login}"
    ) from error
  if isinstance(error, PermissionError) or text.startswith("Forbidden") or str(code) == "403":
    lines = [line for line in text.splitlines()[1:] if line] or [_reason(error)]
    need = "read" if what in ("read", "list") else "write"
    raise InputError(
      f"{path}: cannot {what}: access denied ({lines[0][:200]}); give the account the right to "
      f"{need} objects of the bucket, or use another bucket"
    ) from error


def _is_transient(error: Exception) -> bool:
  """Whether a request may succeed when it is repeated."""
  code = getattr(error, "code", None)
  if code is not None and str(code).isdigit():
    return int(code) in TRANSIENT
  kinds = {kind.__name__ for kind in type(error).__mro__}
  return isinstance(error, ConnectionError | TimeoutError) or bool(
    kinds & {"ClientError", "RequestException", "TransportError", "ChecksumError", "FSTimeoutError"}
  )


def _reason(error: Exception) -> str:
  """The first line of an error, with its type where it has none."""
  lines = [line for line in str(error).splitlines() if line.strip()]
  return cut(lines[0].strip(), 200) if lines else type(error).__name__
