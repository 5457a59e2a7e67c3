"""What a skill is to a model: labelled text, prompts and label words, readouts, scoring."""
