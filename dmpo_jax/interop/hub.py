"""Folders of pipelines and networks: local ones, or the hub's cache after a download."""

from __future__ import annotations

import contextlib
import os
import pathlib
import re
from collections.abc import Callable, Collection, Iterator

from dmpo_jax.common import paths
from dmpo_jax.errors import InputError
from dmpo_jax.interop import files

REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")

Choose = Callable[[pathlib.Path, Collection[str]], list[str]]


def locate(
  source: str | os.PathLike | paths.Path, anchor: str, choose: Choose, *, revision: str | None
) -> pathlib.Path:
  """The folder of a source; needed files are downloaded from the hub.

  Args:
    source: A folder, local or in a bucket, or a string "owner/name": a repository of the hub,
      unless such a folder exists.
    anchor: File by which the others are selected.
    choose: `choose(folder, names)`, with a folder that holds the anchor and the names of the
      repository's files, returns those to download.
    revision: Branch, tag or commit of the repository; None: its main branch.

  Returns:
    The folder. A local one is not checked, and of one in a bucket it is a local copy of what is
    needed.

  Raises:
    InputError: The source is neither a folder nor a repository, or the repository cannot be read.
  """
  if not is_folder(source):
    return _download(source, anchor, choose, revision)
  folder = paths.parse(source)
  if not folder.is_dir():
    raise InputError(
      f"{str(source)!r} is neither a folder nor the name of a repository on the hub, which is a "
      'string "owner/name"'
    )
  if revision is not None:
    raise InputError(
      f"revision is {revision!r}, but {str(source)!r} is a folder; only repositories of the hub "
      "have revisions"
    )
  return _copy(folder, anchor, choose)


def _copy(folder: paths.Path, anchor: str, choose: Choose) -> pathlib.Path:
  """A local folder itself, or a copy of those files of one in a bucket that are chosen."""

  def only_anchor(names: list[str]) -> list[str]:
    if anchor not in names:
      raise InputError(f"{folder} has no {anchor}; complete the folder, or choose another")
    return [anchor]

  local = paths.local_copy(folder, choose=only_anchor)
  return paths.local_copy(folder, choose=lambda names: choose(local, names))


def is_folder(source: str | os.PathLike | paths.Path) -> bool:
  """Whether a source is no repository of the hub; then it should be a folder."""
  return not (isinstance(source, str) and REPOSITORY.fullmatch(source)) or os.path.isdir(source)


def _download(repository: str, anchor: str, choose: Choose, revision: str | None) -> pathlib.Path:
  from huggingface_hub import HfApi, errors, hf_hub_download, snapshot_download

  with _in_plain_words(repository, anchor, revision):
    file = pathlib.Path(hf_hub_download(repository, anchor, revision=revision))
    folder = file.parents[anchor.count("/")]
    commit = folder.name  # pinned for the next requests, even if the branch moves meanwhile
    try:
      listing = HfApi().model_info(repository, revision=commit).siblings
    except (errors.HTTPError, OSError):
      listing = None
    if listing is None:
      names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
      with files.located(f"the hub cannot be reached, and {folder} is what its cache has"):
        choose(folder, names)
      return folder
    with files.located(f"{repository} at {revision or commit}"):
      wanted = choose(folder, [file.rfilename for file in listing])
    snapshot_download(repository, revision=commit, allow_patterns=wanted)
  return folder


@contextlib.contextmanager
def _in_plain_words(repository: str, anchor: str, revision: str | None) -> Iterator[None]:
  """Converts the hub's errors into InputErrors; subclasses come first."""
  from huggingface_hub import constants, errors

  login = "log in with `hf auth login` or set HF_TOKEN"
  try:
    yield
  except errors.GatedRepoError as error:
    raise InputError(
      f"{repository} is gated: accept its conditions on {constants.ENDPOINT}/{repository}, then "
      f"{login}"
    ) from error
  except errors.RepositoryNotFoundError as error:
    raise InputError(
      f"{repository!r} is neither a folder here nor a repository on {constants.ENDPOINT} that you "
      f"may see; check the name, and if it is private, {login}"
    ) from error
  except errors.RevisionNotFoundError as error:
    raise InputError(
      f"{repository} has no revision {revision!r}; look for its branches and tags on "
      f"{constants.ENDPOINT}/{repository}/tree/main"
    ) from error
  except errors.LocalEntryNotFoundError as error:
    raise InputError(
      f"{repository!r} is no folder here, the hub ({constants.ENDPOINT}) cannot be reached, and "
      f"its cache ({constants.HF_HUB_CACHE}) does not hold revision {revision or 'main'}; connect "
      "to the network, unset HF_HUB_OFFLINE if it is set, or give a folder"
    ) from error
  except errors.EntryNotFoundError as error:
    expected = "; a pipeline has a model_index.json, and a single network a config.json"
    raise InputError(
      f"{repository} has no {anchor}{expected if anchor.endswith('.json') else ''}"
    ) from error
  except (errors.HTTPError, errors.HFValidationError, OSError) as error:
    raise InputError(f"{repository} cannot be downloaded: {error}") from error
