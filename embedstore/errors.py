"""Every exception that embedstore raises on purpose.

EmbedstoreError                 exit code 1: the world is not as it should be
├── UsageError                  2: what a person typed cannot be meant
├── DataError                   1: rating or movie files that cannot be read
├── RunError                    1: a run folder that is unfinished, damaged or of a newer schema
├── NotFoundError               3: a user, movie, run, alias or collection that is not there
├── StoreError                  1: a store that refuses, is damaged or of a newer version
│   ├── StoreDamagedError       1: what a store notes about a collection or an alias cannot be read
│   ├── StoreLockedError        1: another writer holds the store
│   └── StoreUnreachableError   5: no answer
└── VerificationError           4: what was read back is not what was written; a gate that failed

Each message is one sentence: what is wrong, what was expected and found, what to do.
A caller's mistake in Python (a wrong type or shape) is a ValueError and not in this tree.
"""

__all__ = [
    "DataError",
    "EmbedstoreError",
    "NotFoundError",
    "RunError",
    "StoreDamagedError",
    "StoreError",
    "StoreLockedError",
    "StoreUnreachableError",
    "UsageError",
    "VerificationError",
]


class EmbedstoreError(Exception):
    """The root of the tree; exit_code is what the command line exits with."""

    exit_code = 1


class UsageError(EmbedstoreError):
    """What a person typed cannot be meant."""

    exit_code = 2


class DataError(EmbedstoreError):
    """A rating or movie file cannot be read as such; names file and line where it can."""


class RunError(EmbedstoreError):
    """A run folder is unfinished, damaged or of a newer schema."""


class NotFoundError(EmbedstoreError):
    """A user, movie, run, alias or collection is not there."""

    exit_code = 3


class StoreError(EmbedstoreError):
    """The store refuses, is damaged or was made by a newer version."""


class StoreDamagedError(StoreError):
    """What the store notes about a collection or an alias cannot be read; its writer makes it anew."""


class StoreLockedError(StoreError):
    """Another process is writing to the store."""


class StoreUnreachableError(StoreError):
    """The store gives no answer."""

    exit_code = 5


class VerificationError(EmbedstoreError):
    """What was read back is not what was written, or a gate failed."""

    exit_code = 4
