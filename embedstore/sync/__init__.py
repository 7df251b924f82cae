"""From a run to a live collection: plan it, sync it, verify it, and move the alias last."""

from embedstore.sync.copy import copy
from embedstore.sync.lifecycle import (
    GcReport,
    Status,
    gc,
    pin,
    promote_run,
    rollback,
    status,
    unpin,
)
from embedstore.sync.plan import Plan, plan
from embedstore.sync.restore import RestoreReport, find_collection, restore
from embedstore.sync.upsert import Progress, SyncReport, sync
from embedstore.sync.verify import VerifyReport, verify

__all__ = [
    "GcReport",
    "Plan",
    "Progress",
    "RestoreReport",
    "Status",
    "SyncReport",
    "VerifyReport",
    "copy",
    "find_collection",
    "gc",
    "pin",
    "plan",
    "promote_run",
    "restore",
    "rollback",
    "status",
    "sync",
    "unpin",
    "verify",
]
