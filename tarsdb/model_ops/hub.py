"""Models from a Hugging Face hub: ``hf://owner/name`` or ``hf://owner/name@revision``.

Of a repository of GGUF files one is named: ``hf://owner/name/FILE.gguf``, the revision behind the
name as before. Needs the extra ``tarsdb[hub]``; nothing else in the package uses the network.
Downloads are kept in huggingface_hub's own cache, are resumed there, and show its progress bars.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from tarsdb.errors import ModelFormatError, NotSupportedError, OperationalError

SCHEME = "hf://"
_ADDRESS = re.compile(r"hf://(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?")
_FILE = re.compile(
    r"hf://(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w.-]+))?/(?P<file>[\w./+-]+\.gguf)"
)
# The files a model directory needs; pickled weights are never fetched.
FILES = ["*.json", "*.safetensors", "*.txt", "*/config.json", "*.jinja"]


def download(source: str) -> str:
    """Fetch a repository's model files and return the directory they are in.

    Raises
    ------
    ModelFormatError
        The address is not of the form ``hf://owner/name[@revision]``.
    NotSupportedError
        The extra is not installed.
    OperationalError
        The hub did not give the files.
    """
    address = _ADDRESS.fullmatch(source.strip())
    if address is None:
        raise ModelFormatError(f"{source!r} is no hub address", "write hf://owner/name[@revision]")
    repo, revision = address["repo"], address["revision"]
    return _fetched(
        source, lambda hub: hub.snapshot_download(repo, revision=revision, allow_patterns=FILES)
    )


def download_gguf(source: str) -> str:
    """Fetch one file of a repository and return its path; raises as :func:`download`."""
    address = _FILE.fullmatch(source.strip())
    if address is None or ".." in address["file"].split("/"):
        raise ModelFormatError(
            f"{source!r} is no hub address of a file", "write hf://owner/name[@revision]/FILE.gguf"
        )
    repo, revision, file = address["repo"], address["revision"], address["file"]
    return _fetched(source, lambda hub: hub.hf_hub_download(repo, file, revision=revision))


def _fetched(source: str, fetch: Callable[[Any], str]) -> str:
    try:
        import huggingface_hub
    except ImportError as error:
        raise NotSupportedError(
            f"fetching {source} needs the package huggingface_hub",
            hint="pip install 'tarsdb[hub]', or give the directory or file of a downloaded model",
        ) from error
    try:
        return str(fetch(huggingface_hub))
    except Exception as error:  # its own, httpx's and the operating system's
        raise OperationalError(
            f"fetching {source} failed: {type(error).__name__}: {error}",
            hint="check the name, the network and, for private models, the login",
        ) from error
