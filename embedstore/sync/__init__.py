"""From a run to a live collection: plan it, sync it, verify it, and move the alias last."""

from embedstore.sync.lifecycle import Status, promote_run, rollback, status
from embedstore.sync.plan import Plan, plan
from embedstore.sync.upsert import Progress, SyncReport, sync
from embedstore.sync.verify import VerifyReport, verify

__all__ = [
    "Plan",
    "Progress",
    "Status",
    "SyncReport",
    "VerifyReport",
    "plan",
    "promote_run",
    "rollback",
    "status",
    "sync",
    "verify",
]
