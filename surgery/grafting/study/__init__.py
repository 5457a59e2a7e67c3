"""Study of skills together: located apart and in one model, transferred, calibrated, learnt in a row, merged.

from surgery.grafting.study import Settings, Study, run_study
"""

from typing import TYPE_CHECKING

from surgery.faces import face

if TYPE_CHECKING:
    from surgery.grafting.study.report import Study
    from surgery.grafting.study.running import run_study
    from surgery.grafting.study.settings import Settings

_HOMES = {
    "Settings": "surgery.grafting.study.settings",
    "Study": "surgery.grafting.study.report",
    "run_study": "surgery.grafting.study.running",
}

__all__ = ["Settings", "Study", "run_study"]


__getattr__, __dir__ = face(__name__, _HOMES)
