"""Many workers that seldom synchronise: averaging every H steps, H growing as the learning rate falls (QSR).

from surgery.sync import QSR; sync = QSR(optimizer, alpha=.0175); ...; optimizer.step(); sync.step(); ...; sync.finish(model)
"""

from typing import TYPE_CHECKING

from surgery.faces import face

if TYPE_CHECKING:
    from surgery.sync.errors import LeftOutError
    from surgery.sync.planning import Plan, plan, warmed_up
    from surgery.sync.qsr import QSR
    from surgery.sync.report import SyncReport
    from surgery.sync.schedule import Schedule
    from surgery.sync.workers import Workers

# Loaded on first use, like the names of `surgery`.
_HOMES = {
    "LeftOutError": "surgery.sync.errors",
    "Plan": "surgery.sync.planning",
    "QSR": "surgery.sync.qsr",
    "Schedule": "surgery.sync.schedule",
    "SyncReport": "surgery.sync.report",
    "Workers": "surgery.sync.workers",
    "plan": "surgery.sync.planning",
    "warmed_up": "surgery.sync.planning",
}

__all__ = ["QSR", "LeftOutError", "Plan", "Schedule", "SyncReport", "Workers", "plan", "warmed_up"]


__getattr__, __dir__ = face(__name__, _HOMES)
