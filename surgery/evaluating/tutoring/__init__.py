"""TutorEval and TutorChat: answers to questions on a chapter, and dialogues about one."""
