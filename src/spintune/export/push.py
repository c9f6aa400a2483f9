"""Uploads a model of a run to the hub, through huggingface_hub, or says what it would upload."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from spintune.downloads import uploads_counted
from spintune.errors import RecipeError, StorageError
from spintune.text.words import one_line


@dataclass(frozen=True)
class HubUpload:
    """What goes, or went, to the hub.

    Attributes:
        files: sizes in bytes, by path in the repository.
        url: of the commit; None for what was only listed.
    """

    model: str
    repo: str
    files: dict[str, int]
    url: str | None


def check_repo(repo: str | None) -> str:
    """The repository to upload to. Raises RecipeError without one, or for a name that the hub would refuse."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # documented, not re-exported

    if repo is None:
        raise RecipeError("--to hub needs --repo OWNER/NAME")
    try:
        validate_repo_id(repo)
        named = repo.count("/") == 1
    except HFValidationError:
        named = False
    if not named:
        raise RecipeError(
            f"--repo {repo!r:.80} is no name of a repository; give OWNER/NAME, such as your-name/my-model"
        )
    return repo


def listed(folder: Path) -> dict[str, int]:
    """Files of a folder with their sizes in bytes, by path."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in paths}


def push_folder(folder: Path, repo: str, private: bool, message: str, count: Callable[[float], None]) -> str:
    """Uploads a folder as one commit to a repository, which is made where there is none. Returns the commit's address.

    ``count`` is told the megabytes that were sent, large files as they are read.

    The token is huggingface_hub's own (``hf auth login``, or HF_TOKEN), which is neither read nor shown here.

    Raises StorageError when the hub cannot be reached or refuses.
    """
    import httpx2
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled

    api = HfApi()
    files = listed(folder)
    left = sum(files.values()) / 1e6

    def sent(megabytes: float) -> None:
        nonlocal left
        left -= (more := min(megabytes, left))  # a file that is sent again counts once
        count(more)

    try:
        api.create_repo(repo, private=private, exist_ok=True)
        if private and not api.repo_info(repo).private:
            raise StorageError(
                f"{repo} exists and is public, which --private does not change; make it private on the hub, or take "
                "another --repo"
            )
        with uploads_counted(sent):
            # the client's upload_folder makes several commits of a large folder, with half a model in between
            added = [CommitOperationAdd(name, folder / name) for name in files]
            commit = api.create_commit(repo, added, commit_message=message)
        sent(left)  # small files go with the commit, and the hub may have known some
    except OfflineModeIsEnabled as error:
        raise StorageError(f"{repo}: the hub is switched off (HF_HUB_OFFLINE); unset it, or add --dry-run") from error
    except LocalTokenNotFoundError as error:
        raise StorageError(f"{repo}: there is no token for the hub; run hf auth login, or set HF_TOKEN") from error
    except HfHubHTTPError as error:
        raise StorageError(f"{repo}: {_refusal(error.response.status_code)}") from error
    except (OSError, httpx2.HTTPError) as error:
        raise StorageError(
            f"{repo}: the hub cannot be reached ({_short(error)}); check the network and repeat"
        ) from error
    except ValueError as error:  # what the hub says of the card
        raise StorageError(f"{repo}: the hub refuses the model card ({_short(error)}); mend its head") from error
    return str(commit.commit_url)


def _refusal(status: int) -> str:
    return {
        401: "the hub knows no such token (401); run hf auth login, or set HF_TOKEN",
        403: "the token may not write there (403); take a token with write access, or another --repo",
        404: "the hub has no such owner, or hides it from this token (404); check --repo",
        409: "the repository was changed meanwhile (409); repeat the command",
        429: "the hub asks to wait (429); repeat the command later",
    }.get(status, f"the hub answered {status}; repeat the command later")


def _short(error: BaseException) -> str:
    return (one_line(str(error)) or type(error).__name__)[:300]
