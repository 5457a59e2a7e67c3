"""Find the few weights that carry a skill, and the file they travel in.

from surgery.grafting import Skill, graft, merge_skills
"""

from typing import TYPE_CHECKING

from surgery.faces import face

if TYPE_CHECKING:
    from surgery.grafting.comparison import Comparison, compare
    from surgery.grafting.heads import with_tuned_head
    from surgery.grafting.localization import graft
    from surgery.grafting.memory_need import graft_need
    from surgery.grafting.merging import merge_skills, subtract_skill
    from surgery.grafting.skill import Skill
    from surgery.grafting.stack import Stack, restack

# Loaded on first use, like the names of `surgery`.
_HOMES = {
    "Comparison": "surgery.grafting.comparison",
    "Skill": "surgery.grafting.skill",
    "Stack": "surgery.grafting.stack",
    "compare": "surgery.grafting.comparison",
    "graft": "surgery.grafting.localization",
    "graft_need": "surgery.grafting.memory_need",
    "merge_skills": "surgery.grafting.merging",
    "restack": "surgery.grafting.stack",
    "subtract_skill": "surgery.grafting.merging",
    "with_tuned_head": "surgery.grafting.heads",
}

__all__ = [
    "Comparison",
    "Skill",
    "Stack",
    "compare",
    "graft",
    "graft_need",
    "merge_skills",
    "restack",
    "subtract_skill",
    "with_tuned_head",
]


__getattr__, __dir__ = face(__name__, _HOMES)
