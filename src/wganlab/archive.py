"""What torch.save has written, checkpoints above all, read without running any code of the file."""

import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from wganlab.schema import ConfigError, leaves

#: Version of what a checkpoint holds. Raise it when the meaning changes; checkpoints of other versions are refused.
CHECKPOINT_SCHEMA = 1


@contextmanager
def refusing(key: str, fault: str) -> Iterator[None]:
    """Whatever goes wrong with a file becomes a ConfigError; torch and others raise a dozen types."""
    try:
        yield
    except Exception as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ConfigError(key, f"{fault} ({reason[:150]})") from error


def read_archive(path: Path) -> Any:
    """What torch.save has written, tensors in plain containers, read without running any code of the file.

    Raises ValueError for a file that would take more memory than it is long, and whatever torch raises for others.
    """
    import torch  # which takes a second, and reports of tables do without

    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > path.stat().st_size:
                raise ValueError("its content is larger than the file, which torch does not write")
    saved = torch.load(path, map_location="cpu", weights_only=True)
    for _, value in leaves(saved):
        for tensor in value if isinstance(value, list | tuple) else [value]:
            if isinstance(tensor, torch.Tensor) and tensor.nbytes > tensor.untyped_storage().nbytes():
                raise ValueError("a tensor is larger than its content, which torch does not write")
    return saved


def read_checkpoint(path: Path, key: str = "run") -> Mapping[str, Any]:
    """A checkpoint of this version of wganlab, loaded without running any code of the file.

    Raises ConfigError for one that is damaged, foreign or of another version.
    """
    try:
        saved = read_archive(path)
    except Exception as error:  # torch raises a dozen types
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(key, f": {path} is damaged or no checkpoint of wganlab ({reason[:120]})") from error
    own = saved.get("wganlab") if isinstance(saved, dict) else None
    schema = own.get("schema") if isinstance(own, dict) else None
    if schema != CHECKPOINT_SCHEMA:
        supported = f"this version of wganlab continues from schema {CHECKPOINT_SCHEMA}"
        raise ConfigError(key, f": {path} has schema {schema}, {supported}")
    return saved
