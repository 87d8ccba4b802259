"""Upload of a finished export to the Hugging Face hub, or the hub that HF_ENDPOINT names.

The only module that connects to a hub. The token is HF_TOKEN's: one that a login saved is not used,
so that nothing is published by accident.
"""

import os
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HFValidationError

# The HTTP client that this release of huggingface_hub uses, whichever that is.
from huggingface_hub.utils import httpx, validate_repo_id

from kdscale.errors import KdscaleError

TOKEN = "HF_TOKEN"


def check_push(repo: str, *, with_token: bool = True) -> None:
    """Refuse an invalid repository name or a missing token; makes no connection."""
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise KdscaleError(
            f"{repo!r} is no name of a repository: {error}", "Give OWNER/NAME."
        ) from error
    if with_token and not os.environ.get(TOKEN):
        raise KdscaleError(
            f"{TOKEN} is not set.",
            f"Set {TOKEN} to a token that may write to {repo}; look first with --dry-run.",
        )


def push(folder: Path, repo: str, *, private: bool = True) -> str:
    """Upload `folder` to the model repository `repo`, created if need be; return the commit's URL.

    Raises KdscaleError where the hub refuses or cannot be reached, and where `repo` is public
    already but is to be private.
    """
    check_push(repo)
    api = HfApi(token=os.environ[TOKEN])
    try:
        api.create_repo(repo, private=private, exist_ok=True)
        if private and not api.repo_info(repo).private:
            raise KdscaleError(
                f"{repo} exists and is public.", "Say --public, or push to another name."
            )
        commit = api.upload_folder(
            repo_id=repo, folder_path=folder, commit_message="Export of kdscale"
        )
    except (httpx.HTTPError, OSError) as error:
        raise KdscaleError(
            f"The hub at {api.endpoint} did not take {repo}: {error}",
            f"The export is whole in {folder}. Check the token's rights, then: hf upload {repo} "
            f"{folder}",
        ) from error
    return str(commit.commit_url)
