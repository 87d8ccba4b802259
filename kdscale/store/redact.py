"""Credentials out of text that people and logs will see."""

import os
import re

# user:password@ of a URL. A lone user@ stays: abfs://container@account names no secret.
_USERINFO = re.compile(r"://[^@\s]*:[^@\s]*@")
_SECRETS = (
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AZURE_STORAGE_ACCOUNT_KEY",
    "AZURE_STORAGE_CONNECTION_STRING",
    "AZURE_STORAGE_SAS_TOKEN",
)


def redact(text: str) -> str:
    """`text` without passwords in URLs and without the secrets that the environment holds."""
    text = _USERINFO.sub("://***@", text)
    for name in _SECRETS:
        secret = os.environ.get(name)
        if secret:
            text = text.replace(secret, "***")
    return text
