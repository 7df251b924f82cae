"""From a run to a live collection: plan it, sync it, verify it, and move the alias last."""

from embedstore.stores.base import Progress
from embedstore.sync.copy import copy
from embedstore.sync.gates import Gate, GateResult, check_gates, parse_gate
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
from embedstore.sync.upsert import SyncReport, sync
from embedstore.sync.verify import VerifyReport, verify

__all__ = [
    "Gate",
    "GateResult",
    "GcReport",
    "Plan",
    "Progress",
    "RestoreReport",
    "Status",
    "SyncReport",
    "VerifyReport",
    "check_gates",
    "copy",
    "find_collection",
    "gc",
    "parse_gate",
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
