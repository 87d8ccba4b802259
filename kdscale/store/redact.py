"""Credentials out of text that people and logs will see."""

import os
import re

# user:password@ of a URL. A lone user@ stays: abfs://container@account names no secret.
_USERINFO = re.compile(r"://[^@\s]*:[^@\s]*@")
# Signatures and tokens in the query of a URL: Azure's SAS, presigned URLs of S3 and GCS.
_QUERY = re.compile(r"(?i)([?&](?:sig|x-(?:amz|goog)-(?:signature|security-token))=)[^&\s'\"]+")
_SECRETS = (
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AZURE_STORAGE_ACCOUNT_KEY",
    "AZURE_STORAGE_CLIENT_SECRET",
    "AZURE_STORAGE_CONNECTION_STRING",
    "AZURE_STORAGE_SAS_TOKEN",
)
# Names a job's secrets, separated by commas; set with them (submit/secrets.py).
NAMES_VARIABLE = "KDSCALE_SECRET_NAMES"


def redact(text: str) -> str:
    """`text` without passwords and signatures in URLs, and without the environment's secrets."""
    text = _QUERY.sub(r"\1***", _USERINFO.sub("://***@", text))
    for name in (*_SECRETS, *os.environ.get(NAMES_VARIABLE, "").split(",")):
        secret = os.environ.get(name)
        if secret:
            text = text.replace(secret, "***")
    return text
