"""Where the files of a pretrained cross-encoder are: a local folder or the Hugging Face Hub."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["find_model_files"]

_MODELS = ("model.onnx", "onnx/model.onnx")
_TOKENIZER = "tokenizer.json"


def find_model_files(
    name_or_folder: str | os.PathLike[str], *, revision: str | None = None
) -> tuple[Path, Path]:
    """Find the model and the tokenizer of a cross-encoder.

    Parameters
    ----------
    name_or_folder : str or path
        A local folder, or else a repository of the Hugging Face Hub.
    revision : str, optional
        Branch, tag or commit of the repository.

    Returns
    -------
    model, tokenizer : Path
        ``model.onnx`` (or ``onnx/model.onnx``) and ``tokenizer.json``.

    Raises
    ------
    ValueError
        A folder without these files, a name that is neither a folder nor a repository, a revision
        of a folder.
    ConnectionError
        The Hub cannot be reached and the files are not in its cache.
    ImportError
        A repository is named and huggingface_hub is missing.
    """
    folder = Path(name_or_folder)
    if folder.is_dir():
        if revision is not None:
            raise ValueError(f"revision: expected None for a local folder, got {revision!r}")
        return _in_folder(folder)
    name = os.fspath(name_or_folder)
    if (
        name.count("/") > 1
        or name.startswith((".", "/", "~"))
        or (os.sep != "/" and os.sep in name)
    ):
        raise ValueError(f"name_or_folder: expected a folder that exists, got {name!r}")
    return _on_hub(name, revision)


def _in_folder(folder: Path) -> tuple[Path, Path]:
    models = [folder / model for model in _MODELS if (folder / model).is_file()]
    if not models:
        raise ValueError(
            f"name_or_folder: expected {' or '.join(_MODELS)} in the folder, found neither in "
            f"{folder} (cexnn.export_onnx makes one from a PyTorch model)"
        )
    if not (folder / _TOKENIZER).is_file():
        raise ValueError(f"name_or_folder: expected {_TOKENIZER} in the folder {folder}")
    return models[0], folder / _TOKENIZER


def _on_hub(name: str, revision: str | None) -> tuple[Path, Path]:
    try:
        import huggingface_hub
        from huggingface_hub import errors
    except ImportError as error:
        raise ImportError(
            f"{name!r} is not a local folder, and to fetch it from the Hugging Face Hub takes "
            "huggingface_hub: pip install 'cexnn[cpu]' or 'cexnn[gpu]'"
        ) from error

    try:
        folder = huggingface_hub.snapshot_download(
            name, revision=revision, allow_patterns=[_TOKENIZER, *(f"{m}*" for m in _MODELS)]
        )
    except errors.LocalEntryNotFoundError as error:
        raise ConnectionError(
            f"cannot fetch {name!r}: the Hugging Face Hub cannot be reached and the files are not "
            "in its cache; for a local model give the folder that holds it"
        ) from error
    except (
        errors.HFValidationError,
        errors.RepositoryNotFoundError,
        errors.RevisionNotFoundError,
    ) as error:
        raise ValueError(
            "name_or_folder: expected a local folder or a repository of the Hugging Face Hub, "
            f"got {name!r}, revision {revision!r} ({error})"
        ) from error
    return _in_folder(Path(folder))
